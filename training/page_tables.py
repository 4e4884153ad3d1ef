"""The tables of an evaluation's page, as cells of text."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from training.evaluation import Evaluation
from training.markdown import duration
from training.multifold_retrieval.bootstrap import bootstrap_intervals
from training.multifold_retrieval.metrics import QueryScores
from training.retrieval import Report
from training.score_tables import directions_of, fraction_names

MEANINGS = {  # by the part of a metric's name before its cut-off
    "rr": "queries with any relevant item among the first k",
    "recall": "share of a query's relevant items among the first k",
    "precision": "share of the first k that is relevant",
    "ndcg": "gain of the relevant items among the first k, later places counting less, against the best order",
    "mrr": "mean of 1 / rank of the first relevant item",
    "map": "mean over relevant items of the precision at each one's rank",
    "r_precision": "share of relevant items among the first R, where R is how many there are",
    "median_rank": "rank of the first relevant item, half of the queries do better",
    "mean_rank": "rank of the first relevant item, where a few bad queries weigh much",
    "rank_spread": "standard deviation of rank over the queries of one instance: how much the wording, or the view, matters",
}
GEOMETRY = {
    "modality_gap": "distance between the mean image and the mean caption; 0 is no gap, 2 the largest",
    "alignment": "mean squared distance of an image and a caption of one instance; smaller is closer",
    "uniformity_image": "how evenly images spread over the sphere; more negative is more even",
    "uniformity_text": "the same for captions",
    "within_instance_spread_image": "how far an instance's views lie from their mean",
    "within_instance_spread_text": "the same for its captions",
    "effective_rank_image": "dimensions that images really use",
    "effective_rank_text": "dimensions that captions really use",
    "hubness_text_to_instance": "skew of how often an instance is found; large means that a few turn up everywhere",
    "hubness_instance_to_text": "the same for captions",
}
SHOWN_CATEGORIES = 60
RUN_FACTS = ("objective", "parameters", "steps", "hardware", "git_revision", "command")


class ScoreCell(NamedTuple):
    """A mean, its interval and chance, as text; empty where there is none."""

    value: str
    interval: str
    chance: str


class ScoreRow(NamedTuple):
    """A metric in every direction."""

    name: str
    cells: list[ScoreCell]
    meaning: str  # empty where a row above says it


def summary_of(report: Report, direction: str) -> str:
    """A direction's result in a sentence."""
    scores = report[direction]
    name = next(name for name in fraction_names(report) if name in scores)
    cell = score_cell(scores, name)
    chance = f", chance {cell.chance} %" if cell.chance else ""
    return (
        f"{directions_of(report)[direction]}: {metric_title(name)} {cell.value} % (95 % interval {cell.interval}{chance}), "
        f"median rank {scores['median_rank']:,.1f}."
    )


def score_rows(report: Report) -> list[ScoreRow]:
    """Every metric that a direction has, in the report's order."""
    directions = directions_of(report)
    names = dict.fromkeys(name for direction in directions for name in report[direction])
    rows, explained = [], set()
    for name in names:
        kind = name.partition("@")[0]
        if kind in MEANINGS:
            cells = [score_cell(report[direction], name) for direction in directions]
            rows.append(ScoreRow(metric_title(name), cells, "" if kind in explained else MEANINGS[kind]))
            explained.add(kind)
    return rows


def score_cell(scores: Report, name: str) -> ScoreCell:
    """One metric of one direction."""
    value, chance = scores.get(name), scores.get(f"chance_{name}")
    return ScoreCell(
        "" if value is None else metric_value(name, value),
        interval_words(name, *scores["ci95"][name]) if name in scores["ci95"] else "",
        "" if chance is None else metric_value(name, chance),
    )


def category_rows(evaluation: Evaluation) -> list[list[str]]:
    """For each category its queries, chosen scores and intervals in every direction; weakest first, the heading on top.

    Empty where there are no categories.
    """
    if not evaluation.embeddings.categories:
        return []
    directions = directions_of(evaluation.report)
    columns = {direction: category_columns(evaluation, direction) for direction in directions}
    first = columns[next(iter(directions))]
    heading = ["category"] + [
        f"{name}, {where}" for where in directions.values() for name in ("queries", *map(metric_title, first.names))
    ]
    categories = sorted(
        {name for part in columns.values() for name in part.cells}, key=lambda name: first.order.get(name, -1.0)
    )
    blank = [""] * (1 + len(first.names))
    return [
        heading,
        *([name, *(cell for part in columns.values() for cell in part.cells.get(name, blank))] for name in categories),
    ]


