"""Where the relevant items of each query stand in a gallery: exact, blockwise, ties left open."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import Gather, alone, check_embeds, check_group_ids, check_search, gallery_sizes, raise_together
from .counting import TIE, Pairs, blocks_at_once, count_rivals, score_pairs
from .items import Block, Items, full_precision

__all__ = ["TIE", "PositiveBands", "check_embeds", "rank_positives"]


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


class Relevance(NamedTuple):
    """The gallery ordered by group id, and where in that order the relevant items of each query lie."""

    order: Tensor  # (num_items,) int64, items as `Block.numbers` has them
    starts: Tensor  # (num_queries,) int64
    counts: Tensor  # (num_queries,) int64

    def pairs(self, block: Block) -> Pairs:
        """All relevant pairs of a block of queries."""
        counts = self.counts[block.numbers]
        queries = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        columns = torch.arange(len(queries), device=counts.device) - (counts.cumsum(dim=0) - counts)[queries]
        numbers, by_number = self.order[self.starts[block.numbers][queries] + columns].sort()
        return Pairs(queries[by_number], numbers, columns[by_number])


@torch.no_grad()
def rank_positives(
    query_embeds: Tensor,
    gallery_embeds: Tensor,
    query_group_ids: Tensor,
    gallery_group_ids: Tensor,
    depth: int | None = 10,
    query_block: int = 2048,
    gallery_block: int = 1024,
    query_sets: Tensor | None = None,
    gallery_sets: Tensor | None = None,
    query_reduce: str = "max",
    gallery_reduce: str = "max",
    gather: Gather = alone,
) -> PositiveBands:
    """The bands of each query's best `depth` positives, on the CPU.

    Products are float32, whatever the embeddings are, and scores that lie within their rounding of the edge of a band
    are computed again in float64: the bands are those of float64 scores, so that neither the order of the gallery nor
    the size of a block changes them. Memory is that of a block and of the answer, never of the whole matrix.

    Args:
        query_embeds: `(num_query_rows, dim)`, unit norm, any float type.
        gallery_embeds: `(num_gallery_rows, dim)`, unit norm.
        query_group_ids: `(num_queries,)`, int64; gallery items of the same id are relevant.
        gallery_group_ids: `(num_gallery,)`, int64.
        depth: How many positives of each query get a band; None for all.
        query_block: Query rows that are scored at once, or fewer where queries have very many positives.
        gallery_block: Gallery rows that are scored at once.
        query_sets: For queries of several rows, the query that each row belongs to: `(num_query_rows,)` int64,
            ascending from 0.
        gallery_sets: The same for the gallery.
        query_reduce: "max" or "mean", what the scores of a query's rows become. Maxima are taken before means.
        gallery_reduce: The same for the gallery.
        gather: Where the gallery is split over ranks that have the same queries: gives the tensors of all ranks, in
            rank order, from the one of this rank. Each rank returns the bands in the whole gallery.

    Raises:
        ValueError: If embeddings and ids do not fit, or no query has a relevant item.
        TypeError: If embeddings are not of a float type, or ids or sets not int64.

    Example:
        Both items score 1, so the positive stands first or second: one place open, none ahead.

        >>> gallery = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> bands = rank_positives(gallery[:1], gallery, torch.tensor([7]), torch.tensor([7, 8]))
        >>> bands.ahead.tolist(), bands.rivals.tolist(), bands.positives.tolist()
        ([[0]], [[1]], [[1]])
    """
    with raise_together(gather, query_embeds.device):
        check_search(query_embeds, gallery_embeds, query_sets, gallery_sets, query_reduce, gallery_reduce)
        queries = Items(query_embeds, query_sets, query_reduce)
        gallery = Items(gallery_embeds, gallery_sets, gallery_reduce)
        check_group_ids("query", query_group_ids, len(queries), query_sets)
        check_group_ids("gallery", gallery_group_ids, len(gallery), gallery_sets)
        if depth is not None and depth < 1:
            raise ValueError(f"`depth` must be at least 1, or None for all positives, got {depth}.")
    gallery_sizes(gather, gallery)
    relevance = _find_relevant(query_group_ids[queries.order], gallery_group_ids[gallery.order])
    counts = torch.stack(gather(relevance.counts))  # (num_ranks, num_queries)
    num_relevant = counts.sum(dim=0)
    kept = num_relevant.nonzero()[:, 0]
    if len(kept) == 0:
        raise ValueError("No query has a relevant item in the gallery; `query_group_ids` share no id with it.")
    width, deepest = int(counts.max()), int(num_relevant.max())
    depth = deepest if depth is None else min(depth, deepest)
    lower = max(blocks_at_once(depth, gallery_block), width // gallery_block)  # as sorting and the positives need it
    with full_precision(query_embeds.device.type):
        blocks = [
            _rank_block(block, gallery, relevance, depth, width, gallery_block, gather)
            for block in queries.blocks(max(1, query_block // lower), kept)
        ]
    query_rows, in_order = queries.order[kept].sort()
    ahead, rivals, positives = (torch.cat(part)[in_order].cpu() for part in zip(*blocks, strict=True))
    return PositiveBands(ahead, rivals, positives, num_relevant[kept][in_order].cpu(), query_rows.cpu())


def _find_relevant(query_group_ids: Tensor, gallery_group_ids: Tensor) -> Relevance:
    sorted_ids, order = gallery_group_ids.sort(stable=True)
    starts = torch.searchsorted(sorted_ids, query_group_ids)
    return Relevance(order, starts, torch.searchsorted(sorted_ids, query_group_ids, right=True) - starts)


def _rank_block(
    queries: Block, gallery: Items, relevance: Relevance, depth: int, width: int, num_rows: int, gather: Gather
) -> tuple[Tensor, Tensor, Tensor]:
    """`ahead`, `rivals` and `positives` of a block of queries that have up to `width` positives on a rank."""
    pairs = relevance.pairs(queries)
    own = torch.full((len(queries.numbers), width), -torch.inf, dtype=torch.float64, device=queries.embeds.device)
    own[pairs.queries, pairs.columns] = score_pairs(queries, gallery, pairs, num_rows)
    scores = torch.cat(gather(own), dim=1).sort(dim=1, descending=True).values
    anchors = scores[:, :depth].masked_fill(scores[:, :depth].isneginf(), torch.inf)
    counts = count_rivals(queries, gallery, pairs, anchors, num_rows)
    above, reached = (torch.stack(gather(count)).sum(dim=0) for count in counts)
    return _form_bands(scores, above, reached)


def _form_bands(scores: Tensor, above: Tensor, reached: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`ahead`, `rivals` and `positives` of `PositiveBands`, from scores in descending order and rivals counted."""
    places = torch.arange(above.shape[1], device=scores.device)
    ends = torch.searchsorted(-scores, TIE - scores[:, : len(places)], right=True)  # of a band that starts here
    is_anchor = _anchors(ends) & scores[:, : len(places)].isfinite()
    last_anchor = torch.where(is_anchor, places, -1).cummax(dim=1).values
    previous = F.pad(last_anchor, (1, 0), value=-1)[:, :-1]
    rivals_taken = torch.where(previous >= 0, reached.gather(1, previous.clamp(min=0)), 0)
    rivals_ahead = torch.maximum(above, rivals_taken)
    ahead = torch.where(is_anchor, places + rivals_ahead, 0)
    return ahead, torch.where(is_anchor, reached - rivals_ahead, 0), torch.where(is_anchor, ends - places, 0)


def _anchors(ends: Tensor) -> Tensor:
    """True where a band starts: in the first column, and again where the band before it ends."""
    depth = ends.shape[1]
    jump = F.pad(ends.clamp(max=depth), (0, 1), value=depth)
    starts = torch.zeros_like(jump, dtype=torch.bool)
    starts[:, 0] = True
    while (jump[:, 0] < depth).any():  # from each start that is known, over 1, 2, 4, ... bands
        row, column = starts.nonzero(as_tuple=True)
        starts[row, jump[row, column]] = True
        jump = jump.gather(1, jump)
    return starts[:, :-1]
