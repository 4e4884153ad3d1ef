"""How many items of a gallery score above given anchors: exact counts, one block of scores at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .items import SPARSE_PAIRS, Block, Items, block_scores, exact_scores, rounding_bound

TIE = 1e-6  # scores of unit vectors this close are equal
COMPARED_DEPTH = 3  # up to this many anchors a query, comparing each with the scores is faster than sorting these
SCREENED_DEPTH = (
    16  # up to this many, float32 scores and float64 where they leave doubt are faster than all in float64
)
BLOCKS_SORTED, SORTED_SHARE = 8, 8  # sort at least so many blocks together, and so many scores for each that is sought


class Pairs(NamedTuple):
    """Queries of a block and the gallery items relevant to them, ordered by item."""

    queries: Tensor  # (num_pairs,) int64, places in the block of queries
    numbers: Tensor  # (num_pairs,) int64 ascending, items as `Block.numbers` has them
    columns: Tensor  # (num_pairs,) int64, 0, 1, 2, ... among the items of a query

    def within(self, block: Block) -> tuple[slice, tuple[Tensor, Tensor]]:
        """The pairs whose item is in the block, and their places in its matrix of scores."""
        ends = torch.stack([block.numbers[0], block.numbers[-1] + 1])
        first, last = torch.searchsorted(self.numbers, ends).tolist()
        found = slice(first, last)
        return found, (self.queries[found], torch.searchsorted(block.numbers, self.numbers[found]))


def blocks_at_once(depth: int, num_rows: int) -> int:
    """How many blocks of a gallery are searched together for so many scores a query, for which queries must be fewer.

    Where scores are sorted, the more lie side by side, the less there is to search.
    """
    return 1 if depth <= SCREENED_DEPTH else max(BLOCKS_SORTED, SORTED_SHARE * depth // num_rows)


def score_pairs(queries: Block, gallery: Items, pairs: Pairs, num_rows: int) -> Tensor:
    """Score of each pair, `(num_pairs,)` float64."""
    scores = pairs.queries.new_zeros(len(pairs.queries), dtype=torch.float64)
    queries = queries.to(torch.float64)
    for block in gallery.blocks(num_rows, pairs.numbers.unique_consecutive()):
        found, places = pairs.within(block)
        scores[found] = block_scores(queries, block.to(torch.float64))[places]
    return scores


def count_rivals(
    queries: Block, gallery: Items, pairs: Pairs, anchors: Tensor, num_rows: int
) -> tuple[Tensor, Tensor]:
    """How many items outside of `pairs` score above the tie range of each anchor, and how many reach it.

    Args:
        queries: A block of queries.
        gallery: What is counted, `num_rows` rows at a time.
        pairs: What is left out.
        anchors: `(num_queries, depth)` float64, descending; infinity counts nothing.
        num_rows: Size of the blocks, which changes no count.

    Returns:
        Two tensors `(num_queries, depth)` int64.
    """
    above, reached = torch.zeros_like(anchors, dtype=torch.int64), torch.zeros_like(anchors, dtype=torch.int64)
    num_together = blocks_at_once(anchors.shape[1], num_rows)
    as_float32, as_float64 = queries.to(torch.float32), queries.to(torch.float64)
    blocks = gallery.blocks(num_rows)
    while together := list(islice(blocks, num_together)):
        if num_together == 1:
            counts = _count_screened(as_float32, as_float64, together[0], pairs, anchors)
        else:
            counts = _count_sorted(as_float64, together, pairs, anchors)
        above += counts[0]
        reached += counts[1]
    return above, reached


def _count_screened(
    as_float32: Block, as_float64: Block, block: Block, pairs: Pairs, anchors: Tensor
) -> tuple[Tensor, Tensor]:
    """Counts of one block by float32 scores, and by float64 scores where rounding could decide."""
    scores = _rival_scores(as_float32, block.to(torch.float32), pairs)
    reach = TIE + rounding_bound(as_float32, block)
    highest, lowest = (anchors + reach).float(), (anchors - reach).float()
    above, reached = _count(scores, highest, lowest)
    num_near = reached - above
    crowded = (num_near > SPARSE_PAIRS).any(dim=1)
    rows = crowded.nonzero()[:, 0]
    if len(rows):
        exact = block_scores(as_float64.select(rows), block.to(torch.float64))
        exact.masked_fill_(scores[rows].isneginf(), -torch.inf)
        above[rows], reached[rows] = _count(exact, anchors[rows] + TIE, anchors[rows] - TIE)
    num_near.masked_fill_(crowded[:, None], 0)
    for column in num_near.any(dim=0).nonzero()[:, 0].tolist():
        rows = num_near[:, column].nonzero()[:, 0]
        near = (scores[rows] >= lowest[rows, column, None]) & (scores[rows] <= highest[rows, column, None])
        near_above, near_reached = _count_near(as_float64, block, rows, near, anchors[rows, column])
        reached[rows, column] = above[rows, column] + near_reached
        above[rows, column] += near_above
    return above, reached


def _count_near(queries: Block, block: Block, rows: Tensor, near: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the items that are `near`, a mask of these rows, are above each anchor's tie range, and reach it."""
    row, item = near.nonzero(as_tuple=True)
    exact = exact_scores(queries, block, rows[row], item)
    above = row[exact > anchors[row] + TIE].bincount(minlength=len(near))
    return above, row[exact >= anchors[row] - TIE].bincount(minlength=len(near))


def _count(scores: Tensor, highest: Tensor, lowest: Tensor) -> tuple[Tensor, Tensor]:
    """How many scores of its row are above each of `highest`, and reach each of `lowest`, `(num_queries, depth)`."""
    if highest.shape[1] <= COMPARED_DEPTH:
        return _count_passed(torch.gt, scores, highest), _count_passed(torch.ge, scores, lowest)
    return _search(_sort_rows(scores.clone()), highest, lowest)


def _count_passed(compare: Callable[..., Tensor], scores: Tensor, thresholds: Tensor) -> Tensor:
    # Comparing into the type of the scores and adding that up is several times faster than by way of bool.
    passed = torch.empty_like(scores)
    counts = [compare(scores, column[:, None], out=passed).sum(dim=1) for column in thresholds.unbind(dim=1)]
    return torch.stack(counts, dim=1).long()


def _count_sorted(queries: Block, blocks: Sequence[Block], pairs: Pairs, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Counts of several blocks by float64 scores."""
    scores = torch.cat([_rival_scores(queries, block.to(torch.float64), pairs) for block in blocks], dim=1)
    return _search(_sort_rows(scores), anchors + TIE, anchors - TIE)


def _search(ordered: Tensor, highest: Tensor, lowest: Tensor) -> tuple[Tensor, Tensor]:
    """As `_count`, of scores whose rows ascend."""
    above = ordered.shape[1] - torch.searchsorted(ordered, highest, right=True)
    return above, ordered.shape[1] - torch.searchsorted(ordered, lowest)


def _rival_scores(queries: Block, block: Block, pairs: Pairs) -> Tensor:
    scores = block_scores(queries, block)
    _, places = pairs.within(block)
    scores[places] = -torch.inf
    return scores


def _sort_rows(scores: Tensor) -> Tensor:
    """Sort each row in place; on the CPU by NumPy, whose vectorised sort is ten times as fast."""
    if scores.device.type != "cpu":
        return scores.copy_(scores.sort(dim=1).values)
    parts = np.array_split(scores.numpy(), torch.get_num_threads())
    with ThreadPoolExecutor(len(parts)) as threads:
        list(threads.map(np.ndarray.sort, parts))
    return scores
