import json
import tarfile
from io import BytesIO

import pytest
from PIL import Image

from datasets_scripts import webdataset_tars
from datasets_scripts.loading import load_multifold
from datasets_scripts.multifold_folder import is_multifold_folder, list_folder
from datasets_scripts.schema import RowError


def png(shade=0):
    buffer = BytesIO()
    Image.new("L", (4, 3), shade).save(buffer, "PNG")
    return buffer.getvalue()


def pack(path, files, form=tarfile.PAX_FORMAT, **fields):
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            for field, value in fields.items():
                setattr(member, field, value)
            content = content.encode() if isinstance(content, str) else content
            member.size = fields.get("size", len(content))
            tar.addfile(member, BytesIO(content) if content else None)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


FILES = [
    ("./0001.view10.png", png(10)), ("./0001.view2.png", png(2)), ("./0001.txt", " one \r\ntwo\u2028,\n\n"),
    ("./0001.cls", "7"), ("dir/b.JPG", png(1)), ("dir/b.json", json.dumps({"caption": "a table", "width": 4})),
    ("c.json", json.dumps({"instance_id": "see", "captions": ["x", "y"], "category": "chair"})), ("c.txt", "y\nz"),
    ("README", "about"), ("._0001.png", "\0"),
]  # fmt: skip


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_samples_are_instances(tmp_path, folder, form):
    pack(folder / "train-000.tar", FILES, form)
    rows = {
        row["instance_id"]: row for row in load_multifold(str(folder), split="train", cache_dir=tmp_path / "cache")
    }
    assert list(rows) == ["0001", "dir/b", "see"]
    assert rows["0001"]["captions"] == [" one ", "two\u2028,"]
    assert [image.getextrema()[1] for image in rows["0001"]["images"]] == [2, 10]
    assert (rows["dir/b"]["captions"], rows["dir/b"]["width"]) == (["a table"], 4)
    assert (rows["see"]["captions"], rows["see"]["category"]) == (["x", "y", "z"], "chair")


def test_images_are_the_bytes_of_their_members_and_nothing_is_extracted(tmp_path, folder):
    pack(folder / "train-000.tar", FILES)
    rows = load_multifold(str(folder), split="train", streaming=True, cache_dir=tmp_path / "cache").decode(False)
    assert next(iter(rows))["images"] == [
        {"bytes": png(2), "path": "0001.view2.png"}, {"bytes": png(10), "path": "0001.view10.png"},
    ]  # fmt: skip
    assert [path.name for path in folder.iterdir()] == ["train-000.tar"]


def test_names_and_folders_tell_the_split(tmp_path, folder):
    for name in ("train-000.tar", "train-001.tar", "val_0.tar", "test/0.tar"):
        pack(folder / name, [(f"{name[:9].replace('/', '')}.txt", "a caption")])
    splits = load_multifold(str(folder), streaming=True, cache_dir=tmp_path / "cache")
    assert {split: [row["instance_id"] for row in rows] for split, rows in splits.items()} == {
        "train": ["train-000", "train-001"], "validation": ["val_0"], "test": ["test0"],
    }  # fmt: skip


def test_two_processes_share_one_tar(tmp_path, folder):
    pack(
        folder / "train.tar",
        [(f"{n}.{kind}", png(n) if kind == "png" else f"the {n}") for n in range(20) for kind in ("png", "txt")],
    )
    one, two = (load_multifold(str(folder), split="train", num_proc=n, cache_dir=tmp_path / str(n)) for n in (None, 2))
    assert one.with_format("arrow")[:].to_pylist() == two.with_format("arrow")[:].to_pylist()


