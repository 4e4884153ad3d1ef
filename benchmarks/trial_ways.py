"""Ways to learn more from the same images, beside what an objective's settings offer: a memory, and teachers."""

from collections import deque
from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor

from modeling_mxmclr import MXMCLRModel
from modeling_mxmclr.folds_mxmclr import Observations, unit_norm

MEMORY_STARTS = 0.2  # of the steps: embeddings that still move fast are of no use
MOMENTUM = 0.99


class Memory:
    """The embeddings of the last steps, as further keys: the older, the staler.

    Cross-batch memory, XBM (https://huggingface.co/papers/1912.06798). What it holds of an instance of the batch are
    further positives.

    Args:
        steps: How many steps are kept.
    """

    def __init__(self, steps: int) -> None:
        self.kept: deque[tuple[Tensor, ...]] = deque(maxlen=steps)

    def loss(self, model: MXMCLRModel, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of a batch's queries against its own keys and those that are remembered."""
        ids = batch["image_group_ids"], batch["text_group_ids"]
        rows = {name: rows for name, rows in batch.items() if not name.endswith("group_ids")}
        output = model(**rows, return_loss=False, output_logits=False)
        own = output.image_embeds, output.text_embeds, *ids
        past = zip(*self.kept, strict=True) if self.kept else ((),) * 4
        together = [torch.cat([mine, *others]) for mine, others in zip(own, past, strict=True)]
        asked = [torch.arange(len(all_ids)) < len(mine) for mine, all_ids in zip(ids, together[2:], strict=True)]
        observed = Observations(*together, *asked)
        share = observed.asked_share()
        self.kept.append(tuple(rows.detach() for rows in own))
        with torch.autocast("cpu", enabled=False):
            return model.objective(observed, output.logit_scale.exp()).loss / share


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
