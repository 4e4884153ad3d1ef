import json
import math
from dataclasses import replace

import pytest
import torch

from tests.references.noisy_embeddings import NUM_INSTANCES, VIEWS, noisy_embeddings, select_rows, shuffled, unit_rows
from training.protocol import load_protocol
from training.retrieval import retrieval_report
from training.score_tables import check_comparable, directions_of, format_table, runs_table, table_rows
from training.searches import ClassEmbeddings

INSTANCE = replace(load_protocol("multifold/instance"), resamples=50)


@pytest.fixture(scope="module")
def embeddings():
    return noisy_embeddings()


@pytest.fixture(scope="module")
def report(embeddings):
    return retrieval_report(embeddings, INSTANCE)


def test_table_shows_percent_in_columns_of_one_width(report):
    lines = format_table(report).splitlines()
    scores = report["text_to_instance"]
    assert lines[3].startswith("text → instance")
    assert f"{100 * scores['rr@1']:.1f}" in lines[3]
    assert math.isclose(float(lines[5].split()[1]), 100 / NUM_INSTANCES, abs_tol=0.05)
    assert len({len(line) for line in lines[2:] if "%" not in line and "chance" not in line}) == 1


def test_tables_show_any_hit_or_share_as_the_protocol_says(embeddings, report):
    assert table_rows(report)[0][1:4] == ["RR@1", "RR@5", "RR@10"]
    by_share = retrieval_report(embeddings, replace(INSTANCE, hit_rule="share"))
    assert table_rows(by_share)[0] == [
        "percent",
        "RECALL@5",
        "RECALL@10",
        "NDCG@5",
        "MRR",
        "median rank",
        "mean rank",
        "queries",
    ]


def test_warnings_stand_above_the_table(embeddings):
    text = format_table(retrieval_report(embeddings, replace(INSTANCE, hit_ks=(1, 20))))
    assert "Cut-offs [20] of text_to_instance are left out" in text.splitlines()[1]


def test_titles_say_what_is_searched(embeddings, report):
    assert list(directions_of(report).values()) == ["text → instance", "instance → text"]
    single = retrieval_report(embeddings, load_protocol("multifold/observation"))
    assert list(directions_of(single).values()) == ["text → view", "view → text"]
    classes = ClassEmbeddings(["chair", "table"], unit_rows(2, seed=9))
    by_name = retrieval_report(embeddings, load_protocol("zero-shot"), classes)
    assert list(directions_of(by_name)) == ["image_to_class", "instance_to_class"]


def test_runs_of_one_protocol_and_gallery_share_a_table(embeddings, report):
    other = retrieval_report(embeddings._replace(image_embeds=unit_rows(36, seed=8)), INSTANCE)
    mixed = retrieval_report(shuffled(embeddings), INSTANCE)
    heading, first, second, third = runs_table({"run-a": report, "run-b": other, "run-c": mixed}, "text_to_instance")
    assert heading[:3] == ["text → instance", "RR@1", "RR@5"]
    scores = report["text_to_instance"]
    low, high = scores["ci95"]["rr@1"]
    assert first[:2] == ["run-a", f"{100 * scores['rr@1']:.1f} ({100 * low:.1f}-{100 * high:.1f})"]
    assert first[1:] == third[1:] != second[1:]
    assert {len(heading), len(first), len(second)} == {9}


def test_results_as_json_compare_like_those_in_memory(report):
    check_comparable({"run-a": report, "run-b": json.loads(json.dumps(report))})


@pytest.mark.parametrize(
    "change", [{"name": "mine"}, {"hit_ks": (1, 5)}, {"pooling": "attention"}, {"identical_captions": "drop_repeats"}]
)
def test_different_protocols_are_refused(embeddings, report, change):
    other = retrieval_report(embeddings, replace(INSTANCE, **change))
    with pytest.raises(ValueError, match=r"different protocols .*'run-a' has 'multifold/instance' with the hash"):
        runs_table({"run-a": report, "run-b": other}, "text_to_instance")


def test_different_galleries_are_refused(embeddings, report):
    fewer = select_rows(embeddings, torch.arange(VIEWS, NUM_INSTANCES * VIEWS), torch.arange(2, 24))
    other = retrieval_report(fewer, INSTANCE)
    with pytest.raises(ValueError, match=r"different galleries .* searched 12 instances .* searched 11 instances"):
        runs_table({"run-a": report, "run-b": other}, "text_to_instance")


def test_results_that_do_not_say_what_they_searched_are_refused(report):
    old = report | {"protocol": {"name": "multifold/instance"}}
    with pytest.raises(ValueError, match="The result of 'old' does not say what it searched; evaluate it again"):
        check_comparable({"old": old})
    with pytest.raises(ValueError, match="`reports` is empty"):
        check_comparable({})


def test_a_direction_that_the_protocol_lacks_is_named(report):
    with pytest.raises(ValueError, match=r"`direction` must be one of \['text_to_instance', 'instance_to_text'\]"):
        runs_table({"run-a": report}, "image_to_class")
