"""Softmax objectives whose targets or negatives carry weights: soft-target CLIP, CWCL and HN-NCE."""

import math
from typing import Literal

import torch
from torch import Tensor

from .contrast_mxmclr import (
    AnyDirection,
    Normaliser,
    ObjectiveOutput,
    Share,
    Weight,
    both_directions,
    by_way,
    hard_floors,
    hard_losses,
    mean_of_queries,
    no_pair,
    prepare,
    soft_floors,
    soft_losses,
    soft_parts,
    sum_by,
)
from .folds_mxmclr import Instances, Observations, mean_by_index
from .queries_mxmclr import Queries
from .relation_mxmclr import weigh_sides


def soft_clip(
    observed: Observations,
    scale: Tensor,
    *,
    soft_source: Share = 0.5,
    temperature_use: Literal["multiply", "divide"] = "multiply",
    soft_columns: Literal["own", "transposed"] = "transposed",
    soft_detach: bool = False,
    direction_weight: Share = 0.5,
    normaliser: Normaliser = "observations",
) -> ObjectiveOutput:
    """CLIP against soft targets alone: how alike instances are within the modalities, as public OpenAI-CLIP code has it.

    https://github.com/moein-shariatnia/OpenAI-CLIP. The similarities are those of the means of each instance's rows, as
    they are; with one view and one caption an instance it is that code, whose choices the defaults are. `mfh` is the
    mixture with hard targets.

    Args:
        observed: Observations of the whole batch; embeddings of unit norm (there they have any norm).
        scale: Exponentiated logit scale, `()` or `(1,)`: one over the temperature.
        soft_source: Share of the image side in the similarity of two instances, in [0, 1].
        temperature_use: `multiply` similarities by the temperature, which flattens the targets, or `divide` by it.
        soft_columns: Targets of images: `transposed`, which need not sum to one, or their `own`, see `mfh`.
        soft_detach: Whether the targets are constants.
        direction_weight: Share of image-to-text, in [0, 1].
        normaliser: `observations`, `instances` or `pairs`, see `mfh`.

    Returns:
        The loss, with components `image_to_text`, `text_to_image` and `kl`, the loss less the entropy of its targets.
    """
    observed, scale, instances = prepare(observed, scale)
    if not instances.in_both.any():
        return no_pair(observed, scale)
    directions = both_directions(observed, instances, scale)
    in_both, factor = instances.in_both, 1 / scale if temperature_use == "multiply" else scale
    images = mean_by_index(observed.image_embeds, instances.image_index, instances.image_fold_sizes)[in_both]
    texts = mean_by_index(observed.text_embeds, instances.text_index, instances.text_fold_sizes)[in_both]
    if soft_detach:
        images, texts, factor = images.detach(), texts.detach(), factor.detach()
    relation, number = weigh_sides(images, texts, images, texts, factor, soft_source, in_both), in_both.cumsum(0) - 1
    shares = (direction_weight, 1 - direction_weight)
    losses, floor = [], torch.zeros_like(scale.squeeze())
    for way, transposed, share in zip(directions, (soft_columns == "transposed", False), shares, strict=True):
        each, least = soft_parts(way, relation, number[way.query_instance], transposed)
        losses.append(mean_of_queries(each, way, normaliser))
        floor = floor + share * mean_of_queries(least, way, normaliser)
    loss = shares[0] * losses[0] + shares[1] * losses[1]
    return ObjectiveOutput(loss, by_way(losses) | {"kl": loss.detach() - floor})


