"""Teachers of the soft part: a way to learn more from the same images that no run offers yet."""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor

from modeling_mxmclr import MXMCLRModel
from modeling_mxmclr.folds_mxmclr import unit_norm

MOMENTUM = 0.99


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
