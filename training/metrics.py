"""Retrieval metrics, pure functions of embeddings and group ids: several positives, ties by expected value, blockwise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TIE = 1e-6  # scores of unit vectors this close are equal; float32 products of other block sizes differ by less
UNIT_NORM_TOLERANCE = 1e-2  # what rounding a unit vector to bfloat16 may cost
BAND_STEPS = 128  # places of a tie band that `reciprocal_rank` sums at once
RESAMPLED_ENTRIES = 2**22  # entries of the bootstrap's count matrix held at once


class PositiveBands(NamedTuple):
    """Where the positives of each query stand; one row per query that has a positive in the gallery.

    Ties leave a *band* of places open, over which the tied items fall at random. The best positive anchors the first
    band: all items within `TIE` of its score. The best positive below that band anchors the next: all items within
    `TIE` of its score that no band holds yet. So bands depend on no order and never overlap (an NDCG never passes 1),
    their width is bounded however dense the gallery, and equal scores get their exact expectation.

    Column j belongs to the query's j-th best positive; `positives` is 0 there if the band of a better one holds it.
    """

    ahead: Tensor  # (num_kept, depth) int64, gallery items ahead of the band
    rivals: Tensor  # (num_kept, depth) int64, items of the band that are not relevant
    positives: Tensor  # (num_kept, depth) int64, items of the band that are relevant
    num_relevant: Tensor  # (num_kept,) int64, relevant items of the whole gallery
    query_rows: Tensor  # (num_kept,) int64, which of the queries these are


@dataclass(frozen=True)
class QueryScores:
    """The expected metrics of every query that has a positive: for means, subsets and paired comparisons."""

    values: dict[str, Tensor]  # "rr@1", "ndcg@5", "mrr", "rank", ...: (num_kept,) float64 each
    chance_at_1: Tensor  # (num_kept,) float64, "rr@1" of a random order
    group_ids: Tensor  # (num_kept,) int64
    query_rows: Tensor  # (num_kept,) int64, which of the queries were scored
    num_left_out: int  # queries without a relevant item

    def select(self, kept: Tensor) -> "QueryScores":
        """The scores of the rows where the bool mask `kept`, `(num_kept,)`, is true; nobody counts as left out."""
        values = {name: value[kept] for name, value in self.values.items()}
        return QueryScores(values, self.chance_at_1[kept], self.group_ids[kept], self.query_rows[kept], 0)

    def as_dict(self) -> dict[str, float]:
        """Means over the queries, ready for JSON: fractions, and ranks that count from 1."""
        summary = {name: value.mean().item() for name, value in self.values.items() if name != "rank"}
        summary["median_rank"] = float(np.median(self.values["rank"].numpy()))
        summary["mean_rank"] = self.values["rank"].mean().item()
        summary["chance_rr@1"] = self.chance_at_1.mean().item()
        return summary | {"queries": len(self.query_rows), "queries_left_out": self.num_left_out}


def score_queries(
    query_embeds: Tensor,
    gallery_embeds: Tensor,
    query_group_ids: Tensor,
    gallery_group_ids: Tensor,
    hit_ks: Sequence[int] = (1, 5, 10),
    ndcg_ks: Sequence[int] = (5,),
) -> QueryScores:
    """Every metric of every query that has a relevant gallery item: RR@k, NDCG@k, reciprocal rank ("mrr"), rank.

    Args:
        query_embeds: `(num_queries, dim)`, unit norm, any float type; scores are computed in float32.
        gallery_embeds: `(num_gallery, dim)`, unit norm.
        query_group_ids: `(num_queries,)`, int64; gallery items of the same id are relevant.
        gallery_group_ids: `(num_gallery,)`, int64.
        hit_ks: Cut-offs of the any-hit recall rate, from 1 to `num_gallery`.
        ndcg_ks: Cut-offs of NDCG.

    Raises:
        ValueError: If embeddings and ids do not fit, a k passes the gallery, or no query has a relevant item.

    Example:
        Query 0 scores 0.6, 0.96 and 0.8, so that its instance 9 comes second; query 1 finds instance 7 first.

        >>> gallery = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> queries = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
        >>> scores = score_queries(queries, gallery, torch.tensor([9, 7]), torch.tensor([7, 8, 9]), (1, 2), (2,))
        >>> scores.values["rank"].tolist(), scores.as_dict()["rr@1"], scores.as_dict()["mrr"]
        ([2.0, 1.0], 0.5, 0.75)
    """
    _check_cutoffs([*hit_ks, *ndcg_ks], len(gallery_embeds))
    bands = rank_positives(
        query_embeds, gallery_embeds, query_group_ids, gallery_group_ids, depth=max(ndcg_ks, default=1)
    )
    values = {f"rr@{k}": hit_at_k(bands, k) for k in hit_ks}
    values |= {f"ndcg@{k}": ndcg_at_k(bands, k) for k in ndcg_ks}
    values |= {"mrr": reciprocal_rank(bands), "rank": expected_rank(bands)}
    return QueryScores(
        values,
        chance_at_1=bands.num_relevant.double() / len(gallery_embeds),
        group_ids=query_group_ids.cpu()[bands.query_rows],
        query_rows=bands.query_rows,
        num_left_out=len(query_embeds) - len(bands.query_rows),
    )


@torch.no_grad()
def rank_positives(
    query_embeds: Tensor,
    gallery_embeds: Tensor,
    query_group_ids: Tensor,
    gallery_group_ids: Tensor,
    depth: int = 10,
    query_block: int = 512,
    gallery_block: int = 8192,
) -> PositiveBands:
    """The bands of each query's best `depth` positives, on the CPU.

    Memory is `query_block` x `gallery_block` scores, and never the whole matrix; the block sizes change nothing but
    which side of `TIE` a score lies that is within float32 rounding of it. Arguments as in `score_queries`.

    Example:
        Both items score 1, so the positive stands first or second: one place open, none ahead.

        >>> gallery = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> bands = rank_positives(gallery[:1], gallery, torch.tensor([7]), torch.tensor([7, 8]))
        >>> bands.ahead.tolist(), bands.rivals.tolist(), bands.positives.tolist()
        ([[0]], [[1]], [[1]])
    """
    check_embeds("query", query_embeds, query_group_ids)
    check_embeds("gallery", gallery_embeds, gallery_group_ids)
    if query_embeds.shape[1] != gallery_embeds.shape[1]:
        raise ValueError(
            f"`query_embeds` and `gallery_embeds` must have one dimension, got {query_embeds.shape[1]} and "
            f"{gallery_embeds.shape[1]}; embed both sides with the same model."
        )
    order, starts, counts = _relevant_runs(query_group_ids, gallery_group_ids)
    query_rows = counts.nonzero()[:, 0]
    if len(query_rows) == 0:
        raise ValueError("No query has a relevant item in the gallery; `query_group_ids` share no id with it.")
    depth = min(depth, int(counts.max()))
    blocks = []
    for rows in query_rows.split(query_block):
        positive_rows = _positive_rows(order, starts[rows], counts[rows], depth)
        queries = query_embeds[rows].float()
        best = _positive_scores(queries, gallery_embeds, positive_rows).sort(dim=1, descending=True).values
        above, reached = _count_rivals(queries, gallery_embeds, positive_rows, best[:, :depth], gallery_block)
        blocks.append(_form_bands(best, above, reached))
    ahead, rivals, positives = (torch.cat(parts).cpu() for parts in zip(*blocks, strict=True))
    return PositiveBands(ahead, rivals, positives, counts[query_rows].cpu(), query_rows.cpu())


def hit_at_k(bands: PositiveBands, k: int) -> Tensor:
    """Chance that at least one positive is among the first k, `(num_kept,)` float64: "RR@k", any-hit.

    Example:
        One positive tied with two rivals is among the first two in two orders of three.

        >>> one = torch.tensor([[1]])
        >>> hit_at_k(PositiveBands(0 * one, 2 * one, one, one[0], one[0]), k=2)
        tensor([0.6667], dtype=torch.float64)
    """
    ahead, rivals, positives = _first_band(bands)
    missed = torch.ones_like(ahead)
    for step in range(k):
        drawn = ahead + step < k  # the band's place `step` lies within the first k
        rival_at_step = (rivals - step).clamp(min=0) / (rivals + positives - step).clamp(min=1)
        missed = torch.where(drawn, missed * rival_at_step, missed)
    return 1 - missed


def expected_rank(bands: PositiveBands) -> Tensor:
    """Expected rank of each query's best positive, counted from 1, `(num_kept,)` float64."""
    ahead, rivals, positives = _first_band(bands)
    return 1 + ahead + rivals / (positives + 1)