def cwcl(
    observed: Observations,
    scale: Tensor,
    *,
    image_reference_embeds: Tensor | None = None,
    text_weights: Literal["none", "raw"] = "none",
) -> ObjectiveOutput:
    """Continuously weighted contrast: images against all texts, in proportion to how alike the images are.

    CWCL (https://huggingface.co/papers/2309.14580); no public code of the authors was found, and this is that of
    CellCLIP. An image weighs a text by `(cosine + 1) / 2` of its own reference and the mean reference of the text's
    instance; text-to-image is `unicl`'s, and the two are summed.

    Args:
        observed: Observations of the whole batch; embeddings of unit norm.
        scale: Exponentiated logit scale, `()` or `(1,)`.
        image_reference_embeds: `(num_images, any_dim)`, unit norm, of a frozen image model; None takes the images'
            own embeddings, without gradient.
        text_weights: `none`, or `raw`: text-to-image weighted by how alike the texts are, neither normalised nor
            constant, as CellCLIP's two-sided loss.

    Returns:
        The loss, with components `image_to_text`, `text_to_image` and `kl`, the loss less the entropy of its targets.
    """
    observed, scale, instances = prepare(observed, scale)
    if not instances.in_both.any():
        return no_pair(observed, scale)
    directions = both_directions(observed, instances, scale)
    references = observed.image_embeds.detach() if image_reference_embeds is None else image_reference_embeds.to(scale)
    weights = continuous_weights(
        references, instances.image_index, instances.image_fold_sizes, instances, directions[0].queries
    )
    weights = weights / weights.sum(dim=1, keepdim=True)
    image_to_text = soft_losses(directions[0], weights), soft_floors(directions[0], weights)
    if text_weights == "raw":
        weights = continuous_weights(
            observed.text_embeds, instances.text_index, instances.text_fold_sizes, instances, directions[1].queries
        )
        text_to_image = soft_losses(directions[1], weights), soft_floors(directions[1], weights.detach())
    else:
        text_to_image = hard_losses(directions[1]), hard_floors(directions[1])
    losses, floors = (
        [mean_of_queries(each, way) for each, way in zip(parts, directions, strict=True)]
        for parts in zip(image_to_text, text_to_image, strict=True)
    )
    loss = losses[0] + losses[1]
    return ObjectiveOutput(loss, by_way(losses) | {"kl": loss.detach() - floors[0] - floors[1]})


def continuous_weights(
    references: Tensor, index: Tensor, fold_sizes: Tensor, instances: Instances, which: Queries
) -> Tensor:
    """Weight of each instance for each query, `(num_answered, num_instances)`, 0 for those without both modalities."""
    means = mean_by_index(references, index, fold_sizes)
    queries = references[instances.in_both[index]][which.answered]
    return (queries @ means.T / 2 + 0.5) * instances.in_both


def hn_nce(observed: Observations, scale: Tensor, *, alpha: Weight = 1.0, beta: Weight = 0.25) -> ObjectiveOutput:
    """Hard-negative NCE: negatives weigh by the exponential of their own logits.

    DiHT (https://huggingface.co/papers/2301.02280), in the directions' sum, as SCA3D has it. SCA3D's code divides
    image-to-text weights by the sums of other rows; here each query's weights sum up to its number of negatives.

    Args:
        observed: Observations of the whole batch; embeddings of unit norm.
        scale: Exponentiated logit scale, `()` or `(1,)`.
        alpha: Weight of the positive in the denominator; at 0 a query without negatives costs nothing.
        beta: Concentration of the weights; 0 weighs negatives alike, which at `alpha=1` is `unicl` with the
            `one_positive` denominator, both directions summed.

    Returns:
        The loss, with components `image_to_text` and `text_to_image`.
    """
    observed, scale, instances = prepare(observed, scale)
    if not instances.in_both.any():
        return no_pair(observed, scale)
    directions = both_directions(observed, instances, scale)
    losses = [mean_of_queries(hard_negative_losses(way, alpha, beta), way) for way in directions]
    return ObjectiveOutput(losses[0] + losses[1], by_way(losses))


def hard_negative_losses(direction: AnyDirection, alpha: float, beta: float) -> Tensor:
    """The loss of each query, `(num_answered,)`: the mean over its positives, each against the weighted negatives."""
    count = (len(direction.key_instance) - direction.num_positives).to(direction.dtype)
    alone = count == 0
    # log of sum w e^s, with w = count e^(beta s) / sum e^(beta s)
    weighted = direction.log_sums_of_negatives(1 + beta) - direction.log_sums_of_negatives(beta) + count.log()
    weighted = weighted.masked_fill(alone, -torch.inf)
    query, scores = direction.positive_scores()
    if alpha == 0:
        total = torch.where(alone[query], scores, weighted[query])
    else:
        total = torch.logaddexp(scores + math.log(alpha), weighted[query])
    losses = total - scores
    return sum_by(losses, query, len(count)) / direction.num_positives
