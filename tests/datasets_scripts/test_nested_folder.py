import numpy as np
import pytest
from PIL import Image

from datasets_scripts.loading import load_multifold
from datasets_scripts.multifold_folder import is_multifold_folder, list_folder
from datasets_scripts.schema import RowError, split_of


def put(folder, name, views=("view.png",), captions="a chair\n"):
    (folder / name).mkdir(parents=True)
    for shade, view in enumerate(views):
        Image.new("L", (4, 3), shade).save(folder / name / view)
    if captions is not None:
        (folder / name / "captions.txt").write_text(captions, encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_each_folder_is_an_instance(tmp_path, folder):
    put(folder, "a", ("view10.png", "view2.jpg", "view1.PNG"), '\ufeff one \r\n\r\ntwo, "2"\nthree')
    put(folder, "b", captions=None)
    put(folder, "c", views=())
    (folder / "a" / ".DS_Store").write_bytes(b"\0")
    (folder / "a" / "model.obj").write_text("v 0 0 0")
    (folder / "README.md").write_text("about")
    splits = load_multifold(str(folder), cache_dir=tmp_path / "cache")
    rows = {row["instance_id"]: row | {"split": split} for split, part in splits.items() for row in part}
    assert rows["a"]["captions"] == [" one ", 'two, "2"', "three"]
    assert [np.asarray(image).max() for image in rows["a"]["images"]] == [2, 1, 0]
    assert (len(rows["b"]["images"]), rows["b"]["captions"]) == (1, [])
    assert (rows["c"]["images"], rows["c"]["captions"]) == ([], ["a chair"])
    assert all(row["split"] == split_of(name) for name, row in rows.items())


def test_folders_called_like_splits_are_splits(tmp_path, folder):
    for name in ("train/a", "train/b", "val/c", "test/d"):
        put(folder, name)
    splits = load_multifold(str(folder), streaming=True, cache_dir=tmp_path / "cache")
    assert {split: [row["instance_id"] for row in rows] for split, rows in splits.items()} == {
        "train": ["a", "b"], "validation": ["c"], "test": ["d"],
    }  # fmt: skip


def test_two_processes_give_the_same_rows(tmp_path, folder):
    for number in range(20):
        put(folder, f"train/{number}", captions=f"the {number}")
    one, two = (load_multifold(str(folder), split="train", num_proc=n, cache_dir=tmp_path / str(n)) for n in (None, 2))
    assert list(one["captions"]) == list(two["captions"])


def test_an_edited_captions_file_is_read_again(tmp_path, folder):
    put(folder, "train/a")
    assert load_multifold(str(folder), split="train", cache_dir=tmp_path)[0]["captions"] == ["a chair"]
    (folder / "train/a/captions.txt").write_text("a table")
    assert load_multifold(str(folder), split="train", cache_dir=tmp_path)[0]["captions"] == ["a table"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: (a / "caption.txt").write_text("x"), "a: captions must stand in `captions.txt`, got 'caption.txt'"),
        (lambda a: (a / "captions.txt").write_bytes(b"\xff"), "captions.txt:1: expected UTF-8"),
        (lambda a: (a / "captions.txt").write_bytes(b"a\0b"), "captions.txt:1: expected text, got a NUL"),
        (lambda a: [file.unlink() for file in a.iterdir()], "a: instance `a` has neither images nor captions"),
        (lambda a: (a / "x.png").symlink_to("none.png"), "image 'a/x.png' isn't in"),
    ],
)
def test_broken_folders_are_named(folder, spoil, message):
    put(folder, "a")
    put(folder, "b")
    spoil(folder / "a")
    with pytest.raises(RowError, match=message):
        list(list_folder(folder))


def test_links_out_of_the_folder_are_refused(tmp_path, folder):
    put(folder, "a")
    put(tmp_path, "elsewhere", captions="a secret")
    (folder / "a" / "captions.txt").unlink()
    (folder / "a" / "captions.txt").symlink_to(tmp_path / "elsewhere" / "captions.txt")
    with pytest.raises(RowError, match=r"a/captions.txt' must lie inside '.*', got a link out of it"):
        list(list_folder(folder))
    (folder / "a" / "captions.txt").unlink()
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RowError, match=r"b' must lie inside '.*', got a link out of it"):
        list(list_folder(folder))


def test_folders_without_captions_files_are_none_of_ours(folder):
    put(folder, "a", captions=None)
    assert not is_multifold_folder(folder)
    assert not is_multifold_folder(folder / "missing")
