"""The report of trials, on results that are written by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.plans import Entry, Plan
from benchmarks.trial import Trial
from benchmarks.trial_plots import curve_looks, names_by_mean, places_of
from benchmarks.trial_report import fold_cell, format_report, write_report
from benchmarks.trial_results import HEADLINE, RESAMPLES, baseline_of, estimate, estimates, summarize
from training.multifold_retrieval.bootstrap import paired_bootstrap

PLAN = Plan("grid", "A | grid", [0, 1, 2], True, "clip", None, [])
GROUP_IDS = torch.arange(12) // 3  # four instances with three captions each
# Of the baseline, and of what finds two captions more.
BASE, MORE = torch.tensor([1.0] * 3 + [0.0] * 9), torch.tensor([1.0] * 5 + [0.0] * 7)


def entry(name="clip", budget="", **trial) -> Entry:
    return Entry(
        name, budget, Trial(**({"objective": "clip", "instances": 8, "views": 2, "captions": 1} | trial)), None
    )


@pytest.fixture
def run(tmp_path):
    """Writes what a trial would, and gives its path."""

    def write(of: Entry, seed: int, score: float, queries=None, on_test=True, **record) -> Path:
        path = tmp_path / "trials" / f"{len(list(tmp_path.glob('trials/*.json')))}.json"
        path.parent.mkdir(exist_ok=True)
        shifts = {HEADLINE: 0, "text_to_instance_rr@5": 0.2, "text_to_instance_ndcg@5": 0.1}
        shifts |= {"instance_to_text_rr@1": 0.05, "instance_to_text_rr@5": 0.25, "instance_to_text_ndcg@5": 0.15}
        scores = {name: score + shift for name, shift in shifts.items()}
        curve = [
            {"step": step, "images": 500 * step, "loss": 1.0, **scores, HEADLINE: score * step} for step in (1, 2)
        ]
        values = {
            "data": "shapes",
            "trial": replace(of.trial, seed=seed).as_dict,
            "instances": {"train": 1234, "validation": 5, "test": 4},
            "machine": "2 cores of a machine",
            "validation": {name: value / 2 for name, value in scores.items()},
            "curve": curve,
            "geometry": {"modality_gap": 0.5, "alignment": 0.8, "uniformity_image": -2.0, "uniformity_text": -3.0},
            "test": scores if on_test else None,
            "images_per_step": 16.0,
            "texts_per_step": 8.0,
            "seconds_per_step": 0.25 + seed / 100,
            "peak_megabytes": 700.0,
        }
        path.write_text(json.dumps(values | record))
        if on_test:
            found = BASE if queries is None else queries
            tensors = {"text_to_instance/group_ids": GROUP_IDS, "text_to_instance/rr@1": found}
            save_file(tensors, path.with_suffix(".safetensors"))
        return path

    return write


@pytest.fixture
def grid(run):
    """A baseline and a better entry of three seeds, and a worse one of one seed."""
    clip, mfh, late = entry(), entry("mfh", captions=99), entry("late", views=1)
    return {
        "shapes": [
            (clip, [run(clip, seed, 0.30 + seed / 100) for seed in range(3)]),
            (mfh, [run(mfh, seed, 0.50 + seed / 50, MORE) for seed in range(3)]),
            (late, [run(late, 1, 0.2)]),
        ]
    }


def figures(output: Path, budget="") -> dict:
    return json.loads((output / "grid.json").read_text())["data"]["shapes"][budget]


def lines_of(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def test_an_estimate_is_the_mean_and_its_standard_error():
    values = [0.2, 0.5, 0.3, 0.9]
    mean, error = estimate(values)
    assert mean == pytest.approx(np.mean(values))
    assert error == pytest.approx(np.std(values, ddof=1) / np.sqrt(4))


def test_a_lone_seed_has_no_error():
    assert estimate([0.2]) == (0.2, None)


def test_a_figure_that_a_seed_lacks_is_the_mean_of_the_others():
    found = estimates([{"a": 1.0, "b": 1.0}, {"a": 3.0}])
    assert found == {"a": (2.0, 1.0), "b": (1.0, None)}


def test_the_json_has_means_errors_and_costs(grid, tmp_path):
    write_report(PLAN, grid, tmp_path)
    mfh = figures(tmp_path)["mfh"]
    scores = [0.50, 0.52, 0.54]
    assert mfh["scores"][HEADLINE]["mean"] == pytest.approx(np.mean(scores))
    assert mfh["scores"][HEADLINE]["standard_error"] == pytest.approx(np.std(scores, ddof=1) / math.sqrt(3))
    assert mfh["costs"]["seconds_per_step"]["mean"] == pytest.approx(0.26)
    assert mfh["geometry"]["alignment"]["mean"] == pytest.approx(0.8)
    assert mfh["trial"]["captions"] == 99
    assert "seed" not in mfh["trial"]
    assert mfh["seeds"] == [0, 1, 2]


def test_entries_are_ordered_by_their_means_and_diverged_ones_are_last(grid, run, tmp_path):
    lost = entry("lost", instances=9)
    grid["shapes"].insert(0, (lost, [run(lost, 0, math.nan)]))
    write_report(PLAN, grid, tmp_path)
    assert list(figures(tmp_path)) == ["mfh", "clip", "late", "lost"]


def test_the_difference_of_means_has_the_error_of_both(grid, tmp_path):
    text = write_report(PLAN, grid, tmp_path)
    gain = figures(tmp_path)["mfh"]["vs_baseline"]
    errors = [np.std(values, ddof=1) / math.sqrt(3) for values in ([0.30, 0.31, 0.32], [0.50, 0.52, 0.54])]
    assert gain["difference"] == pytest.approx(0.21)
    assert gain["standard_error"] == pytest.approx(np.hypot(*errors))
    assert f"+21.0 ({0.21 / np.hypot(*errors):.1f} SE)" in text
    assert figures(tmp_path)["late"]["vs_baseline"]["standard_error"] is None


def test_the_paired_difference_is_that_of_the_queries(grid, tmp_path):
    write_report(PLAN, grid, tmp_path)
    paired = figures(tmp_path)["mfh"]["vs_baseline"]["paired"]
    expected = paired_bootstrap({"rr@1": BASE}, {"rr@1": MORE}, GROUP_IDS, RESAMPLES)["rr@1"]
    assert paired.pop("seeds") == [0, 1, 2]
    assert paired == pytest.approx(expected._asdict())
    assert paired["difference"] == pytest.approx(2 / 12)
    assert (paired["low"], paired["high"]) == (0.0, 0.5)  # one instance of four has all of the gain


def test_queries_are_averaged_over_the_seeds_that_both_have(run):
    clip, other = entry(), entry("other")
    none, all_of_them = torch.zeros(12), torch.ones(12)
    found = [
        (clip, [run(clip, 0, 0.3, none), run(clip, 1, 0.3, all_of_them)]),
        (other, [run(other, 1, 0.3, none), run(other, 2, 0.3, all_of_them)]),
    ]
    summary = next(each for each in summarize(PLAN, {"shapes": found})["shapes"][""] if each.entry.name == "other")
    assert summary.gain.paired_seeds == [1]
    assert summary.gain.paired.difference == -1
    assert summary.gain.is_clear
    assert "-100.0 (-100.0 to -100.0) ★" in format_report(PLAN, summarize(PLAN, {"shapes": found}))


def test_an_interval_with_0_in_it_has_no_star(grid, tmp_path):
    text = write_report(PLAN, grid, tmp_path)
    assert "+16.7 (+0.0 to +50.0) |" in text


def test_without_a_shared_seed_nothing_is_paired(run):
    clip, other = entry(), entry("other")
    found = {"shapes": [(clip, [run(clip, 0, 0.3)]), (other, [run(other, 1, 0.4)])]}
    best = summarize(PLAN, found)["shapes"][""][0]
    assert best.gain.paired is None
    assert best.gain.of_means.mean == pytest.approx(0.1)


def test_the_baseline_of_another_budget_is_not_compared_with(run):
    clip, other = entry(budget="images"), entry("other", budget="instances")
    found = {"shapes": [(clip, [run(clip, 0, 0.3)]), (other, [run(other, 0, 0.4)])]}
    budgets = summarize(PLAN, found)["shapes"]
    assert baseline_of(PLAN, budgets["instances"]) is None
    assert budgets["instances"][0].gain is None
    text = format_report(PLAN, summarize(PLAN, found))
    assert text.count("vs clip") == 1
    assert lines_of(text, "###") == ["### images", "### instances"]


def test_other_queries_are_an_error(run):
    clip, other = entry(), entry("other")
    paths = [run(clip, 0, 0.3), run(clip, 1, 0.3)]
    others = [run(other, seed, 0.4) for seed in range(2)]
    flipped = {"text_to_instance/group_ids": GROUP_IDS.flip(0), "text_to_instance/rr@1": BASE}
    save_file(flipped, paths[0].with_suffix(".safetensors"))
    with pytest.raises(ValueError, match="'other' and 'clip' must have the same test queries in the same order; run"):
        summarize(PLAN, {"shapes": [(clip, paths[:1]), (other, others)]})
    with pytest.raises(ValueError, match=r"0\.safetensors and its other seeds must have the same queries"):
        summarize(PLAN, {"shapes": [(clip, paths), (other, others)]})


def test_a_result_without_scores_on_test_is_an_error(run):
    path = run(entry(), 0, 0.3, on_test=False)
    with pytest.raises(ValueError, match=r"`test` of 0\.json must hold scores, got null; run its plan with"):
        summarize(PLAN, {"shapes": [(entry(), [path])]})


def test_a_plan_of_validation_shows_validation_and_pairs_nothing(run, tmp_path):
    clip, mfh = entry(), entry("mfh")
    found = {"shapes": [(each, [run(each, 0, 0.3, on_test=False)]) for each in (clip, mfh)]}
    text = write_report(replace(PLAN, on_test=False), found, tmp_path)
    assert "on validation: a gallery of 5 instances" in text
    assert figures(tmp_path)["mfh"]["scores"][HEADLINE]["mean"] == pytest.approx(0.15)
    assert figures(tmp_path)["mfh"]["vs_baseline"]["paired"] is None
    assert "paired" not in (tmp_path / "grid.md").read_text()


def test_the_tables_hold_what_they_promise(grid, tmp_path):
    text = write_report(PLAN, grid, tmp_path)
    scores, costs = lines_of(text, "| mfh ")
    cells = [cell.strip() for cell in scores.split("|")[1:-1]]
    assert cells[:3] == ["mfh", fold_cell(entry(captions=99).trial), "52.0 ± 1.2"]
    assert cells[3:7] == ["72.0 ± 1.2", "62.0 ± 1.2", "57.0 ± 1.2", "77.0 ± 1.2"]
    assert [cell.strip() for cell in costs.split("|")[2:-1]] == [
        "0.50", "0.80", "-2.00 / -3.00", "260", "700", "16", "8",
    ]  # fmt: skip
    assert lines_of(text, "# ") == ["# A \\| grid"]
    assert "over seeds 0, 1, 2, in percent, on test: a gallery of 4 instances, after training on 1,234." in text
    assert "Measured on 2 cores of a machine. Not run yet: late (seeds 0, 2)." in text
    assert len({line.count(" | ") for line in lines_of(text, "| ")[:5]}) == 1
    assert text.startswith((tmp_path / "grid.md").read_text())
    assert all(f"{tmp_path / f'grid{end}'}" in text for end in (".md", ".json", "-bars.png", "-images.png"))


def test_geometry_that_is_absent_leaves_its_cells_empty(run):
    found = {"shapes": [(entry(), [run(entry(), 0, 0.3, geometry={"alignment": 0.8})])]}
    cells = lines_of(format_report(PLAN, summarize(PLAN, found)), "| clip")[1].split("|")
    assert [cell.strip() for cell in cells[2:5]] == ["", "0.80", ""]


def test_a_plan_without_results_says_what_is_to_run(tmp_path):
    text = write_report(PLAN, {"shapes": [(entry(), []), (entry("mfh"), [])]}, tmp_path / "new")
    assert "Not run yet: clip (seeds 0, 1, 2), mfh (seeds 0, 1, 2)." in text
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["grid.json", "grid.md"]
    assert "There is no data set." in write_report(PLAN, {}, tmp_path)


def test_an_entry_is_compared_once_the_baseline_has_a_result(run, tmp_path):
    mfh = entry("mfh")
    text = write_report(PLAN, {"shapes": [(entry(), []), (mfh, [run(mfh, 0, 0.3)])]}, tmp_path)
    assert "vs clip" not in text
    assert figures(tmp_path)["mfh"]["vs_baseline"] is None


@pytest.mark.parametrize("x", [None, "captions"])
def test_pictures_are_the_same_for_equal_results_and_others_for_others(x, run, grid, tmp_path):
    plan = replace(PLAN, x=x)
    names = [f"grid-{kind}.png" for kind in (x or "bars", "images")]
    for folder in ("one", "same"):
        write_report(plan, grid, tmp_path / folder)
    changed = grid["shapes"][2]
    grid["shapes"][2] = changed[0], [run(changed[0], 1, 0.4)]
    write_report(plan, grid, tmp_path / "other")
    for name in names:
        one, same, other = (pixels(tmp_path / folder / name) for folder in ("one", "same", "other"))
        assert (one == same).all()
        assert one.std() > 10
        assert one.shape != other.shape or (one != other).any()


def test_budgets_and_data_sets_stand_side_by_side(run, tmp_path):
    entries = [entry(name, budget) for name in ("clip", "mfh") for budget in ("images", "instances")]
    found = {
        data: [(each, [run(each, seed, 0.3 + seed / 50) for seed in range(2)]) for each in entries]
        for data in ("shapes", "emoji")
    }
    write_report(PLAN, {"shapes": found["shapes"]}, tmp_path / "one")
    write_report(PLAN, found, tmp_path / "two")
    one, two = (pixels(tmp_path / folder / "grid-bars.png") for folder in ("one", "two"))
    assert two.shape[1] > one.shape[1]


def test_a_score_of_zero_and_one_that_diverged_can_be_drawn(run, tmp_path):
    clip, lost = entry(), entry("lost")
    found = {"shapes": [(clip, [run(clip, 0, 0.0)]), (lost, [run(lost, 0, math.nan)])]}
    for x in (None, "views"):
        write_report(replace(PLAN, x=x), found, tmp_path)
    assert pixels(tmp_path / "grid-views.png").std() > 1


def test_names_are_ordered_by_the_mean_of_their_budgets(run):
    scores = {("a", "images"): 0.1, ("a", "instances"): 0.7, ("b", "images"): 0.5, ("b", "instances"): 0.5}
    found = []
    for (name, budget), score in scores.items():
        each = entry(name, budget)
        found.append((each, [run(each, 0, score)]))
    assert names_by_mean(summarize(PLAN, {"shapes": found})["shapes"]) == ["b", "a"]


def test_learning_curves_are_those_of_the_baseline_and_the_five_best(run):
    entries = [entry(), *(entry(f"e{number}") for number in range(7))]
    found = [(each, [run(each, 0, 0.1 + number / 10)]) for number, each in enumerate(entries)]
    looks = curve_looks(PLAN, summarize(PLAN, {"shapes": found}))
    assert list(looks) == ["clip", "e6", "e5", "e4", "e3", "e2"]
    assert len(set(looks.values())) == 6


def test_an_axis_is_logarithmic_from_a_factor_of_four_on():
    assert places_of({4, 1, 2}, has_all=True) == ({1: 1, 2: 2, 4: 4}, True)
    assert places_of({1, 3, 99}, has_all=True) == ({1: 1, 3: 3, 99: 4}, False)
    assert places_of({99}, has_all=True) == ({99: 1}, False)
    assert places_of({32, 128}, has_all=False) == ({32: 32, 128: 128}, True)
