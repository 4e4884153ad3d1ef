"""Queries against keys without the matrix of their logits: the same answers as a `Direction`, from tiles."""

from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .folds_mxmclr import mean_by_index
from .queries_mxmclr import Queries
from .tiles_mxmclr import Grid, Pairs, Reduced, pair_scores, reduce_logits


class LogitTiles:
    """The logits of rows with columns, from which both directions are answered in one pass over the tiles.

    Memory grows with the rows, the columns and the pairs of a row and a column of one instance, not with all pairs.

    Args:
        rows: `(num_rows, dim)`.
        columns: `(num_columns, dim)`; None for the rows themselves, of which none then scores itself.
        row_instance: `(num_rows,)` int64, the instance of each.
        column_instance: `(num_columns,)` int64.
        scale: `()` or `(1,)`.
        one_way: Whether rows alone are queries, so that nothing is found for columns.
        places: `(num_rows,)` int64, the column that each row is and does not score; None where rows are no columns.
    """

    def __init__(
        self,
        rows: Tensor,
        columns: Tensor | None,
        row_instance: Tensor,
        column_instance: Tensor,
        scale: Tensor,
        *,
        one_way: bool = False,
        places: Tensor | None = None,
    ) -> None:
        self.mirrored, self.one_way, self.places = columns is None, one_way, places
        self.sides = rows, rows if columns is None else columns
        self.instances = row_instance, column_instance
        self.scale = scale.reshape(())
        self._reduced: dict[tuple[bool, float], Reduced] = {}
        self._pair_scores: Tensor | None = None

    def reduced(self, of_negatives: bool = False, factor: float = 1.0) -> Reduced:
        """The log-sums of each row and of each column.

        Args:
            of_negatives: Whether only logits of two instances take part.
            factor: Multiplies the logits.
        """
        if (of_negatives, factor) not in self._reduced:
            among_columns = self.mirrored or self.places is not None
            leave_out: Literal["nothing", "itself", "own"] = "itself" if among_columns else "nothing"
            grid = Grid(
                *self.instances, "own" if of_negatives else leave_out, self.mirrored, self.one_way, self.places
            )
            # The logits of the pairs lie in the tiles anyway, so the first sums bring them along.
            bring = factor == 1 and self._pair_scores is None
            row, column = self.pairs if bring else (self.pairs[0][:0], self.pairs[1][:0])
            reduced = reduce_logits(*self.sides, self.scale * factor, grid, Pairs(row, column, grid))
            if bring:
                self._pair_scores = reduced.of_pairs
            self._reduced[of_negatives, factor] = reduced
        return self._reduced[of_negatives, factor]

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """Row and column of each pair of one instance, `(num_pairs,)` each, ordered by row, then by column."""
        row, column = find_pairs(*self.instances, leave_out_itself=self.mirrored)
        if self.places is None:
            return row, column
        others = self.places[row] != column
        return row[others], column[others]

    @property
    def pair_scores(self) -> Tensor:
        """The logit of each of `pairs`, `(num_pairs,)`."""
        if self._pair_scores is None:
            self._pair_scores = pair_scores(*self.sides, self.scale, *self.pairs)
        return self._pair_scores

    def direction(self, place: int, queries: Queries) -> "BlockwiseDirection":
        """Rows against columns, or, for place 1, columns against rows; those are the answered of the `queries`."""
        kept = torch.arange(len(self.sides[place]), device=queries.answered.device)
        return BlockwiseDirection(self, place, kept, queries, self.instances[1 - place])


class BlockwiseDirection(NamedTuple):
    """Some queries, the keys they are scored against, and the instance that each of them shows, without logits.

    What is told of queries is told of those that are answered.
    """

    tiles: LogitTiles
    place: int  # 0 where the queries are among the rows, 1 where they are among the columns
    kept: Tensor  # (num_answered,), int64, which of them are answered, ascending
    queries: Queries
    key_instance: Tensor  # (num_keys,), int64

    @property
    def query_instance(self) -> Tensor:
        """The instance of each query, `(num_answered,)` int64."""
        return self.queries.instance[self.queries.answered]

    @property
    def num_positives(self) -> Tensor:
        """How many positives each query has, `(num_answered,)` int64."""
        return self.queries.num_positives[self.queries.answered]

    @property
    def dtype(self) -> torch.dtype:
        """The type that is computed in."""
        return self.tiles.scale.dtype

    def only(self, kept: Tensor) -> "BlockwiseDirection":
        """The queries where the bool mask `kept`, `(num_queries,)`, is true; every key stays."""
        return self._replace(kept=self.kept[kept[self.queries.answered]], queries=self.queries.only(kept))

    def with_positives(self) -> "BlockwiseDirection":
        """The queries that have a positive."""
        return self.only(self.queries.num_positives > 0)

    def log_sums(self) -> Tensor:
        """Logsumexp over every key, `(num_answered,)`."""
        return self.tiles.reduced()[self.place][self.kept]

    def log_sums_of_negatives(self, factor: float = 1.0) -> Tensor:
        """Logsumexp of the logits of other instances' keys, times a factor, `(num_answered,)`; -inf where none is."""
        return self.tiles.reduced(of_negatives=True, factor=factor)[self.place][self.kept]

    def positive_scores(self) -> tuple[Tensor, Tensor]:
        """The query of each pair of a query and a positive, in order, and the pair's logit, `(num_pairs,)` each."""
        query, scores = self.tiles.pairs[self.place], self.tiles.pair_scores
        if self.place == 1:
            order = query.argsort(stable=True)
            query, scores = query[order], scores[order]
        number = torch.full_like(self.tiles.instances[self.place], -1)
        number[self.kept] = torch.arange(len(self.kept), device=number.device)
        among = number[query] >= 0
        return number[query[among]], scores[among]

    def expected_scores(self, values: Tensor, index: Tensor) -> Tensor:
        """The logit of each query with its entry of `index` among rows that stand for keys, `(num_answered,)`."""
        return pair_scores(self.tiles.sides[self.place], values, self.tiles.scale, self.kept, index)

    def mean_scores(self, related: Tensor) -> Tensor:
        """The mean logit of each query under its mass on each instance, `(num_answered,)`, see `soft_losses`."""
        means = self.key_means(self.key_instance.bincount(minlength=related.shape[1]))
        return self.expected_scores(related @ means, torch.arange(len(related), device=related.device))

    def key_means(self, fold_sizes: Tensor) -> Tensor:
        """Mean key of each instance, `(num_instances, dim)`; 0 where it has none."""
        return mean_by_index(self.tiles.sides[1 - self.place], self.key_instance, fold_sizes)


def find_pairs(row_instance: Tensor, column_instance: Tensor, *, leave_out_itself: bool) -> tuple[Tensor, Tensor]:
    """Row and column of each pair of one instance, `(num_pairs,)` each, ordered by row, then by column.

    Example:
        >>> find_pairs(torch.tensor([4, 0, 4]), torch.tensor([4, 2, 4]), leave_out_itself=False)
        (tensor([0, 0, 2, 2]), tensor([0, 2, 0, 2]))
    """
    by_instance = column_instance.argsort(stable=True)
    ordered = column_instance[by_instance]
    first, end = (torch.searchsorted(ordered, row_instance, right=right) for right in (False, True))
    row = torch.arange(len(row_instance), device=row_instance.device).repeat_interleave(end - first)
    before = (end - first).cumsum(0) - (end - first)
    column = by_instance[first[row] + torch.arange(len(row), device=row.device) - before[row]]
    if not leave_out_itself:
        return row, column
    return row[row != column], column[row != column]
