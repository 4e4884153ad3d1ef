import csv
import json
import os
import struct
import threading
from io import BytesIO

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from datasets_scripts.listed_rows import column_type
from datasets_scripts.loading import load_multifold
from datasets_scripts.multifold_folder import MultifoldFolder
from datasets_scripts.schema import RowError

MODES = ("RGB", "RGBA", "P", "L", "LA", "I;16", "CMYK", "1")


def picture(mode="RGB", size=(5, 4)):
    return Image.fromarray(np.arange(20, dtype=np.uint16).reshape(4, 5)) if mode == "I;16" else Image.new(mode, size)


def rows_like(number=6):
    return [
        {"instance_id": f"i{n}", "images": [f"images/{n}.png", "images/0.png"], "captions": [f"the {n}", 'a "b", c']}
        for n in range(number)
    ]


def write_images(folder, number=6):
    (folder / "images").mkdir()
    for n in range(number):
        picture().save(folder / "images" / f"{n}.png")


def write_jsonl(folder, rows):
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    write_images(path)
    return path


@pytest.fixture
def load(tmp_path, folder):
    def load_folder(**settings):
        return load_multifold(str(folder), cache_dir=tmp_path / "cache", **settings)

    return load_folder


def rows_of(splits):
    return {
        split: [row | {"images": [np.asarray(image).tolist() for image in row["images"]]} for row in rows]
        for split, rows in splits.items()
    }


def test_jsonl_csv_and_parquet_give_the_same_rows(tmp_path, folder, load):
    rows = [row | {"category": "x", "note": "n"} for row in rows_like()]
    write_jsonl(folder, rows)
    expected = rows_of(load())
    (folder / "metadata.jsonl").unlink()
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {name: json.dumps(row[name]) for name in ("images", "captions")} for row in rows)
    assert rows_of(load()) == expected
    (folder / "metadata.csv").unlink()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "metadata.parquet")
    assert rows_of(load()) == expected
    assert sum(map(len, expected.values())) == 6


def test_two_processes_and_streaming_give_the_same_rows(tmp_path, folder, load):
    write_jsonl(folder, rows_like())
    one = rows_of(load())
    assert rows_of(load_multifold(str(folder), cache_dir=tmp_path / "other", num_proc=2)) == one
    assert rows_of(load(streaming=True)) == one


def test_named_splits_are_kept_and_others_hashed(folder, load):
    rows = rows_like(3)
    write_jsonl(folder, [row | {"split": split} for row, split in zip(rows, ("test", "test", "train"), strict=True)])
    assert {split: list(part["instance_id"]) for split, part in load().items()} == {
        "train": ["i2"],
        "test": ["i0", "i1"],
    }


def test_further_columns_pass_through(folder, load):
    extra = [
        {"n": 1, "x": 1, "ok": True, "word": "é", "meta": {"a": [1]}},
        {"n": None, "x": 0.5, "ok": None, "meta": "m"},
    ]
    write_jsonl(folder, [row | {"split": "train"} | more for row, more in zip(rows_like(2), extra, strict=True)])
    rows = load(split="train")
    assert [rows.features[name].dtype for name in ("n", "x", "ok", "word", "meta")] == [
        "int64", "float64", "bool", "string", "large_string",
    ]  # fmt: skip
    read = [{name: row[name] for name in ("n", "x", "ok", "word", "meta")} for row in rows]
    assert read[0] == {"n": 1, "x": 1.0, "ok": True, "word": "é", "meta": '{"a": [1]}'}
    assert read[1] == {"n": None, "x": 0.5, "ok": None, "word": None, "meta": '"m"'}


def test_whole_numbers_beyond_64_bits_become_text():
    assert column_type([1, 2**70]).dtype == "large_string"


@pytest.mark.parametrize("mode", MODES)
def test_images_of_every_mode_are_read_as_they_are(folder, load, mode):
    picture(mode).save(folder / "images" / "odd.tiff")
    write_jsonl(folder, [{"instance_id": "a", "images": ["images/odd.tiff"], "captions": [], "split": "train"}])
    assert load(split="train")[0]["images"][0].mode == mode


def test_images_travel_with_the_data_set(folder, load):
    write_jsonl(folder, rows_like())
    splits = load()
    for file in (folder / "images").iterdir():
        file.unlink()
    assert all(row["images"][0].size == (5, 4) for part in splits.values() for row in part)


