"""Which instances a step draws, of one data set or of several."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


def draw_counts(weights: Sequence[float] | np.ndarray, total: int, place: float | np.ndarray) -> np.ndarray:
    """How many of `total` draws fall on each data set, `(..., num_datasets)` int64: its share, rounded up or down.

    Points at a distance of one, the first at `place`, fall on intervals as long as the shares (systematic sampling), so
    that the mean over all places is the share itself.

    Args:
        weights: One for each data set, positive.
        total: How many are drawn.
        place: In [0, 1), a number or an array of them.

    Example:
        >>> draw_counts([3, 1], 6, 0.2).tolist(), draw_counts([3, 1], 6, 0.7).tolist()
        ([5, 1], [4, 2])
    """
    ends = np.cumsum(weights) / np.sum(weights) * total
    # Rounded, since a share that is whole must not exceed itself by the error of a sum.
    points = np.ceil(np.round(ends - np.asarray(place)[..., None], 9)).astype(np.int64)
    points[..., -1] = total
    return np.diff(points, prepend=0)


class TextOnly(NamedTuple):
    """A row of which a step sees captions alone."""

    row: int
    epoch: int


class InstanceBatches(Sampler[list[tuple[int, int]]]):
    """This rank's share of each step's instances: a function of seed and step alone.

    Every data set has epochs of its own, each a new order of its instances, without the few that don't fill its part of
    a step. A batch is dealt to the ranks in turn, so that the batch itself is the same on any number of ranks.

    Args:
        sizes: Rows of each data set, which lie one after the other.
        weights: How often an instance is drawn from each, relative to the others.
        batch_size: Instances of a step over all ranks; of no data set more than it has are drawn.
        num_batches: Batches until the run ends.
        seed: Seed of the order.
        rank: This process.
        num_ranks: All processes.
        text_only: Further instances of a step, of any data set, that come as `TextOnly`.

    Attributes:
        first: The batch to begin with, the next time that they are asked for.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        batch_size: int,
        num_batches: int,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        text_only: int = 0,
    ) -> None:
        self.text_only = text_only
        self.sizes, self.num_batches, self.seed, self.rank, self.num_ranks = sizes, num_batches, seed, rank, num_ranks
        places = np.random.default_rng([seed, len(sizes)]).random(num_batches)
        self.counts = np.minimum(draw_counts(weights, batch_size, places), sizes)
        self.first = 0

    def __len__(self) -> int:
        return self.num_batches - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first = self.first
        ends = [(0, 0)] * len(self.sizes)  # epoch of each, and how much of it was drawn
        orders: list[tuple[int, np.ndarray]] = [(-1, np.empty(0))] * len(self.sizes)
        for number, drawn in enumerate(self.counts.tolist()):
            starts = [place_in_epochs(*each) for each in zip(ends, drawn, self.sizes, strict=True)]
            ends = [(epoch, start + amount) for (epoch, start), amount in zip(starts, drawn, strict=True)]
            if number < first:
                continue
            batch: list[tuple[int, int]] = []
            for part, ((epoch, start), (_, end)) in enumerate(zip(starts, ends, strict=True)):
                if orders[part][0] != epoch:
                    orders[part] = epoch, self._order(part, epoch)
                batch += [(row, epoch) for row in orders[part][1][start:end].tolist()]
            others: list[tuple[int, int]] = [*self._others(number, batch)] if self.text_only else []
            yield batch[self.rank :: self.num_ranks] + others[self.rank :: self.num_ranks]

    def _others(self, number: int, batch: Sequence[tuple[int, int]]) -> list[TextOnly]:
        """Rows that are not in a batch, which see their captions drawn anew in each."""
        total = sum(self.sizes)
        drawn = np.random.default_rng([self.seed, number, 0, 1]).choice(
            total, min(total, self.text_only + len(batch)), replace=False
        )
        taken = {row for row, _ in batch}
        return [TextOnly(row, number) for row in drawn.tolist() if row not in taken][: self.text_only]

    def _order(self, part: int, epoch: int) -> np.ndarray:
        """All rows of a data set in the order of an epoch."""
        # A trailing zero doesn't change a seed sequence: the first data set keeps the order that it has alone.
        order = np.random.default_rng([self.seed, epoch, part]).permutation(self.sizes[part])
        return order + sum(self.sizes[:part])


def place_in_epochs(end: tuple[int, int], amount: int, size: int) -> tuple[int, int]:
    """Where the next rows of a data set begin, as epoch and place: in a new epoch, where the old one has too few left."""
    epoch, drawn = end
    return (epoch, drawn) if drawn + amount <= size else (epoch + 1, 0)
