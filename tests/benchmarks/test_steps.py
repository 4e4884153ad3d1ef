"""The benchmarks of steps and of what feeds them: that they compare like with like, and that they run."""

import re
import sys
from argparse import Namespace
from pathlib import Path
from runpy import run_path

import pytest
import torch

from tests.references.corpus import write_corpus
from tests.references.tiny import tiny_batch, tiny_model, tiny_processor

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"relations": 4, "size": 16, "tokens": 6, "width": 32, "layers": 1, "seed": 0, "objective": "clip"}
TINY = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
RATIO = r"\d[\d.e-]* \(\d[\d.e-]* to \d[\d.e-]*\)"


@pytest.fixture
def script(monkeypatch):
    """What a benchmark defines, under its file's name."""

    def load(name: str) -> Namespace:
        monkeypatch.setattr(sys, "path", [*sys.path])
        return Namespace(**run_path(str(ROOT / "benchmarks" / f"{name}.py"), run_name="benchmark"))

    return load


@pytest.fixture
def printed(monkeypatch, capsys, tmp_path):
    """What a benchmark prints, run with some flags in an empty folder."""

    def run(name: str, *words: str) -> str:
        path = str(ROOT / "benchmarks" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *words])
        monkeypatch.setattr(sys, "path", [*sys.path])
        run_path(path, run_name="__main__")
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    return run


def test_the_hand_written_loss_is_that_of_the_objective_clip_on_pairs(script):
    model = tiny_model("bert", "resnet", text_pooling="mean", objective="clip")
    batch = {name: rows[:5] for name, rows in tiny_batch().items()}
    batch["image_group_ids"] = batch["text_group_ids"] = torch.arange(5)
    inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    written = script("training_step").HandWritten(model, views=1, captions=1).eval()
    torch.testing.assert_close(written(**inputs), model(**batch).loss)


def test_the_hand_written_loss_of_folds_is_the_mean_over_their_pairs(script):
    model = tiny_model("bert", "resnet", text_pooling="mean", objective="clip")
    batch = {name: rows[:4] for name, rows in tiny_batch().items()}
    tokens = [batch[name].repeat_interleave(2, dim=0) for name in ("input_ids", "attention_mask")]
    of_pairs, of_folds = (script("training_step").HandWritten(model, 1, captions).eval() for captions in (1, 2))
    expected = of_pairs(batch["pixel_values"], batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(of_folds(batch["pixel_values"], *tokens), expected)


def test_ours_and_the_peer_begin_alike_and_learn_as_many_relations(script):
    module, chosen = script("against_trainer"), Namespace(**SIZES)
    ways = module.both_ways(chosen, captions=1)
    losses = [way.model.eval()(**way.collate(way.rows[: way.rows_a_step])).loss for way in ways.values()]
    torch.testing.assert_close(*losses)
    folds = module.both_ways(chosen, captions=2)
    assert [way.rows_a_step for way in folds.values()] == [2, 4]
    assert len(folds["peer"].rows) == 2 * len(folds["ours"].rows)


def test_our_step_is_measured_beside_the_hand_written_one(printed):
    words = ("--rounds", "2", "--instances", "3", "--captions", "2", "--tokens", "6")
    lines = printed("training_step", *words)
    assert re.search(rf"^ours are {RATIO} times those of the hand-written loop$", lines, re.MULTILINE)
    assert "bar ≥ 0.95" in lines


def test_the_image_path_is_measured_on_both_kinds_of_files(printed, tmp_path):
    data = str(write_corpus(tmp_path / "corpus"))
    sizes = ("--emoji", "4", "--jpegs", "4", "--jpeg_side", "64", "--jpeg_size", "16", "--rounds", "1")
    lines = printed("image_path", "--data", data, *sizes, "--workers", "0", "--clock", "cpu")
    assert len(re.findall(rf"^  ours are {RATIO} times those of the plain loop$", lines, re.MULTILINE)) == 2
    assert all(f"{kind}, median ratio" in lines for kind in ("PNGs", "JPEGs"))
    assert lines.count("bar ≥ 1:") == 2


def test_the_image_path_with_workers_is_not_measured_by_the_clock_of_one_process(printed, capsys):
    with pytest.raises(SystemExit):
        printed("image_path", "--clock", "cpu")
    assert "`--clock cpu` does not see what workers do" in capsys.readouterr().err


def test_the_text_path_is_measured_with_and_without_gradient(printed, tmp_path):
    data = str(write_corpus(tmp_path / "corpus"))
    tiny_model("bert", "resnet").text_model.save_pretrained(tmp_path / "tower")
    tiny_processor().tokenizer.save_pretrained(tmp_path / "tower")
    sizes = ("--captions", "12", "--batch_size", "4", "--step_captions", "8", "--buckets", "2", "--rounds", "1")
    lines = printed("text_path", "--data", data, "--text_model", str(tmp_path / "tower"), *sizes, "--threads", "1")
    assert len(re.findall(rf"^  ours are {RATIO} times those of padding$", lines, re.MULTILINE)) == 2
    assert lines.count("bar ≥ 2.2") == 1


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch's scheduler and loader under `Trainer`
def test_the_trainer_is_measured_on_folds_and_on_pairs(printed):
    lines = printed("against_trainer", *TINY, "--rounds", "1", "--steps", "1", "--captions", "2")
    assert lines.count("1 images and 1 texts encoded") == 3
    assert lines.count("0.5 images and 1 texts encoded") == 1
    assert all(bar in lines for bar in ("bar ≤ 0.5", "bar ≤ 1.03"))


@pytest.mark.slow
def test_sentence_transformers_is_measured_in_encodes_time_and_memory(printed):
    lines = printed("against_sentence_transformers", "--rounds", "1", "--steps", "1", "--relations", "4", "--captions", "2", "--size", "32")  # fmt: skip
    assert re.search(r"^ours .* ms, 0.5 images and 1 texts encoded, .* MB at the peak", lines, re.MULTILINE)
    assert re.search(r"^sentence-transformers .* ms, 1 images and 1 texts encoded", lines, re.MULTILINE)


@pytest.mark.slow
def test_the_objective_is_measured_in_memory_and_time_at_both_sizes(printed):
    # Large enough that the peaks are more than a page of memory.
    sizes = ("--num-images", "2000", "--num-texts", "1000", "--dim", "8", "--num-instances", "200", "--rounds", "1")
    lines = printed("objective_memory", *sizes)
    assert all(f"{form}: " in lines for form in ("tiles", "matrix", "plain"))
    assert all(bar in lines for bar in ("bar ≤ 0.75", "bar ≤ 0.0625", "bar ≤ 400", "MB of tiles at 4 x the rows"))


@pytest.mark.slow
def test_the_cached_step_is_measured_in_memory_and_time(printed):
    lines = printed("cached_step", "--images", "16", "--micro-batch", "8", "--larger", "2", "--rounds", "1")
    assert all(bar in lines for bar in ("bar ≤ 1.15", "bar ≤ 1.4"))


@pytest.mark.slow
def test_the_scaling_estimate_is_printed_with_times_and_memory(printed):
    lines = printed("scaling", "--rows", "512", "--dim", "16", "--rounds", "1")
    assert len(re.findall(rf"^\| `(?:unicl|mfh)` \| .* \| {RATIO} \| [\d.]+ \|$", lines, re.MULTILINE)) == 4
    assert len(re.findall(r"^[\d,]+ x [\d,]+ x 16: \d+ MB; ", lines, re.MULTILINE)) == 2