class CategoryColumns(NamedTuple):
    """The part of the table of categories that one direction fills."""

    names: list[str]  # of the metrics
    cells: dict[str, list[str]]  # by category: the number of queries, then the metrics
    order: dict[str, float]  # by category: the first metric


def category_columns(evaluation: Evaluation, direction: str) -> CategoryColumns:
    """The first recall and MRR of each category, with intervals."""
    scores, categories = evaluation.scores[direction], evaluation.embeddings.categories
    recall = next(name for name in fraction_names(evaluation.report) if name in scores.values)
    names = list(dict.fromkeys([recall, "mrr"]))
    numbers = {category: number for number, category in enumerate(sorted(set(categories.values())))}
    of_query = torch.tensor([numbers.get(categories.get(each, ""), -1) for each in scores.group_ids.tolist()])
    cells, order = {}, {}
    for category, number in numbers.items():
        part = scores.select(of_query == number)
        if len(part.query_rows) == 0:
            continue
        cells[category] = [f"{len(part.query_rows):,}", *mean_cells(part, names, evaluation)]
        order[category] = part.values[names[0]].mean().item()
    return CategoryColumns(names, cells, order)


def mean_cells(scores: QueryScores, names: list[str], evaluation: Evaluation) -> list[str]:
    """Means with their intervals."""
    values = {name: scores.values[name] for name in names}
    intervals = bootstrap_intervals(values, scores.group_ids, evaluation.protocol.resamples, evaluation.protocol.seed)
    return [
        f"{metric_value(name, values[name].mean().item())} ({interval_words(name, *intervals[name])})"
        for name in names
    ]


def geometry_rows(report: Report) -> list[list[str]]:
    """The figures of the embeddings, the heading on top; empty where the report has none."""
    found = report.get("geometry", {})
    rows = [
        [name.replace("_", " "), f"{value:.3g}", GEOMETRY[name]] for name, value in found.items() if name in GEOMETRY
    ]
    return [["figure", "value", "what it says"], *rows] if rows else []


def data_facts(evaluation: Evaluation) -> dict[str, str]:
    """What was searched."""
    report = evaluation.report
    return {
        "data set": evaluation.dataset,
        "split": report["split"],
        "instances": f"{report['num_instances']:,}",
        "images": f"{report['num_images']:,}",
        "captions": f"{report['num_captions']:,}, of which {report['num_captions_used']:,} take part",
        "captions with another instance's text": f"{report['identical_captions']:,}",
        "queries left out, without a relevant item": ", ".join(
            f"{report[direction]['queries_left_out']:,} {where}" for direction, where in directions_of(report).items()
        ),
        "fingerprint of the rows": evaluation.rows.fingerprint,
        "hash of the gallery": report["gallery_hash"],
    }


def run_facts(run: Mapping[str, Any]) -> dict[str, str]:
    """What a run folder says of the model and of its training, as far as it does; empty for a checkpoint without one."""
    towers = {f"{modality} tower": name for modality, name in run.get("towers", {}).items()}
    facts = {
        name.replace("_", " "): f"{run[name]:,}" if isinstance(run[name], int) else str(run[name])
        for name in RUN_FACTS
        if name in run
    }
    if "name" in run.get("dataset", {}):
        facts["trained on"] = run["dataset"]["name"]
    if "seconds" in run:
        facts["training took"] = duration(run["seconds"])
    lists = {
        "instances by split": {name: f"{size:,}" for name, size in run.get("dataset", {}).get("sizes", {}).items()},
        "versions": run.get("versions", {}),
    }
    listed = {title: ", ".join(f"{name} {value}" for name, value in part.items()) for title, part in lists.items()}
    return towers | facts | {title: text for title, text in listed.items() if text}


def metric_title(name: str) -> str:
    """A metric's name as a heading."""
    return name.replace("_", " ") if "rank" in name else name.replace("_", "-").upper()


def metric_value(name: str, value: float) -> str:
    """A metric's value: ranks with one digit, fractions in percent."""
    if "rank" in name:
        return f"{value:,.1f}"
    return f"{100 * value:.1f}" if value >= 0.01 or value == 0 else f"{100 * value:.2f}"


def interval_words(name: str, low: float, high: float) -> str:
    """The ends of an interval."""
    return f"{metric_value(name, low)} to {metric_value(name, high)}"
