import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from datasets import BuilderConfig, DatasetInfo, SplitGenerator, load_dataset
from huggingface_hub import DatasetCard
from PIL import Image

from datasets_scripts import RowError, load_multifold, loading
from datasets_scripts.build import build, main, parse
from datasets_scripts.schema import FEATURES, RowBuilder
from tests.references.hub_server import hub_server

ROOT = Path(__file__).resolve().parents[2]
TINY = {"num_shapes": 12, "image_size": 16, "num_views": 2}


def square(number):
    buffer = BytesIO()
    colour = (number % 256, number // 256 % 256, 7)
    Image.new("RGB", (8, 8), colour).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": f"{number}.png"}


@dataclass
class SquaresConfig(BuilderConfig):
    version: str = "1.0.0"
    rows: int = 25
    twin: bool = False


class Squares(RowBuilder):
    BUILDER_CONFIG_CLASS = SquaresConfig
    broken: int | None = None  # a row that can't be built

    def _info(self):
        return DatasetInfo(features=FEATURES.copy(), license="CC0-1.0")

    def _split_generators(self, dl_manager):
        numbers = list(range(self.config.rows))
        return [SplitGenerator("train", {"numbers": numbers[:-5]}), SplitGenerator("test", {"numbers": numbers[-5:]})]

    def _generate_examples(self, numbers):
        for number in numbers:
            if number == self.broken:
                raise RowError(f"row {number} can't be built.")
            name = 0 if self.config.twin and number == self.config.rows - 1 else number
            images = [square(number), square(number + 1)]
            yield (
                number,
                {"instance_id": f"s{name}", "images": images, "captions": [f"no. {number}"], "category": None},
            )


@pytest.fixture(autouse=True)
def _squares_have_a_name(monkeypatch):
    monkeypatch.setitem(loading.BUILDERS, "squares", Squares)


def rows_of(splits):
    return {
        split: [row | {"images": [np.asarray(image).tolist() for image in row["images"]]} for row in rows]
        for split, rows in splits.items()
    }


def files_of(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "data").iterdir()}


@pytest.mark.parametrize("num_proc", [1, 2])
def test_the_built_folder_loads_whole_and_streamed_to_the_same_rows_and_pixels(tmp_path, num_proc):
    folder = build("shapes", tmp_path / "out", num_proc=num_proc, rows_per_shard=4, **TINY)
    expected = rows_of(load_multifold("shapes", streaming=True, **TINY))
    assert rows_of(load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))) == expected
    assert rows_of(load_dataset(str(folder), streaming=True)) == expected
    assert rows_of(load_multifold(str(folder), streaming=True)) == expected


def test_files_hold_image_bytes_in_row_groups_of_a_hundred(tmp_path):
    folder = build("squares", tmp_path / "out", rows=235)
    assert sorted(files_of(folder)) == ["test-00000-of-00001.parquet", "train-00000-of-00001.parquet"]
    file = pyarrow.parquet.ParquetFile(folder / "data" / "train-00000-of-00001.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [100, 100, 30]
    images = file.read()["images"][3].as_py()
    assert [image["bytes"] for image in images] == [square(3)["bytes"], square(4)["bytes"]]


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path, monkeypatch):
    whole, out = build("squares", tmp_path / "whole", rows_per_shard=5), tmp_path / "out"
    monkeypatch.setattr(Squares, "broken", 17)
    with pytest.raises(RowError, match=r"row 17 can't be built"):
        build("squares", out, rows_per_shard=5)
    before = files_of(out)
    assert sorted(name for name in before if name.endswith(".partial")) == ["train-00003-of-00004.parquet.partial"]
    assert not (out / "README.md").exists()
    monkeypatch.undo()
    monkeypatch.setitem(loading.BUILDERS, "squares", Squares)
    build("squares", out, rows_per_shard=5)
    after = files_of(out)
    assert sum(before.get(name) == time for name, time in after.items()) == 3
    assert sorted(after) == sorted(files_of(whole))
    assert rows_of(load_dataset(str(out), streaming=True)) == rows_of(load_dataset(str(whole), streaming=True))


def test_running_again_builds_nothing(tmp_path):
    out = build("squares", tmp_path / "out", rows_per_shard=5)
    before = files_of(out)
    build("squares", tmp_path / "out", rows_per_shard=5, num_proc=2)
    assert files_of(out) == before


