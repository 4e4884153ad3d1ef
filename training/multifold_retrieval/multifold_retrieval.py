"""The metrics of this folder as a module of `evaluate`: `evaluate.load("training/multifold_retrieval")`."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor

# `evaluate.load` copies the files that are imported here and none that only those import, so all are imported here. It
# takes a comment at the end of such a line for an address.
from .bootstrap import bootstrap_intervals
from .checks import UNIT_NORM_TOLERANCE
from .counting import TIE
from .items import Items as Items
from .metrics import rank_spread, score_queries
from .ranking import PositiveBands as PositiveBands

DESCRIPTION = f"""
Retrieval with several relevant items a query: any-hit RR@k, recall@k, precision@k, NDCG@k, MRR, mean average precision,
R-precision and ranks, where items are relevant that share the query's group id. Scores within {TIE:g} tie, and tied
items count by expected value: constant embeddings score chance, whatever the order of the gallery.
"""

INPUTS = f"""
Args:
    query_embeds: One vector per query, of norm 1 within {UNIT_NORM_TOLERANCE:g}; scores are cosines in float32.
    query_group_ids: The int64 id of the instance that each query is about.
    gallery_embeds: One such vector per gallery item; passed to `compute` alone.
    gallery_group_ids: The int64 id of the instance of each item.
    hit_ks: Cut-offs of any-hit RR@k, from 1 to the size of the gallery; default 1, 5, 10.
    ndcg_ks: Cut-offs of NDCG@k; default 5.
    recall_ks: Cut-offs of recall@k, the share of the relevant items; default none.
    precision_ks: Cut-offs of precision@k; default none.
    resamples: Bootstrap resamples of the intervals, over instances; default 1000, none with 0.
    seed: Seed of the bootstrap; default 0.

Returns:
    A dict: the mean of each metric, from 0 to 1 ("rr@1", "ndcg@5", "mrr", "map", "r_precision"), "median_rank" and
    "mean_rank" from 1, what a random order scores ("chance_rr@1"), "rank_spread" over the queries of an instance,
    "queries", "queries_left_out" (without a relevant item), and "ci95" with the interval of each mean.

Examples:
    >>> metric = evaluate.load("training/multifold_retrieval")
    >>> captions, caption_ids = [[0.6, 0.8], [1.0, 0.0]], [9, 7]
    >>> shapes, shape_ids = [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], [7, 8, 9]
    >>> metric.add_batch(query_embeds=captions, query_group_ids=caption_ids)
    >>> scores = metric.compute(
    ...     gallery_embeds=shapes, gallery_group_ids=shape_ids, hit_ks=[1, 2], ndcg_ks=[2]
    ... )
    >>> scores["rr@1"], scores["mrr"], scores["ci95"]["rr@1"]
    (0.5, 0.75, [0.0, 1.0])
"""


class MultifoldRetrieval(evaluate.Metric):
    """`score_queries` and its intervals: queries batch by batch, the gallery with `compute`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "query_embeds": datasets.List(datasets.Value("float32")),
                    "query_group_ids": datasets.Value("int64"),
                }
            ),
            reference_urls=["https://doi.org/10.1145/582415.582418"],
        )

    def _compute(
        self,
        *,
        query_embeds: Any,
        query_group_ids: Any,
        gallery_embeds: Any = None,
        gallery_group_ids: Any = None,
        hit_ks: Sequence[int] = (1, 5, 10),
        ndcg_ks: Sequence[int] = (5,),
        recall_ks: Sequence[int] = (),
        precision_ks: Sequence[int] = (),
        resamples: int = 1000,
        seed: int = 0,
    ) -> dict[str, Any]:
        if gallery_embeds is None or gallery_group_ids is None:
            raise ValueError("`compute` needs `gallery_embeds` and `gallery_group_ids`; pass what the queries search.")
        scores = score_queries(
            as_embeds("query_embeds", query_embeds),
            as_embeds("gallery_embeds", gallery_embeds),
            torch.as_tensor(query_group_ids),
            torch.as_tensor(gallery_group_ids),
            hit_ks,
            ndcg_ks,
            recall_ks,
            precision_ks,
        )
        report: dict[str, Any] = scores.as_dict()
        report["rank_spread"] = rank_spread(scores.values["rank"], scores.group_ids)
        if resamples:
            values = {"mean_rank" if name == "rank" else name: value for name, value in scores.values.items()}
            intervals = bootstrap_intervals(values, scores.group_ids, resamples, seed)
            report["ci95"] = {name: list(interval) for name, interval in intervals.items()}
        return report


def as_embeds(name: str, rows: Any) -> Tensor:
    """Rows of numbers in any form as one float tensor, `(num_rows, dim)`.

    Raises:
        ValueError: If the rows differ in length.
    """
    if isinstance(rows, Tensor):
        return rows
    try:
        return torch.as_tensor(np.asarray(rows, dtype=np.float32))
    except ValueError as error:
        raise ValueError(f"`{name}` must hold rows of one length; embed all of them with the same model.") from error
