"""Ways to learn more from the same images, beside what an objective's settings offer: a memory, and teachers."""

from collections import deque
from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor

from modeling_mxmclr import MXMCLRModel, MXMCLROutput
from modeling_mxmclr.folds_mxmclr import Observations, unit_norm

MOMENTUM = 0.99


class Memory:
    """The embeddings of the last steps, as further keys: the older, the staler.

    Args:
        steps: How many steps are kept.
    """

    def __init__(self, steps: int) -> None:
        self.kept: deque[Observations] = deque(maxlen=steps)

    def observations(self) -> Observations | None:
        """All that is remembered, as `MXMCLRModel.forward` takes it."""
        return (
            None
            if not self.kept
            else Observations(*map(torch.cat, zip(*(each[:4] for each in self.kept), strict=True)))
        )

    def keep(self, batch: Mapping[str, Tensor], output: MXMCLROutput) -> None:
        """Remember what a step observed."""
        embeds = output.image_embeds.detach(), output.text_embeds.detach()
        self.kept.append(Observations(*embeds, batch["image_group_ids"], batch["text_group_ids"]))


class Teacher:
    """Whose embeddings the soft part goes by: the `frozen` text tower, or the `slow` mean of the model's own past.

    Args:
        kind: `frozen` or `slow`.
        model: The model that learns.
    """

    def __init__(self, kind: str, model: MXMCLRModel) -> None:
        self.slow = None
        if kind == "slow":
            shared = {id(model.text_model): model.text_model}
            self.slow = deepcopy(model, shared).requires_grad_(False)

    @torch.no_grad()
    def inputs(self, model: MXMCLRModel, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the objective is given of a batch."""
        if self.slow is None:
            return {"text_teacher_embeds": unit_norm(batch["text_tower_output"])}
        for slow, own in zip(learned(self.slow), learned(model), strict=True):
            slow.lerp_(own, 1 - MOMENTUM)
        self.slow.train()  # its batch norms see the batch, as they do where it learned
        images = self.slow.get_image_features(batch["pixel_values"])
        texts = self.slow(text_tower_output=batch["text_tower_output"]).text_embeds
        return {"image_teacher_embeds": images, "text_teacher_embeds": texts}


def learned(model: MXMCLRModel) -> list[Tensor]:
    """All weights but those of the text tower."""
    return [weight for name, weight in model.named_parameters() if not name.startswith("text_model.")]