def test_a_changed_setting_starts_over_and_says_so(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(datasets.utils.logging.get_logger("datasets"), "propagate", True)
    out = build("squares", tmp_path / "out", rows_per_shard=5)
    assert len(files_of(out)) == 5
    build("squares", out, rows_per_shard=5, rows=12)
    assert sorted(files_of(out)) == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    assert len(load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))) == 7
    assert "it starts over" in caplog.text


def write_folder(folder, caption="a"):
    folder.mkdir(exist_ok=True)
    Image.new("L", (6, 6)).save(folder / "a.png")
    row = {"instance_id": "a", "images": ["a.png"], "captions": [caption], "split": "train", "note": 3}
    (folder / "metadata.jsonl").write_text(json.dumps(row))


def test_a_folder_keeps_its_further_columns_and_is_built_again_when_it_changes(tmp_path):
    write_folder(tmp_path / "raw")
    out = build(str(tmp_path / "raw"), tmp_path / "out")
    (row,) = load_dataset(str(out), split="train", streaming=True)
    assert (row["captions"], row["note"]) == (["a"], 3)
    write_folder(tmp_path / "raw", "another")
    build(str(tmp_path / "raw"), tmp_path / "out")
    (row,) = load_dataset(str(out), split="train", streaming=True)
    assert row["captions"] == ["another"]


def test_a_folder_may_be_built_inside_itself(tmp_path):
    write_folder(tmp_path / "raw")
    out = build(str(tmp_path / "raw"), tmp_path / "raw" / "out")
    before = files_of(out)
    build(str(tmp_path / "raw"), out)
    assert files_of(out) == before


def test_rows_that_share_an_id_are_joined_wherever_they_stand(tmp_path):
    rows = {"name": ["a", "b", "a"], "text": ["one", "two", "three"]}
    (tmp_path / "raw").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "raw" / "train.parquet")
    main(
        [
            str(tmp_path / "raw"),
            "--output",
            str(tmp_path / "out"),
            "--instance_column",
            "name",
            "--caption_columns",
            "text",
        ]
    )
    built = load_dataset(str(tmp_path / "out"), split="train", streaming=True)
    assert {row["instance_id"]: row["captions"] for row in built} == {"a": ["one", "three"], "b": ["two"]}


def test_other_files_are_never_touched(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ValueError, match=r"`output` must be new, empty or a build's, .* holds other files"):
        build("squares", tmp_path)
    with pytest.raises(ValueError, match=r"`output` must be a folder, got the file"):
        build("squares", tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_id_that_comes_twice_is_named_with_both_places(tmp_path):
    message = r"got 's0' at train-00000-of-00001.parquet, row 0 and at test-00000-of-00001.parquet, row 4"
    with pytest.raises(RowError, match=message):
        build("squares", tmp_path / "out", twin=True)
    assert not (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize("num_proc", [1, 2])
def test_broken_rows_reach_the_caller_as_they_are(tmp_path, monkeypatch, num_proc):
    monkeypatch.setattr(Squares, "broken", 17)
    with pytest.raises(RowError, match=r"^row 17 can't be built\.$"):
        build("squares", tmp_path / "out", num_proc=num_proc, rows_per_shard=5)


def test_a_data_set_without_rows_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Squares, "_split_generators", lambda self, dl_manager: [])
    with pytest.raises(ValueError, match=r"`dataset` must have rows, 'squares' has none"):
        build("squares", tmp_path / "out")


@pytest.mark.parametrize("counts", [{"num_proc": 0}, {"rows_per_shard": -1}, {"num_proc": "2"}])
def test_counts_that_cannot_be_are_named(tmp_path, counts):
    with pytest.raises(ValueError, match=rf"`{next(iter(counts))}` must be a whole number from 1"):
        build("squares", tmp_path / "out", **counts)


def test_the_card_says_licence_schema_sizes_and_how_it_was_built(tmp_path):
    out = build("squares", tmp_path / "out")
    card = DatasetCard.load(out / "README.md")
    assert card.data.license == ["cc0-1.0"]
    splits = {split["name"]: split["num_examples"] for split in card.data.dataset_info["splits"]}
    assert splits == {"train": 20, "test": 5}
    assert "| train | 20 | 40 | 20 |" in card.text
    assert "| `captions` |" in card.text
    assert '"dataset": "squares"' in card.text
    for name in ("fold_sizes.png", "samples.png"):
        assert f"]({name})" in card.text
        with Image.open(out / name) as picture:
            assert picture.width > 100


def test_a_licence_can_be_given(tmp_path):
    out = build("squares", tmp_path / "out", license="cc-by-4.0")
    assert DatasetCard.load(out / "README.md").data.license == ["cc-by-4.0"]


def test_the_command_line_takes_the_settings_of_the_builder(tmp_path, capsys):
    chosen, settings = parse(
        ["shapes", "--output", "o", "--seed", "3", "--kinds", "chair", "table", "--num_proc", "2"]
    )
    assert settings == {"seed": 3, "kinds": ["chair", "table"]}
    assert (chosen.dataset, chosen.num_proc, chosen.push_to_hub) == ("shapes", 2, None)
    assert parse(["--output", "o", "--private", "shapes", "--seed", "3"])[1] == {"seed": 3}
    main(["squares", "--output", str(tmp_path / "out"), "--rows", "8"])
    assert "Built '" in capsys.readouterr().out
    assert load_dataset(str(tmp_path / "out"), split="train", streaming=True).info.splits["train"].num_examples == 3


@pytest.mark.parametrize(
    "arguments", [["shapes", "--output", "o", "--rows", "3"], ["shapes"], ["shapes", "--out", "o"]]
)
def test_unknown_and_missing_flags_end_it(arguments, capsys):
    with pytest.raises(SystemExit):
        parse(arguments)
    assert "usage:" in capsys.readouterr().err


def test_what_is_wrong_ends_the_command_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Squares, "broken", 3)
    with pytest.raises(SystemExit, match=r"^RowError: row 3 can't be built\.$"):
        main(["squares", "--output", str(tmp_path / "out")])


