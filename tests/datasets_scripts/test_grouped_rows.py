from io import BytesIO

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from datasets_scripts.grouped_rows import image_of
from datasets_scripts.loading import load_multifold
from datasets_scripts.schema import FEATURES, RowError

PAIRS = {"instance_column": "model", "image_columns": ["photo"], "caption_columns": ["text"]}


def png(shade):
    buffer = BytesIO()
    Image.new("L", (4, 3), shade).save(buffer, "PNG")
    return buffer.getvalue()


def images(*shades):
    return [{"bytes": png(shade), "path": f"{shade}.png"} for shade in shades]


@pytest.fixture
def load(tmp_path):
    def load_rows(columns, features=None, name="train", **settings):
        """Write the columns as a Parquet folder, and load it again."""
        (tmp_path / "data").mkdir(exist_ok=True)
        rows = datasets.Dataset.from_dict(columns, features=None if features is None else datasets.Features(features))
        rows.to_parquet(tmp_path / "data" / f"{name}.parquet")
        return load_multifold(str(tmp_path / "data"), cache_dir=tmp_path / "cache", **settings)

    return load_rows


@pytest.fixture
def pairs():
    """A row for each pair, the image again in each; the rows of an instance are not adjacent."""
    return {
        "model": [7, 12, 7, 7, 12],
        "photo": images(1, 2, 1, 3, 2),
        "text": ["a chair", "a table", "a red chair", "a chair", None],
        "category": [None, "table", "chair", "chair", "table"],
        "price": [1, 2, 3, 4, 5],
    }, {
        "model": datasets.Value("int32"), "photo": datasets.Image(), "text": datasets.Value("string"),
        "category": datasets.Value("string"), "price": datasets.Value("int64"),
    }  # fmt: skip


def test_rows_that_share_an_id_become_one_instance(load, pairs):
    rows = load(*pairs, **PAIRS, split="train")
    assert rows.features == FEATURES
    seven, twelve = rows.with_format("arrow")[:].to_pylist()
    assert seven == {
        "instance_id": "7", "images": images(1, 3), "captions": ["a chair", "a red chair"], "category": "chair",
    }  # fmt: skip
    assert (twelve["instance_id"], twelve["images"], twelve["captions"]) == ("12", images(2), ["a table"])


def test_columns_may_hold_lists_and_be_several(load):
    image = datasets.Image()
    columns = {
        "sku": ["a", "b"], "front": images(1, 2), "more": [images(3, 4), []], "title": ["A", "B"],
        "reviews": [["good", "good"], None],
    }  # fmt: skip
    texts = datasets.List(datasets.Value("string"))
    features = {"sku": datasets.Value("string"), "front": image, "more": datasets.List(image),
                "title": datasets.Value("string"), "reviews": texts}  # fmt: skip
    rows = load(columns, features, split="train", instance_column="sku", image_columns=["front", "more"],
                caption_columns=["title", "reviews"])  # fmt: skip
    assert [row["captions"] for row in rows] == [["A", "good", "good"], ["B"]]
    assert [[view.getextrema()[0] for view in row["images"]] for row in rows] == [[1, 3, 4], [2]]


def test_images_written_without_datasets_are_read(tmp_path):
    for name, values in (("bytes", [png(1), png(2)]), ("struct", images(1, 2))):
        folder = tmp_path / name
        folder.mkdir()
        table = pyarrow.table({"model": ["a", "a"], "photo": values, "text": ["x", "y"]})
        pyarrow.parquet.write_table(table, folder / "train.parquet")
        (row,) = load_multifold(str(folder), split="train", cache_dir=tmp_path / "cache", **PAIRS)
        assert [view.getextrema()[0] for view in row["images"]] == [1, 2]


def test_streams_need_the_rows_of_an_instance_together(load, pairs):
    columns, features = pairs
    stored = load(columns, features, split="train", **PAIRS)
    with pytest.raises(
        RowError, match=r"row 2 of train: instance `7` was in former rows, .* load without `streaming`"
    ):
        list(load(columns, features, streaming=True, split="train", **PAIRS))
    order = [0, 2, 3, 1, 4]
    together = {name: [values[row] for row in order] for name, values in columns.items()}
    streams = load(together, features, streaming=True, **PAIRS)
    assert list(streams["train"].decode(False)) == stored.with_format("arrow")[:].to_pylist()


