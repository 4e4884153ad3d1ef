"""The two sides of a search, cut into blocks of items of one row or several, and the scores of two blocks."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

REDUCTIONS = ("max", "mean")  # in the order in which `block_scores` takes them
SPARSE_PAIRS = 16  # up to this many items of a block for each query, scoring each is faster than scoring the block
PAIRS_AT_ONCE = 4096


class Block(NamedTuple):
    """Items of equally many rows: the first rows of all of them, then their second rows, and so on."""

    embeds: Tensor  # (rows_per_item * num_items, dim)
    numbers: Tensor  # (num_items,) int64 ascending, their places in the order of their `Items`
    reduce: str

    @property
    def rows_per_item(self) -> int:
        """How many rows each item has."""
        return len(self.embeds) // len(self.numbers)

    def to(self, dtype: torch.dtype) -> "Block":
        """The same items with embeddings of that type."""
        return self._replace(embeds=self.embeds.to(dtype))

    def select(self, places: Tensor) -> "Block":
        """The items at these places of the block, `(num_places,)` int64."""
        rows = self.embeds.view(self.rows_per_item, len(self.numbers), -1)[:, places]
        return self._replace(embeds=rows.flatten(0, 1), numbers=self.numbers[places])


class Items:
    """One side of a search, in an order in which items of equally many rows follow each other.

    Args:
        embeds: `(num_rows, dim)`.
        sets: `(num_rows,)` int64 ascending from 0, the item that each row belongs to; None where each row is one.
        reduce: "max" or "mean", what the scores of an item's rows become.
    """

    def __init__(self, embeds: Tensor, sets: Tensor | None, reduce: str) -> None:
        self.embeds, self.single, self.reduce = embeds, sets is None, reduce
        sizes = torch.ones(len(embeds), dtype=torch.int64, device=embeds.device) if sets is None else sets.bincount()
        self.order = sizes.argsort(stable=True)  # (num_items,) int64, the set that each item is
        self.sizes = sizes[self.order]
        self.starts = (sizes.cumsum(dim=0) - sizes)[self.order]

    def __len__(self) -> int:
        return len(self.order)

    def blocks(self, num_rows: int, numbers: Tensor | None = None) -> Iterator[Block]:
        """The items, or those at these ascending places of the order, in blocks of `num_rows` rows, or of one item."""
        everything = torch.arange(len(self), device=self.order.device)
        if self.single and numbers is None:
            for start in range(0, len(self), num_rows):  # slices: gathering rows would copy them
                rows = slice(start, start + num_rows)
                yield Block(self.embeds[rows], everything[rows], self.reduce)
            return
        numbers = everything if numbers is None else numbers
        sizes, counts = self.sizes[numbers].unique_consecutive(return_counts=True)
        for size, run in zip(sizes.tolist(), numbers.split(counts.tolist()), strict=True):
            steps = torch.arange(size, device=run.device)[:, None]
            for part in run.split(max(1, num_rows // size)):
                yield Block(self.embeds[(self.starts[part] + steps).flatten()], part, self.reduce)


def block_scores(queries: Block, gallery: Block) -> Tensor:
    """Score of each query with each item of the gallery, `(num_queries, num_items)`, in the type of the embeddings.

    First the maximum is taken over the rows of whichever side asks for it, then the mean: each caption of a set counts
    with the view that fits it best.
    """
    scores = queries.embeds @ gallery.embeds.T
    scores = scores.view(queries.rows_per_item, len(queries.numbers), gallery.rows_per_item, len(gallery.numbers))
    for reduce in REDUCTIONS:
        for side, dim in ((queries, 0), (gallery, 2)):
            if side.reduce == reduce and side.rows_per_item > 1:
                scores = scores.amax(dim, keepdim=True) if reduce == "max" else scores.mean(dim, keepdim=True)
    return scores[0, :, 0]


def exact_scores(queries: Block, gallery: Block, row: Tensor, item: Tensor) -> Tensor:
    """Score of each query at `row`, which ascends, with the item at `item`, `(num_pairs,)` float64."""
    rows, place = row.unique_consecutive(return_inverse=True)
    if len(row) > SPARSE_PAIRS * len(rows) or queries.rows_per_item > 1 or gallery.rows_per_item > 1:
        return block_scores(queries.select(rows).to(torch.float64), gallery.to(torch.float64))[place, item]
    products = [
        (queries.embeds[some_rows].double() * gallery.embeds[some_items].double()).sum(dim=1)
        for some_rows, some_items in zip(row.split(PAIRS_AT_ONCE), item.split(PAIRS_AT_ONCE), strict=True)
    ]
    return torch.cat(products)


def rounding_bound(queries: Block, gallery: Block) -> float:
    """What float32 may change in a score of unit vectors.

    The error of a sum of n terms is of the order of sqrt(n) roundings, as Higham and Mary show for random roundings
    (https://doi.org/10.1137/18M1226312). Ten times that is certain up to 64 dimensions, and at 256 it is ten times the
    largest error seen.
    """
    num_terms = queries.embeds.shape[1] + queries.rows_per_item + gallery.rows_per_item
    return 5 * torch.finfo(torch.float32).eps * math.sqrt(num_terms)


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Products of the operands' own type, whatever autocast and the settings of PyTorch's float32 products say."""
    backends: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    settings = [backend for backend in backends if hasattr(backend, "fp32_precision")]
    before = [setting.fp32_precision for setting in settings]
    legacy = None if settings else torch.get_float32_matmul_precision()  # PyTorch below 2.9
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        if legacy is not None:
            torch.set_float32_matmul_precision("highest")
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy)