def reciprocal_rank(bands: PositiveBands) -> Tensor:
    """Expectation of 1 / rank of each query's best positive, `(num_kept,)` float64."""
    distinct, rows = torch.stack(_first_band(bands), dim=1).unique(dim=0, return_inverse=True)
    ahead, rivals, positives = distinct[:, :, None].unbind(dim=1)
    total, only_rivals = torch.zeros_like(ahead), torch.ones_like(ahead)
    for start in range(0, int(rivals.max()) + 1, BAND_STEPS):
        step = torch.arange(start, start + BAND_STEPS)
        places = (rivals + positives - step).clamp(min=1)
        rival_at_step = (rivals - step).clamp(min=0) / places
        # The first positive takes place `step` of the band if all places before it went to rivals.
        reached = only_rivals * F.pad(rival_at_step.cumprod(dim=1), (1, 0), value=1.0)
        total += (reached[:, :-1] * positives / places / (1 + ahead + step)).sum(dim=1, keepdim=True)
        only_rivals = reached[:, -1:]
    return total[rows, 0]


def ndcg_at_k(bands: PositiveBands, k: int) -> Tensor:
    """Expected NDCG of the first k with gain 1 per positive, the ideal cut at k too; `(num_kept,)` float64.

    Järvelin and Kekäläinen (https://doi.org/10.1145/582415.582418) with the discount 1 / log2(rank + 1); a positive
    in a band gets the mean discount of the band's places.

    Raises:
        ValueError: If `bands` holds fewer positives a query than the first k may hold.
    """
    depth = bands.positives.shape[1]
    if min(k, int(bands.num_relevant.max())) > depth:
        raise ValueError(f"NDCG@{k} needs `depth` of at least {k}, got bands of {depth}.")
    discounts = 1 / torch.arange(2, k + 2, dtype=torch.float64).log2()
    gained = F.pad(discounts.cumsum(dim=0), (1, 0))  # by the first 0, 1, ..., k places
    size = bands.rivals + bands.positives
    first, last = bands.ahead.clamp(max=k), (bands.ahead + size).clamp(max=k)
    gain = (bands.positives * (gained[last] - gained[first]) / size.clamp(min=1)).sum(dim=1)
    return gain / gained[bands.num_relevant.clamp(max=k)]


