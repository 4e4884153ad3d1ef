"""The short trainings behind the comparison of objectives: what they draw, what their ways change, what they score."""

import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from runpy import run_path

import pytest
import torch

from benchmarks.fold_tensors import Fold, crop, load_fold_tensors
from benchmarks.trial import Trial
from benchmarks.trial_batches import Batches, draw_clusters
from benchmarks.trial_teachers import Teacher
from benchmarks.trials import build_trial_model, run_trial
from modeling_mxmclr.folds_mxmclr import unit_norm
from tests.references.corpus import write_corpus
from tests.references.tiny import tiny_model, tiny_processor

ROOT = Path(__file__).resolve().parents[2]
SMALL = Trial(
    "mfh", 4, 2, 2, steps=4, hidden_sizes=(8, 16), image_size=8, projection_dim=8, warmup_steps=1, evaluations=2
)


@pytest.fixture(scope="module")
def text_model():
    return tiny_model("bert", "resnet").text_model.eval()


@pytest.fixture(scope="module")
def splits(tmp_path_factory, text_model):
    folder = tmp_path_factory.mktemp("trials")
    corpus = write_corpus(folder / "squares", splits=(("train", 12), ("validation", 5), ("test", 6)))
    model = build_trial_model(SMALL, text_model)
    return load_fold_tensors({"dataset": str(corpus)}, model, tiny_processor(), 10, folder / "cache")


def test_what_is_loaded_are_the_rows_of_the_data_set_and_is_kept(splits, text_model):
    train = splits["train"]
    assert {name: len(part.instance_ids) for name, part in splits.items()} == {"train": 12, "validation": 5, "test": 6}
    assert train.images.shape == (24, 3, 10, 10)
    assert train.image_instance.bincount().tolist() == [1, 2, 3] * 4
    assert train.text_instance.bincount().tolist() == [1, 2] * 6
    assert train.captions[:2] == ["a small red square", "a small green square"]
    assert train.images[0, :, 0, 0].tolist() == [255, 0, 0]


def test_a_data_set_without_a_split_is_refused_by_name(tmp_path, text_model):
    corpus = write_corpus(tmp_path / "squares", splits=(("train", 4), ("test", 4)))
    with pytest.raises(ValueError, match=r"lacks \['validation'\]"):
        load_fold_tensors(
            {"dataset": str(corpus)}, build_trial_model(SMALL, text_model), tiny_processor(), 10, tmp_path
        )


def test_a_gallery_that_is_too_small_is_refused(tmp_path, text_model):
    corpus = write_corpus(tmp_path / "squares", splits=(("train", 8), ("validation", 5), ("test", 4)))
    with pytest.raises(ValueError, match=r"'test'.* at least 5 instances, got 4"):
        load_fold_tensors(
            {"dataset": str(corpus)}, build_trial_model(SMALL, text_model), tiny_processor(), 10, tmp_path
        )


def test_a_fold_gives_different_rows_of_its_own_as_far_as_it_has_them():
    instance = torch.tensor([0, 1, 1, 1, 2, 2])
    fold, generator = Fold.of(instance, 3), torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(50):
        rows, place = fold.draw(torch.tensor([2, 0, 1]), 2, generator)
        assert place.tolist() == [0, 0, 1, 2, 2]
        assert instance[rows].tolist() == [2, 2, 0, 1, 1]
        assert len(set(rows.tolist())) == 5
        seen |= set(rows.tolist())
    assert seen == {0, 1, 2, 3, 4, 5}


def test_an_epoch_shows_every_instance_once(splits):
    batches = Batches(SMALL, splits["train"])
    epoch = torch.cat([batches.draw_instances(4) for _ in range(3)])
    assert sorted(epoch.tolist()) == list(range(12))


def test_objectives_of_equal_folds_get_as_many_as_the_smallest_fold_has(splits):
    batch = Batches(replace(SMALL, objective="gram"), splits["train"]).draw(1)
    for name in ("image_group_ids", "text_group_ids"):
        assert batch[name].unique(return_counts=True)[1].tolist() == [1] * 4


def test_late_views_keep_the_number_of_images(splits):
    batches = Batches(replace(SMALL, instances=12, views=1, late_views=3), splits["train"])
    early, late = batches.draw(1), batches.draw(4)
    assert len(early["image_group_ids"].unique()) == 12
    assert len(late["image_group_ids"].unique()) == 4
    assert late["image_group_ids"].unique(return_counts=True)[1].max() > 1


def test_instances_without_views_are_seen_by_their_captions_alone(splits):
    batch = Batches(replace(SMALL, text_only_instances=5), splits["train"]).draw(1)
    images, texts = (set(batch[name].tolist()) for name in ("image_group_ids", "text_group_ids"))
    assert len(images) == 4
    assert images < texts
    assert len(texts) == 9


