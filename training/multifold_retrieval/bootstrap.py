"""Intervals of mean metrics, and of their differences, when instances, not queries, are drawn again."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

RESAMPLED_ENTRIES = 2**22  # entries of the bootstrap's count matrix held at once


class PairedDifference(NamedTuple):
    """How far run B is from run A in one metric, on the same queries."""

    difference: float  # mean of B minus mean of A
    low: float  # the interval of that difference
    high: float
    p_value: float  # two-sided, see `paired_bootstrap`


def bootstrap_intervals(
    values: Mapping[str, Tensor], group_ids: Tensor, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile interval of each mean over queries when *instances* are drawn again, with all of their queries.

    Queries of one instance are alike, so resampling them one by one would give intervals that are too narrow.

    Args:
        values: By metric, one value per query, `(num_queries,)`.
        group_ids: `(num_queries,)`, int64.
        resamples: How often all instances are drawn, with replacement.
        seed: The same seed gives the same interval.
        level: Share of the resampled means inside the interval.

    Raises:
        ValueError: If values and ids don't fit, or `resamples` or `level` is out of range.
    """
    means = _resampled_means(values, group_ids, resamples, seed)
    low, high = _interval(means, level)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(values)}


def paired_bootstrap(
    values_a: Mapping[str, Tensor],
    values_b: Mapping[str, Tensor],
    group_ids: Tensor,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, PairedDifference]:
    """What run B gains over run A in each metric, when instances are drawn again for both runs together.

    What makes a query hard for both runs cancels out, so that the interval is narrower than those of the two means.

    The p-value is twice the smaller of two shares, at most 1: of the resampled differences at or below 0, and of those
    at or above 0. Both counts and their total have 1 added, so that it is never 0: the smallest is 2 / (resamples + 1).

    Args:
        values_a: By metric, one value per query of the first run, `(num_queries,)`.
        values_b: The same metrics and queries of the second run.
        group_ids: `(num_queries,)`, int64.
        resamples: How often all instances are drawn, with replacement.
        seed: The same seed gives the same result.
        level: Share of the resampled differences inside the interval.

    Raises:
        ValueError: If the runs don't have the same metrics and queries, or `resamples` or `level` is out of range.

    Example:
        Run B gains on two instances of three and loses on none.

        >>> run_a, run_b = {"rr@1": torch.tensor([0.0, 0.0, 1.0])}, {"rr@1": torch.tensor([1.0, 1.0, 1.0])}
        >>> gain = paired_bootstrap(run_a, run_b, torch.tensor([7, 8, 9]), resamples=999)["rr@1"]
        >>> round(gain.difference, 4), gain.low, gain.high
        (0.6667, 0.0, 1.0)
    """
    if values_a.keys() != values_b.keys():
        raise ValueError(
            f"`values_a` and `values_b` must hold the same metrics, got {sorted(values_a)} and {sorted(values_b)}."
        )
    for values in (values_a, values_b):
        _check_values(values, group_ids)
    gains = {name: values_b[name].double() - values_a[name].double() for name in values_a}
    means = _resampled_means(gains, group_ids, resamples, seed)
    low, high = _interval(means, level)
    tail = np.minimum((means <= 0).sum(axis=0), (means >= 0).sum(axis=0))
    p_values = np.minimum(1, 2 * (1 + tail) / (1 + resamples))
    return {
        name: PairedDifference(gains[name].mean().item(), float(low[i]), float(high[i]), float(p_values[i]))
        for i, name in enumerate(gains)
    }


def _resampled_means(values: Mapping[str, Tensor], group_ids: Tensor, resamples: int, seed: int) -> np.ndarray:
    """The mean of each metric in each resample, `(resamples, num_metrics)` float64."""
    _check_values(values, group_ids)
    if resamples < 1:
        raise ValueError(f"`resamples` must be at least 1, got {resamples}.")
    _, rows, sizes = group_ids.unique(return_inverse=True, return_counts=True)
    columns = torch.stack([torch.ones(len(rows)).double(), *(value.double() for value in values.values())], dim=1)
    sums = torch.zeros(len(sizes), columns.shape[1]).double().index_add(0, rows, columns).numpy()
    generator, means = np.random.default_rng(seed), []
    for size in _chunk_sizes(resamples, max(1, RESAMPLED_ENTRIES // len(sums))):
        totals = _drawn_counts(generator, size, len(sums)) @ sums
        means.append(totals[:, 1:] / totals[:, :1])
    return np.concatenate(means)


def _interval(means: np.ndarray, level: float) -> np.ndarray:
    """The lower and the upper end for each metric, `(2, num_metrics)`."""
    if not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1, got {level}.")
    tail = (1 - level) / 2
    return np.quantile(means, [tail, 1 - tail], axis=0)


def _check_values(values: Mapping[str, Tensor], group_ids: Tensor) -> None:
    if len(group_ids) == 0:
        raise ValueError("`group_ids` must have at least one entry, got none; there is no query to draw.")
    for name, value in values.items():
        if value.shape != group_ids.shape:
            raise ValueError(
                f"{name!r} has shape {tuple(value.shape)} for {len(group_ids)} `group_ids`; pass one value per query."
            )


def _drawn_counts(generator: np.random.Generator, num_resamples: int, num_instances: int) -> np.ndarray:
    """How often each instance is drawn in each resample, `(num_resamples, num_instances)` float64."""
    drawn = generator.integers(num_instances, size=(num_resamples, num_instances))
    cells = drawn + num_instances * np.arange(num_resamples)[:, None]
    counts = np.bincount(cells.ravel(), minlength=num_resamples * num_instances)
    return counts.reshape(num_resamples, num_instances).astype(np.float64)


def _chunk_sizes(total: int, chunk: int) -> list[int]:
    return [min(chunk, total - start) for start in range(0, total, chunk)]
