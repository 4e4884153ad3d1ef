"""Training rows that are read while they are needed: dealt to ranks and workers, shuffled, and replayed from any point."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Any, NamedTuple

import fsspec.asyn
import numpy as np
import torch
from datasets import IterableDataset
from torch import Tensor
from torch.utils.data import get_worker_info

from training.mixtures import draw_counts

READ_AT_ONCE = 16  # rows
# Units are opened one by one, which takes longer the more there are of a listing that counts each instance for one.
MAX_UNITS = 1024
PATIENCE = 10  # epochs; a lane may be dealt a last file with next to nothing in it

State = dict[str, int]


def start_of(epoch: int) -> State:
    """Where an epoch begins."""
    return {"epoch": epoch, "number": 0, "unit": 0, "row": 0, "given": 0}


class Stream:
    """A split that is read row by row, in units (files, or parts of them) that can be opened in any order.

    Args:
        rows: The split, with the row schema.
        prefix: What stands before its instance ids, see `training/sources.py`.
    """

    def __init__(self, rows: IterableDataset, prefix: str = "") -> None:
        self.split, self.prefix = rows.decode(False), prefix

    def num_units(self, num_lanes: int) -> int:
        """How many units there are for so many lanes; Parquet files count by row groups where there are too few."""
        if self.split.num_shards < num_lanes:
            self.split = self.split.reshard()
        return min(self.split.num_shards, max(MAX_UNITS, num_lanes))

    def rows(
        self, unit: int | None = None, num_units: int = 1, columns: Sequence[str] = ()
    ) -> Iterator[dict[str, Any]]:
        """The rows of a unit, or of all, in their own order, images left encoded.

        They are read by `iter`: in a loader's worker, the split's own iteration would leave out the others' shares.
        """
        part = self.split.select_columns(list(columns)) if columns else self.split
        if unit is not None:
            part = part.shard(num_shards=num_units, index=unit)
        for batch in part.iter(READ_AT_ONCE):
            for values in zip(*batch.values(), strict=True):
                row = dict(zip(batch, values, strict=True))
                yield row | {"instance_id": self.prefix + row["instance_id"]}


class Place(NamedTuple):
    """One of the lanes into which a stream is dealt: every instance of an epoch belongs to exactly one."""

    lane: int
    num_lanes: int


class Lane:
    """The rows of one lane, in random order, epoch after epoch, from any point on.

    Every epoch deals the units to the lanes anew. A lane reads its units one after the other, and gives the rows of a
    window in random order while it reads the next window. So what it has read ahead is known from where the window
    began, and its state is a few numbers.

    Args:
        stream: The stream.
        place: Which lane this is.
        window: Rows that are shuffled among each other.
        seed: Seed of all orders.
        state: Where to begin, as `state_dict` gave it.

    Attributes:
        epoch: The epoch of the rows that come next.
    """

    def __init__(self, stream: Stream, place: Place, window: int, seed: int, state: State) -> None:
        self.stream, self.place, self.window, self.seed = stream, place, window, seed
        self.num_units = stream.num_units(place.num_lanes)
        self._begin(state["epoch"], state["number"], state["unit"], state["row"])
        for _ in islice(self._rows, state["given"]):
            pass

    def take(self, amount: int) -> list[dict[str, Any]]:
        """The next rows, all of one epoch; the last few of an epoch that are fewer than asked for are left out.

        Raises:
            ValueError: When epoch after epoch deals this lane fewer rows.
        """
        for _ in range(PATIENCE):
            taken = list(islice(self._rows, amount))
            if len(taken) == amount:
                return [row | {"epoch": self.epoch} for row in taken]
            self._begin(self.epoch + 1)
        raise ValueError(
            f"Lane {self.place.lane} of {self.place.num_lanes} of a stream has {len(taken)} instances, a batch draws "
            f"{amount} of it; lower `instances_per_step` or `num_workers`, or leave out `streaming`."
        )

    def state_dict(self) -> State:
        """Where the next rows are found: the start of their window, and how many it has given."""
        return {"epoch": self.epoch, "number": self.number, "given": self.given, **self._start}

    def _begin(self, epoch: int, number: int = 0, unit: int = 0, row: int = 0) -> None:
        """Go to where a window begins: its number in the epoch, and unit and row of its first row."""
        self.epoch, self.number, self.given = epoch, number, 0
        self._unit, self._row = unit, row
        self._start = self._position
        self._rows = self._shuffled()

    @property
    def _position(self) -> State:
        return {"unit": self._unit, "row": self._row}

    def _units(self) -> list[int]:
        """This lane's units of the epoch, in order; all of them where there are fewer than lanes."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_units).tolist()
        return order if self._shares_units else order[self.place.lane :: self.place.num_lanes]

    @property
    def _shares_units(self) -> bool:
        return self.num_units < self.place.num_lanes

    def _unshuffled(self) -> Iterator[dict[str, Any]]:
        units = self._units()
        while self._unit < len(units):
            rows = self.stream.rows(units[self._unit], self.num_units)
            for row in islice(rows, self._row, None):
                mine = not self._shares_units or self._row % self.place.num_lanes == self.place.lane
                self._row += 1
                if mine:
                    yield row
            self._unit, self._row = self._unit + 1, 0

    def _shuffled(self) -> Iterator[dict[str, Any]]:
        source = self._unshuffled()
        window = list(islice(source, self.window))
        while window:
            following: list[dict[str, Any]] = []
            following_start = self._position
            key = [self.seed, self.epoch, self.place.lane, self.number]
            for place in np.random.default_rng(key).permutation(len(window)):
                following += islice(source, 1)
                self.given += 1
                yield window[place]
                window[place] = {}  # it can be large
            self.number, self.given, self._start = self.number + 1, 0, following_start
            window = following


