import json
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from modeling_mxmclr.folds_mxmclr import hash_instance_id
from tests.references.corpus import write_corpus
from tests.references.tiny import tiny_batch, tiny_model
from tests.training.test_train import TINY, launch
from training.guards import Guards, mean_cosine, share_an_id, step_flags
from training.waiting import WINDOW

NAMES = ["mug", "bowl", "lamp", "desk", "sofa", "rug"]
IDS = torch.tensor([hash_instance_id(name) for name in NAMES])


@pytest.fixture
def session(tmp_path):
    """A run as the guards see it: one process on the CPU, six instances, warm-up until step 1."""
    rows = SimpleNamespace(column=lambda name: [*NAMES, "not drawn"])
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), process_index=0, num_processes=1, scaler=None,
        reduce=lambda flags, how: flags, wait_for_everyone=lambda: None,
    )  # fmt: skip
    arguments = SimpleNamespace(
        optimization=SimpleNamespace(output_dir=str(tmp_path), warmup_steps=1), data=SimpleNamespace(num_workers=3)
    )
    model = SimpleNamespace(config=SimpleNamespace(logit_scale_max=100.0))
    return SimpleNamespace(accelerator=accelerator, arguments=arguments, model=model, splits={"train": rows})


def named_batch():
    batch = tiny_batch()
    return batch | {name: IDS[batch[name] - 2**40] for name in ("image_group_ids", "text_group_ids")}


def made(loss=1.0, embeds=None, log_scale=2.0):
    rows = torch.nn.functional.normalize(torch.randn(7, 16, generator=torch.Generator().manual_seed(0)))
    rows = rows if embeds is None else embeds
    return SimpleNamespace(
        loss=torch.tensor(loss), image_embeds=rows, text_embeds=rows[:6], logit_scale=torch.tensor([log_scale])
    )


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.fixture(autouse=True)
def _plain_logger(monkeypatch, caplog):
    # Accelerate's logger wants an `Accelerator` to have been made.
    monkeypatch.setattr("training.guards.logger", logging.getLogger("training.guards"))
    caplog.set_level(logging.WARNING)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stops_at_its_step_and_leaves_its_batch(session, tmp_path, loss):
    batch = named_batch()
    with pytest.raises(FloatingPointError) as stopped:
        Guards(session).check_loss(3, batch, made(loss))
    path = tmp_path / "failed" / "step-3-rank-0.safetensors"
    message = str(stopped.value)
    assert f"`loss` must be a finite number, got {loss:g} at step 3" in message
    assert str(path) in message
    assert "'mug'" in message
    assert "`learning_rate`" in message
    saved = load_file(path)
    torch.testing.assert_close(saved, batch, rtol=0, atol=0)
    assert tiny_model()(**saved).loss.isfinite()
    with safe_open(path, "pt") as file:
        about = file.metadata()
    # The fifth instance has neither an image nor a text in the batch.
    assert json.loads(about["instance_ids"]) == sorted(set(NAMES) - {"sofa"})
    assert about["step"] == "3"


def test_a_late_judgement_names_the_guilty_batch_and_not_the_one_after(session, tmp_path):
    guards, guilty = Guards(session, is_late=True), named_batch()
    guards.check_loss(1, named_batch(), made())
    guards.check_loss(2, guilty | {"pixel_values": guilty["pixel_values"] + 1}, made(math.nan))
    with pytest.raises(FloatingPointError, match="at step 2"):
        guards.check_loss(3, named_batch(), made())
    saved = load_file(tmp_path / "failed" / "step-2-rank-0.safetensors")
    torch.testing.assert_close(saved["pixel_values"], guilty["pixel_values"] + 1)


def test_nothing_is_kept_before_the_last_step_was_judged(session):
    guards = Guards(session, is_late=True)
    guards.check_loss(1, named_batch(), made(math.nan))
    with pytest.raises(FloatingPointError, match="at step 1"):
        guards.settle()


