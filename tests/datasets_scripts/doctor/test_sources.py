import csv
import json
import os
import tarfile
from io import BytesIO

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from datasets_scripts import load_multifold
from datasets_scripts.doctor.__main__ import main
from datasets_scripts.doctor.diagnosis import diagnose, open_source
from datasets_scripts.doctor.findings import Place


def png(seed):
    buffer = BytesIO()
    levels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(levels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    for number in range(4):
        (path / f"{number}.png").write_bytes(png(number))
    return path


def rows():
    words = ["first apple", "second pear", "third plum", "fourth fig"]
    return [{"instance_id": f"i{n}", "images": [f"{n}.png"], "captions": [words[n]]} for n in range(4)]


def kinds_of(source):
    return [finding.kind for finding in diagnose(open_source(str(source))).findings]


def errors_of(source):
    return [finding for finding in diagnose(open_source(str(source))).findings if finding.severity == "error"]


def write_csv(path, lines):
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["instance_id", "images", "captions"])
        writer.writerows(lines)


def test_all_layouts_of_one_sound_data_set_have_no_findings(tmp_path, folder):
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows())))
    assert kinds_of(folder) == []
    (folder / "metadata.jsonl").unlink()
    write_csv(
        folder / "metadata.csv",
        [[json.dumps(value) if isinstance(value, list) else value for value in row.values()] for row in rows()],
    )
    assert kinds_of(folder) == []
    (folder / "metadata.csv").unlink()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows()), folder / "metadata.parquet")
    assert kinds_of(folder) == []
    nested = tmp_path / "nested"
    for number, row in enumerate(rows()):
        (nested / row["instance_id"]).mkdir(parents=True)
        (nested / row["instance_id"] / "view.png").write_bytes(png(number))
        (nested / row["instance_id"] / "captions.txt").write_text("\n".join(row["captions"]))
    assert kinds_of(nested) == []


def test_every_broken_line_of_a_csv_is_named(folder):
    good = [json.dumps(["0.png"]), json.dumps(["a word"])]
    write_csv(
        folder / "metadata.csv",
        [["a", *good], ["b", good[0]], ["c", *good, "more"], ["", *good], ["d", "3.png", "no list"]],
    )
    with open(folder / "metadata.csv", "ab") as file:
        file.write(b'caf\xe9,"[""1.png""]","[""x""]"\n' + b'e,"[]","' + b"x" * 200_000 + b'"\n')
    found = errors_of(folder)
    assert [(finding.kind, finding.places[0].row) for finding in found] == [
        ("broken_row", 1), ("broken_row", 2), ("bad_id", 3), ("wrong_type", 4), ("wrong_type", 4),
        ("broken_row", 5), ("broken_row", 6),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        b"{", b"[1]", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000, b"1" * 10_000, b'{"a": NaN', b"x" * 2_100_000,
    ],
)  # fmt: skip
def test_broken_lines_of_json_are_named_and_the_rest_is_read(folder, line):
    good = [json.dumps(row).encode() for row in rows()]
    (folder / "metadata.jsonl").write_bytes(b"\n".join([good[0], line, *good[1:]]))
    found = errors_of(folder)
    assert {finding.kind for finding in found} == {"broken_row"}
    assert len(diagnose(open_source(str(folder))).figures["counts"]) == 3
    assert diagnose(open_source(str(folder))).figures["counts"]["instances"]["all"] == 4


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"instance_id": {}}, "bad_id"),
        ({"instance_id": True}, "bad_id"),
        ({"instance_id": "a\0b"}, "bad_id"),
        ({"images": {}}, "wrong_type"),
        ({"images": [[]]}, "wrong_type"),
        ({"images": ["a\0.png"]}, "wrong_type"),
        ({"images": ["x" * 5000]}, "missing_image"),
        ({"images": ["."]}, "missing_image"),
        ({"captions": 3}, "wrong_type"),
        ({"captions": [{}]}, "bad_caption"),
        ({"category": ["chair"]}, "wrong_type"),
        ({"split": ["train"]}, "unknown_split"),
        ({"split": 3}, "unknown_split"),
        ({"note": "half \ud83d"}, "wrong_type"),
        ({"no\0te": 1}, "wrong_type"),
        ({"meta": {"a": ["half \ud83d"]}}, "wrong_type"),
    ],
)
def test_values_of_any_kind_are_findings_and_never_failures(tmp_path, folder, values, kind):
    lines = rows()
    lines[1] |= values
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = [finding for finding in errors_of(folder) if finding.kind == kind]
    assert [place.row for finding in found for place in finding.places] == [1]
    assert main([str(folder), "--fix", str(tmp_path / "cleaned")]) == 1
    assert errors_of(tmp_path / "cleaned") == []
    assert sum(map(len, load_multifold(str(tmp_path / "cleaned"), cache_dir=tmp_path).values())) in (3, 4)


def test_a_pipe_in_place_of_the_metadata_is_refused(folder):
    os.mkfifo(folder / "metadata.jsonl")
    (found,) = errors_of(folder)
    assert found.kind == "unreadable"
    assert "must be a regular file" in found.message


def test_samples_of_tar_files_are_examined_where_they_lie(tmp_path):
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for name, content in {"a.png": png(0), "a.txt": b"an apple", "b.png": b"broken", "b.txt": b"a pear"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    diagnosis = diagnose(open_source(str(tmp_path)))
    assert [(finding.kind, finding.places[0]) for finding in diagnosis.findings if finding.severity == "error"] == [
        ("broken_image", Place(1, "images", 0))
    ]


def test_class_labels_are_categories_by_name(tmp_path):
    features = datasets.Features(
        {
            "instance_id": datasets.Value("string"),
            "images": datasets.List(datasets.Image()),
            "captions": datasets.List(datasets.Value("string")),
            "category": datasets.ClassLabel(names=["chair", "table"]),
        }
    )
    lines = [row | {"images": [{"bytes": png(n), "path": None}], "category": n % 2} for n, row in enumerate(rows())]
    datasets.Dataset.from_list(lines, features=features).to_parquet(tmp_path / "train.parquet")
    assert set(diagnose(open_source(str(tmp_path))).figures["categories"]) == {"chair", "table"}
    assert errors_of(tmp_path) == []