def test_whole_images_are_their_own_pixels_and_crops_are_parts_of_them():
    images = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(crop(images, 8, 1, None), images.float() / 127.5 - 1, atol=1e-5, rtol=0)
    crops = crop(images, 8, 0.5, torch.Generator().manual_seed(0))
    assert not torch.allclose(crops[0], crops[1])
    assert crops.abs().max() <= 1


def test_clusters_hold_the_nearest_instances_and_none_twice():
    angles = torch.tensor([0.0, 0.1, 0.2, 2.0, 2.1, 2.2])
    centres = torch.stack([angles.cos(), angles.sin()], dim=1)
    chosen = draw_clusters(centres, 6, 3, torch.Generator().manual_seed(0))
    assert sorted(chosen.tolist()) == list(range(6))
    assert {frozenset(part.tolist()) for part in chosen.split(3)} == {frozenset({0, 1, 2}), frozenset({3, 4, 5})}


def test_a_slow_teacher_starts_as_the_model_and_follows_it(splits, text_model):
    model = build_trial_model(replace(SMALL, dropout=0.0), text_model)
    teacher, batch = Teacher("slow", model), Batches(SMALL, splits["train"]).draw(1)
    seen = teacher.inputs(model, batch)
    torch.testing.assert_close(seen["image_teacher_embeds"], model(**batch).image_embeds)
    with torch.no_grad():
        model.visual_projection.weight.neg_()
    following = teacher.inputs(model, batch)["image_teacher_embeds"]
    assert not torch.equal(following, seen["image_teacher_embeds"])
    assert (following * seen["image_teacher_embeds"]).sum(dim=1).min() > 0.9


def test_a_frozen_teacher_is_the_text_tower(splits, text_model):
    model, batch = build_trial_model(SMALL, text_model), Batches(SMALL, splits["train"]).draw(1)
    expected = unit_norm(batch["text_tower_output"])
    torch.testing.assert_close(Teacher("frozen", model).inputs(model, batch)["text_teacher_embeds"], expected)


def test_a_trial_repeats_itself_and_counts_what_it_encodes(splits, text_model):
    once, again = (run_trial(SMALL, splits, text_model, with_test=True) for _ in range(2))
    assert once.curve == again.curve
    assert once.test == again.test
    assert [entry["step"] for entry in once.curve] == [2, 4]
    assert once.curve[-1]["images"] == pytest.approx(4 * once.images_per_step)
    assert once.validation.keys() == once.test.keys()
    other = run_trial(replace(SMALL, seed=1), splits, text_model, with_test=False)
    assert other.curve != once.curve
    assert other.test is None


@pytest.mark.parametrize(
    "way",
    [
        {"memory_steps": 2},
        {"teacher": "frozen"},
        {"teacher": "slow"},
        {"cluster_size": 2},
        {"late_views": 1},
        {"text_only_instances": 4},
        {"soft_ramp": True, "settings": {"soft_weight": 0.5}},
    ],
    ids=str,
)
def test_every_way_changes_what_is_learned(splits, text_model, way):
    plain = replace(SMALL, settings={"soft_weight": 0.5})
    losses = [
        run_trial(trial, splits, text_model, with_test=False).curve[-1]["loss"]
        for trial in (plain, replace(plain, **way))
    ]
    assert losses[0] != losses[1]


def test_the_benchmark_runs_a_plan_once_and_reports_it(tmp_path, monkeypatch, splits, text_model, capsys):
    plan = tmp_path / "small.yaml"
    plan.write_text(
        "title: Small\nseeds: [0, 1]\nscored_on: test\nbaseline: clip\nshared: {instances: 4, views: 2, steps: 2,\n"
        "  hidden_sizes: [8, 16], image_size: 8, projection_dim: 8, warmup_steps: 1, evaluations: 1}\nentries:\n"
        "  - {name: clip, objective: clip, captions: 1}\n  - {name: mfh, objective: mfh, captions: 2}\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    script = Namespace(**run_path(str(ROOT / "benchmarks/objectives.py"), run_name="benchmark"))
    bench = Namespace(splits=lambda data, trial: splits, text_model=text_model)
    read, output = script.load_plan(str(plan)), tmp_path / "output"
    script.work(read, ["squares"], output, bench)
    paths = sorted((output / "trials").glob("*.json"))
    assert len(paths) == 4
    assert len(list((output / "trials").glob("*.safetensors"))) == 4
    before = [path.stat().st_mtime_ns for path in paths]
    script.work(read, ["squares"], output, bench)
    assert [path.stat().st_mtime_ns for path in paths] == before
    text = script.write_report(read, script.results(read, ["squares"], output), output)
    assert "clip" in text
    assert (output / "small.md").is_file()
    assert (output / "small.json").is_file()