def test_a_gradient_that_is_no_number_stops_though_its_loss_was_one(session):
    guards = Guards(session)
    guards.check_loss(4, named_batch(), made())
    guards.check_gradient(4, torch.tensor(3.0))
    guards.check_gradient(4, None)  # an engine that clips by itself
    with pytest.raises(FloatingPointError, match="`gradient` must be a finite number, got inf at step 4"):
        guards.check_gradient(4, torch.tensor(math.inf))
    session.accelerator.scaler = object()  # of fp16, which skips such steps and goes on
    guards.check_gradient(5, torch.tensor(math.inf))


def test_a_rank_says_when_the_fault_is_on_another_one(session):
    session.accelerator.reduce = lambda flags, how: flags.maximum(torch.tensor([1, 0, 0, 0]))
    with pytest.raises(FloatingPointError, match="got 1 here but none on another rank"):
        Guards(session).check_loss(1, named_batch(), made())


def test_inputs_that_are_no_numbers_are_traced_to_their_instance(session):
    batch = named_batch()
    batch["pixel_values"][4] = math.nan  # of the third instance
    with pytest.raises(FloatingPointError, match=r"`pixel_values` of \['lamp'\] hold values that are no numbers"):
        Guards(session).check_loss(1, batch, made(math.nan))


def test_embeddings_that_are_no_numbers_are_traced_where_the_inputs_are_sound(session):
    embeds = made().image_embeds.clone()
    embeds[3] = math.inf
    with pytest.raises(FloatingPointError, match=r"`image_embeds` of \['bowl'\] hold"):
        Guards(session).check_loss(1, named_batch(), made(math.nan, embeds))


def test_an_instance_of_no_known_name_goes_by_its_group_id(session):
    session.splits["train"].column = lambda name: NAMES[1:]
    with pytest.raises(FloatingPointError, match=f"group id {IDS[0]}"):
        Guards(session).check_loss(1, named_batch(), made(math.nan))


def test_a_batch_without_a_positive_is_told_of_once(session, caplog):
    guards, batch = Guards(session), named_batch()
    batch["text_group_ids"] = batch["text_group_ids"] + 1
    for step in (1, 2):
        guards.check_loss(step, batch, made())
    (message,) = warnings_of(caplog)
    assert "No image of the batch of step 1" in message
    assert "`instances_per_step`" in message


def test_a_batch_of_one_instance_is_told_of_once(session, caplog):
    guards, batch = Guards(session), named_batch()
    for name in ("image_group_ids", "text_group_ids"):
        batch[name] = batch[name] * 0 + IDS[0]
    for step in (1, 2):
        guards.check_loss(step, batch, made())
    (message,) = warnings_of(caplog)
    assert "The batch of step 1 holds a single instance" in message


def test_ordinary_steps_say_nothing(session, caplog):
    guards = Guards(session)
    for step in range(1, 5):
        guards.check_loss(step, named_batch(), made())
        values = guards.read(step)
    assert warnings_of(caplog) == []
    assert set(values) == {"train/image_cosine", "train/text_cosine", "train/waiting_share"}


def test_a_pinned_scale_is_told_of_at_its_second_reading_and_once(session, caplog):
    guards = Guards(session)
    for step in range(1, 5):
        guards.check_loss(step, named_batch(), made(log_scale=math.log(100)))
        guards.read(step)
        assert len(warnings_of(caplog)) == (step > 1)
    assert "pinned at its maximum, 100" in caplog.text


def test_a_scale_that_only_touches_its_maximum_is_not_pinned(session, caplog):
    guards = Guards(session)
    for step in range(1, 7):
        guards.check_loss(step, named_batch(), made(log_scale=math.log(100) if step % 2 else 4.0))
        guards.read(step)
    assert warnings_of(caplog) == []


def test_collapse_is_told_of_after_warm_up_for_each_modality(session, caplog):
    guards, alike = Guards(session), torch.nn.functional.normalize(torch.ones(7, 16))
    for step in range(1, 6):
        guards.check_loss(step, named_batch(), made(embeds=alike))
        guards.read(step)
        assert len(warnings_of(caplog)) == 2 * (step > 2)  # warm-up ends with step 1
    assert "The image embeddings have collapsed" in caplog.text
    assert "The text embeddings have collapsed" in caplog.text


