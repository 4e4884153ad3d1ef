"""Reductions of `scale * queries @ keys.T`, tile by tile and with backward passes of their own: no matrix is ever held."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Columns of a tile, and of a square one rows: enough for a matrix product at full speed, few enough for a core's cache.
TILE = 512
# Rows of a tile that need not be square, in tiles: long products are faster.
LONG = 4
# How far apart log-sums may lie that share an exponential, of what the type can hold.
SPAN = 0.8
# Pairs whose rows are gathered at once.
PAIRS = 1024

Left = Literal["nothing", "itself", "own"]


class Grid(NamedTuple):
    """Which row scores which key: all keys, all but itself, or those of other instances."""

    query_instance: Tensor  # (num_queries,), int64
    key_instance: Tensor  # (num_keys,), int64
    leave_out: Left
    mirrored: bool  # queries and keys are the same rows, so that half of the tiles tell all
    one_way: bool = False  # the sums of queries alone are asked for
    places: Tensor | None = None  # (num_queries,), int64, the key that each query is, where it is one

    @property
    def height(self) -> int:
        """Most rows of a tile."""
        return TILE if self.mirrored else LONG * TILE

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of each tile."""
        for rows in blocks(len(self.query_instance), self.height):
            for columns in blocks(len(self.key_instance)):
                if not self.mirrored or rows.start <= columns.start:
                    yield rows, columns

    def own(self, rows: slice, columns: slice) -> Tensor:
        """True where query and key of a tile show one instance."""
        return self.query_instance[rows, None] == self.key_instance[columns]

    def leave_out_of(self, tile: Tensor, rows: slice, columns: slice) -> None:
        """Write -inf where a key of a tile takes no part."""
        if self.leave_out == "own":
            tile.masked_fill_(self.own(rows, columns), -torch.inf)
        elif self.leave_out == "itself" and self.places is not None:
            column = self.places[rows] - columns.start
            row = ((column >= 0) & (column < tile.shape[1])).nonzero().squeeze(1)
            tile[row, column[row]] = -torch.inf
        elif self.leave_out == "itself" and rows == columns:
            tile.fill_diagonal_(-torch.inf)


