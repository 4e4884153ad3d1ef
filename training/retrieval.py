"""From the embeddings of a data set to the result of a run: protocol, scores in both directions, tables, neighbours."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from modeling_mxmclr.folds_mxmclr import pool_by_instance, unit_norm
from training.metrics import TIE, QueryScores, bootstrap_intervals, check_embeds, rank_spread, score_queries

Report: TypeAlias = dict[str, Any]  # JSON: what `metrics.json` holds

DIRECTIONS = {"text_to_instance": "text → instance", "instance_to_text": "instance → text"}


class Embeddings(NamedTuple):
    """A split of a data set as a model sees it, one row per observation."""

    image_embeds: Tensor  # (num_images, dim), unit norm
    image_group_ids: Tensor  # (num_images,), int64
    text_embeds: Tensor  # (num_texts, dim), unit norm
    text_group_ids: Tensor  # (num_texts,), int64
    captions: list[str]  # the text of each row of `text_embeds`
    instance_ids: dict[int, str]  # by group id
    categories: dict[int, str]  # by group id, where the data set has them


class Neighbour(NamedTuple):
    """A gallery instance that a query retrieved."""

    group_id: int
    instance_id: str
    score: float
    is_hit: bool


@dataclass(frozen=True)
class Protocol:
    """`multifold/instance`: captions find mean-pooled instances, and those find captions.

    An instance without images is in no gallery, and its captions are queries without a relevant item; an instance
    without captions stays in the gallery. A cut-off beyond the gallery is left out of the report.
    """

    hit_ks: tuple[int, ...] = (1, 5, 10)
    ndcg_ks: tuple[int, ...] = (5,)
    resamples: int = 1000
    seed: int = 0

    def as_dict(self) -> Report:
        """The settings and the rules, ready for JSON."""
        return {
            "name": "multifold/instance",
            "gallery_unit": {"text_to_instance": "instance", "instance_to_text": "observation (caption)"},
            "queries": {"text_to_instance": "every caption", "instance_to_text": "every instance with images"},
            "pooling": "unit-norm mean of the unit-norm embeddings of all views",
            "hit_rule": "any-hit: one relevant item among the first k suffices",
            "ties": f"expected value over all orders of scores within {TIE:g}",
            "identical_captions": "counted as they are: the same text of another instance is not relevant",
            "scores": "cosine, float32",
            "intervals": f"95 %, percentile bootstrap over instances, {self.resamples} resamples, seed {self.seed}",
        } | asdict(self)


def retrieval_report(embeddings: Embeddings, protocol: Protocol | None = None) -> Report:
    """The result of a run under a protocol, as `metrics.json` holds it: fractions from 0 to 1, ranks from 1.

    `text_to_instance` and `instance_to_text` each hold "rr@k", "ndcg@k", "mrr", "median_rank", "mean_rank",
    "chance_rr@1", "queries", "queries_left_out", "ci95" (an interval for each mean) and "per_category" (the queries
    of a category against the whole gallery); text to instance also holds "rank_spread", over an instance's captions.

    Raises:
        ValueError: If the parts of `embeddings` do not fit, or one of the directions has nothing to score.
    """
    protocol = protocol or Protocol()
    check_embeds("image", embeddings.image_embeds, embeddings.image_group_ids)
    check_embeds("text", embeddings.text_embeds, embeddings.text_group_ids)
    if len(embeddings.captions) != len(embeddings.text_embeds):
        raise ValueError(
            f"`captions` has {len(embeddings.captions)} entries for {len(embeddings.text_embeds)} `text_embeds`; "
            "pass the text of each row."
        )
    instances, instance_group_ids = pool_instances(embeddings)
    texts, text_group_ids = embeddings.text_embeds, embeddings.text_group_ids
    from_text = _score(texts, instances, text_group_ids, instance_group_ids, protocol)
    from_instance = _score(instances, texts, instance_group_ids, text_group_ids, protocol)
    spread = rank_spread(from_text.values["rank"], from_text.group_ids)
    return {
        "protocol": protocol.as_dict(),
        "num_instances": len(torch.cat([instance_group_ids, text_group_ids]).unique()),
        "num_images": len(embeddings.image_embeds),
        "num_captions": len(texts),
        "identical_captions": count_shared_captions(embeddings.captions, text_group_ids.tolist()),
        "text_to_instance": _direction(from_text, embeddings.categories, protocol) | {"rank_spread": spread},
        "instance_to_text": _direction(from_instance, embeddings.categories, protocol),
    }


def pool_instances(embeddings: Embeddings) -> tuple[Tensor, Tensor]:
    """The unit-norm mean of each instance's views, `(num_instances, dim)` float32, and the ascending group ids."""
    means, group_ids = pool_by_instance(embeddings.image_embeds.float(), embeddings.image_group_ids)
    return unit_norm(means), group_ids


def count_shared_captions(captions: Sequence[str], group_ids: Sequence[int]) -> int:
    """How many captions have a text that another instance has too.

    Example:
        >>> count_shared_captions(["a chair", "a chair", "a chair", "a red chair"], [7, 7, 8, 8])
        3
    """
    owners: dict[str, set[int]] = defaultdict(set)
    for caption, group_id in zip(captions, group_ids, strict=True):
        owners[caption].add(group_id)
    return sum(len(owners[caption]) > 1 for caption in captions)


