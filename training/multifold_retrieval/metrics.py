"""Retrieval metrics of queries with several relevant items, ties by expected value."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .ranking import PositiveBands, rank_positives

BAND_STEPS = 128  # places of a tie band that `reciprocal_rank` sums at once


@dataclass(frozen=True)
class QueryScores:
    """The expected metrics of every query that has a positive: for means, subsets and paired comparisons."""

    values: dict[str, Tensor]  # "rr@1", "ndcg@5", "map", "rank", ...: (num_kept,) float64 each
    chance: dict[str, Tensor]  # the same metrics, and always "rr@1", of a random order: (num_kept,) float64 each
    group_ids: Tensor  # (num_kept,) int64
    query_rows: Tensor  # (num_kept,) int64, which of the queries were scored
    num_left_out: int  # queries without a relevant item

    def select(self, kept: Tensor) -> "QueryScores":
        """The scores of the rows where the bool mask `kept`, `(num_kept,)`, is true; nobody counts as left out."""
        values, chance = ({name: value[kept] for name, value in part.items()} for part in (self.values, self.chance))
        return QueryScores(values, chance, self.group_ids[kept], self.query_rows[kept], 0)

    def as_dict(self) -> dict[str, float]:
        """Means over the queries, ready for JSON: fractions, and ranks that count from 1; chance as "chance_rr@1"."""
        chance = {f"chance_{name}": value for name, value in _summary(self.chance).items()}
        counts = {"queries": len(self.query_rows), "queries_left_out": self.num_left_out}
        return _summary(self.values) | chance | counts


def score_queries(
    query_embeds: Tensor,
    gallery_embeds: Tensor,
    query_group_ids: Tensor,
    gallery_group_ids: Tensor,
    hit_ks: Sequence[int] = (1, 5, 10),
    ndcg_ks: Sequence[int] = (5,),
    recall_ks: Sequence[int] = (),
    precision_ks: Sequence[int] = (),
) -> QueryScores:
    """Every metric of every query that has a relevant gallery item, by one pass over the gallery.

    The metrics are "rr@k", "recall@k", "precision@k" and "ndcg@k" at the cut-offs, and "mrr", "map", "r_precision" and
    "rank", that of the best relevant item.

    Args:
        query_embeds: `(num_queries, dim)`, unit norm, any float type; scores are computed in float32.
        gallery_embeds: `(num_gallery, dim)`, unit norm.
        query_group_ids: `(num_queries,)`, int64; gallery items of the same id are relevant.
        gallery_group_ids: `(num_gallery,)`, int64.
        hit_ks: Cut-offs of RR@k, from 1 to `num_gallery`: is any relevant item among the first k? What Text2Shape and
            Flickr30K tables call recall.
        ndcg_ks: Cut-offs of NDCG.
        recall_ks: Cut-offs of recall proper: which share of the relevant items is among the first k?
        precision_ks: Cut-offs of precision: which share of the first k is relevant?

    Raises:
        ValueError: If embeddings and ids do not fit, a k passes the gallery, or no query has a relevant item.

    Example:
        A photo scores five captions 1, 0.96, 0.8, 0.6 and 0; its own come first and fourth. So any-hit at 3 is met,
        half of them are recalled, one in three is right, AP is (1/1 + 2/4) / 2, and NDCG@3 is 1 / (1 + 1 / log2(3)).

        >>> photo, photo_id = torch.tensor([[1.0, 0.0]]), torch.tensor([7])
        >>> captions = torch.tensor([[1.0, 0.0], [0.96, 0.28], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
        >>> caption_ids = torch.tensor([7, 8, 8, 7, 9])
        >>> scores = score_queries(photo, captions, photo_id, caption_ids, (3,), (3,), (3,), (3,)).as_dict()
        >>> [round(scores[name], 4) for name in ("rr@3", "recall@3", "precision@3", "map", "r_precision", "ndcg@3")]
        [1.0, 0.5, 0.3333, 0.75, 0.5, 0.6131]

        Query 0 scores 0.6, 0.96 and 0.8, so that its instance 9 comes second; query 1 finds instance 7 first.

        >>> gallery = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> queries = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
        >>> scores = score_queries(queries, gallery, torch.tensor([9, 7]), torch.tensor([7, 8, 9]), (1, 2), (2,))
        >>> scores.values["rank"].tolist(), scores.as_dict()["rr@1"], scores.as_dict()["mrr"]
        ([2.0, 1.0], 0.5, 0.75)
    """
    cutoffs = {"hit_ks": hit_ks, "ndcg_ks": ndcg_ks, "recall_ks": recall_ks, "precision_ks": precision_ks}
    check_cutoffs(cutoffs, len(gallery_embeds))
    bands = rank_positives(query_embeds, gallery_embeds, query_group_ids, gallery_group_ids, depth=None)
    return score_bands(bands, query_group_ids, len(gallery_embeds), **cutoffs)


def score_bands(
    bands: PositiveBands,
    query_group_ids: Tensor,
    num_gallery: int,
    hit_ks: Sequence[int] = (1, 5, 10),
    ndcg_ks: Sequence[int] = (5,),
    recall_ks: Sequence[int] = (),
    precision_ks: Sequence[int] = (),
) -> QueryScores:
    """What `score_queries` returns, for bands that were ranked elsewhere, with `depth=None`.

    Args:
        bands: The bands of all positives.
        query_group_ids: `(num_queries,)`, int64, of all queries that were ranked.
        num_gallery: Items of the gallery.
        hit_ks: As the other cut-offs, see `score_queries`.
        ndcg_ks: See there.
        recall_ks: See there.
        precision_ks: See there.
    """
    cutoffs = {"hit_ks": hit_ks, "ndcg_ks": ndcg_ks, "recall_ks": recall_ks, "precision_ks": precision_ks}
    check_cutoffs(cutoffs, num_gallery)
    metrics: dict[str, Callable[[PositiveBands], Tensor]] = {f"rr@{k}": partial(hit_at_k, k=k) for k in hit_ks}
    metrics |= {f"recall@{k}": partial(recall_at_k, k=k) for k in recall_ks}
    metrics |= {f"precision@{k}": partial(precision_at_k, k=k) for k in precision_ks}
    metrics |= {f"ndcg@{k}": partial(ndcg_at_k, k=k) for k in ndcg_ks}
    metrics |= {"mrr": reciprocal_rank, "map": average_precision, "r_precision": r_precision, "rank": expected_rank}
    distinct, rows = bands.num_relevant.unique(return_inverse=True)
    tied = tied_bands(distinct, num_gallery)
    return QueryScores(
        {name: metric(bands) for name, metric in metrics.items()},
        {name: metric(tied)[rows] for name, metric in ({"rr@1": partial(hit_at_k, k=1)} | metrics).items()},
        group_ids=query_group_ids.cpu()[bands.query_rows],
        query_rows=bands.query_rows,
        num_left_out=len(query_group_ids) - len(bands.query_rows),
    )


def tied_bands(num_relevant: Tensor, num_gallery: int) -> PositiveBands:
    """The bands of queries to which all of the gallery scores the same: what a random order gives them.

    Args:
        num_relevant: `(num_queries,)`, int64, relevant items of each.
        num_gallery: Items of the gallery.
    """
    positives = num_relevant[:, None]
    rows = torch.arange(len(num_relevant))
    return PositiveBands(0 * positives, num_gallery - positives, positives, num_relevant, rows)


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


def recall_at_k(bands: PositiveBands, k: int) -> Tensor:
    """Expected share of the positives that are among the first k, `(num_kept,)` float64.

    Example:
        Of two positives one is first, and one shares places 2 and 3 with a rival.

        >>> bands = PositiveBands(
        ...     ahead=torch.tensor([[0, 1]]),
        ...     rivals=torch.tensor([[0, 1]]),
        ...     positives=torch.tensor([[1, 1]]),
        ...     num_relevant=torch.tensor([2]),
        ...     query_rows=torch.tensor([0]),
        ... )
        >>> [recall_at_k(bands, k).item() for k in (1, 2, 3)]
        [0.5, 0.75, 1.0]
    """
    return _hits_within(bands, torch.full_like(bands.num_relevant, k), f"recall@{k}") / bands.num_relevant


def precision_at_k(bands: PositiveBands, k: int) -> Tensor:
    """Expected share of the first k that are positives, `(num_kept,)` float64."""
    return _hits_within(bands, torch.full_like(bands.num_relevant, k), f"precision@{k}") / k


def r_precision(bands: PositiveBands) -> Tensor:
    """Expected share of positives among the first R, where R is how many there are; `(num_kept,)` float64."""
    return _hits_within(bands, bands.num_relevant, "R-precision") / bands.num_relevant


def average_precision(bands: PositiveBands) -> Tensor:
    """Expected mean, over the positives, of the precision at each one's rank, `(num_kept,)` float64.

    Place i of a band of n items with r positives, `ahead` items and R better positives before it, holds a positive
    with probability r / n; then (i - 1)(r - 1) / (n - 1) others of the band's are expected before it, and the precision
    is (R + 1 + (i - 1)(r - 1) / (n - 1)) / (ahead + i). The sum over i has a closed form.

    Example:
        One positive tied with one rival: 1/1 and 1/2 are equally likely.

        >>> average_precision(tied_bands(torch.tensor([1]), num_gallery=2))
        tensor([0.7500], dtype=torch.float64)
    """
    _check_depth(bands, bands.num_relevant, "Average precision")
    ahead, positives = bands.ahead.double(), bands.positives.double()
    size = bands.rivals + positives
    better = positives.cumsum(dim=1) - positives
    slope = (positives - 1) / (size - 1).clamp(min=1)
    total = slope * size + (better + 1 - slope * (ahead + 1)) * harmonic_span(ahead, size)
    return (positives * total / size.clamp(min=1)).sum(dim=1) / bands.num_relevant


def expected_rank(bands: PositiveBands) -> Tensor:
    """Expected rank of each query's best positive, counted from 1, `(num_kept,)` float64."""
    ahead, rivals, positives = _first_band(bands)
    return 1 + ahead + rivals / (positives + 1)


def reciprocal_rank(bands: PositiveBands) -> Tensor:
    """Expectation of 1 / rank of each query's best positive, `(num_kept,)` float64."""
    ahead, rivals, positives = _first_band(bands)
    alone = harmonic_span(ahead, rivals + 1) / (rivals + 1)
    several = positives > 1
    if several.any():
        alone[several] = _reciprocal_rank_of_several(ahead[several], rivals[several], positives[several])
    return alone


def _reciprocal_rank_of_several(ahead: Tensor, rivals: Tensor, positives: Tensor) -> Tensor:
    distinct, rows = torch.stack([ahead, rivals, positives], dim=1).unique(dim=0, return_inverse=True)
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


def harmonic_span(ahead: Tensor, size: Tensor) -> Tensor:
    """1 / (ahead + 1) + 1 / (ahead + 2) + ... + 1 / (ahead + size), elementwise, float64, at no cost for a long one.

    Example:
        >>> harmonic_span(torch.tensor([1.0]).double(), torch.tensor([2.0]).double())  # 1/2 + 1/3
        tensor([0.8333], dtype=torch.float64)
    """
    first, last = ahead + 0.5, ahead + size + 0.5
    near = torch.digamma(last + 0.5) - torch.digamma(first + 0.5)
    # Far out, two digammas share their leading digits; the difference of their expansions keeps all of its own.
    far = torch.log1p(size / first) + (last**-2 - first**-2) / 24
    return torch.where(size == 1, 1 / (ahead + 1), torch.where(ahead < 1000, near, far))


def ndcg_at_k(bands: PositiveBands, k: int) -> Tensor:
    """Expected NDCG of the first k with gain 2^1 - 1 = 1 per positive, the ideal cut at k too; `(num_kept,)` float64.

    Järvelin and Kekäläinen (https://doi.org/10.1145/582415.582418) with the discount 1 / log2(rank + 1); a positive
    in a band gets the mean discount of the band's places.

    Raises:
        ValueError: If `bands` holds fewer positives a query than the first k may hold.
    """
    _check_depth(bands, bands.num_relevant.clamp(max=k), f"NDCG@{k}")
    discounts = 1 / torch.arange(2, k + 2, dtype=torch.float64).log2()
    gained = F.pad(discounts.cumsum(dim=0), (1, 0))  # by the first 0, 1, ..., k places
    size = bands.rivals + bands.positives
    first, last = bands.ahead.clamp(max=k), (bands.ahead + size).clamp(max=k)
    gain = (bands.positives * (gained[last] - gained[first]) / size.clamp(min=1)).sum(dim=1)
    return gain / gained[bands.num_relevant.clamp(max=k)]


def rank_spread(ranks: Tensor, group_ids: Tensor) -> float:
    """Population standard deviation of rank over the queries of an instance, averaged over instances.

    1-to-K calls this mean rank variance, MRV (https://huggingface.co/papers/2406.18254), but takes the deviation too.
    Tied queries enter with their expected rank: a model that ties everything has no spread, so read it beside the
    ranks.

    Example:
        >>> rank_spread(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([7, 7, 8]))
        0.5
    """
    _, rows, sizes = group_ids.unique(return_inverse=True, return_counts=True)
    ranks = ranks.double()
    means = _sum_by(rows, ranks, len(sizes)) / sizes
    variances = _sum_by(rows, (ranks - means[rows]).square(), len(sizes)) / sizes
    return variances.sqrt().mean().item()


def check_cutoffs(cutoffs: Mapping[str, Sequence[int]], num_gallery: int) -> None:
    """Raise a `ValueError` that names the list of cut-offs in which one is not from 1 to `num_gallery`."""
    for name, ks in cutoffs.items():
        for k in ks:
            if not 1 <= k <= num_gallery:
                raise ValueError(
                    f"Each k of `{name}` must be from 1 to the {num_gallery} items of the gallery, got {k}."
                )


def _summary(values: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean of each metric, and the median and mean of "rank"."""
    means = {name: value.mean().item() for name, value in values.items() if name != "rank"}
    median = float(np.median(values["rank"].numpy()))
    return means | {"median_rank": median, "mean_rank": values["rank"].mean().item()}


def _hits_within(bands: PositiveBands, k: Tensor, name: str) -> Tensor:
    """Expected number of positives among the first `k`, `(num_kept,)` int64, of each query; `(num_kept,)` float64."""
    _check_depth(bands, torch.minimum(k, bands.num_relevant), name)
    size = bands.rivals + bands.positives
    within = torch.minimum((k[:, None] - bands.ahead).clamp(min=0), size)
    return (bands.positives * (within.double() / size.clamp(min=1))).sum(dim=1)


def _check_depth(bands: PositiveBands, needed: Tensor, name: str) -> None:
    """Raise unless the bands of each query hold as many of its best positives as `needed`, `(num_kept,)` int64."""
    if (bands.positives.sum(dim=1) < needed).any():
        raise ValueError(
            f"{name} needs `depth` of at least {int(needed.max())}, got bands of {bands.positives.shape[1]}."
        )


def _sum_by(rows: Tensor, values: Tensor, num_groups: int) -> Tensor:
    return torch.zeros(num_groups, dtype=values.dtype).index_add(0, rows, values)


def _first_band(bands: PositiveBands) -> tuple[Tensor, Tensor, Tensor]:
    """Items ahead, rivals and positives of each query's first band, `(num_kept,)` float64 each."""
    return bands.ahead[:, 0].double(), bands.rivals[:, 0].double(), bands.positives[:, 0].double()