def rank_spread(ranks: Tensor, group_ids: Tensor) -> float:
    """Population standard deviation of rank over the queries of an instance, averaged over instances.

    1-to-K calls this mean rank variance (https://huggingface.co/papers/2406.18254), but takes the deviation too. Tied
    queries enter with their expected rank: a model that ties everything has no spread, so read it beside the ranks.

    Example:
        >>> rank_spread(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([7, 7, 8]))
        0.5
    """
    _, rows, sizes = group_ids.unique(return_inverse=True, return_counts=True)
    ranks = ranks.double()
    means = _sum_by(rows, ranks, len(sizes)) / sizes
    variances = _sum_by(rows, (ranks - means[rows]).square(), len(sizes)) / sizes
    return variances.sqrt().mean().item()


def bootstrap_intervals(
    values: Mapping[str, Tensor], group_ids: Tensor, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile interval of each mean over queries when *instances* are drawn again, with all of their queries.

    Queries of one instance are alike, so resampling them one by one would give intervals that are too narrow. The
    differences of two runs on the same queries give the paired interval.

    Args:
        values: By metric, one value per query, `(num_queries,)`.
        group_ids: `(num_queries,)`, int64.
        resamples: How often all instances are drawn, with replacement.
        seed: The same seed gives the same interval.
        level: Share of the resampled means inside the interval.
    """
    _, rows, sizes = group_ids.unique(return_inverse=True, return_counts=True)
    columns = torch.stack([torch.ones(len(rows)).double(), *(value.double() for value in values.values())], dim=1)
    sums = torch.zeros(len(sizes), columns.shape[1]).double().index_add(0, rows, columns).numpy()
    generator, means = np.random.default_rng(seed), []
    for size in _chunk_sizes(resamples, max(1, RESAMPLED_ENTRIES // len(sums))):
        totals = _drawn_counts(generator, size, len(sums)) @ sums
        means.append(totals[:, 1:] / totals[:, :1])
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(values)}


def check_embeds(side: str, embeds: Tensor, group_ids: Tensor) -> None:
    """Raise unless `{side}_embeds`, `(rows, dim)`, are finite unit vectors with one int64 group id each."""
    if embeds.ndim != 2 or len(embeds) == 0:
        raise ValueError(f"`{side}_embeds` must be (rows, dim) with at least one row, got {tuple(embeds.shape)}.")
    if group_ids.dtype != torch.int64:
        raise TypeError(f"`{side}_group_ids` must be int64, got {group_ids.dtype}.")
    if group_ids.shape != (len(embeds),):
        raise ValueError(
            f"`{side}_group_ids` has shape {tuple(group_ids.shape)} for {len(embeds)} embeddings; pass one id for each."
        )
    if not embeds.is_floating_point():
        raise TypeError(f"`{side}_embeds` must be of a float type, got {embeds.dtype}.")
    norms = torch.linalg.vector_norm(embeds, dim=1, dtype=torch.promote_types(embeds.dtype, torch.float32))
    if not norms.isfinite().all():
        row = int(norms.isfinite().logical_not().nonzero()[0])
        raise ValueError(f"`{side}_embeds` must be finite, got NaN or infinity in row {row}.")
    off = ((norms - 1).abs() > UNIT_NORM_TOLERANCE).nonzero()
    if len(off):
        raise ValueError(
            f"`{side}_embeds` must have unit norm, got {norms[off[0]].item():.4g} in row {int(off[0])}; divide each row by its norm."
        )


def _drawn_counts(generator: np.random.Generator, num_resamples: int, num_instances: int) -> np.ndarray:
    """How often each instance is drawn in each resample, `(num_resamples, num_instances)` float64."""
    drawn = generator.integers(num_instances, size=(num_resamples, num_instances))
    cells = drawn + num_instances * np.arange(num_resamples)[:, None]
    counts = np.bincount(cells.ravel(), minlength=num_resamples * num_instances)
    return counts.reshape(num_resamples, num_instances).astype(np.float64)


def _chunk_sizes(total: int, chunk: int) -> list[int]:
    return [min(chunk, total - start) for start in range(0, total, chunk)]


def _sum_by(rows: Tensor, values: Tensor, num_groups: int) -> Tensor:
    return torch.zeros(num_groups, dtype=values.dtype).index_add(0, rows, values)


def _first_band(bands: PositiveBands) -> tuple[Tensor, Tensor, Tensor]:
    """Items ahead, rivals and positives of each query's first band, `(num_kept,)` float64 each."""
    return bands.ahead[:, 0].double(), bands.rivals[:, 0].double(), bands.positives[:, 0].double()


def _relevant_runs(query_group_ids: Tensor, gallery_group_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An order of the gallery by id, and where in it each query's relevant items start and how many there are."""
    sorted_ids, order = gallery_group_ids.sort(stable=True)
    starts = torch.searchsorted(sorted_ids, query_group_ids)
    return order, starts, torch.searchsorted(sorted_ids, query_group_ids, right=True) - starts


def _positive_rows(order: Tensor, starts: Tensor, counts: Tensor, depth: int) -> Tensor:
    """Gallery rows of each query's positives, `(num_queries, at least depth)`, -1 where there are no more."""
    columns = torch.arange(max(depth, int(counts.max())), device=order.device)
    places = (starts[:, None] + columns).clamp(max=len(order) - 1)
    return order[places].masked_fill(columns >= counts[:, None], -1)


def _positive_scores(queries: Tensor, gallery_embeds: Tensor, positive_rows: Tensor) -> Tensor:
    """Score of each positive, -inf where there is none; column by column, so that memory is a block of embeddings."""
    columns = [(queries * gallery_embeds[rows].float()).sum(dim=1) for rows in positive_rows.unbind(dim=1)]
    return torch.stack(columns, dim=1).masked_fill(positive_rows < 0, -torch.inf)


def _count_rivals(
    queries: Tensor, gallery_embeds: Tensor, positive_rows: Tensor, best: Tensor, gallery_block: int
) -> tuple[Tensor, Tensor]:
    """How many items that are not relevant score above the tie range of each of `best`, and how many reach it."""
    above, reached = torch.zeros_like(best, dtype=torch.int64), torch.zeros_like(best, dtype=torch.int64)
    for start in range(0, len(gallery_embeds), gallery_block):
        block = gallery_embeds[start : start + gallery_block].float()
        with torch.autocast(queries.device.type, enabled=False):  # half-type scores would tie thousands of items
            scores = queries @ block.T
        query, column = ((positive_rows >= start) & (positive_rows < start + len(block))).nonzero(as_tuple=True)
        scores[query, positive_rows[query, column] - start] = -torch.inf
        for i, score in enumerate(best.unbind(dim=1)):
            above[:, i] += (scores > score[:, None] + TIE).sum(dim=1, dtype=torch.int32)
            reached[:, i] += (scores >= score[:, None] - TIE).sum(dim=1, dtype=torch.int32)
    return above, reached


def _form_bands(scores: Tensor, above: Tensor, reached: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`ahead`, `rivals` and `positives` of `PositiveBands`, from scores in descending order and rivals counted."""
    ahead, rivals, positives = torch.zeros_like(above), torch.zeros_like(above), torch.zeros_like(above)
    floor = torch.full_like(scores[:, 0], torch.inf)
    rivals_taken = torch.zeros_like(above[:, 0])
    for i in range(above.shape[1]):
        is_anchor = (scores[:, i] < floor) & scores[:, i].isfinite()
        floor = torch.where(is_anchor, scores[:, i] - TIE, floor)
        rivals_ahead = torch.maximum(above[:, i], rivals_taken)
        ahead[:, i] = torch.where(is_anchor, i + rivals_ahead, 0)
        rivals[:, i] = torch.where(is_anchor, reached[:, i] - rivals_ahead, 0)
        positives[:, i] = torch.where(is_anchor, (scores >= floor[:, None]).sum(dim=1) - i, 0)
        rivals_taken = torch.where(is_anchor, reached[:, i], rivals_taken)
    return ahead, rivals, positives


def _check_cutoffs(ks: Sequence[int], num_gallery: int) -> None:
    for k in ks:
        if not 1 <= k <= num_gallery:
            raise ValueError(f"k must be from 1 to the {num_gallery} items of the gallery, got {k}.")
