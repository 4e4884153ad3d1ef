"""Reports as tables of text: one result, or several of one protocol; the cells are for people, JSON has the rest."""

from collections.abc import Mapping, Sequence

from training.protocol import DIRECTIONS
from training.retrieval import Report


def directions_of(report: Report) -> dict[str, str]:
    """The directions that a result has, and their titles."""
    unit = "view" if report["protocol"].get("gallery_unit") == "observation" else "instance"
    return {name: title.replace("instance", unit) for name, title in DIRECTIONS.items() if name in report}


def fraction_names(report: Report) -> list[str]:
    """The metrics in percent that tables show, in the protocol's order, as far as a direction has them."""
    protocol = report["protocol"]
    by_share = protocol.get("hit_rule") == "share"
    hits = [f"recall@{k}" for k in protocol["recall_ks"]] if by_share else [f"rr@{k}" for k in protocol["hit_ks"]]
    names = [*hits, *(f"ndcg@{k}" for k in protocol["ndcg_ks"]), "mrr"]
    return [name for name in names if any(name in report[direction] for direction in directions_of(report))]


def table_rows(report: Report) -> list[list[str]]:
    """The result as cells, the heading first: per direction its scores in percent, intervals, chance, categories."""
    names = fraction_names(report)
    rows = [_heading("percent", names)]
    for direction, title in directions_of(report).items():
        scores = report[direction]
        rows.append([title, *_cells(scores, names)])
        rows.append(["95 % interval", *(_interval_cell(scores["ci95"].get(name)) for name in names), "", "", ""])
        rows.append(["chance", *(_percent(scores.get(f"chance_{name}")) for name in names), "", "", ""])
        rows += [[category, *_cells(part, names)] for category, part in scores["per_category"].items()]
    return rows


def runs_table(reports: Mapping[str, Report], direction: str) -> list[list[str]]:
    """Results of several runs as cells, the heading first: one row a run, scores in percent with 95 % intervals.

    Raises:
        ValueError: If the results are not of one protocol and one gallery, or lack the direction.
    """
    check_comparable(reports)
    first = next(iter(reports.values()))
    if direction not in directions_of(first):
        raise ValueError(f"`direction` must be one of {list(directions_of(first))}, got {direction!r}.")
    names = [name for name in fraction_names(first) if name in first[direction]]
    rows = [_heading(directions_of(first)[direction], names)]
    for run, report in reports.items():
        cells = _cells(report[direction], names)
        intervals = [_interval_cell(report[direction]["ci95"][name]) for name in names]
        shown = [f"{cell} ({interval})" for cell, interval in zip(cells, intervals, strict=False)]
        rows.append([run, *shown, *cells[len(names) :]])
    return rows


def check_comparable(reports: Mapping[str, Report]) -> None:
    """Refuse results that no table may hold side by side.

    Raises:
        ValueError: If they are of different protocols or different galleries, or do not say.
    """
    if not reports:
        raise ValueError("`reports` is empty; pass at least one result.")
    (first, reference), *others = reports.items()
    for run, report in reports.items():
        if "hash" not in report["protocol"] or "gallery_hash" not in report:
            raise ValueError(f"The result of {run!r} does not say what it searched; evaluate it again.")
    for run, report in others:
        if _protocol_of(report) != _protocol_of(reference):
            raise ValueError(
                f"Results of different protocols can't stand in one table: {first!r} has {_protocol_of(reference)}, "
                f"{run!r} has {_protocol_of(report)}; evaluate both under one."
            )
        if report["gallery_hash"] != reference["gallery_hash"]:
            raise ValueError(
                f"Results of different galleries can't stand in one table: {first!r} searched "
                f"{_gallery_of(reference)}, {run!r} searched {_gallery_of(report)}; evaluate both on one split."
            )


def format_table(report: Report) -> str:
    """The result as plain text for a terminal.

    Example:
        >>> import torch
        >>> from training.retrieval import Embeddings, retrieval_report
        >>> eye, ids = torch.eye(2), torch.tensor([7, 8])
        >>> names = {7: "chair-0", 8: "table-0"}
        >>> report = retrieval_report(Embeddings(eye, ids, eye, ids, ["a chair", "a table"], names, {}))
        >>> print(format_table(report))  # doctest: +ELLIPSIS
        multifold/instance: 2 instances, 2 images, 2 captions (0 share their text with another instance)
        Cut-offs [5, 10] of text_to_instance are left out: its gallery has 2 items.
        Cut-offs [5, 10] of instance_to_text are left out: its gallery has 2 items.
        <BLANKLINE>
        percent                 RR@1          MRR  median rank  mean rank  queries
        text → instance        100.0        100.0          1.0        1.0        2
        ...
    """
    return "\n".join([describe_gallery(report), *report.get("warnings", []), "", align(table_rows(report))])


def align(rows: Sequence[Sequence[str]]) -> str:
    """Cells as lines of columns of one width, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def describe_gallery(report: Report) -> str:
    """One line that says what was searched, and how."""
    return (
        f"{report['protocol']['name']}: {report['num_instances']} instances, {report['num_images']} images, "
        f"{report['num_captions']} captions ({report['identical_captions']} share their text with another instance)"
    )


def _heading(title: str, names: Sequence[str]) -> list[str]:
    return [title, *(name.upper() for name in names), "median rank", "mean rank", "queries"]


def _protocol_of(report: Report) -> str:
    return f"'{report['protocol']['name']}' with the hash {report['protocol']['hash']}"


def _gallery_of(report: Report) -> str:
    return f"{report['num_instances']} instances ({report['gallery_hash']})"


def _cells(scores: Report, names: Sequence[str]) -> list[str]:
    ranks = [f"{scores[name]:.1f}" for name in ("median_rank", "mean_rank")]
    return [*(_percent(scores.get(name)) for name in names), *ranks, str(scores["queries"])]


def _percent(fraction: float | None) -> str:
    """A fraction in percent, with two digits where one would say little; empty for None."""
    if fraction is None:
        return ""
    return f"{100 * fraction:.1f}" if fraction >= 0.01 else f"{100 * fraction:.2f}"


def _interval_cell(interval: Sequence[float] | None) -> str:
    return "" if interval is None else "-".join(_percent(end) for end in interval)