def blocks(size: int, height: int | None = None) -> Iterator[slice]:
    """Slices of at most `height` rows that cover all; `TILE` where None."""
    step = height or TILE
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def logit_tiles(queries: Tensor, keys: Tensor, scale: Tensor, grid: Grid) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and all logits of each tile, in one memory that each tile writes anew."""
    memory = queries.new_empty(min(grid.height, len(queries)) * min(TILE, len(keys)))
    for rows, columns in grid.tiles():
        shape = rows.stop - rows.start, columns.stop - columns.start
        tile = memory[: shape[0] * shape[1]].view(shape)
        torch.mm(scale * queries[rows], keys[columns].T, out=tile)
        yield rows, columns, tile


class Pairs:
    """Chosen pairs of a query and a key, told apart by the tile that holds their logit.

    Args:
        query: `(num_pairs,)` int64.
        key: `(num_pairs,)` int64.
        grid: The grid; where it is mirrored, a pair lies where its lower number is the row.
    """

    def __init__(self, query: Tensor, key: Tensor, grid: Grid) -> None:
        row, column = (torch.minimum(query, key), torch.maximum(query, key)) if grid.mirrored else (query, key)
        self.size, self.numbers = len(query), len(list(blocks(len(grid.key_instance))))
        self.height = grid.height
        # The place within its tile, tiles in reading order.
        width = (len(grid.key_instance) - column // TILE * TILE).clamp(max=TILE)
        self.places = row % self.height * width + column % TILE
        tile = row // self.height * self.numbers + column // TILE
        counts = tile.bincount(minlength=self.numbers * len(list(blocks(len(grid.query_instance), self.height))))
        self.members = tile.argsort(stable=True).split(counts.tolist())

    def of(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Which pairs lie in a tile, and their places in it once it is flat, `(num_members,)` each."""
        members = self.members[rows.start // self.height * self.numbers + columns.start // TILE]
        return members, self.places[members]


class Reduced(NamedTuple):
    """What is known of logits."""

    of_queries: Tensor  # (num_queries,), logsumexp of each query's; -inf where none takes part
    of_keys: Tensor  # (num_keys,), logsumexp of each key's; empty where the grid is one-way
    of_pairs: Tensor  # (num_pairs,), the logits of chosen pairs, whether or not they take part


def reduce_logits(queries: Tensor, keys: Tensor, scale: Tensor, grid: Grid, pairs: Pairs) -> Reduced:
    """Log-sums of `scale * queries @ keys.T` along both sides, and chosen logits.

    Args:
        queries: `(num_queries, dim)`.
        keys: `(num_keys, dim)`; where the grid is mirrored they are the `queries`.
        scale: `()`.
        grid: Which logits take part in the sums.
        pairs: The chosen logits.
    """
    reduced = Reduced(*_ReduceLogits.apply(queries, keys, scale, grid, pairs))
    return reduced._replace(of_keys=reduced.of_queries) if grid.mirrored else reduced


class _ReduceLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, scale: Tensor, grid: Grid, pairs: Pairs
    ) -> tuple[Tensor, Tensor, Tensor]:
        of_queries = queries.new_full((len(queries),), -torch.inf)
        of_keys = of_queries if grid.mirrored else keys.new_full((0 if grid.one_way else len(keys),), -torch.inf)
        of_pairs, top = queries.new_empty(pairs.size), queries.new_full((), -torch.inf)
        for rows, columns, tile in logit_tiles(queries, keys, scale, grid):
            members, places = pairs.of(rows, columns)
            of_pairs[members] = tile.view(-1)[places]
            grid.leave_out_of(tile, rows, columns)
            if grid.one_way:
                of_queries[rows] = torch.logaddexp(of_queries[rows], tile.logsumexp(dim=1))
                continue
            by_row, by_column, highest = consume_tile(tile)
            top = torch.maximum(top, highest)
            of_queries[rows] = torch.logaddexp(of_queries[rows], by_row)
            if not grid.mirrored or rows != columns:
                of_keys[columns] = torch.logaddexp(of_keys[columns], by_column)
        mend_far_sums(of_keys, top, queries, keys, scale, grid)
        if grid.mirrored:
            of_keys = of_queries.new_empty(0)
        ctx.save_for_backward(queries, keys, scale, of_queries, of_keys)
        ctx.grid, ctx.pairs = grid, pairs
        return of_queries, of_keys, of_pairs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, of_queries: Tensor, of_keys: Tensor, of_pairs: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor, None, None]:
        queries, keys, scale, *sums = ctx.saved_tensors
        grid: Grid = ctx.grid
        # A row without a logit gets no weight: exp(-inf - 0).
        query_sums, key_sums = (each.masked_fill(each.isinf(), 0) for each in sums)
        query_gradient = torch.zeros_like(queries)
        if grid.mirrored:
            of_keys, key_sums, key_gradient = of_queries, query_sums, query_gradient
        else:
            key_gradient = torch.zeros_like(keys)
        by_rows = weights_of_rows(query_sums, of_queries)
        hand_on = by_rows if grid.one_way else weights_from((query_sums, key_sums), (of_queries, of_keys))
        for rows, columns, tile in logit_tiles(queries, keys, scale, grid):
            grid.leave_out_of(tile, rows, columns)
            find_weights = by_rows if grid.mirrored and rows == columns else hand_on
            weights = find_weights(tile, rows, columns)
            members, places = ctx.pairs.of(rows, columns)
            weights.view(-1).index_add_(0, places, of_pairs[members])
            query_gradient[rows].addmm_(weights, keys[columns])
            key_gradient[columns].addmm_(weights.T, queries[rows])
        of_scale = dot(queries, query_gradient)
        if grid.mirrored:  # each logit was met from both of its rows, and all of the gradient lies in one tensor
            return query_gradient.mul_(scale), None, of_scale / 2, None, None
        return query_gradient.mul_(scale), key_gradient.mul_(scale), of_scale, None, None


