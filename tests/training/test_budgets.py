"""`training/budgets.py`: its tables and sentences, its picture, and the command itself."""

import copy
import json

import pytest
from PIL import Image

from tests.references.corpus import write_corpus
from tests.references.tiny import tiny_model, tiny_processor
from tests.training.test_budget_curves import QUICK, RAGGED, observed
from training import budgets
from training.budget_curves import BudgetSettings, budget_curves
from training.budget_plots import plot_budgets
from training.budget_tables import format_budgets, sentences, table_rows


@pytest.fixture(scope="module")
def report():
    return budget_curves(RAGGED, QUICK)


def points(*recall, largest=12, smallest=12, gain=0.02):
    """A part of a report with these RR@1 for 1, 2, 4, ... observations."""
    curve = [
        {
            "kept": min(2**place, largest),
            "mean_kept": 7.5,
            "rr@1": value,
            "mrr": value,
            "ci95": {"rr@1": [value - 0.01, value + 0.01], "mrr": [value, value]},
            "of_all": {"rr@1": value / recall[-1] if recall[-1] else None},
            "gain_of_all": {"rr@1": {"difference": gain, "ci95": [0.005, 0.03]}},
        }
        for place, value in enumerate(recall)
    ]
    return {
        "smallest_fold": smallest,
        "largest_fold": largest,
        "queries": 9,
        "curves": {"mean": curve},
        "poolings": {},
    }


def test_the_sentence_names_the_smallest_budget_that_does():
    part = points(0.3, 0.4, 0.485, 0.5, 0.5, gain=0.015)
    told = sentences({"views": part, "captions": points(0.5, largest=1)})
    assert told == [
        "4 of 12 views give 97 % of the RR@1 of all (48.5 against 50.0 %, mean pooling; all gain +1.5 points, "
        "95 % interval +0.5 to +3.0); 1 gives 60 %, 2 give 80 %.",
        "Of captions there is one budget, 1, so that nothing is left out.",
    ]


def test_the_sentence_says_so_where_no_smaller_budget_does():
    part = points(0.3, 0.4, 0.5, largest=4, smallest=0)
    told = sentences({"views": part, "captions": points(0.49, 0.5, largest=2, smallest=2)})
    assert told[0].startswith("2 of up to 4 views (7.5 on average) give only 80 % of the RR@1 of all")
    assert told[0].endswith("; 1 gives 60 %.")
    assert told[1].startswith("1 of 2 captions fused into a query gives 98 % of the RR@1 of all")
    assert told[1].endswith("+3.0).")


def test_the_sentence_survives_a_model_that_finds_nothing():
    part = points(0.0, 0.0)
    assert (
        sentences({"views": part, "captions": part})[0]
        == "With all views RR@1 is 0, so that there is no share of it to tell."
    )
    assert table_rows(part)[1][-1] == ""


def test_the_poolings_stand_side_by_side(report):
    told = sentences(report)[2]
    score = 100 * report["views"]["curves"]["max_sim"][-1]["rr@1"]
    assert told.startswith("With all views RR@1 is ")
    assert f"{score:.1f} % with max_sim (" in told


def test_the_table_has_a_row_for_every_point(report):
    heading, *rows = table_rows(report["views"])
    assert heading == ["pooling", "kept", "RR@1 %", "RR@5 %", "MRR %", "RR@1 of all"]
    assert [row[:2] for row in rows] == [[pooling, kept] for pooling in QUICK.poolings for kept in ("1", "2", "all")]
    point = report["views"]["curves"]["mean"][0]
    low, high = point["ci95"]["rr@1"]
    assert rows[0][2] == f"{100 * point['rr@1']:.1f} ({100 * low:.1f}-{100 * high:.1f})"
    assert all(line in format_budgets(report) for line in sentences(report))


def test_the_picture_shows_the_curves(report, tmp_path):
    plot_budgets(report, tmp_path / "a.png")
    plot_budgets(report, tmp_path / "again.png")
    other = copy.deepcopy(report)
    other["views"]["curves"]["max_sim"][0]["rr@1"] += 0.1
    plot_budgets(other, tmp_path / "b.png")
    first, again, changed = (Image.open(tmp_path / f"{name}.png") for name in ("a", "again", "b"))
    assert first.width > 2 * first.height
    assert first.tobytes() == again.tobytes() != changed.tobytes()


def test_one_budget_and_one_pooling_are_drawn_too(tmp_path):
    one = budget_curves(observed([1] * 4, [1] * 4), BudgetSettings(poolings=("attention",), resamples=5))
    plot_budgets(one, tmp_path / "one.png")
    assert len(sentences(one)) == 2


def test_the_command_measures_a_checkpoint_and_then_its_stored_embeddings(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    run, few = tmp_path / "run", ["--views", "1", "--captions", "1", "--draws", "2"]
    tiny_model().save_pretrained(run)
    tiny_processor().save_pretrained(run)
    corpus = write_corpus(tmp_path / "corpus")
    budgets.main([str(run), "--dataset", str(corpus), "--split", "train", "--num_workers", "0", "--cpu", *few])
    report = json.loads((run / "budgets" / "budgets.json").read_text())
    assert report["num_instances"] == 12
    assert report["settings"]["views"] == [1]
    assert capsys.readouterr().out == (run / "budgets" / "budgets.txt").read_text()
    (stored,) = (run / "embeddings").iterdir()
    budgets.main([str(stored), *few, "--output", str(tmp_path / "again")])
    assert json.loads((tmp_path / "again" / "budgets.json").read_text()) == report
    assert (tmp_path / "again" / "budgets.png").stat().st_size > 10_000


def test_a_place_to_write_to_is_asked_for():
    with pytest.raises(ValueError, match="`--output` is needed: 'org/model' is no folder"):
        budgets.main(["org/model"])
