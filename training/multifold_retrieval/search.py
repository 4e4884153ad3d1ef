"""The items of a gallery that score highest for each query: exact, blockwise."""

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import Gather, alone, check_search, gallery_sizes, raise_together
from .items import Block, Items, block_scores, exact_scores, full_precision, rounding_bound

ITEM_BITS = 32
EMPTY_KEY = torch.iinfo(torch.int64).min + 2**40  # below the key of any score, also after `top_k` adds to it


class TopItems(NamedTuple):
    """The best items of each query, best first; of equal scores the lower row."""

    scores: Tensor  # (num_queries, k) float32
    rows: Tensor  # (num_queries, k) int64, rows of the gallery, or its sets where it has any


@torch.no_grad()
def top_k(
    query_embeds: Tensor,
    gallery_embeds: Tensor,
    k: int,
    query_block: int = 2048,
    gallery_block: int = 1024,
    query_sets: Tensor | None = None,
    gallery_sets: Tensor | None = None,
    query_reduce: str = "max",
    gallery_reduce: str = "max",
    gather: Gather = alone,
) -> TopItems:
    """The k items of highest score for each query, on the CPU; of equal scores the lower row comes first.

    Products are float32; the items that they put among the first k, or within their rounding of it, are scored again
    in float64 and ordered by that, rounded to float32. So the size of a block changes nothing, and copies of an item
    are tied. Memory is that of a block, never of the whole matrix.

    Args:
        query_embeds: `(num_query_rows, dim)`, unit norm, any float type.
        gallery_embeds: `(num_gallery_rows, dim)`, unit norm.
        k: From 1 to the number of items in the gallery.
        query_block: Query rows that are scored at once.
        gallery_block: Gallery rows that are scored at once.
        query_sets: As in `rank_positives`, like all that follow.
        gallery_sets: The items are then the sets.
        query_reduce: "max" or "mean".
        gallery_reduce: "max" or "mean".
        gather: Where the gallery is split over ranks; rows count on from rank to rank, and each returns them all.

    Raises:
        ValueError: If the embeddings do not fit, or k passes the gallery.
        TypeError: If embeddings are not of a float type, or sets not int64.

    Example:
        >>> gallery = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.8, 0.6]])
        >>> top_k(torch.tensor([[0.0, 1.0]]), gallery, k=3).rows.tolist()
        [[2, 1, 3]]
    """
    with raise_together(gather, query_embeds.device):
        check_search(query_embeds, gallery_embeds, query_sets, gallery_sets, query_reduce, gallery_reduce)
        queries = Items(query_embeds, query_sets, query_reduce)
        gallery = Items(gallery_embeds, gallery_sets, gallery_reduce)
    sizes = gallery_sizes(gather, gallery)
    if not 1 <= k <= sum(sizes):
        raise ValueError(f"`k` must be from 1 to the {sum(sizes)} items of the gallery, got {k}.")
    best = torch.empty(len(queries), k, dtype=torch.int64, device=query_embeds.device)
    with full_precision(query_embeds.device.type):
        for block in queries.blocks(query_block):
            own = gather(_best_keys(block, gallery, k, gallery_block))
            everywhere = [keys - sum(sizes[:rank]) for rank, keys in enumerate(own)]
            best[queries.order[block.numbers]] = torch.cat(everywhere, dim=1).topk(k, dim=1).values
    return TopItems(*(part.cpu() for part in _decode(best)))


def _best_keys(queries: Block, gallery: Items, k: int, num_rows: int) -> Tensor:
    """Keys of the best items of this rank's gallery, `(num_queries, k)` descending, `EMPTY_KEY` where there are less."""
    best = torch.full((len(queries.numbers), k), EMPTY_KEY, device=queries.embeds.device)
    as_float32, as_float64 = queries.to(torch.float32), queries.to(torch.float64)
    for block in gallery.blocks(num_rows):
        scores = block_scores(as_float32, block.to(torch.float32))
        worst, _ = _decode(best[:, -1])
        floor = worst - rounding_bound(as_float32, block)  # NaN, under which nothing lies, before there are k items
        improved = (scores.amax(dim=1) < floor).logical_not().nonzero()[:, 0]
        if len(improved):
            row, item = (scores[improved] < floor[improved, None]).logical_not().nonzero(as_tuple=True)
            exact = exact_scores(as_float64, block, improved[row], item)
            keys = _encode(exact.float(), gallery.order[block.numbers[item]])
            entrants = _pad_rows(keys, row, len(improved))
            best[improved] = torch.cat([best[improved], entrants], dim=1).topk(k, dim=1).values
    return best


def _pad_rows(keys: Tensor, row: Tensor, num_rows: int) -> Tensor:
    """The keys as a matrix whose rows are filled up with `EMPTY_KEY`; `row`, where each belongs, ascends."""
    counts = row.bincount(minlength=num_rows)
    column = torch.arange(len(row), device=row.device) - (counts.cumsum(dim=0) - counts)[row]
    padded = keys.new_full((num_rows, int(counts.max())), EMPTY_KEY)
    padded[row, column] = keys
    return padded


def _encode(scores: Tensor, rows: Tensor) -> Tensor:
    """One int64 for a score and its row, higher for a higher score and, at equal scores, for a lower row.

    The bits of floats order like integers, those of negative ones the other way round.
    """
    bits = (scores + 0.0).view(torch.int32)  # no negative zero
    ascending = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (ascending << ITEM_BITS) + (2**ITEM_BITS - 1 - rows)


def _decode(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The scores and rows of keys; of `EMPTY_KEY` the score is NaN."""
    ascending = (keys >> ITEM_BITS).int()
    scores = torch.where(ascending < 0, ascending ^ 0x7FFFFFFF, ascending).view(torch.float32)
    return scores, 2**ITEM_BITS - 1 - (keys & (2**ITEM_BITS - 1))
