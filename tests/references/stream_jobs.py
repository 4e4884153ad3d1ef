"""What the ranks of a `GlooPool` do with streams."""

import os
from types import SimpleNamespace

from accelerate import Accelerator

from tests.references.tiny import tiny_processor
from training.arguments import DataArguments
from training.batches import stream_batches
from training.data import FoldCollator
from training.sources import load_sources


class WithInstances(FoldCollator):
    """Keeps the rows' ids beside the flat batch."""

    def __call__(self, rows):
        return super().__call__(rows) | {"instances": [row["instance_id"] for row in rows]}


def dealt_batches(rank, folder):
    """The group ids of images and texts, and the instances, of this rank's batches of the first epoch."""
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ["OMP_NUM_THREADS"] = "1"  # else accelerate warns
    data = DataArguments(folder, streaming=True, instances_per_step=4, shuffle_buffer=5, num_workers=0)
    session = SimpleNamespace(
        arguments=SimpleNamespace(
            data=data, optimization=SimpleNamespace(max_steps=6, gradient_accumulation_steps=1, seed=0)
        ),
        accelerator=Accelerator(cpu=True),
        sources=load_sources(data),
    )
    assert session.accelerator.num_processes == 2
    found = stream_batches(session, WithInstances(tiny_processor(), 2, 2))
    return [
        (batch["image_group_ids"].tolist(), batch["text_group_ids"].tolist(), batch["instances"]) for batch in found
    ]
