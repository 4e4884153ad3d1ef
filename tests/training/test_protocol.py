import json
from dataclasses import fields, replace
from itertools import chain

import pytest
import yaml

from training.protocol import (
    CHOICES,
    DEFAULT_PROTOCOL,
    DIRECTIONS,
    PROTOCOLS,
    SIZES,
    Protocol,
    load_protocol,
    protocol_names,
)

DEFAULT_FILE = PROTOCOLS / f"{DEFAULT_PROTOCOL}.yaml"


def write(path, **changes):
    """A copy of the default protocol's file with some keys changed, or dropped where the value is None."""
    settings = {**yaml.safe_load(DEFAULT_FILE.read_text()), **changes}
    path.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not None}))
    return path


def test_the_protocols_that_people_cite_are_there_under_their_own_names():
    assert {
        "text2shape/tricolo",
        "text2shape/parts2words",
        "flickr30k/karpathy-1k",
        "multifold/instance",
        "multifold/observation",
        "multifold/max_sim",
        "zero-shot",
    } == set(protocol_names())
    assert [load_protocol(name).name for name in protocol_names()] == protocol_names()


def test_no_two_protocols_of_different_rules_share_a_hash():
    hashes = {name: load_protocol(name).hash for name in protocol_names()}
    assert len(set(hashes.values())) == len(hashes)


def test_published_sizes_are_stated():
    assert load_protocol("flickr30k/karpathy-1k").expected_sizes["test"] == dict(
        zip(SIZES, (1000, 1000, 5000), strict=True)
    )
    assert load_protocol("text2shape/tricolo").expected_sizes["test"] == {"num_instances": 1492}
    assert load_protocol("text2shape/parts2words").expected_sizes["test"] == {"num_instances": 1434}


def test_order_of_keys_comments_prose_and_path_do_not_change_the_hash(tmp_path):
    settings = yaml.safe_load(DEFAULT_FILE.read_text())
    path = tmp_path / "mine.yaml"
    reordered = dict(reversed(settings.items())) | {"description": "Other words.", "name": "mine"}
    path.write_text("# a comment\n" + yaml.safe_dump(reordered, sort_keys=False))
    reordered["directions"].reverse()
    assert load_protocol(path).hash == load_protocol(DEFAULT_PROTOCOL).hash
    assert load_protocol(str(path)).name == "mine"


@pytest.mark.parametrize(
    "change",
    [
        {"pooling": "attention"},
        {"directions": ("text_to_instance",)},
        {"hit_ks": (1, 5)},
        {"recall_ks": (5,)},
        {"ndcg_ks": (10,)},
        {"hit_rule": "share"},
        {"identical_captions": "drop_repeats"},
        {"captions_per_instance": 5},
        {"captions_per_query": None},
        {"resamples": 999},
        {"seed": 1},
    ],
)
def test_whatever_changes_a_number_changes_the_hash(change):
    protocol = load_protocol(DEFAULT_PROTOCOL)
    assert replace(protocol, **change).hash != protocol.hash


def test_the_hash_of_the_default_is_pinned():
    # Results in the world carry it: a change here means that old and new results no longer compare.
    assert load_protocol(DEFAULT_PROTOCOL).hash == "b43141bf943a"


def test_all_captions_are_written_as_all(tmp_path):
    path = write(tmp_path / "fused.yaml", captions_per_query="all", captions_per_instance=5)
    protocol = load_protocol(path)
    assert (protocol.captions_per_query, protocol.captions_per_instance) == (None, 5)


def test_a_protocol_as_json_holds_settings_hash_and_rules_in_words():
    protocol = load_protocol("multifold/max_sim")
    shown = json.loads(json.dumps(protocol.as_dict()))
    assert (shown["name"], shown["hash"], shown["pooling"]) == ("multifold/max_sim", protocol.hash, "max_sim")
    assert shown["hit_ks"] == [1, 5, 10]
    assert "best-scoring view" in shown["rules"]["pooling"]
    assert {"ties", "scores", "intervals", "identical_captions", "hit_rule"} <= shown["rules"].keys()


def test_the_page_names_every_protocol_key_and_value():
    page = (PROTOCOLS.parents[1] / "docs" / "evaluation.md").read_text()
    keys = [each.name for each in fields(Protocol)]
    words = [*protocol_names(), *keys, *DIRECTIONS, *chain(*CHOICES.values()), *SIZES]
    assert [word for word in words if f"`{word}`" not in page] == []


def test_lists_and_tuples_are_the_same():
    protocol = load_protocol(DEFAULT_PROTOCOL)
    assert replace(protocol, hit_ks=[1, 5, 10]) == protocol