def test_long_names_are_read(folder):
    pack(folder / "a.tar", [("d" * 150 + "/" + "n" * 120 + ".é.txt", "caption")])
    assert next(list_folder(folder)).instance_id == "d" * 150 + "/" + "n" * 120


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        ([("../a.txt", "x")], {}, "member '../a.txt' must have a path that stays inside, got one that climbs out"),
        ([("/etc/a.txt", "x")], {}, "member '/etc/a.txt' must have a path that stays inside"),
        ([("a.txt", b"")], {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "'a.txt' must be a plain file, got a link"),
        ([("a.txt", b"")], {"type": tarfile.LNKTYPE, "linkname": "b.txt"}, "'a.txt' must be a plain file, got a link"),
        ([("a.txt", b"")], {"type": tarfile.FIFOTYPE}, "'a.txt' must be a plain file, got a link or a special"),
        ([("a.txt", b"")], {"type": tarfile.GNUTYPE_SPARSE}, "0.tar"),
        ([("a.png", b"")], {"size": 2**40}, "'a.png' says that it has 1099511627776 bytes, which the tar hasn't"),
        ([("a.txt", b"a\0b")], {}, "0.tar, `a`, 'txt': expected text, got a NUL"),
        ([("a.txt", b"\xff")], {}, "0.tar, `a`, 'txt': expected UTF-8"),
        ([("a.txt", b"x" * (2**20 + 1))], {}, "'txt' may have 1048576 bytes, got 1048577"),
        ([("a.json", "[1]")], {}, r"0.tar, `a`: expected one JSON object, got '\[1\]'"),
        ([("a.json", '{"captions": "x"}')], {}, "0.tar, `a`, instance `a`: `captions` must be a list, got 'x'"),
        ([("a.json", '{"width": 3}')], {}, "0.tar, `a`: instance `a` has neither images nor captions"),
        ([("a.png", png()), ("b.txt", "x"), ("a.txt", "y")], {}, None),
    ],
)  # fmt: skip
def test_members_that_are_not_to_be_trusted_are_refused(tmp_path, folder, files, fields, message):
    pack(folder / "0.tar", files, **fields)
    with pytest.raises(RowError, match=message or r"must be unique, got 'a' at 0.tar, `a` and at 0.tar, `a`"):
        load_multifold(str(folder), cache_dir=tmp_path / "cache")


def test_compressed_cut_and_broken_tars_are_refused(folder):
    pack(folder / "0.tar", [("a.txt", "x"), ("b.txt", "y")])
    content = (folder / "0.tar").read_bytes()
    for broken, message in (
        (content[:1600], r"0.tar: expected a member's header at byte|b.txt' says that it has|can't be read as tar"),
        (content[:1024] + b"x" * 512 + content[1536:], r"0.tar: expected a member's header at byte 1024, got none"),
        (b"not a tar" * 200, r"0.tar can't be read as tar"),
        (b"", r"0.tar can't be read as tar"),
    ):
        (folder / "0.tar").write_bytes(broken)
        with pytest.raises(RowError, match=message):
            list(list_folder(folder))
    (folder / "0.tar").rename(folder / "0.tar.gz")
    with pytest.raises(RowError, match=r"0.tar.gz: tar files must not be compressed, .*; unpack it"):
        list(list_folder(folder))


def test_a_header_cannot_ask_for_all_memory(folder):
    """The size of a long name's block is read whole by `tarfile`."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2**33 - 1024
    folder.mkdir()
    (folder / "0.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(RowError, match=r"0.tar can't be read as tar \(it wants more than 1048576 bytes of headers\)"):
        list(list_folder(folder))


def test_samples_have_a_most_number_of_members(folder, monkeypatch):
    monkeypatch.setattr(webdataset_tars, "MAX_FOLD", 3)
    pack(folder / "0.tar", [(f"a.{n}.txt", "x") for n in range(4)])
    with pytest.raises(RowError, match=r"0.tar, `a`: a sample may have 3 members, got more"):
        list(list_folder(folder))


def test_tars_beside_parquet_are_not_the_data(folder):
    pack(folder / "raw.tar", [("a.txt", "x")])
    assert is_multifold_folder(folder)
    (folder / "data").mkdir()
    (folder / "data" / "train.parquet").write_bytes(b"")
    assert not is_multifold_folder(folder)