def nearest_instances(embeddings: Embeddings, text_rows: Sequence[int], k: int = 5) -> list[list[Neighbour]]:
    """The k nearest instances of each of these captions, nearest first; fewer where the gallery is smaller."""
    instances, group_ids = pool_instances(embeddings)
    scores = embeddings.text_embeds[list(text_rows)].float() @ instances.T
    ranked = scores.sort(dim=1, descending=True, stable=True)
    neighbours = []
    for text_row, values, places in zip(text_rows, ranked.values[:, :k], ranked.indices[:, :k], strict=True):
        target = int(embeddings.text_group_ids[text_row])
        found = zip(group_ids[places].tolist(), values.tolist(), strict=True)
        neighbours.append([Neighbour(i, embeddings.instance_ids[i], score, i == target) for i, score in found])
    return neighbours


def sample_queries(embeddings: Embeddings, count: int, seed: int = 0) -> list[int]:
    """Rows of up to `count` captions drawn at random, of as many different instances, all of them in the gallery."""
    with_images = set(embeddings.image_group_ids.tolist())
    order = torch.randperm(len(embeddings.captions), generator=torch.Generator().manual_seed(seed))
    row_of: dict[int, int] = {}
    for row in order.tolist():
        group_id = int(embeddings.text_group_ids[row])
        if group_id in with_images and len(row_of) < count:
            row_of.setdefault(group_id, row)
    return list(row_of.values())


def fraction_names(report: Report) -> list[str]:
    """The metrics in percent that at least one direction has, in the protocol's order."""
    cut_offs = report["protocol"]
    names = [*(f"rr@{k}" for k in cut_offs["hit_ks"]), *(f"ndcg@{k}" for k in cut_offs["ndcg_ks"]), "mrr"]
    return [name for name in names if any(name in report[direction] for direction in DIRECTIONS)]


def table_rows(report: Report) -> list[list[str]]:
    """The result as cells, the heading first: per direction its scores in percent, intervals, chance, categories."""
    names = fraction_names(report)
    rows = [["percent", *(name.upper() for name in names), "median rank", "mean rank", "queries"]]
    for direction, title in DIRECTIONS.items():
        scores = report[direction]
        rows.append([title, *_cells(scores, names)])
        rows.append(["95 % interval", *(_interval_cell(scores["ci95"].get(name)) for name in names), "", "", ""])
        rows.append(["chance", *(_percent(scores.get(f"chance_{name}")) for name in names), "", "", ""])
        rows += [[category, *_cells(part, names)] for category, part in scores["per_category"].items()]
    return rows


def format_table(report: Report) -> str:
    """The result as plain text for a terminal.

    Example:
        >>> eye, ids = torch.eye(2), torch.tensor([7, 8])
        >>> names = {7: "chair-0", 8: "table-0"}
        >>> report = retrieval_report(Embeddings(eye, ids, eye, ids, ["a chair", "a table"], names, {}))
        >>> print(format_table(report))  # doctest: +ELLIPSIS
        multifold/instance: 2 instances, 2 images, 2 captions (0 share their text with another instance)
        <BLANKLINE>
        percent                 RR@1          MRR  median rank  mean rank  queries
        text → instance        100.0        100.0          1.0        1.0        2
        ...
    """
    rows = table_rows(report)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join([describe_gallery(report), "", *(line.rstrip() for line in lines)])


def describe_gallery(report: Report) -> str:
    """One line that says what was searched, and how."""
    return (
        f"{report['protocol']['name']}: {report['num_instances']} instances, {report['num_images']} images, "
        f"{report['num_captions']} captions ({report['identical_captions']} share their text with another instance)"
    )


def _score(
    queries: Tensor, gallery: Tensor, query_group_ids: Tensor, gallery_group_ids: Tensor, protocol: Protocol
) -> QueryScores:
    hit_ks = [k for k in protocol.hit_ks if k <= len(gallery)]
    ndcg_ks = [k for k in protocol.ndcg_ks if k <= len(gallery)]
    return score_queries(queries, gallery, query_group_ids, gallery_group_ids, hit_ks, ndcg_ks)


def _direction(scores: QueryScores, categories: dict[int, str], protocol: Protocol) -> Report:
    """One direction of the report."""
    values = {"mean_rank" if name == "rank" else name: value for name, value in scores.values.items()}
    intervals = bootstrap_intervals(values, scores.group_ids, protocol.resamples, protocol.seed)
    return scores.as_dict() | {
        "ci95": {name: list(interval) for name, interval in intervals.items()},
        "per_category": _per_category(scores, categories),
    }


def _per_category(scores: QueryScores, categories: dict[int, str]) -> dict[str, Report]:
    names = [categories.get(group_id) for group_id in scores.group_ids.tolist()]
    parts = {}
    for category in sorted({name for name in names if name is not None}):
        part = scores.select(torch.tensor([name == category for name in names])).as_dict()
        parts[category] = {name: value for name, value in part.items() if name != "queries_left_out"}
    return parts


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