def test_an_unknown_key_is_named_with_its_file_and_the_keys_there_are(tmp_path):
    path = write(tmp_path / "mine.yaml", poolling="mean")
    with pytest.raises(ValueError, match=r"mine\.yaml': unknown key `poolling`; the keys are \['name', .*'pooling'"):
        load_protocol(path)


def test_a_missing_key_is_named_with_its_file_and_the_keys_it_must_have(tmp_path):
    path = write(tmp_path / "mine.yaml", ndcg_ks=None)
    with pytest.raises(ValueError, match=r"mine\.yaml': key `ndcg_ks` is missing; .* must have are \['name'"):
        load_protocol(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "median"}, r"`pooling` must be one of \['none', 'mean', .*\], got 'median'"),
        ({"pooling": ["mean"]}, "`pooling` must be one of"),
        ({"pooling": "none"}, "`pooling` must be other than 'none' where an instance is searched"),
        ({"gallery_unit": "observation"}, "`pooling` must be 'none' where no instance is"),
        (
            {"gallery_unit": "class"},
            r"`directions` must be a list of some of \['image_to_class', 'instance_to_class'\]",
        ),
        ({"directions": []}, "`directions` must be a list of some of"),
        ({"directions": ["text_to_instance"] * 2}, "`directions` must be a list of some of"),
        ({"directions": "text_to_instance"}, "`directions` must be a list of some of"),
        ({"directions": [{"a": 1}]}, "`directions` must be a list of some of"),
        ({"hit_rule": "first"}, r"`hit_rule` must be one of \['any', 'share'\], got 'first'"),
        ({"hit_ks": [5, 1]}, r"`hit_ks` must be a list of ascending numbers from 1, got \[5, 1\]"),
        ({"hit_ks": [0, 1]}, "`hit_ks` must be a list of ascending"),
        ({"hit_ks": 5}, "`hit_ks` must be a list of ascending numbers from 1, got 5"),
        ({"hit_ks": [True]}, "`hit_ks` must be a list of ascending"),
        ({"hit_ks": []}, "`hit_ks` must be given for `hit_rule: any`"),
        ({"hit_rule": "share", "recall_ks": []}, "`recall_ks` must be given for `hit_rule: share`"),
        ({"identical_captions": "merge"}, "`identical_captions` must be one of"),
        ({"captions_per_query": 0}, "`captions_per_query` must be 'all' or a number from 1, got 0"),
        ({"captions_per_instance": "some"}, "`captions_per_instance` must be 'all' or a number from 1, got 'some'"),
        ({"resamples": 0}, "`resamples` must be a number from 1, got 0"),
        ({"seed": -1}, "`seed` must be a number from 0, got -1"),
        ({"name": 5}, "`name` must be a text, got 5"),
        ({"templates": ["a {}"]}, "`templates` must be left out for `gallery_unit: instance`"),
        ({"expected_sizes": {"test": {"images": 5}}}, r"`expected_sizes` must be \['num_instances'"),
    ],
)
def test_a_bad_value_is_named_with_its_file_and_what_is_allowed(tmp_path, changes, message):
    path = write(tmp_path / "mine.yaml", **changes)
    with pytest.raises(ValueError, match=rf"Protocol file '.*mine\.yaml': {message}"):
        load_protocol(path)


@pytest.mark.parametrize("templates", [[], ["a chair"], ["{} or {}"], ["{}", "{}"], "{}"])
def test_class_searches_need_different_templates_with_one_place_for_the_name(templates):
    with pytest.raises(ValueError, match=r"`templates` must be a list of texts with one '\{\}' each"):
        replace(load_protocol("zero-shot"), templates=templates)


def test_a_file_that_is_no_mapping_or_no_yaml_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("- a\n- list\n")
    with pytest.raises(ValueError, match=r"mine\.yaml': it must hold keys and values, got list"):
        load_protocol(path)
    path.write_text("a: [")
    with pytest.raises(ValueError, match=r"Protocol file '.*mine\.yaml'"):
        load_protocol(path)
    path.write_text(DEFAULT_FILE.read_text() + "captions_per_query:\n")
    with pytest.raises(ValueError, match="`captions_per_query` must be 'all' or a number from 1, got None"):
        load_protocol(path)


def test_a_name_that_is_no_protocol_meets_those_there_are_and_the_closest():
    with pytest.raises(
        ValueError,
        match=r"`protocol` must be one of \[.*\], got 'multifold/instanc'; did you mean 'multifold/instance'",
    ):
        load_protocol("multifold/instanc")
    with pytest.raises(ValueError, match="pass the path of a YAML file"):
        load_protocol("elsewhere.yaml")