def test_an_edited_folder_is_read_again(folder, load):
    write_jsonl(folder, rows_like())
    before = load()
    assert {split: part._fingerprint for split, part in load().items()} == {
        split: part._fingerprint for split, part in before.items()
    }
    picture(size=(9, 9)).save(folder / "images" / "0.png")
    after = load()
    assert {image.size for part in after.values() for row in part for image in row["images"]} == {(5, 4), (9, 9)}
    assert all(after[split]._fingerprint != before[split]._fingerprint for split in before)
    write_jsonl(folder, rows_like(5))
    assert sum(map(len, load().values())) == 5


def broken(line):
    return [json.dumps(rows_like(1)[0]), line]


def bomb():
    """A BMP of a few bytes whose header speaks of 400 million pixels."""
    buffer = BytesIO()
    Image.new("1", (1, 1)).save(buffer, "BMP")
    content = bytearray(buffer.getvalue())
    content[18:26] = struct.pack("<ii", 20_000, 20_000)
    return bytes(content)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"instance_id": "x", ',
            r"metadata.jsonl:2: expected one JSON object a line, got '\{\"instance_id\": \"x\",'",
        ),
        ("[1, 2]", r"metadata.jsonl:2: expected one JSON object a line, got '\[1, 2\]'"),
        ("\udcff", r"metadata.jsonl:2: expected UTF-8, got "),
        ('{"instance_id": "x", "images": []}', "metadata.jsonl:2: `captions` is missing"),
        ('{"instance_id": "x", "images": [], "captions": []}', "metadata.jsonl:2: instance `x` has neither"),
        ('{"instance_id": "x", "images": [], "captions": "c"}', "jsonl:2, instance `x`: `captions` must be a list"),
        ('{"instance_id": "i0", "images": [], "captions": ["c"]}', "'i0' at metadata.jsonl:1 and at metadata.jsonl:2"),
        (
            '{"instance_id": "x", "images": ["no.png"], "captions": []}',
            "jsonl:2, instance `x`: image 'no.png' isn't in",
        ),
        (
            '{"instance_id": "x", "images": ["../a.png"], "captions": []}',
            "jsonl:2, .*must be relative.*got '../a.png'",
        ),
        (
            '{"instance_id": "x", "images": ["/etc/passwd"], "captions": []}',
            "jsonl:2, .*must be relative.*'/etc/passwd'",
        ),
        ('{"instance_id": "x", "images": [3], "captions": []}', "jsonl:2, .*every image must be a path, got 3"),
        (
            '{"instance_id": "x", "images": [], "captions": ["c"], "split": "dev"}',
            "jsonl:2: `split` must be one of .*'dev'",
        ),
        (
            '{"instance_id": "x", "images": [], "captions": ["c"], "split": "test"}',
            "jsonl:1: `split` is missing, but .*:2",
        ),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_broken_metadata_lines_are_named(folder, load, line, message, streaming):
    text = "\n".join(broken(line)).encode("utf-8", "surrogateescape")
    (folder / "metadata.jsonl").write_bytes(text)
    with pytest.raises(RowError, match=message):
        load(streaming=streaming)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "instance_id,images,captions\na,[],b",
            r"metadata.csv:2, `captions`: expected a JSON list such as .*, got 'b'",
        ),
        ("instance_id,images,captions\na,[]", "metadata.csv:2: expected 3 cells as in the header"),
        ('instance_id,images,captions\na,[],"[]",x', "metadata.csv:2: expected 3 cells as in the header"),
        ('instance_id,images,captions\na,[],"[""c""]"x', "metadata.csv:2: expected CSV"),
        ("images,captions\n[],[]", "metadata.csv:2: `instance_id` is missing"),
        ("instance_id,images,captions\n", "data' lists no instance"),
    ],
)
def test_broken_csv_is_named(folder, load, text, message):
    (folder / "metadata.csv").write_text(text)
    with pytest.raises(RowError, match=message):
        load()


