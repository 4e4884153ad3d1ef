"""Every rank's observations with their gradients, the only place that speaks to other processes."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .folds_mxmclr import SMALLEST_GLOBAL_ID, Observations


class _ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor, factor: int) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None  # type: ignore[attr-defined]


def world_size() -> int:
    """Number of processes that train together; 1 where nothing was initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_observations(observed: Observations) -> Observations:
    """The observations of all ranks in rank order, however many each holds; every rank must call it.

    A rank's own rows keep their gradient, times the number of ranks: every rank computes the whole loss, and a
    wrapper such as DDP averages. Scaling the loss instead would also scale the gradient of the logit scale, which
    is whole already.

    Raises:
        ValueError: On several ranks, when group ids are numbers of one call rather than hashes of instance ids.
    """
    if world_size() == 1:
        return observed
    everywhere = Observations(*map(gather_ragged, observed))
    # Judged on the gathered ids, so that all ranks raise together and none waits for the others.
    check_global_ids(everywhere.image_group_ids, everywhere.text_group_ids)
    return everywhere


def gather_inputs(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """An objective's further inputs, of all ranks where they are rows of images or texts.

    A queue is the same on every rank, and stays.
    """
    if world_size() == 1:
        return inputs
    return {name: rows if "queue" in name else gather_ragged(rows) for name, rows in inputs.items()}


def check_global_ids(*group_ids: Tensor) -> None:
    """Raise unless every group id can mean the same instance on every rank."""
    if any((ids < SMALLEST_GLOBAL_ID).any() for ids in group_ids):
        raise ValueError(
            f"Group ids must be hashes of instance ids (at least {SMALLEST_GLOBAL_ID}) when {world_size()} ranks "
            "train together, got numbers of one call; pass `instance_ids=` to the processor."
        )


def gather_ragged(rows: Tensor) -> Tensor:
    """Every rank's rows in rank order, `(num_rows_of_all_ranks, ...)`; own rows with gradient times the ranks."""
    sizes = _gather_sizes(rows)
    padded = F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, max(sizes) - len(rows)))
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded.detach().contiguous())
    if rows.requires_grad:
        gathered[dist.get_rank()] = _ScaleGradient.apply(padded, len(sizes))
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def _gather_sizes(rows: Tensor) -> list[int]:
    size = torch.tensor([len(rows)], device=rows.device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    return torch.cat(sizes).tolist()
