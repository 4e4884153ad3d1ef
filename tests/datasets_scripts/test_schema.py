import hashlib

import datasets
import pytest

from datasets_scripts.schema import FEATURES, RowError, check_columns, check_row, check_unique, split_of

ROW = {"instance_id": "a", "images": ["a.png"], "captions": ["an a"]}


def test_splits_are_70_10_20_and_depend_on_the_salt():
    splits = [split_of(str(number), "x") for number in range(10_000)]
    assert splits.count("train") == pytest.approx(7000, abs=150)
    assert splits.count("validation") == pytest.approx(1000, abs=100)
    assert splits.count("test") == pytest.approx(2000, abs=130)
    assert splits != [split_of(str(number), "y") for number in range(10_000)]


def test_the_split_is_where_the_hash_lies():
    for number in range(50):
        fraction = int(hashlib.sha256(f"salt{number}".encode()).hexdigest(), 16) / 2**256
        expected = "train" if fraction < 0.7 else "validation" if fraction < 0.8 else "test"
        assert split_of(str(number), "salt") == expected


@pytest.mark.parametrize("change", [{}, {"images": []}, {"captions": []}, {"category": "x"}, {"category": None}])
def test_good_rows_pass(change):
    check_row(ROW | change, "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [], "captions": []}, "here: instance `a` has neither images nor captions; give it one or drop it"),
        ({"captions": "an a"}, r"here, instance `a`: `captions` must be a list, got 'an a'; wrap a single one"),
        ({"images": None}, "here, instance `a`: `images` must be a list, got None"),
        ({"captions": ["ok", 3]}, "every caption must be a non-blank string, got 3"),
        ({"captions": [" "]}, "every caption must be a non-blank string, got ' '"),
        ({"instance_id": 7}, "here: `instance_id` must be a non-empty string, got 7"),
        ({"instance_id": ""}, "`instance_id` must be a non-empty string"),
        ({"category": 3}, "`category` must be a string, got 3"),
    ],
)
def test_bad_rows_are_named(change, message):
    with pytest.raises(RowError, match=message):
        check_row(ROW | change, "here")


@pytest.mark.parametrize("column", list(ROW))
def test_missing_columns_are_named(column):
    with pytest.raises(RowError, match=f"here: `{column}` is missing"):
        check_row({name: value for name, value in ROW.items() if name != column}, "here")


def test_equal_ids_are_named_with_both_places():
    check_unique([("a", "line 1"), ("b", "line 2")])
    with pytest.raises(RowError, match="'a' at line 1 and at line 3; merge"):
        check_unique([("a", "line 1"), ("b", "line 2"), ("a", "line 3")])


def test_columns_of_other_data_sets_are_checked():
    check_columns(datasets.Features(FEATURES | {"more": datasets.Value("int8")}), "x/y")
    check_columns(datasets.Features(FEATURES | {"captions": datasets.List(datasets.Value("large_string"))}), "x/y")
    with pytest.raises(ValueError, match=r"'x/y' lacks the columns \['captions'\], it has"):
        check_columns(datasets.Features({name: FEATURES[name] for name in ("instance_id", "images")}), "x/y")
    for images in (datasets.Image(), datasets.List(datasets.Value("string"))):
        with pytest.raises(ValueError, match="`images` of 'x/y' must be List"):
            check_columns(datasets.Features(FEATURES | {"images": images}), "x/y")
