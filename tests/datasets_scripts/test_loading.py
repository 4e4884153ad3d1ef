import datasets
import numpy as np
import pytest
from PIL import Image

import datasets_scripts
from datasets_scripts import load_multifold, loading

TINY = {"num_shapes": 12, "image_size": 16, "num_views": 2}


def test_shapes_load_by_name_whole_by_split_and_streamed(tmp_path):
    splits = load_multifold("shapes", cache_dir=tmp_path, **TINY)
    train = load_multifold("shapes", cache_dir=tmp_path, split="train", **TINY)
    stream = load_multifold("shapes", cache_dir=tmp_path, split="train", streaming=True, **TINY)
    assert isinstance(splits, datasets.DatasetDict)
    assert isinstance(train, datasets.Dataset)
    assert isinstance(stream, datasets.IterableDataset)
    assert list(splits["train"]["captions"]) == list(train["captions"]) == [row["captions"] for row in stream]


def test_the_identity_of_a_data_set_is_its_settings(tmp_path):
    first, again = (load_multifold("shapes", cache_dir=tmp_path, split="train", **TINY) for _ in range(2))
    other = load_multifold("shapes", cache_dir=tmp_path, split="train", **(TINY | {"seed": 1}))
    assert first._fingerprint == again._fingerprint != other._fingerprint
    assert (first.info.builder_name, first.info.config_name, str(first.info.version)) == ("shapes", "small", "1.0.0")


def test_configurations_are_chosen_by_name(tmp_path):
    rows = load_multifold("shapes", config="primitives", cache_dir=tmp_path, split="train", **TINY)
    assert set(rows["category"]) == {"primitive"}


def test_parquet_folders_with_the_schema_load(tmp_path):
    rows = load_multifold("shapes", cache_dir=tmp_path / "cache", split="train", **TINY)
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet" / "train.parquet")
    for streaming in (False, True):
        loaded = load_multifold(
            str(tmp_path / "parquet"), cache_dir=tmp_path / "cache", split="train", streaming=streaming
        )
        assert [row["captions"] for row in loaded] == list(rows["captions"])
        assert all(isinstance(row["images"][0], Image.Image) for row in loaded)


def test_data_sets_without_the_schema_are_refused(tmp_path):
    datasets.Dataset.from_dict({"image": ["a"], "caption": ["b"]}).to_parquet(tmp_path / "train.parquet")
    for streaming in (False, True):
        with pytest.raises(
            ValueError, match=r"lacks the columns \['instance_id', 'images', 'captions'\], it has \['image"
        ):
            load_multifold(str(tmp_path), cache_dir=tmp_path / "cache", streaming=streaming)


def test_equal_ids_in_two_splits_are_named(tmp_path):
    rows = load_multifold("shapes", cache_dir=tmp_path / "cache", split="train", **TINY)
    (tmp_path / "parquet").mkdir()
    for split in ("train", "test"):
        rows.to_parquet(tmp_path / "parquet" / f"{split}.parquet")
    with pytest.raises(
        datasets_scripts.RowError, match=r"got 'chair-table-.*' at row 0 of '.*' train and at row 0 of '.*' test"
    ):
        load_multifold(str(tmp_path / "parquet"), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("error", [datasets.exceptions.DatasetNotFoundError, ConnectionError])
def test_unknown_data_sets_name_what_there_is(tmp_path, monkeypatch, error):
    def nothing_found(*args, **kwargs):
        raise error("'shaeps' isn't on the Hub, or the Hub out of reach.")

    monkeypatch.setattr(loading, "load_dataset", nothing_found)
    with pytest.raises(ValueError, match=r"`dataset` must be one of \[.*'shapes'.*\], a folder .*, got 'shaeps'"):
        load_multifold("shaeps", cache_dir=tmp_path)


def test_a_folder_has_no_configurations(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"instance_id": "a", "images": [], "captions": ["a"]}')
    with pytest.raises(ValueError, match=r"`config` must be left out for the folder .*, got 'small'"):
        load_multifold(str(tmp_path), config="small")


def test_rows_decode_to_images_of_the_size_asked_for(tmp_path):
    row = load_multifold("shapes", cache_dir=tmp_path, split="train", **TINY)[0]
    assert [np.asarray(image).shape for image in row["images"]] == [(16, 16, 3)] * 2


def test_the_public_names_are_there():
    assert all(hasattr(datasets_scripts, name) for name in datasets_scripts.__all__)