def consume_tile(tile: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logsumexp of each row and each column of a tile, and its highest logit; the tile itself is used up.

    One exponential serves both sides, each row less its highest logit. So a column that lies far below the highest logit
    of all underflows; see `mend_far_sums`.
    """
    highest = tile.amax(dim=1)
    top = highest.amax().clamp(min=torch.finfo(tile.dtype).min)
    tile.sub_(highest.masked_fill(highest.isinf(), 0)[:, None]).exp_()
    return tile.sum(dim=1).log() + highest, (tile.T @ (highest - top).exp()).log() + top, top


def mend_far_sums(sums: Tensor, top: Tensor, queries: Tensor, keys: Tensor, scale: Tensor, grid: Grid) -> None:
    """Find the logsumexp of those keys anew that `consume_tile` may not have told exactly, in place.

    Args:
        sums: `(num_keys,)`, what the tiles told of each key.
        top: `()`, the highest logit of all.
        queries: `(num_queries, dim)`.
        keys: `(num_keys, dim)`.
        scale: `()`.
        grid: Which logits take part.
    """
    numbers = torch.finfo(sums.dtype)
    # What may have underflowed, against the last digit of what is left.
    far = sums < top + math.log(numbers.tiny) - math.log(numbers.eps) + math.log(max(1, len(queries)))
    for part in far.nonzero().squeeze(1).split(TILE):
        sums[part] = -torch.inf
        for rows in blocks(len(queries)):
            tile = scale * queries[rows] @ keys[part].T
            if grid.leave_out == "own":
                tile.masked_fill_(grid.query_instance[rows, None] == grid.key_instance[part], -torch.inf)
            elif grid.leave_out == "itself":
                tile.masked_fill_(torch.arange(rows.start, rows.stop, device=part.device)[:, None] == part, -torch.inf)
            sums[part] = torch.logaddexp(sums[part], tile.logsumexp(dim=0))


def weights_of_rows(sums: Tensor, gradients: Tensor) -> Callable[[Tensor, slice, slice], Tensor]:
    """`weights_from` the log-sums of rows alone and their gradients."""

    def each_row(tile: Tensor, rows: slice, columns: slice) -> Tensor:
        return tile.sub_(sums[rows, None]).exp_().mul_(gradients[rows, None])

    return each_row


def weights_from(
    sums: tuple[Tensor, Tensor], gradients: tuple[Tensor, Tensor]
) -> Callable[[Tensor, slice, slice], Tensor]:
    """A function that turns a tile of logits into their gradients, from the log-sums of rows and columns and theirs.

    One exponential serves both sides where their log-sums lie so close that what divides them is a finite number.
    """
    (of_rows, of_columns), (row_gradients, column_gradients) = sums, gradients
    lowest, highest = torch.cat(sums).aminmax()
    if highest - lowest > SPAN * math.log(torch.finfo(of_rows.dtype).max):

        def each_by_itself(tile: Tensor, rows: slice, columns: slice) -> Tensor:
            weights = (tile - of_rows[rows, None]).exp_().mul_(row_gradients[rows, None])
            return weights.addcmul_(tile.sub_(of_columns[columns]).exp_(), column_gradients[columns])

        return each_by_itself

    middle = (lowest + highest) / 2
    half_rows, half_columns = of_rows / 2, of_columns / 2
    up_rows, up_columns = (half_rows - middle / 2).exp(), (half_columns - middle / 2).exp()
    down_rows, down_columns = row_gradients / up_rows, column_gradients / up_columns

    def both_at_once(tile: Tensor, rows: slice, columns: slice) -> Tensor:
        tile.sub_(half_rows[rows, None]).sub_(half_columns[columns]).exp_()
        factors = torch.outer(down_rows[rows], up_columns[columns])
        return tile.mul_(factors.addr_(up_rows[rows], down_columns[columns]))

    return both_at_once


def dot(one: Tensor, other: Tensor) -> Tensor:
    """Sum of all products, `()`, without a tensor of them."""
    parts = [(one[rows] * other[rows]).sum() for rows in blocks(len(one))]
    return torch.stack(parts).sum() if parts else one.new_zeros(())


def pair_scores(queries: Tensor, keys: Tensor, scale: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Logits of chosen pairs, `(num_pairs,)`.

    Args:
        queries: `(num_queries, dim)`.
        keys: `(num_keys, dim)`.
        scale: `()`.
        query: `(num_pairs,)` int64.
        key: `(num_pairs,)` int64.
    """
    return _PairScores.apply(queries, keys, scale, query, key)


class _PairScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, scale: Tensor, query: Tensor, key: Tensor) -> Tensor:
        products = queries.new_empty(len(query))
        for part in chunks(len(query)):
            products[part] = (queries[query[part]] * keys[key[part]]).sum(dim=1)
        ctx.save_for_backward(queries, keys, scale, query, key, products)
        return scale * products

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_scores: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        queries, keys, scale, query, key, products = ctx.saved_tensors
        query_gradient, key_gradient = torch.zeros_like(queries), torch.zeros_like(keys)
        for part in chunks(len(query)):
            weights = (scale * of_scores[part])[:, None]
            query_gradient.index_add_(0, query[part], weights * keys[key[part]])
            key_gradient.index_add_(0, key[part], weights * queries[query[part]])
        return query_gradient, key_gradient, (of_scores * products).sum(), None, None


