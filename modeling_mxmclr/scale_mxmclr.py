"""The learned scale of the logits and the constant beside it, as modules of their own."""

import math
from typing import Any

import torch
from torch import Tensor, nn


class _ClampFromAbove(torch.autograd.Function):
    """The smaller of value and limit, whose gradient passes beyond the limit where a descent step lowers the value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(value > limit)
        return value.clamp(max=limit)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (beyond,) = ctx.saved_tensors
        return gradients[0].masked_fill(beyond & (gradients[0] < 0), 0), None


class LogitScale(nn.Module):
    """The learned log scale, a module of its own so that adapters can save it and FSDP can shard it."""

    def __init__(self, maximum: float) -> None:
        super().__init__()
        self.log_maximum = math.log(maximum)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self) -> Tensor:
        """The log scale, at most the log of the maximum, `(1,)`."""
        return _ClampFromAbove.apply(self.weight, self.log_maximum)


class LogitBias(nn.Module):
    """The constant that a sigmoid objective adds to its logits, and learns; softmax objectives don't move it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self) -> Tensor:
        """The bias, `(1,)`."""
        return self.weight
