"""The batches of a run, as its arguments describe them, from any point of the run on."""

from collections.abc import Iterator
from typing import Any, Protocol

from accelerate.logging import get_logger
from torch import Tensor
from torch.utils.data import DataLoader

from modeling_mxmclr import MXMCLRProcessor
from training.arguments import Arguments
from training.augmentation import Augmentation
from training.data import EpochRows, FoldCollator, loader_processes
from training.frozen_text import FrozenTextFeatures
from training.mixtures import InstanceBatches
from training.models import image_size_of
from training.session import Session
from training.streams import CollateBesideState, StreamedRows, usable_workers

logger = get_logger(__name__)


class Batches(Protocol):
    """The flat batches of this rank until the run ends, which know how far they were read."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Those that were not read before."""

    def state_dict(self) -> dict[str, Any]:
        """How far the batches were read, fit for JSON; each rank has its own."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after what was read when `state_dict` gave this."""


class StoredBatches:
    """The batches of stored rows.

    Args:
        loader: Loads the batches that its sampler names.
        order: That sampler.
    """

    def __init__(self, loader: DataLoader, order: InstanceBatches) -> None:
        self.loader, self.order = loader, order

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self.loader:
            self.order.first += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """How far the batches were read; the same on every rank."""
        return {"batches": self.order.first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after what was read when `state_dict` gave this."""
        self.order.first = state["batches"]


class StreamedBatches:
    """The batches of streams.

    Args:
        loader: Loads batches without end, each with where its worker's lanes then stand.
        rows: What it loads from.
        num_batches: Batches until the run ends.
    """

    def __init__(self, loader: DataLoader, rows: StreamedRows, num_batches: int) -> None:
        self.loader, self.rows, self.num_batches = loader, rows, num_batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if self.rows.first == self.num_batches:
            return  # before a worker starts
        for batch, state in self.loader:
            # What workers have read ahead is in no state, so that it is read again.
            self.rows.states[self.rows.first % self.rows.num_workers] = state
            self.rows.first += 1
            yield batch
            if self.rows.first == self.num_batches:
                return

    def state_dict(self) -> dict[str, Any]:
        """How far the batches were read, and where the next ones are found; each rank has its own."""
        return {"batches": self.rows.first, "readers": self._readers, "lanes": list(self.rows.states)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after what was read when `state_dict` gave this.

        With other ranks or workers, that is at the start of the next epoch: nobody has read where their lanes would stand.
        """
        self.rows.first = state["batches"]
        if state["readers"] == self._readers:
            self.rows.states = list(state["lanes"])
            past = max((lane["row"] for lanes in state["lanes"] for lane in lanes or ()), default=0)
            logger.info("The streams go on where they were; up to %d rows of a file are read past to get there.", past)
            return
        epochs = [lane["epoch"] for lanes in state["lanes"] for lane in lanes or ()]
        logger.warning(
            "The run was on %s, and goes on with %s: other readers can't take up their places in the stream, so it "
            "goes on with epoch %d from the start. Resume with the same number of ranks and `num_workers` for the same "
            "order.", state["readers"], self._readers, max(epochs, default=-1) + 1
        )  # fmt: skip
        self.rows.begin_epoch(max(epochs, default=-1) + 1)

    @property
    def _readers(self) -> dict[str, int]:
        return {"rank": self.rows.rank, "ranks": self.rows.num_ranks, "workers": self.rows.num_workers}


def build_batches(session: Session, views: int | None, captions: int | None) -> Batches:
    """Batches of this rank until the run ends."""
    data = session.arguments.data
    collator = build_collator(session.arguments, session.processor, session.frozen_text, views, captions)
    if session.sources.streams:
        return stream_batches(session, collator)
    order = draw_batches(session)
    loader = DataLoader(
        EpochRows(session.splits["train"]),
        batch_sampler=order,
        collate_fn=collator,
        pin_memory=session.accelerator.device.type == "cuda",
        **loader_processes(data.num_workers, data.prefetch_factor),
    )
    return StoredBatches(loader, order)


def build_collator(
    arguments: Arguments,
    processor: MXMCLRProcessor,
    frozen_text: FrozenTextFeatures | None,
    views: int | None,
    captions: int | None,
) -> FoldCollator:
    """The collator that draws and varies observations as a run's arguments say."""
    data = arguments.data
    augment = Augmentation(
        image_size_of(processor), data.crop_scale, data.rotation, data.horizontal_flip, data.colour_jitter
    )
    seed = arguments.optimization.seed
    return FoldCollator(processor, views, captions, augment, frozen_text, seed, augment.smallest_source)


def draw_batches(session: Session) -> InstanceBatches:
    """Which rows this rank draws in each batch."""
    data, options, accelerator = session.arguments.data, session.arguments.optimization, session.accelerator
    sizes, num_batches = session.sources.sizes, options.max_steps * options.gradient_accumulation_steps
    if data.instances_per_step > sum(sizes):
        logger.warning(
            "`instances_per_step` is %d, the data set has %d: each step draws all.",
            data.instances_per_step,
            sum(sizes),
        )
    ranks = accelerator.process_index, accelerator.num_processes
    weights = data.dataset_weights or sizes
    return InstanceBatches(
        sizes, weights, data.instances_per_step, num_batches, options.seed, *ranks, data.text_only_instances
    )


def stream_batches(session: Session, collator: FoldCollator) -> StreamedBatches:
    """Batches of this rank from streams."""
    data, options, accelerator = session.arguments.data, session.arguments.optimization, session.accelerator
    streams, num_ranks = session.sources.streams, accelerator.num_processes
    num_workers = usable_workers(streams, data.num_workers, num_ranks)
    if num_workers < data.num_workers:
        logger.warning(
            "A stream has too few files for %d workers on each of %d ranks: %d of them read. Split it into as many "
            "files or more, or lower `num_workers`.", data.num_workers, num_ranks, num_workers
        )  # fmt: skip
    if any(stream.num_units(num_ranks) < num_ranks for stream in streams):
        logger.warning(
            "A stream has fewer files than there are ranks (%d): every rank reads all of it and keeps its share. Split "
            "it into as many files or more.", num_ranks
        )  # fmt: skip
    rows = StreamedRows(
        streams,
        data.dataset_weights or [1.0],
        data.instances_per_step,
        data.shuffle_buffer,
        options.seed,
        accelerator.process_index,
        num_ranks,
        num_workers,
    )
    loader = DataLoader(
        rows,
        batch_size=None,  # the rows come in batches, which no dispatcher may cut
        collate_fn=CollateBesideState(collator),
        pin_memory=accelerator.device.type == "cuda",
        **loader_processes(num_workers, data.prefetch_factor),
    )
    return StreamedBatches(loader, rows, options.max_steps * options.gradient_accumulation_steps)
