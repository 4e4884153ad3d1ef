"""SigLIP's pairwise sigmoid objective, and its form for several positives."""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from .contrast_mxmclr import ObjectiveOutput, fits_in_matrix, no_pair, prepare
from .folds_mxmclr import Instances, Observations, positive_mask
from .tiles_mxmclr import Grid, sigmoid_losses


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
    observed, scale, instances = prepare(observed, scale)
    if not instances.in_both.any():
        return no_pair(observed, scale)
    if isinstance(bias, Tensor):
        bias = bias.to(scale)
    sums = matrix_sums if fits_in_matrix(*observed[:2]) else tiled_sums
    loss, positive = (each / PAIR_COUNTS[normaliser](instances) for each in sums(observed, instances, scale, bias))
    positive = positive.detach()
    return ObjectiveOutput(loss, {"positive": positive, "negative": loss.detach() - positive})


def matrix_sums(
    observed: Observations, instances: Instances, scale: Tensor, bias: Tensor | float
) -> tuple[Tensor, Tensor]:
    """The summed losses of all pairs, and of those of one instance, `()` each."""
    positives = positive_mask(instances.image_index, instances.text_index)
    logits = scale * observed.image_embeds @ observed.text_embeds.T + bias
    losses = -F.logsigmoid(logits.where(positives, -logits))
    return losses.sum(), losses[positives].sum()


def tiled_sums(
    observed: Observations, instances: Instances, scale: Tensor, bias: Tensor | float
) -> tuple[Tensor, Tensor]:
    """The same as `matrix_sums`, tile by tile."""
    grid = Grid(instances.image_index, instances.text_index, "nothing", mirrored=False)
    bias = bias.to(scale).reshape(()) if isinstance(bias, Tensor) else scale.new_tensor(bias)
    return sigmoid_losses(*observed[:2], scale.reshape(()), bias, grid)


PAIR_COUNTS: dict[str, Callable[[Instances], Tensor | int]] = {
    "images": lambda instances: len(instances.image_index),
    "texts": lambda instances: len(instances.text_index),
    "pairs": lambda instances: (instances.image_fold_sizes * instances.text_fold_sizes).sum(),
}