class StreamedRows(torch.utils.data.IterableDataset):
    """The rows of this rank's batches without end, batch by batch, each with the state that it leaves its lanes in.

    Every worker has a lane of its own in each stream, and makes every so manieth batch.

    Args:
        streams: The streams that are mixed.
        weights: How often an instance is drawn from each, relative to the others.
        batch_size: Instances of a step over all ranks.
        window: Rows of a lane that are shuffled among each other.
        seed: Seed of all orders.
        rank: This process.
        num_ranks: All processes.
        num_workers: Workers of each rank's loader, none counting as one.

    Attributes:
        first: The batch to begin with.
        states: Where each worker's lanes stand then.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        weights: Sequence[float],
        batch_size: int,
        window: int,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        num_workers: int = 0,
    ) -> None:
        self.streams, self.weights, self.window, self.seed = streams, weights, window, seed
        self.rank, self.num_ranks, self.num_workers = rank, num_ranks, max(1, num_workers)
        self.share = len(range(rank, batch_size, num_ranks))
        self.first = 0
        self.states: list[list[State] | None] = [None] * self.num_workers

    def begin_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        self.states = [[start_of(epoch)] * len(self.streams) for _ in range(self.num_workers)]

    def __iter__(self) -> Iterator[tuple[list[dict[str, Any]], list[State]]]:
        worker = 0
        if (info := get_worker_info()) is not None:
            worker = info.id
            fsspec.asyn.reset_lock()  # a forked worker would wait for a lock that nobody holds
        # A loader asks its first worker first, whichever batch that is.
        slot = (self.first + worker) % self.num_workers
        place = Place(self.rank * self.num_workers + slot, self.num_ranks * self.num_workers)
        states = self.states[slot] or [start_of(epoch=0)] * len(self.streams)
        lanes = [
            Lane(stream, place, self.window, self.seed, state)
            for stream, state in zip(self.streams, states, strict=True)
        ]
        for number in count(self.first + worker, self.num_workers):
            place_of_draw = np.random.default_rng([self.seed, self.rank, number]).random()
            amounts = draw_counts(self.weights, self.share, place_of_draw)
            rows = [row for lane, amount in zip(lanes, amounts, strict=True) for row in lane.take(int(amount))]
            yield rows, [lane.state_dict() for lane in lanes]


class CollateBesideState:
    """A collator of rows as one of rows and the state that comes with them."""

    def __init__(self, collate: Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]]) -> None:
        self.collate = collate

    def __call__(self, element: Sequence[Any]) -> tuple[dict[str, Tensor], list[State]]:
        """The flat batch, and the state, of an element of `StreamedRows`."""
        rows, state = element
        return self.collate(rows), state


def usable_workers(streams: Sequence[Stream], num_workers: int, num_ranks: int) -> int:
    """Workers for which there are units, so that none reads what another one does; at least one, unless none was asked for."""
    num_units = min(stream.num_units(max(1, num_workers) * num_ranks) for stream in streams)
    return min(num_workers, max(1, num_units // num_ranks))
