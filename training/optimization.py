"""Parameter groups and the optimiser."""

from torch import nn
from torch.optim import AdamW

from training.arguments import OptimizationArguments

TOWERS = ("text_model.", "vision_model.")


def build_optimizer(model: nn.Module, arguments: OptimizationArguments) -> AdamW:
    """AdamW in four groups: towers and heads, each with and without weight decay."""
    return AdamW(parameter_groups(model, arguments), betas=(0.9, 0.98), eps=1e-6)


def parameter_groups(model: nn.Module, arguments: OptimizationArguments) -> list[dict[str, object]]:
    """What learns, by learning rate and weight decay; norms, biases and the scale are never decayed.

    These are told by their shape: they are vectors, while all that multiplies features is a matrix at least.
    """
    head_rate = arguments.head_learning_rate or arguments.learning_rate
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            groups.setdefault((name.startswith(TOWERS), weight.ndim > 1), []).append(weight)
    return [
        {
            "params": weights,
            "lr": arguments.learning_rate if in_tower else head_rate,
            "weight_decay": arguments.weight_decay if decays else 0.0,
        }
        for (in_tower, decays), weights in groups.items()
    ]