def test_a_slow_loader_is_told_of_once_it_has_cost_enough(session, caplog):
    guards = Guards(session)
    guards.check_loss(1, named_batch(), made())
    guards.clock.waited, guards.clock.used = 0.3 * WINDOW, 0.6 * WINDOW
    assert guards.read(1)["train/waiting_share"] == pytest.approx(1 / 3)
    assert warnings_of(caplog) == []
    guards.clock.used = 0.8 * WINDOW
    guards.read(2)
    (message,) = warnings_of(caplog)
    assert "27% of the time goes into waiting for batches" in message
    assert "`num_workers` (3 on each rank now)" in message
    guards.clock.waited, guards.clock.used = 0.1 * WINDOW, 0.9 * WINDOW
    assert guards.read(3)["train/waiting_share"] == pytest.approx(0.1)
    assert len(warnings_of(caplog)) == 1


def test_a_single_embedding_has_no_cosine_to_log(session):
    guards, single = Guards(session), made()
    single.text_embeds = single.text_embeds[:1]
    guards.check_loss(1, named_batch(), single)
    assert "train/text_cosine" not in guards.read(1)


def test_flags_are_their_definition(session):
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        sides = [
            torch.randint(3, (int(torch.randint(4, (), generator=generator)),), generator=generator) for _ in "it"
        ]
        images, texts = (side.tolist() for side in sides)
        is_broken, has_positive, last, first = step_flags(torch.tensor(1.0), *sides).tolist()
        assert not is_broken
        assert bool(has_positive) == any(image == text for image in images for text in texts)
        assert (last == -first) == (len({*images, *texts}) == 1)


def test_flags_of_ranks_have_those_of_the_whole_batch_as_maxima():
    loss = torch.tensor(1.0)
    images, texts = named_batch()["image_group_ids"], named_batch()["text_group_ids"]
    parts = [step_flags(loss, images[:4], texts[:3]), step_flags(loss, images[4:], texts[3:])]
    parts.append(step_flags(loss, images[:0], texts[:0]))  # a rank may draw nothing
    torch.testing.assert_close(torch.stack(parts).amax(dim=0), step_flags(loss, images, texts))


def test_sharing_an_id_is_what_isin_says():
    for first, second in (([1, 5], [5, 9]), ([1, 10], [5, 9]), ([], [1]), ([1], []), ([2, 2], [2])):
        one, other = torch.tensor(first, dtype=torch.int64), torch.tensor(second, dtype=torch.int64)
        assert share_an_id(one, other).item() == torch.isin(one, other).any().item()


def test_the_mean_cosine_is_that_of_all_pairs():
    rows = made().image_embeds
    pairs = [torch.dot(rows[i], rows[j]).item() for i in range(7) for j in range(7) if i != j]
    assert mean_cosine(rows) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert mean_cosine(rows[:1].expand(5, -1)) == pytest.approx(1)
    assert mean_cosine(rows.flip(0)) == pytest.approx(mean_cosine(rows))


@pytest.mark.slow
def test_all_ranks_of_a_run_stop_at_one_step_and_leave_their_batches(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY.format(corpus=write_corpus(tmp_path / "corpus")))
    words = ("--learning_rate=1e30", "--max_grad_norm=0", "--eval_every=100", "--max_steps=9")
    run = launch("train.py", tmp_path / "tiny.yaml", *words, processes=2, cwd=tmp_path)
    assert run.returncode != 0
    assert "must be a finite number, got nan at step" in run.stderr, run.stderr[-3000:]
    names = sorted(path.name for path in (tmp_path / "runs" / "tiny" / "failed").iterdir())
    step = names[0].split("-")[1]
    assert names == [f"step-{step}-rank-0.safetensors", f"step-{step}-rank-1.safetensors"]
    instances = [
        json.loads(safe_open(tmp_path / "runs/tiny/failed" / name, "pt").metadata()["instance_ids"]) for name in names
    ]
    assert len({*instances[0], *instances[1]}) == 6
