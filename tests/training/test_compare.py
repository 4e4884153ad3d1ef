from dataclasses import replace

import pytest
import torch

from tests.references.evaluations import evaluation_of, plain_rows, rows_of
from training.compare import compare, comparison_rows, format_comparison, instance_changes, is_clear
from training.evaluation import score_embeddings

ROWS = plain_rows()


@pytest.fixture(scope="module")
def first():
    return evaluation_of(ROWS, noise=1.2)


@pytest.fixture(scope="module")
def second():
    return evaluation_of(ROWS, noise=0.5, seed=3, checkpoint="runs/two")


def test_differences_are_those_of_the_two_reports(first, second):
    comparison = compare(first, second)
    for direction in ("text_to_instance", "instance_to_text"):
        for name, entry in comparison[direction]["metrics"].items():
            one, other = first.report[direction][name], second.report[direction][name]
            assert entry["first"] == pytest.approx(one)
            assert entry["second"] == pytest.approx(other)
            assert entry["difference"] == pytest.approx(other - one)
            assert entry["low"] <= entry["difference"] <= entry["high"]


def test_a_checkpoint_against_itself_has_changed_in_nothing(first):
    comparison = compare(first, first)
    part = comparison["text_to_instance"]
    assert all(entry["low"] == entry["high"] == 0 for entry in part["metrics"].values())
    assert (part["better"], part["worse"]) == ([], [])
    assert "better in MRR: none" in format_comparison(comparison)
    assert not any(is_clear(entry) for entry in part["metrics"].values())


def test_swapping_the_two_turns_every_sign(first, second):
    there, back = compare(first, second)["text_to_instance"], compare(second, first)["text_to_instance"]
    for name, entry in there["metrics"].items():
        assert entry["difference"] == pytest.approx(-back["metrics"][name]["difference"])
    gains = [change["gain"] for change in there["better"]]
    assert gains == pytest.approx([-change["gain"] for change in back["worse"]])


def test_changes_are_mean_reciprocal_ranks_of_instances(first, second):
    one, other = first.scores["text_to_instance"], second.scores["text_to_instance"]
    changes = instance_changes(one, other, first.embeddings.instance_ids)
    assert [change["gain"] for change in changes] == sorted((change["gain"] for change in changes), reverse=True)
    assert len(changes) == 12
    for change in changes:
        gains = [1 / each["second"] - 1 / each["first"] for each in change["queries"]]
        assert change["gain"] == pytest.approx(sum(gains) / len(gains))
        owners = {int(one.group_ids[one.query_rows == each["item"]]) for each in change["queries"]}
        assert {first.embeddings.instance_ids[group_id] for group_id in owners} == {change["instance_id"]}


def test_no_instance_is_both_better_and_worse(first, second):
    part = compare(first, second)["text_to_instance"]
    better, worse = ({change["instance_id"] for change in part[what]} for what in ("better", "worse"))
    assert better
    assert not better & worse


def test_the_table_marks_what_is_clear(first, second):
    comparison = compare(first, second)
    heading, *rows = comparison_rows(comparison, "text_to_instance")
    assert heading == ["text → instance, %", "first", "second", "difference", "95 % interval", "p"]
    stars = {row[0]: row[3].endswith("*") for row in rows}
    metrics = comparison["text_to_instance"]["metrics"]
    assert stars["MRR"] == is_clear(metrics["mrr"]) == (metrics["mrr"]["low"] > 0)
    assert any(stars.values())
    assert "second: runs/two" in format_comparison(comparison)


def other_protocol(first):
    return evaluation_of(ROWS, protocol="multifold/max_sim")


def other_split(first):
    return replace(first, report=first.report | {"split": "validation"})


def other_rows(first):
    return evaluation_of(plain_rows(11))


def other_captions(first):
    captions = [*first.embeddings.captions[1:], first.embeddings.captions[0]]
    embeddings = first.embeddings._replace(captions=captions)
    return score_embeddings("runs/two", "things", "test", first.rows, embeddings, first.protocol)


def other_order(first):
    """The same captions of the same instances, in another order."""
    flipped = first.embeddings._replace(
        text_embeds=first.embeddings.text_embeds.flip(0),
        text_group_ids=first.embeddings.text_group_ids.flip(0),
        captions=first.embeddings.captions[::-1],
    )
    return score_embeddings("runs/two", "things", "test", first.rows, flipped, first.protocol)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (other_protocol, "Results of different protocols can't stand in one table"),
        (other_split, "`--compare` needs one split, .* have 'test' and 'validation'"),
        (other_rows, "`--compare` needs one data fingerprint, .* name both the same `--dataset`"),
        (other_captions, "Results of different galleries can't stand in one table"),
        (other_order, "`--compare` needs the same queries in the same order"),
    ],
)
def test_different_questions_are_refused(first, other, message):
    with pytest.raises(ValueError, match=message):
        compare(first, other(first))


def test_queries_that_one_side_leaves_out_change_nothing():
    """An instance without captions, and captions of one without images, are in no comparison."""
    rows = rows_of({"both": ["red"], "silent": [], "other": ["blue", "a blue one"]})
    one, other = (evaluation_of(rows, noise=1.0, seed=seed) for seed in (0, 1))
    changes = instance_changes(
        one.scores["instance_to_text"], other.scores["instance_to_text"], one.embeddings.instance_ids
    )
    assert {change["instance_id"] for change in changes} == {"both", "other"}
    assert torch.equal(one.scores["instance_to_text"].query_rows, other.scores["instance_to_text"].query_rows)
