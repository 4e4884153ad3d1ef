"""What the ranks of a `GlooPool` do with adapters; apart from `rank_jobs`, whose processes then need not load peft."""

import torch
from torch.nn.parallel import DistributedDataParallel

from tests.references.adapters import disturb
from tests.references.rank_jobs import loss_and_gradients, split_batch
from tests.references.tiny import tiny_batch, tiny_model, tiny_processor
from training.arguments import LoraArguments
from training.lora import attach_adapter


def lora_gradients(rank: int | None, shares: dict | None, steps: int = 2):
    """The loss and gradients of an adapter that has learned something, of a rank under DDP or of one process."""
    model = tiny_model("bert", "resnet")
    torch.manual_seed(0)
    attach_adapter(model, tiny_processor(), LoraArguments(lora_rank=4))
    disturb(model)
    # In float64: what an embedding table sums of its rows rounds by more than a hundred thousandth in float32.
    model.double()
    batch = tiny_batch(torch.float64)
    if rank is None:
        return loss_and_gradients(model, batch)
    model.training = True  # gathers; the towers stay in eval mode, so that dropout is off
    wrapped = DistributedDataParallel(model)
    for _ in range(steps):
        wrapped.zero_grad()
        answer = loss_and_gradients(wrapped, split_batch(batch, shares, rank))
    return answer
