"""What all ranks observed, and what their shares of a loss come to: the only place that speaks to other processes."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .folds_mxmclr import SMALLEST_GLOBAL_ID, Observations


class Gathered(NamedTuple):
    """What an objective takes, of all ranks, asking for the losses of this rank's own observations."""

    observed: Observations
    inputs: dict[str, Tensor]
    learned: dict[str, Tensor]


def world_size() -> int:
    """Number of processes that train together; 1 where nothing was initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_batch(observed: Observations, inputs: dict[str, Tensor], learned: dict[str, Tensor]) -> Gathered:
    """What an objective takes, with the rows of all ranks in rank order, however many each holds; every rank must call it.

    Each rank's rows get the sum of what the shares of all ranks say of them, and what is learned gets its whole gradient
    on every rank, so that a clamp of it judges the whole and not a part.

    Args:
        observed: This rank's observations.
        inputs: An objective's further inputs, rows of images or of texts, or queues, which are the same on every rank.
        learned: The scale, and what else is the same on every rank and gets a gradient.

    Raises:
        ValueError: On several ranks, when group ids are numbers of one call rather than hashes of instance ids.
    """
    if world_size() == 1:
        return Gathered(observed, inputs, learned)
    sides = [observed.image_group_ids, observed.text_group_ids]
    sizes = _gather_sizes(sides)
    ids = [_gather_rows(side, counts) for side, counts in zip(sides, sizes, strict=True)]
    # Judged on the gathered ids, so that all ranks raise together and none waits for the others.
    check_global_ids(*ids)
    size_of = {"image": sizes[0], "text": sizes[1]}
    of_rows = {name: size_of[name.partition("_")[0]] for name in inputs if "queue" not in name}
    masks = {name: _gather_rows(inputs[name], counts) for name, counts in of_rows.items() if not _moves(inputs[name])}
    moving = {name: counts for name, counts in of_rows.items() if name not in masks}
    images, texts, *others = _GatherRows.apply(
        [*sizes, *moving.values()], *observed[:2], *(inputs[name] for name in moving), *learned.values()
    )
    own = [_own_rows(counts, side.device) for side, counts in zip(sides, sizes, strict=True)]
    gathered = dict(zip([*moving, *learned], others, strict=True))
    return Gathered(
        Observations(images, texts, *ids, *own),
        inputs | masks | {name: gathered[name] for name in moving},
        {name: gathered[name] for name in learned},
    )


def sum_over_ranks(share: Tensor, components: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss and its components from the shares of all ranks, `()` each; every rank must call it.

    The loss hands its gradient to this rank's share, times the number of ranks: a wrapper such as DDP or FSDP averages
    gradients over the ranks, and what they add up to is wanted.
    """
    if world_size() == 1:
        return share, components
    parts = torch.stack([share.detach(), *components.values()])
    dist.all_reduce(parts)
    loss, *others = parts.unbind()
    return _SumOfShares.apply(share, loss), dict(zip(components, others, strict=True))


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks, and behind them what is learned and the same on every rank.

    One node for all of them: which rows a rank's share depends on may differ from rank to rank, and so may the order in
    which single nodes would be reached in the backward pass, but all ranks must speak of the same rows at a time.
    """

    @staticmethod
    def forward(ctx: Any, sizes: list[list[int]], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.sizes = sizes
        gathered = [_gather_rows(rows, counts) for rows, counts in zip(tensors, sizes, strict=False)]
        return *gathered, *(kept.view_as(kept) for kept in tensors[len(sizes) :])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        summed: list[Tensor | None] = []
        for needed, gradient, counts in zip(ctx.needs_input_grad[1:], gradients, ctx.sizes, strict=False):
            summed.append(_sum_of_own_rows(gradient, counts) if needed else None)
        learned = gradients[len(ctx.sizes) :]
        if any(ctx.needs_input_grad[1 + len(ctx.sizes) :]):
            # Each is the number of ranks times a rank's part.
            flat = torch.cat([gradient.flatten() for gradient in learned]) / world_size()
            dist.all_reduce(flat)
            parts = flat.split([gradient.numel() for gradient in learned])
            learned = tuple(part.view_as(each) for part, each in zip(parts, learned, strict=True))
        return None, *summed, *learned


class _SumOfShares(torch.autograd.Function):
    """The sum of all ranks' shares, whose gradient goes to this rank's, times the number of ranks."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, total: Tensor) -> Tensor:
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * world_size(), None


def check_global_ids(*group_ids: Tensor) -> None:
    """Raise unless every group id can mean the same instance on every rank."""
    if any((ids < SMALLEST_GLOBAL_ID).any() for ids in group_ids):
        raise ValueError(
            f"Group ids must be hashes of instance ids (at least {SMALLEST_GLOBAL_ID}) when {world_size()} ranks "
            "train together, got numbers of one call; pass `instance_ids=` to the processor."
        )


def _moves(rows: Tensor) -> bool:
    return rows.is_floating_point()


def _gather_sizes(sides: list[Tensor]) -> list[list[int]]:
    """How many rows each rank has, for each of some tensors."""
    own = torch.tensor([len(side) for side in sides], device=sides[0].device)
    sizes = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(sizes, own)
    return torch.stack(sizes, dim=1).tolist()


def _gather_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """Every rank's rows in rank order, `(num_rows_of_all_ranks, ...)`, without gradient."""
    most = max(counts)
    if most == 0:
        return rows.detach()
    padded = F.pad(rows.detach(), (0, 0) * (rows.ndim - 1) + (0, most - len(rows))).contiguous()
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


def _own_rows(counts: list[int], device: torch.device) -> Tensor:
    """Which of the gathered rows are this rank's, `(num_rows_of_all_ranks,)` bool."""
    ranks = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return (ranks == dist.get_rank()).to(device)


def _sum_of_own_rows(gradient: Tensor, counts: list[int]) -> Tensor:
    """This rank's rows of the sum over all ranks of a gradient of gathered rows."""
    total = gradient.clone(memory_format=torch.contiguous_format)
    if max(counts) > 0:
        dist.all_reduce(total)
    return total.split(counts)[dist.get_rank()]
