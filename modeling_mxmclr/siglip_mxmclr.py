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
    images, index = observed.image_embeds, instances.image_index
    if observed.image_queries is not None:  # a pair is answered for with its image
        images, index = images[observed.image_queries], index[observed.image_queries]
    sums = matrix_sums if fits_in_matrix(observed.image_embeds, observed.text_embeds) else tiled_sums
    grid = Grid(index, instances.text_index, "nothing", mirrored=False)
    loss, positive = sums(images, observed.text_embeds, grid, scale, bias)
    count = PAIR_COUNTS[normaliser](instances)
    loss, positive = loss / count, positive.detach() / count
    return ObjectiveOutput(loss, {"positive": positive, "negative": loss.detach() - positive})


def matrix_sums(
    images: Tensor, texts: Tensor, grid: Grid, scale: Tensor, bias: Tensor | float
) -> tuple[Tensor, Tensor]:
    """The summed losses of all pairs, and of those of one instance, `()` each."""
    positives = positive_mask(grid.query_instance, grid.key_instance)
    logits = scale * images @ texts.T + bias
    losses = -F.logsigmoid(logits.where(positives, -logits))
    return losses.sum(), losses[positives].sum()


def tiled_sums(
    images: Tensor, texts: Tensor, grid: Grid, scale: Tensor, bias: Tensor | float
) -> tuple[Tensor, Tensor]:
    """The same as `matrix_sums`, tile by tile."""
    bias = bias.to(scale).reshape(()) if isinstance(bias, Tensor) else scale.new_tensor(bias)
    return sigmoid_losses(images, texts, scale.reshape(()), bias, grid)


PAIR_COUNTS: dict[str, Callable[[Instances], Tensor | int]] = {
    "images": lambda instances: len(instances.image_index),
    "texts": lambda instances: len(instances.text_index),
    "pairs": lambda instances: (instances.image_fold_sizes * instances.text_fold_sizes).sum(),
}
