"""Objectives over all observations of an instance as one tuple: volumes (GRAM) and products (Symile)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .contrast_mxmclr import ObjectiveOutput, Share, in_pairs, no_pair, one_to_one, prepare, shared_seed, undivided
from .folds_mxmclr import Observations
from .multiview_objectives_mxmclr import as_rectangle, stack_views

LARGEST_PRODUCT = 2**26  # entries of the table of all combinations that Symile scores


@undivided
def gram(observed: Observations, scale: Tensor, *, label_smoothing: Share = 0.1) -> ObjectiveOutput:
    """GRAM: the first text of an instance against the others' views and further texts, by the volume they span.

    GRAM (https://huggingface.co/papers/2412.11959). The logit is minus the volume times the scale. Duplicated
    observations span none, and such a volume has no gradient.

    Args:
        observed: Observations of the whole batch; embeddings of unit norm.
        scale: Exponentiated logit scale, `()` or `(1,)`: one over the paper's temperature.
        label_smoothing: Mass that the targets spread over all instances, in [0, 1].

    Returns:
        The loss, with components `text_to_tuple`, `tuple_to_text` and `kl`, the loss less the entropy of its targets.

    Raises:
        ValueError: If instances differ in their number of views or captions, or have fewer than three observations.
    """
    observed, scale, instances = prepare(observed, scale)
    if not instances.in_both.any():
        return no_pair(observed, scale)
    images = as_rectangle("gram", "image", observed.image_embeds, instances.image_index, instances.image_fold_sizes)
    texts = as_rectangle("gram", "text", observed.text_embeds, instances.text_index, instances.text_fold_sizes)
    check_tuple_size("gram", images.shape[1] + texts.shape[1])
    logits = -scale * volumes(texts[:, 0], torch.cat([images, texts[:, 1:]], dim=1))
    diagonal = torch.arange(len(logits), device=logits.device)
    text_to_tuple = F.cross_entropy(logits, diagonal, label_smoothing=label_smoothing)
    tuple_to_text = F.cross_entropy(logits.T, diagonal, label_smoothing=label_smoothing)
    loss = (text_to_tuple + tuple_to_text) / 2
    components = {"text_to_tuple": text_to_tuple.detach(), "tuple_to_text": tuple_to_text.detach()}
    return ObjectiveOutput(loss, components | {"kl": loss.detach() - smoothed_entropy(label_smoothing, len(logits))})


def smoothed_entropy(label_smoothing: float, num_classes: int) -> float:
    """Entropy of a target on one class whose mass is smoothed over all."""
    each = label_smoothing / num_classes
    masses = [1 - label_smoothing + each] + [each] * (num_classes - 1)
    return -sum(mass * math.log(mass) for mass in masses if mass > 0)


def volumes(anchors: Tensor, tuples: Tensor) -> Tensor:
    """Volume spanned by each anchor with each tuple, `(num_anchors, num_tuples)`.

    Args:
        anchors: `(num_anchors, dim)`, unit norm.
        tuples: `(num_tuples, tuple_size, dim)`, unit norm.
    """
    cosines = torch.einsum("id,jkd->ijk", anchors, tuples)
    corner = (anchors * anchors).sum(dim=1)[:, None, None].expand(-1, len(tuples), 1)
    between = (tuples @ tuples.transpose(1, 2)).expand(len(anchors), -1, -1, -1)
    first_row = torch.cat([corner, cosines], dim=2)[:, :, None]
    gramians = torch.cat([first_row, torch.cat([cosines[..., None], between], dim=3)], dim=2)
    squared = torch.linalg.det(gramians)
    # Rounding makes a flat tuple's determinant a little negative, and the root's slope is infinite at 0.
    flat = squared <= torch.finfo(squared.dtype).eps
    return squared.masked_fill(flat, 1).sqrt().masked_fill(flat, 0)


@undivided
def symile(
    observed: Observations, scale: Tensor, *, negatives: Literal["all", "shuffled", "pairwise"] = "shuffled"
) -> ObjectiveOutput:
    """Symile: each observation in turn predicts the rest of its tuple, by the sum of their products.

    Symile (https://huggingface.co/papers/2411.01053). Views and captions in order are the modalities.

    Args:
        observed: Observations of the whole batch; embeddings of unit norm.
        scale: Exponentiated logit scale, `()` or `(1,)`.
        negatives: `all` combinations of the other observations, `shuffled` ones, as many as instances
            and the same on every rank, or `pairwise`, the baseline: the sum of CLIP's loss over all pairs of modalities.

    Returns:
        The loss, with component `kl`, which is the loss itself: an observation has one positive.

    Raises:
        ValueError: If instances differ in their number of views or captions, have fewer than three observations, or
            there are too many combinations.
    """
    observed, scale, instances = prepare(observed, scale)
    if not instances.in_both.any():
        return no_pair(observed, scale)
    modalities = stack_views("symile", observed, instances, "union").unbind(dim=1)
    check_tuple_size("symile", len(modalities))
    if negatives == "pairwise":
        pairs = [(one, other) for place, one in enumerate(modalities) for other in modalities[place + 1 :]]
        loss = torch.stack([torch.stack(one_to_one(in_pairs(one, other), scale)).mean() for one, other in pairs]).sum()
        return ObjectiveOutput(loss, {"kl": loss.detach()})
    generator = torch.Generator().manual_seed(shared_seed(observed))
    losses = []
    for place, anchors in enumerate(modalities):
        others = [modality for number, modality in enumerate(modalities) if number != place]
        if negatives == "all":
            logits, own = all_products(anchors, others)
        else:
            logits, own = shuffled_products(anchors, others, generator)
        losses.append(F.cross_entropy(scale * logits, own))
    loss = torch.stack(losses).mean()
    return ObjectiveOutput(loss, {"kl": loss.detach()})


def all_products(anchors: Tensor, others: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Product of each anchor with every combination of the others, and the column of its own.

    Raises:
        ValueError: If there are too many combinations.
    """
    size = len(anchors)
    if size ** len(others) * anchors.shape[1] > LARGEST_PRODUCT:
        raise ValueError(
            f"`negatives` 'all' would score {size}^{len(others)} combinations of {len(others)} observations; draw fewer, "
            "or use 'shuffled'."
        )
    combined = others[0]
    for other in others[1:]:
        combined = (combined[:, None] * other).flatten(0, 1)
    own = torch.arange(size, device=anchors.device) * sum(size**power for power in range(len(others)))
    return anchors @ combined.T, own


def shuffled_products(anchors: Tensor, others: list[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Product of each anchor with its own others, and with as many shuffled tuples less one."""
    size = len(anchors)
    own, shuffled = torch.ones_like(anchors), torch.ones_like(anchors)
    for other in others:
        own, shuffled = own * other, shuffled * other[torch.randperm(size, generator=generator).to(other.device)]
    places = torch.arange(size, device=anchors.device)
    itself = places[:, None] == places
    return torch.where(itself, (anchors * own).sum(dim=1, keepdim=True), anchors @ shuffled.T), places


def check_tuple_size(name: str, size: int) -> None:
    """Raise ValueError unless a tuple has three observations."""
    if size < 3:
        raise ValueError(
            f"`{name}` needs three observations of every instance, got {size}; draw more views or captions."
        )
