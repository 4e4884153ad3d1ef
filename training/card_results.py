"""The scores of a card in the forms that the Hub reads, and read back from a card by whoever checks them."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, eval_result_entries_to_yaml

from training.dataset_used import DatasetUsed
from training.retrieval import Report
from training.score_tables import directions_of, fraction_names

RESULTS_FOLDER = ".eval_results"
DIGITS = 4


class Figure(NamedTuple):
    """A score, and what it takes to compare another one with it."""

    direction: str  # `text_to_instance` or `instance_to_text`
    metric: str  # such as `rr@1`
    value: float
    interval: tuple[float, float] | None  # 95 %

    @property
    def name(self) -> str:
        """Its name under one level of names, such as `text_to_instance_rr@1`."""
        return f"{self.direction}_{self.metric}"


class Statement(NamedTuple):
    """What a card claims: figures, and the data and protocol behind them."""

    figures: list[Figure]
    split: str
    protocol: str
    protocol_hash: str
    dataset: Mapping[str, Any]  # `source`, `fingerprint`, `content`


def figures_of(report: Report) -> Iterator[Figure]:
    """The scores of both directions that lie between 0 and 1."""
    for direction in directions_of(report):
        scores = report.get(direction, {})
        for metric in fraction_names(report):
            if metric in scores:
                interval = scores.get("ci95", {}).get(metric)
                rounded = None if interval is None else (round(interval[0], DIGITS), round(interval[1], DIGITS))
                yield Figure(direction, metric, round(scores[metric], DIGITS), rounded)


def protocol_hash(report: Report) -> str:
    """What two reports share if the rules behind their scores are the same."""
    protocol = report["protocol"]
    stated = json.dumps(protocol, sort_keys=True, ensure_ascii=False).encode()
    return str(protocol.get("hash") or hashlib.sha256(stated).hexdigest()[:12])


def eval_results(report: Report, dataset: DatasetUsed, seed: int | None) -> list[EvalResult]:
    """The scores for the metadata of a card, its `model-index`."""
    name = report["protocol"]["name"]
    known = {key: value for key, value in dataset.items() if key in ("source", "fingerprint", "content")}
    return [
        EvalResult(
            task_type="image-text-retrieval",
            dataset_type=dataset.get("hub_id", dataset["name"]),
            dataset_name=dataset["name"],
            dataset_config=dataset.get("source", {}).get("config"),
            dataset_split=dataset["split"],
            dataset_args=known or None,
            metric_type=figure.metric,
            metric_name=f"{directions_of(report)[figure.direction]} {figure.metric.upper()} ({name})",
            metric_value=figure.value,
            metric_args={
                "direction": figure.direction,
                "protocol": name,
                "protocol_hash": protocol_hash(report),
                **({"interval_95": list(figure.interval)} if figure.interval else {}),
                **({} if seed is None else {"seeds": [seed]}),
            },
        )
        for figure in figures_of(report)
    ]


def results_yaml(report: Report, dataset: DatasetUsed, seed: int | None) -> str:
    """The scores as a file of `.eval_results`, where the Hub finds them for the data set's own page."""
    way = f"protocol {report['protocol']['name']} ({protocol_hash(report)}); split {dataset['split']}; seeds {[seed]}"
    entries = [
        EvalResultEntry(dataset["hub_id"], figure.name, figure.value, notes=f"{way}; 95 % interval {figure.interval}")
        for figure in figures_of(report)
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)


def stated_by(card: str) -> Statement | None:
    """What a card claims in its metadata; None for a card without figures of ours.

    Raises:
        ValueError: For a card whose metadata can't be read, or whose figures were not all measured in one way.
    """
    results = [result for result in ModelCard(card).data.get("eval_results", []) if result.metric_args]
    if not results:
        return None
    ways = {(r.dataset_split, r.metric_args["protocol"], r.metric_args["protocol_hash"]) for r in results}
    if len(ways) > 1:
        raise ValueError(f"The card's figures were measured in {len(ways)} ways, {sorted(ways)}; one can be checked.")
    split, protocol, rules = ways.pop()
    return Statement(list(map(_figure, results)), split, protocol, rules, results[0].dataset_args or {})


def _figure(result: EvalResult) -> Figure:
    arguments = result.metric_args or {}
    interval = arguments.get("interval_95")
    return Figure(
        arguments["direction"],
        result.metric_type,
        float(result.metric_value),
        None if interval is None else (float(interval[0]), float(interval[1])),
    )