def test_two_processes_give_the_same_rows(load, tmp_path):
    columns = {"model": [str(n // 2) for n in range(40)], "text": [f"text {n}" for n in range(40)]}
    chosen = {"instance_column": "model", "caption_columns": ["text"], "split": "train"}
    one, two = load(columns, **chosen), load(columns, num_proc=2, **chosen)
    assert list(one["captions"]) == list(two["captions"])
    assert len(one) == 20


def test_another_choice_of_columns_is_another_data_set(load, pairs):
    with_text = load(*pairs, **PAIRS, split="train")
    without = load(*pairs, **(PAIRS | {"caption_columns": []}), split="train")
    assert with_text._fingerprint != without._fingerprint
    assert without[0]["captions"] == []


def test_an_id_in_two_splits_is_named(load, pairs):
    load(*pairs, name="train", **PAIRS)
    with pytest.raises(RowError, match=r"`instance_id` must be unique, got '7' at '.*' train and at '.*' test"):
        load(*pairs, name="test", **PAIRS)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"instance_column": "id"}, r"has no columns \['id'\], it has \['model', 'photo', 'text'"),
        (
            {"image_columns": ["text"], "caption_columns": []},
            "`image_columns`: 'text' of '.*' must hold images or lists of them, got Value",
        ),
        (
            {"image_columns": [], "caption_columns": ["photo"]},
            "`caption_columns`: 'photo' of '.*' must hold strings or lists of them, got I",
        ),
        (
            {"instance_column": "photo", "image_columns": []},
            "`instance_column` of '.*' must hold strings or whole num",
        ),
        ({"instance_column": None}, "`instance_column` goes with `image_columns` or `caption_columns`, got None, "),
        ({"image_columns": [], "caption_columns": []}, r"goes with .*got 'model', \[\] and \[\]; give the column"),
        ({"image_columns": "photo"}, r"`image_columns` must be a list of columns, got 'photo'; wrap"),
        ({"caption_columns": ["text", "model"]}, r"must all differ, got \['model', 'photo', 'text', 'model'\]"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_choices_that_cannot_be_are_named(load, pairs, chosen, message, streaming):
    with pytest.raises(ValueError, match=message):
        load(*pairs, streaming=streaming, **(PAIRS | chosen))


def test_builders_have_the_schemas_columns(tmp_path):
    with pytest.raises(ValueError, match="`instance_column` must be left out for 'shapes', got 'model'"):
        load_multifold("shapes", cache_dir=tmp_path, **PAIRS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": [7, None, 7, 7, 12]}, "row 1 of train: the instance column must hold an id, got None"),
        ({"text": ["a", " ", "b", "c", "d"]}, "row 1 of train, instance `12`: every caption must be a non-blank"),
        ({"text": ["a", "b\0", "b", "c", "d"]}, "row 1 of train, instance `12`: text must have neither NULs"),
        (
            {"photo": [*images(1), {"bytes": b"<html>", "path": "x.png"}, *images(1, 1, 1)]},
            "image 'x.png' doesn't dec",
        ),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_broken_rows_are_named(load, pairs, change, message, streaming):
    columns, features = pairs
    if "model" not in change:
        columns["model"] = [7, 12, 13, 14, 15]
    with pytest.raises(RowError, match=message):
        list(load(columns | change, features, streaming=streaming, split="train", **PAIRS))


def test_the_pixel_limit_holds_here_too(load, pairs):
    with pytest.raises(RowError, match="has 12 pixels, over `max_pixels`=11"):
        load(*pairs, max_pixels=11, **PAIRS)


def test_broken_parquet_is_refused(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(RowError, match=r"can't be read \(.*; get its files again"):
        load_multifold(str(tmp_path), cache_dir=tmp_path / "cache", **PAIRS)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "here: images must be embedded, or files of the data set, got None"),
        ("http://x/y.png", "here: images must be embedded, .*got 'http://x/y.png'; download them first"),
        ("zip://y.png::http://x/y.zip", "here: images must be embedded"),
        ("/nowhere/y.png", "here: image '/nowhere/y.png' can't be read .*No such file"),
    ],
)
def test_images_are_fetched_from_nowhere(path, message):
    with pytest.raises(RowError, match=message):
        image_of({"bytes": None, "path": path}, "here")


def test_images_of_the_data_sets_own_files_are_read(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    assert image_of({"bytes": None, "path": str(tmp_path / "a.png")}, "here") == (png(1), "a.png")