def test_broken_parquet_and_latin_csv_are_named(folder, load):
    (folder / "metadata.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(RowError, match=r"metadata.parquet' can't be read as Parquet"):
        load()
    (folder / "metadata.parquet").unlink()
    (folder / "metadata.csv").write_bytes("instance_id,images,captions\né,[],[]".encode("latin-1"))
    with pytest.raises(RowError, match=r"metadata.csv:2: expected UTF-8"):
        load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda good: good[: len(good) // 2], r"metadata.jsonl:1.*'images/bad.png' doesn't decode \("),
        (lambda good: b"", r"'images/bad.png' doesn't decode"),
        (lambda good: b"<html>", r"'images/bad.png' doesn't decode"),
        (lambda good: bomb(), r"'images/bad.png' (has|doesn't decode).*pixels"),
    ],
    ids=["truncated", "empty", "not an image", "bomb"],
)
@pytest.mark.parametrize("num_proc", [None, 2])
def test_broken_images_are_named_from_any_process(folder, load, content, message, num_proc):
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(buffer, "PNG")
    (folder / "images" / "bad.png").write_bytes(content(buffer.getvalue()))
    rows = [row | {"split": "train"} for row in rows_like(4)]
    rows[0]["images"] = ["images/1.png", "images/bad.png"]
    write_jsonl(folder, rows)
    with pytest.raises(RowError, match=message):
        load(num_proc=num_proc)


def test_the_pixel_limit_is_a_setting(folder, load):
    write_jsonl(folder, rows_like())
    with pytest.raises(RowError, match=r"'images/\d.png' has 20 pixels, over `max_pixels`=19; shrink it or raise"):
        load(max_pixels=19)
    assert sum(map(len, load(max_pixels=20).values())) == 6
    with pytest.raises(ValueError, match="`max_pixels` must lie within 1 and Pillow's own limit"):
        load(max_pixels=10**12)


def test_a_folder_needs_exactly_one_metadata_file(folder, load):
    write_jsonl(folder, rows_like())
    (folder / "metadata.csv").write_text("")
    with pytest.raises(ValueError, match=r"must hold exactly one of .*, got \['metadata.jsonl', 'metadata.csv'\]"):
        load()
    with pytest.raises(ValueError, match="`data_dir` must be the folder"):
        MultifoldFolder(cache_dir=str(folder))
    with pytest.raises(ValueError, match=r"must hold one of .*, got none of them"):
        MultifoldFolder(data_dir=str(folder / "images"), cache_dir=str(folder))


def test_links_inside_the_folder_are_followed(folder, load, tmp_path):
    picture().save(tmp_path / "blob.png")
    os.symlink(tmp_path / "blob.png", folder / "images" / "link.png")
    write_jsonl(folder, [{"instance_id": "a", "images": ["images/link.png"], "captions": [], "split": "test"}])
    assert load(split="test")[0]["images"][0].size == (5, 4)


def test_the_row_limit_is_a_setting(folder, load):
    write_jsonl(folder, rows_like())
    with pytest.raises(RowError, match=r"metadata.jsonl:6: expected at most `max_rows`=5 rows .*; raise `max_rows`"):
        load(max_rows=5)
    assert sum(map(len, load(max_rows=6).values())) == 6
    with pytest.raises(ValueError, match="`max_rows` must be a whole number from 1, got 0"):
        load(max_rows=0)


def test_a_listing_that_fills_memory_is_refused(folder, load):
    write_jsonl(folder, [{"instance_id": f"i{n}", "images": [], "captions": ["a"] * 50} for n in range(6)])
    with pytest.raises(
        RowError, match=r"expected at most `max_rows`=6 instances of 768 bytes on average, .* got more"
    ):
        load(max_rows=6)


def test_parquet_that_says_it_is_too_large_is_refused(folder, load):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows_like()), folder / "metadata.parquet")
    with pytest.raises(RowError, match=r"metadata.parquet: expected at most `max_rows`=5 rows .* got 6 rows of"):
        load(max_rows=5)


@pytest.mark.parametrize(
    "line",
    [
        '{"instance_id": "a\\ud800", "images": [], "captions": ["c"]}',
        '{"instance_id": "a", "images": [], "captions": ["c\\u0000"]}',
        '{"instance_id": "a", "images": [], "captions": ["c"], "more": {"x": ["\\udfff"]}}',
        '{"instance_id": "a", "images": [], "captions": ["c"], "\\ud800": 1}',
        '{"instance_id": "a", "images": ["a\\u0000.png"], "captions": ["c"]}',
    ],
)
def test_text_that_cannot_be_stored_is_named(folder, load, line):
    (folder / "metadata.jsonl").write_text(line)
    with pytest.raises(RowError, match=r"metadata.jsonl:1.*text must have neither NULs nor lone surrogates"):
        load()


def test_a_pipe_serves_as_metadata(folder, load):
    os.mkfifo(folder / "metadata.jsonl")
    text = "\n".join(json.dumps(row) for row in rows_like())
    threading.Thread(target=(folder / "metadata.jsonl").write_text, args=(text,), daemon=True).start()
    assert sum(map(len, load().values())) == 6
