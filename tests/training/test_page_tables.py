from dataclasses import replace

import pytest

from tests.references.evaluations import evaluation_of, plain_rows
from training.multifold_retrieval.geometry import geometry
from training.page_tables import (
    GEOMETRY,
    category_rows,
    data_facts,
    geometry_rows,
    interval_words,
    metric_title,
    metric_value,
    run_facts,
    score_rows,
    summary_of,
)


@pytest.fixture(scope="module")
def evaluation():
    return evaluation_of(plain_rows())


def with_categories(evaluation, categories):
    return replace(evaluation, embeddings=evaluation.embeddings._replace(categories=categories))


def test_every_number_of_a_report_has_a_row(evaluation):
    titles = [row.name for row in score_rows(evaluation.report)]
    numbers = {
        name
        for direction in ("text_to_instance", "instance_to_text")
        for name, value in evaluation.report[direction].items()
        if isinstance(value, float) and not name.startswith("chance_")
    }
    assert set(titles) == {metric_title(name) for name in numbers}
    assert len(titles) == len(set(titles))


def test_a_meaning_stands_once(evaluation):
    rows = score_rows(evaluation.report)
    meanings = [row.meaning for row in rows if row.meaning]
    assert len(meanings) == len(set(meanings))
    assert [bool(row.meaning) for row in rows if row.name.startswith("RR@")] == [True, False, False]


def test_a_cell_has_mean_interval_and_chance(evaluation):
    scores = evaluation.report["text_to_instance"]
    cell = score_rows(evaluation.report)[0].cells[0]
    low, high = (100 * end for end in scores["ci95"]["rr@1"])
    assert cell == (f"{100 * scores['rr@1']:.1f}", f"{low:.1f} to {high:.1f}", f"{100 / 12:.1f}")


def test_figures_that_only_one_direction_has_leave_the_other_empty(evaluation):
    (row,) = [row for row in score_rows(evaluation.report) if row.name == "rank spread"]
    assert row.cells[0].value
    assert row.cells[1] == ("", "", "")


def test_categories_come_weakest_first_with_their_queries(evaluation):
    group_ids = list(evaluation.embeddings.instance_ids)
    scores = evaluation.scores["text_to_instance"]
    hits = {group_id: scores.values["rr@1"][scores.group_ids == group_id].mean().item() for group_id in group_ids}
    found = max(group_ids, key=hits.__getitem__)
    assert hits[found] == 1.0
    named = with_categories(evaluation, {each: "found" if each == found else "rest" for each in group_ids})
    heading, *rows = category_rows(named)
    assert [row[0] for row in rows] == ["rest", "found"]
    assert heading[:4] == ["category", "queries, text → instance", "RR@1, text → instance", "MRR, text → instance"]
    assert rows[1][2] == "100.0 (100.0 to 100.0)"
    assert sum(int(row[1]) for row in rows) == len(scores.query_rows)
    assert all(len(row) == len(heading) for row in rows)


def test_without_categories_there_is_no_table(evaluation):
    assert category_rows(with_categories(evaluation, {})) == []


def test_every_figure_of_the_embeddings_is_explained(evaluation):
    embeddings = evaluation.embeddings
    assert geometry(*embeddings[:4]).keys() <= GEOMETRY.keys()
    assert len(geometry_rows(evaluation.report)) == 1 + len(evaluation.report["geometry"])
    assert geometry_rows({"geometry": {}}) == []


def test_a_sentence_says_the_first_score(evaluation):
    scores = evaluation.report["text_to_instance"]
    sentence = summary_of(evaluation.report, "text_to_instance")
    assert sentence.startswith(f"text → instance: RR@1 {100 * scores['rr@1']:.1f} % (95 % interval ")
    assert sentence.endswith(f"median rank {scores['median_rank']:.1f}.")


def test_ranks_and_fractions_are_written_each_in_their_way():
    assert metric_value("mean_rank", 12345.67) == "12,345.7"
    assert [metric_value("rr@1", value) for value in (0.0, 0.00123, 0.5, 1.0)] == ["0.0", "0.12", "50.0", "100.0"]
    assert [metric_title(name) for name in ("rr@5", "r_precision", "mean_rank")] == [
        "RR@5",
        "R-PRECISION",
        "mean rank",
    ]
    assert interval_words("rr@1", 0.1, 0.25) == "10.0 to 25.0"


def test_data_are_said_in_numbers(evaluation):
    facts = data_facts(evaluation)
    assert facts["data set"] == "things"
    assert facts["instances"] == "12"
    assert facts["images"] == "24"
    assert facts["captions"] == "18, of which 18 take part"
    assert facts["fingerprint of the rows"] == evaluation.rows.fingerprint


def test_a_run_says_what_it_can():
    assert run_facts({}) == {}
    run = {
        "steps": 1500,
        "seconds": 626.15,
        "towers": {"text": "bert"},
        "dataset": {"name": "emoji", "sizes": {"train": 1242, "test": 3}},
    }
    assert run_facts(run) == {
        "text tower": "bert",
        "steps": "1,500",
        "trained on": "emoji",
        "training took": "10 min 26 s",
        "instances by split": "train 1,242, test 3",
    }
