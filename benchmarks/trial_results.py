"""What came of the trials of a plan: results read, averaged over seeds, and compared with the baseline's."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.plans import Entry, Plan
from training.multifold_retrieval.bootstrap import PairedDifference, paired_bootstrap

DIRECTION, METRIC = "text_to_instance", "rr@1"
HEADLINE = f"{DIRECTION}_{METRIC}"  # what entries are ordered and compared by
RESAMPLES = 2000
ALL_FROM = 99  # as many views or captions are all that an instance has
COSTS = ("seconds_per_step", "peak_megabytes", "images_per_step", "texts_per_step")

Found = Mapping[str, Sequence[tuple[Entry, Sequence[Path]]]]  # by data set; of each entry the results that there are


class Estimate(NamedTuple):
    """A mean, and how sure it is."""

    mean: float
    error: float | None  # the standard error of the mean; None of a lone value


class Point(NamedTuple):
    """Where a curve passes, averaged over seeds."""

    images: float  # encoded until then
    score: Estimate


class Gain(NamedTuple):
    """How far an entry is from its baseline in `HEADLINE`."""

    of_means: Estimate  # of all seeds of both; its error takes them for independent
    paired: PairedDifference | None  # query by query, averaged over shared seeds; None where queries weren't kept
    paired_seeds: list[int]

    @property
    def is_clear(self) -> bool:
        """Whether the bootstrap's interval leaves out 0."""
        return self.paired is not None and (self.paired.low > 0 or self.paired.high < 0)


@dataclass(frozen=True)
class SeedResult:
    """What one trial gave."""

    seed: int
    scores: Mapping[str, float]  # of the split that the plan is scored on, as fractions
    geometry: Mapping[str, float]
    costs: Mapping[str, float]
    curve: Sequence[Mapping[str, float]]  # on validation
    instances: Mapping[str, int]  # by split
    machine: str
    query_scores: Path  # it exists where test was scored


@dataclass(frozen=True)
class Summary:
    """What an entry gave on one data set, over its seeds."""

    entry: Entry
    results: list[SeedResult]
    missing_seeds: list[int]
    scores: dict[str, Estimate]
    geometry: dict[str, Estimate]
    costs: dict[str, Estimate]
    gain: Gain | None = None  # None for the baseline itself, and where there is none

    @property
    def rank_key(self) -> float:
        """What entries are ordered by; the least for those without a result, and for those that diverged."""
        score = self.scores[HEADLINE].mean if self.results else math.nan
        return -math.inf if math.isnan(score) else score


Budgets = dict[str, list[Summary]]  # in the plan's order; each best first, entries without a result last


def summarize(plan: Plan, found: Found) -> dict[str, Budgets]:
    """By data set and budget, what the entries of a plan gave."""
    return {data: _summarize_data(plan, entries) for data, entries in found.items()}


def scored(summaries: Sequence[Summary]) -> list[Summary]:
    """Those that have a result."""
    return [each for each in summaries if each.results]


def baseline_of(plan: Plan, summaries: Sequence[Summary]) -> Summary | None:
    """The plan's baseline among the entries of one budget; None where it isn't or has no result."""
    return next((each for each in scored(summaries) if each.entry.name == plan.baseline), None)


def read_result(path: Path, on_test: bool) -> SeedResult:
    """What a trial wrote.

    Raises:
        ValueError: If scores on test are asked for and it has none.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    scores = record["test" if on_test else "validation"]
    if scores is None:
        raise ValueError(f"`test` of {path.name} must hold scores, got null; run its plan with `scored_on: test`.")
    return SeedResult(
        record["trial"]["seed"],
        scores,
        record["geometry"],
        {name: record[name] for name in COSTS},
        record["curve"],
        record["instances"],
        record["machine"],
        path.with_suffix(".safetensors"),
    )


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of some values, and its standard error.

    Example:
        >>> estimate([1.0, 3.0])
        Estimate(mean=2.0, error=1.0)
        >>> estimate([1.0])
        Estimate(mean=1.0, error=None)
    """
    if len(values) == 1:
        return Estimate(values[0], None)
    return Estimate(statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)))


