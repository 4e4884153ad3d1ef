"""The batches of a run, as its arguments describe them, from any point of the run on."""

from collections.abc import Iterator
from typing import Any

from accelerate.logging import get_logger
from torch import Tensor
from torch.utils.data import DataLoader

from training.augmentation import Augmentation
from training.data import EpochRows, FoldCollator, InstanceBatches, loader_processes
from training.models import image_size_of
from training.session import Session

logger = get_logger(__name__)


class Batches:
    """The flat batches of this rank until the run ends, which know how far they were read.

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
        """How far the batches were read, fit for JSON."""
        return {"batches": self.order.first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after what was read when `state_dict` gave this."""
        self.order.first = state["batches"]


def build_batches(session: Session, views: int | None, captions: int | None) -> Batches:
    """Batches of this rank until the run ends."""
    data, options, accelerator = session.arguments.data, session.arguments.optimization, session.accelerator
    rows = session.splits["train"]
    if data.instances_per_step > len(rows):
        logger.warning(
            "`instances_per_step` is %d, the data set has %d: each step draws all.", data.instances_per_step, len(rows)
        )
    order = InstanceBatches(
        len(rows),
        data.instances_per_step,
        options.max_steps * options.gradient_accumulation_steps,
        options.seed,
        accelerator.process_index,
        accelerator.num_processes,
    )
    augment = Augmentation(
        image_size_of(session.processor), data.crop_scale, data.rotation, data.horizontal_flip, data.colour_jitter
    )
    collator = FoldCollator(
        session.processor, views, captions, augment, session.frozen_text, options.seed, augment.smallest_source
    )
    loader = DataLoader(
        EpochRows(rows),
        batch_sampler=order,
        collate_fn=collator,
        pin_memory=accelerator.device.type == "cuda",
        **loader_processes(data.num_workers, data.prefetch_factor),
    )
    return Batches(loader, order)
