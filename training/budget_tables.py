"""Budgets in words: a table of every point, and the sentences that say how few observations do."""

from collections.abc import Sequence

from training.budget_curves import HIT_KS, KINDS
from training.retrieval import Report
from training.score_tables import align

ENOUGH = 0.95  # of the RR@1 with all observations
METRICS = (*(f"rr@{k}" for k in HIT_KS), "mrr")
TITLES = {
    "views": "Views kept of each instance; every caption is a query",
    "captions": "Captions fused into a query, one an instance; instances keep all their views",
}


def format_budgets(report: Report) -> str:
    """The tables of both kinds, and the sentences."""
    tables = [f"{TITLES[kind]}\n{align(table_rows(report[kind]))}" for kind in KINDS]
    return "\n\n".join([*tables, "\n".join(sentences(report))])


def table_rows(part: Report) -> list[list[str]]:
    """A row per pooling and budget, the heading first: scores in percent with their 95 % intervals.

    Args:
        part: `views` or `captions` of what `budget_curves` gives.
    """
    names = [name for name in METRICS if name in next(iter(part["curves"].values()))[0]]
    rows = [["pooling", "kept", *(f"{name.upper()} %" for name in names), "RR@1 of all"]]
    for pooling, points in part["curves"].items():
        for point in points:
            kept = "all" if point is points[-1] else str(point["kept"])
            cells = [f"{100 * point[name]:.1f} ({_interval(point['ci95'][name])})" for name in names]
            rows.append([pooling, kept, *cells, share_cell(point)])
    return rows


def share_cell(point: Report) -> str:
    """What a point keeps of the RR@1 with all observations; empty where that is 0."""
    share = point["of_all"]["rr@1"]
    return "" if share is None else f"{100 * share:.0f} %"


def is_even(part: Report) -> bool:
    """Whether all folds are of one size."""
    return part["smallest_fold"] == part["largest_fold"]


def sentences(report: Report) -> list[str]:
    """What to take home: of views and captions, the smallest budget that does; and the poolings side by side."""
    lines = [describe_budgets(report[kind], kind) for kind in KINDS]
    return [*lines, describe_poolings(report["views"])] if report["views"]["poolings"] else lines


def describe_budgets(part: Report, kind: str) -> str:
    """The smallest budget that gives `ENOUGH`, with the first pooling, and what the smaller ones give."""
    pooling, points = next(iter(part["curves"].items()))
    *fewer, whole = points
    if not fewer:
        return f"Of {kind} there is one budget, {part['largest_fold']}, so that nothing is left out."
    if whole["rr@1"] == 0:
        return f"With all {kind} RR@1 is 0, so that there is no share of it to tell."
    enough = [point for point in fewer if point["of_all"]["rr@1"] >= ENOUGH]
    chosen = enough[0] if enough else fewer[-1]
    folds = f"{part['largest_fold']} {kind}"
    if not is_even(part):
        folds = f"up to {folds} ({whole['mean_kept']:.1f} on average)"
    fused = "" if kind == "views" else " fused into a query"
    gain = chosen["gain_of_all"]["rr@1"]
    return (
        f"{chosen['kept']} of {folds}{fused} give{_ending(chosen)} {'' if enough else 'only '}{share_cell(chosen)} of the "
        f"RR@1 of all ({100 * chosen['rr@1']:.1f} against {100 * whole['rr@1']:.1f} %, {pooling} pooling; all gain "
        f"{_points(gain)}){_smaller(fewer[: fewer.index(chosen)])}."
    )


def describe_poolings(part: Report) -> str:
    """The poolings against the first one, with all views."""
    (first, points), *others = part["curves"].items()
    compared = [
        f"{100 * curve[-1]['rr@1']:.1f} % with {pooling} ({_points(part['poolings'][pooling]['rr@1'])})"
        for pooling, curve in others
    ]
    return f"With all views RR@1 is {100 * points[-1]['rr@1']:.1f} % with {first}, {' and '.join(compared)}."


def _smaller(points: Sequence[Report]) -> str:
    shares = [f"{point['kept']} give{_ending(point)} {share_cell(point)}" for point in points]
    return f"; {', '.join(shares)}" if shares else ""


def _ending(point: Report) -> str:
    return "s" if point["kept"] == 1 else ""


def _points(gain: Report) -> str:
    """A gain in percentage points with its interval."""
    low, high = (100 * end for end in gain["ci95"])
    return f"{100 * gain['difference']:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}"


def _interval(ends: Sequence[float]) -> str:
    return "-".join(f"{100 * end:.1f}" for end in ends)