def test_help_shows_the_settings_of_the_data_set_and_examples(capsys):
    with pytest.raises(SystemExit):
        parse(["squares", "--help"])
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("settings of squares", "--rows", "--no-twin", "--push_to_hub", "examples:"))


ROUND_TRIP = """
import json, sys
import numpy as np
from datasets import load_dataset
from datasets_scripts import load_multifold
from datasets_scripts.build import main
from huggingface_hub import HfApi

TINY = {"num_shapes": 12, "image_size": 16, "num_views": 2}

def rows_of(splits):
    return {
        split: [row | {"images": [np.asarray(image).tolist() for image in row["images"]]} for row in rows]
        for split, rows in splits.items()
    }

def push(shapes, rows_per_shard):
    main(["shapes", "--output", sys.argv[1], "--num_shapes", str(shapes), "--image_size", "16", "--num_views", "2",
          "--rows_per_shard", str(rows_per_shard), "--push_to_hub", "org/shapes", "--private"])

push(12, 4)
expected = rows_of(load_multifold("shapes", streaming=True, **TINY))
print(rows_of(load_dataset("org/shapes")) == expected, rows_of(load_dataset("org/shapes", streaming=True)) == expected,
      rows_of(load_multifold("org/shapes")) == expected)
push(9, 100)
info = HfApi().dataset_info("org/shapes")
print(json.dumps([info.private, sorted(file.rfilename for file in info.siblings)]))
"""


def test_what_is_pushed_loads_to_the_same_rows_and_pixels(tmp_path):
    with hub_server() as server:
        done = subprocess.run(
            [sys.executable, "-c", ROUND_TRIP, str(tmp_path / "out")],
            env=server.environment(tmp_path / "home"),
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("True True True") == 1
    splits = [f"data/{split}-00000-of-00001.parquet" for split in ("test", "train")]  # none of 9 is for validation
    assert json.loads(lines[-1]) == [True, ["README.md", *splits, "fold_sizes.png", "samples.png"]]


PEAK = """
import resource, sys
from datasets_scripts import loading
from datasets_scripts.build import build
from tests.datasets_scripts.test_build import Squares
loading.BUILDERS["squares"] = Squares
build("squares", sys.argv[1], rows=100_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_stays_flat(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout.splitlines()[-1]) < 1.5 * 2**20  # kilobytes
    sizes = Counter(path.name.partition("-")[0] for path in (tmp_path / "out" / "data").iterdir())
    assert sizes == {"train": 200, "test": 1}