def chunks(size: int) -> Iterator[slice]:
    """Slices of at most `PAIRS` entries that cover all."""
    for start in range(0, size, PAIRS):
        yield slice(start, start + PAIRS)


def sigmoid_losses(queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The summed -log sigmoid of the logits plus `bias`, turned around for pairs of two instances, `()`.

    The gradients are found on the way, so that each tile is met once. The second value, without gradient, is the part
    of the pairs of one instance.

    Args:
        queries: `(num_queries, dim)`.
        keys: `(num_keys, dim)`.
        scale: `()`.
        bias: `()`.
        grid: The instances.
    """
    total, positive = _SigmoidLosses.apply(queries, keys, scale, bias, grid)
    return total, positive


class _SigmoidLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor, grid: Grid
    ) -> tuple[Tensor, Tensor]:
        query_gradient, key_gradient = torch.zeros_like(queries), torch.zeros_like(keys)
        total, positive, of_bias = queries.new_zeros(3).unbind()
        for rows, columns, tile in logit_tiles(queries, keys, scale, grid):
            own = grid.own(rows, columns)
            signed = torch.where(own, tile.add_(bias).neg(), tile)
            losses = -F.logsigmoid(-signed)
            total, positive = total + losses.sum(), positive + losses[own].sum()
            if any(ctx.needs_input_grad):
                weights = signed.sigmoid_()
                weights = torch.where(own, -weights, weights)
                of_bias = of_bias + weights.sum()
                query_gradient[rows].addmm_(weights, keys[columns])
                key_gradient[columns].addmm_(weights.T, queries[rows])
        of_scale = dot(queries, query_gradient)
        ctx.save_for_backward(query_gradient.mul_(scale), key_gradient.mul_(scale), of_scale, of_bias)
        ctx.mark_non_differentiable(positive)
        return total, positive

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_total: Tensor, of_positive: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        query_gradient, key_gradient, of_scale, of_bias = (of_total * each for each in ctx.saved_tensors)
        return query_gradient, key_gradient, of_scale, of_bias, None


@torch.no_grad()
def row_log_sums(queries: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
    """Logsumexp of each query's logits, `(num_queries,)`, without gradient."""
    sums = queries.new_full((len(queries),), -torch.inf)
    for rows, _, tile in logit_tiles(queries, keys, scale, everything(queries, keys)):
        sums[rows] = torch.logaddexp(sums[rows], tile.logsumexp(dim=1))
    return sums


class Spread(NamedTuple):
    """What each receiver gets of the values that the rows of a softmax spread."""

    values: Tensor  # (num_receivers, value_dim)
    entropies: Tensor  # (num_receivers,), minus the sum of each one's masses times their logs, without gradient


def spread_values(
    queries: Tensor, keys: Tensor, scale: Tensor, sums: Tensor, values: Tensor, *, transposed: bool
) -> Spread:
    """The values weighted by R, the softmax of `scale * queries @ keys.T` row by row.

    Args:
        queries: `(num_queries, dim)`.
        keys: `(num_keys, dim)`.
        scale: `()`.
        sums: `(num_queries,)`, each query's logsumexp, see `row_log_sums`; its gradient is accounted for here.
        values: `(num_keys, value_dim)`, for `R @ values`; or `(num_queries, value_dim)` where transposed.
        transposed: Whether the keys receive, by `R.T @ values`.
    """
    return Spread(*_SpreadValues.apply(queries, keys, scale, sums, values, transposed))


class _SpreadValues(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, scale: Tensor, sums: Tensor, values: Tensor, transposed: bool
    ) -> tuple[Tensor, Tensor]:
        received = values.new_zeros(len(keys if transposed else queries), values.shape[1])
        entropies, totals = received.new_zeros(len(received)), torch.zeros_like(sums)
        for rows, columns, tile in logit_tiles(queries, keys, scale, everything(queries, keys)):
            logs = tile.sub_(sums[rows, None])
            masses = logs.exp()
            totals[rows] += masses.sum(dim=1)
            logs.mul_(masses)
            if transposed:
                received[columns].addmm_(masses.T, values[rows])
                entropies[columns] -= logs.sum(dim=0)
            else:
                received[rows].addmm_(masses, values[columns])
                entropies[rows] -= logs.sum(dim=1)
        ctx.save_for_backward(queries, keys, scale, sums, values, received, totals)
        ctx.transposed = transposed
        ctx.mark_non_differentiable(entropies)
        return received, entropies

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, of_received: Tensor, of_entropies: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, Tensor, None]:
        queries, keys, scale, sums, values, received, totals = ctx.saved_tensors
        grid = everything(queries, keys)
        query_gradient, key_gradient = torch.zeros_like(queries), torch.zeros_like(keys)
        value_gradient, means = torch.zeros_like(values), torch.zeros_like(sums)
        at_rows, at_columns = (values, of_received) if ctx.transposed else (of_received, values)
        # A softmax hands on what its masses are told, less the mean of that in their row.
        if ctx.transposed:
            for rows, columns, tile in logit_tiles(queries, keys, scale, grid):
                masses = tile.sub_(sums[rows, None]).exp_()
                means[rows] += masses.mul_(at_rows[rows] @ at_columns[columns].T).sum(dim=1)
        else:
            for rows in blocks(len(means)):
                means[rows] = (of_received[rows] * received[rows]).sum(dim=1)
        # The totals are 1 but for the rounding of `sums`, which must cancel here.
        means /= totals
        for rows, columns, tile in logit_tiles(queries, keys, scale, grid):
            masses = tile.sub_(sums[rows, None]).exp_()
            if ctx.transposed:
                value_gradient[rows].addmm_(masses, of_received[columns])
            else:
                value_gradient[columns].addmm_(masses.T, of_received[rows])
            weights = masses.mul_(torch.mm(at_rows[rows], at_columns[columns].T).sub_(means[rows, None]))
            query_gradient[rows].addmm_(weights, keys[columns])
            key_gradient[columns].addmm_(weights.T, queries[rows])
        of_scale = dot(queries, query_gradient)
        return query_gradient.mul_(scale), key_gradient.mul_(scale), of_scale, None, value_gradient, None


def everything(queries: Tensor, keys: Tensor) -> Grid:
    """A grid in which every key takes part; instances don't matter to it."""
    places = [torch.arange(len(rows), device=rows.device) for rows in (queries, keys)]
    return Grid(places[0], places[1], "nothing", mirrored=False)