def estimates(figures: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    """The estimate of each figure by its name, over the seeds that have it."""
    names = dict.fromkeys(name for each in figures for name in each)
    return {name: estimate([each[name] for each in figures if name in each]) for name in names}


def curve_points(results: Sequence[SeedResult]) -> list[Point]:
    """The learning curve in `HEADLINE`, over those steps that all seeds have."""
    curves = [{point["step"]: point for point in result.curve} for result in results]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return [
        Point(
            statistics.fmean(curve[step]["images"] for curve in curves),
            estimate([curve[step][HEADLINE] for curve in curves]),
        )
        for step in steps
    ]


def gain_over(baseline: Summary, summary: Summary) -> Gain:
    """What an entry gains over the baseline, as its seeds tell and as the queries do."""
    low, high = baseline.scores[HEADLINE], summary.scores[HEADLINE]
    error = None if low.error is None or high.error is None else math.hypot(low.error, high.error)
    of_means = Estimate(high.mean - low.mean, error)
    sides = [_with_query_scores(each) for each in (baseline, summary)]
    seeds = sorted(set(sides[0]) & set(sides[1]))
    if not seeds:
        return Gain(of_means, None, [])
    (ids, values_a), (other_ids, values_b) = (_query_means([side[seed] for seed in seeds]) for side in sides)
    if not torch.equal(ids, other_ids):
        raise ValueError(
            f"{summary.entry.name!r} and {baseline.entry.name!r} must have the same test queries in the same order; "
            "run both again on the data set as it is now."
        )
    paired = paired_bootstrap({METRIC: values_a}, {METRIC: values_b}, ids, RESAMPLES)[METRIC]
    return Gain(of_means, paired, seeds)


def _summarize_data(plan: Plan, entries: Sequence[tuple[Entry, Sequence[Path]]]) -> Budgets:
    budgets: Budgets = {}
    for entry, paths in entries:
        budgets.setdefault(entry.budget, []).append(_summarize_entry(plan, entry, paths))
    return {budget: _compare(plan, summaries) for budget, summaries in budgets.items()}


def _summarize_entry(plan: Plan, entry: Entry, paths: Sequence[Path]) -> Summary:
    results = [read_result(path, plan.on_test) for path in paths]
    done = {result.seed for result in results}
    return Summary(
        entry,
        results,
        [seed for seed in plan.seeds if seed not in done],
        estimates([result.scores for result in results]),
        estimates([result.geometry for result in results]),
        estimates([result.costs for result in results]),
    )


def _compare(plan: Plan, summaries: Sequence[Summary]) -> list[Summary]:
    baseline = baseline_of(plan, summaries)
    compared = [
        each if baseline in (None, each) or not each.results else replace(each, gain=gain_over(baseline, each))
        for each in summaries
    ]
    return sorted(compared, key=lambda each: each.rank_key, reverse=True)


def _with_query_scores(summary: Summary) -> dict[int, Path]:
    return {result.seed: result.query_scores for result in summary.results if result.query_scores.exists()}


def _query_means(paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
    """The group id of each query, and its score averaged over seeds, `(num_queries,)` both."""
    ids, values = zip(*(_read_queries(path) for path in paths), strict=True)
    if any(not torch.equal(ids[0], each) for each in ids):
        raise ValueError(
            f"{paths[0].name} and its other seeds must have the same queries in the same order; run all again."
        )
    return ids[0], torch.stack(values).double().mean(dim=0)


def _read_queries(path: Path) -> tuple[Tensor, Tensor]:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(f"{DIRECTION}/group_ids"), file.get_tensor(f"{DIRECTION}/{METRIC}")
