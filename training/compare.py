"""Two checkpoints on the same queries: the paired difference of every metric, and the instances that changed most."""

from collections.abc import Mapping

import torch
from torch import Tensor

from training.evaluation import Evaluation
from training.multifold_retrieval.bootstrap import paired_bootstrap
from training.multifold_retrieval.metrics import QueryScores
from training.page_tables import metric_title, metric_value
from training.retrieval import Report
from training.score_tables import align, check_comparable, directions_of

SHOWN_CHANGES = 8


def compare(first: Evaluation, second: Evaluation) -> Report:
    """What the second checkpoint gains over the first, ready for JSON.

    Each direction holds "metrics" (by name "first", "second", "difference", "low", "high" and "p_value", with a 95 %
    interval over instances) and "better" and "worse", the instances that changed most.

    Raises:
        ValueError: If the two were not asked the same questions of the same data.
    """
    check_same_questions(first, second)
    return {
        "first": first.checkpoint,
        "second": second.checkpoint,
        "split": first.report["split"],
        "fingerprint": first.rows.fingerprint,
        "protocol": first.report["protocol"],
        **{name: first.report[name] for name in ("num_instances", "num_images", "num_captions", "gallery_hash")},
        **{direction: compare_direction(first, second, direction) for direction in first.scores},
    }


def check_same_questions(first: Evaluation, second: Evaluation) -> None:
    """Raise a ValueError unless protocol, split, data and queries of both are the same."""
    names = f"{first.checkpoint!r} and {second.checkpoint!r}"
    for what, one, other in (
        ("split", first.report["split"], second.report["split"]),
        ("data fingerprint", first.rows.fingerprint, second.rows.fingerprint),
    ):
        if one != other:
            raise ValueError(
                f"`--compare` needs one {what}, {names} have {one!r} and {other!r}; name both the same `--dataset`."
            )
    # The first of these two may stand there twice: as a mapping, one key would hide the other.
    check_comparable({f"first, {first.checkpoint}": first.report, f"second, {second.checkpoint}": second.report})
    one, other = (each.embeddings for each in (first, second))
    same_rows = all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("image_group_ids", "text_group_ids")
    )
    if not same_rows or one.captions != other.captions:
        raise ValueError(f"`--compare` needs the same queries in the same order, {names} differ; embed both again.")


def compare_direction(first: Evaluation, second: Evaluation, direction: str) -> Report:
    """One direction of the comparison."""
    one, other = first.scores[direction], second.scores[direction]
    protocol = first.protocol
    differences = paired_bootstrap(one.values, other.values, one.group_ids, protocol.resamples, protocol.seed)
    metrics = {
        {"rank": "mean_rank"}.get(name, name): {
            "first": one.values[name].mean().item(),
            "second": other.values[name].mean().item(),
            **difference._asdict(),
        }
        for name, difference in differences.items()
    }
    changes = instance_changes(one, other, first.embeddings.instance_ids)
    return {
        "metrics": metrics,
        "queries": len(one.query_rows),
        "better": [change for change in changes[:SHOWN_CHANGES] if change["gain"] > 0],
        "worse": [change for change in changes[: -1 - SHOWN_CHANGES : -1] if change["gain"] < 0],
    }


def instance_changes(first: QueryScores, second: QueryScores, instance_ids: Mapping[int, str]) -> list[Report]:
    """Every instance's "instance_id", "gain" and "queries", the greatest gain first.

    The gain is that of the mean reciprocal rank over the instance's queries, so that the first places count most. Each
    query has its "item", which of the direction's it is, and its rank with the "first" and the "second" checkpoint.
    """
    group_ids, index, sizes = first.group_ids.unique(return_inverse=True, return_counts=True)
    gains = sum_by(index, second.values["mrr"] - first.values["mrr"], len(sizes)) / sizes
    ranks = zip(*(scores.values["rank"].tolist() for scores in (first, second)), strict=True)
    queries = [
        {"item": item, "first": before, "second": after}
        for item, (before, after) in zip(first.query_rows.tolist(), ranks, strict=True)
    ]
    own = [rows.tolist() for rows in index.argsort(stable=True).split(sizes.tolist())]
    return [
        {
            "instance_id": instance_ids[int(group_ids[place])],
            "gain": float(gains[place]),
            "queries": [queries[row] for row in own[place]],
        }
        for place in gains.argsort(descending=True, stable=True).tolist()
    ]


def sum_by(index: Tensor, values: Tensor, num_groups: int) -> Tensor:
    """Sum of the values of each group, `(num_groups,)`, of their type."""
    return values.new_zeros(num_groups).index_add(0, index, values)


def comparison_rows(comparison: Report, direction: str) -> list[list[str]]:
    """The metrics of a direction as cells, the heading first: both means, difference, interval, p."""
    heading = [f"{directions_of(comparison)[direction]}, %", "first", "second", "difference", "95 % interval", "p"]
    return [heading, *(_cells(name, entry) for name, entry in comparison[direction]["metrics"].items())]


def format_comparison(comparison: Report) -> str:
    """The comparison as plain text for a terminal; a star marks differences whose interval leaves out 0."""
    lines = [
        f"{comparison['protocol']['name']} on `{comparison['split']}`, {comparison['num_instances']} instances",
        f"first:  {comparison['first']}",
        f"second: {comparison['second']}",
    ]
    for direction, title in directions_of(comparison).items():
        part = comparison[direction]
        lines += ["", align(comparison_rows(comparison, direction))]
        for what in ("better", "worse"):
            named = [f"{change['instance_id']} {change['gain']:+.2f}" for change in part[what]]
            lines.append(f"{title}, {what} in MRR: {', '.join(named) or 'none'}")
    return "\n".join([*lines, "", "* The 95 % interval of the difference, drawn over instances, leaves out 0."])


def _cells(name: str, entry: Report) -> list[str]:
    is_rank = name.endswith("rank")
    difference, low, high = (
        f"{entry[key]:+.1f}" if is_rank else f"{100 * entry[key]:+.1f}" for key in ("difference", "low", "high")
    )
    star = "*" if is_clear(entry) else ""
    means = [metric_value(name, entry[key]) for key in ("first", "second")]
    return [metric_title(name), *means, difference + star, f"{low} to {high}", f"{entry['p_value']:.3f}"]


def is_clear(entry: Report) -> bool:
    """Whether the interval of a difference leaves out 0."""
    return entry["low"] > 0 or entry["high"] < 0
