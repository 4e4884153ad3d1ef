"""SigLIP's pairwise sigmoid objective, and its form for several positives."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from .contrast_mxmclr import ObjectiveOutput, no_pair, prepare
from .folds_mxmclr import Observations, positive_mask


def siglip(
    observed: Observations,
    scale: Tensor,
    *,
    bias: Tensor | float = -10.0,
    normaliser: Literal["images", "texts", "pairs"] = "images",
) -> ObjectiveOutput:
    """Each pair of an image and a text as a question of its own: do both show one instance?

    SigLIP (https://huggingface.co/papers/2303.15343); with several positives as in FLAIR's multi-positive term
    (https://huggingface.co/papers/2412.03561), which divides by the number of texts.

    Args:
        observed: Observations of the whole batch; embeddings of unit norm.
        scale: Exponentiated logit scale, `()` or `(1,)`; SigLIP starts at 10.
        bias: Added to every logit; a model whose `logit_bias_init_value` is set learns it, from there.
        normaliser: What the sum over all pairs is divided by: the number of `images`, `texts` or positive `pairs`.

    Returns:
        The loss, with components `positive` and `negative`, the sums over pairs of one instance and of two, divided
        alike.
    """
    observed, scale, _ = prepare(observed, scale)
    positives = positive_mask(observed.image_group_ids, observed.text_group_ids)
    if not positives.any():
        return no_pair(observed, scale)
    if isinstance(bias, Tensor):
        bias = bias.to(scale)
    logits = scale * observed.image_embeds @ observed.text_embeds.T + bias
    losses = -F.logsigmoid(logits.where(positives, -logits)) / PAIR_COUNTS[normaliser](positives)
    loss, positive = losses.sum(), losses.detach()[positives].sum()
    return ObjectiveOutput(loss, {"positive": positive, "negative": loss.detach() - positive})


PAIR_COUNTS = {
    "images": len,
    "texts": lambda positives: positives.shape[1],
    "pairs": lambda positives: positives.sum(),
}
