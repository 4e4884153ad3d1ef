"""What the ranks of a pool do with a device each, or with a CPU each."""

import torch
from torch.nn.parallel import DistributedDataParallel

from tests.references.rank_jobs import as_plain, split_batch
from tests.references.tiny import tiny_batch, tiny_model

SHARES = {"images": [[0, 1, 2, 3, 4], [5, 6]], "texts": [[0, 1, 2, 3, 4, 5], []]}


def step_of(kind: str, objective: str, batch: dict[str, torch.Tensor], device: torch.device, wrap: bool):
    """The loss and gradients of a tiny model on a device, dropout off, with TF32 off as by default."""
    model = tiny_model(objective=objective).to(device)
    model.training = wrap  # gathers
    called = DistributedDataParallel(model) if wrap else model
    with torch.autocast(device.type, torch.bfloat16, enabled=kind == "bf16"):
        loss = called(**{name: rows.to(device) for name, rows in batch.items()}).loss
    loss.backward()
    gradients = {name: weight.grad.cpu() for name, weight in model.named_parameters() if weight.grad is not None}
    return loss.item(), as_plain(gradients)


def ddp_steps(rank: int, device_type: str, objectives: list[str]):
    """A rank's loss and gradients under each objective; the second rank has no text."""
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what NCCL takes where a collective doesn't say
    batch = split_batch(tiny_batch(), SHARES, rank)
    return {name: step_of("float32", name, batch, device, wrap=True) for name in objectives}
