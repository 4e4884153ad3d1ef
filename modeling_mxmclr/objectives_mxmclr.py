"""The multifold objectives as pure functions of a batch's observations, and their one table, `OBJECTIVES`."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from .folds_mxmclr import (
    Instances,
    Observations,
    find_instances,
    first_rows,
    mean_by_index,
    positive_mask,
    unit_norm,
)


class ObjectiveOutput(NamedTuple):
    """A loss to minimise and the named parts that it is made of."""

    loss: Tensor  # (), attached to the graph
    components: dict[str, Tensor]  # each (), detached


Objective = Callable[..., ObjectiveOutput]


class Direction(NamedTuple):
    """One direction of retrieval: the queries whose instance both modalities observed, and all keys."""

    logits: Tensor  # (num_queries, num_keys)
    log_normaliser: Tensor  # (num_queries,), logsumexp of the logits over all keys
    queries: Tensor  # (num_queries, dim), times the scale
    key_means: Tensor  # (num_instances, dim), mean key of each instance
    instance: Tensor  # (num_queries,), int64, the instance of each query
    positives: Tensor  # (num_queries, num_keys), bool
    num_positives: Tensor  # (num_queries,), int64
    fold_size: Tensor  # (num_queries,), int64, how many queries share the query's instance


def mfh(
    observed: Observations,
    scale: Tensor,
    *,
    soft_weight: float = 0.5,
    soft_source: float = 0.5,
    soft_temperature: float | None = None,
    soft_columns: str = "own",
    soft_detach: bool = True,
    hard_form: str = "out",
    direction_weight: float = 0.5,
    normaliser: str = "observations",
) -> ObjectiveOutput:
    """The multifold-aware hybrid loss: hard relationships within instances, soft ones between them.

    A reconstruction of the loss that MXM-CLR's abstract describes (https://huggingface.co/papers/2303.10839), whose
    equations are not public; docs/equations.md writes ours out. With one view and one caption an instance and
    `soft_weight=0` it is CLIP's loss; `soft_weight=0` is the bidirectional loss of UniCL and StableRep.

    Args:
        observed: Observations of the whole batch; embeddings `(num_images, dim)` and `(num_texts, dim)`, unit norm.
        scale: Exponentiated logit scale, `()` or `(1,)`.
        soft_weight: Share of the soft part, in [0, 1].
        soft_source: Share of the image side in the relatedness of two instances, in [0, 1]; the text side has the rest.
        soft_temperature: Temperature of the soft targets; None takes 1 / `scale`, without gradient.
        soft_columns: `own` gives each query the softmax of its own instance; `transposed` gives images that of the
            key's instance, so that their targets need not sum to one (as public soft-target CLIP code has it).
        soft_detach: Whether the soft targets are constants.
        hard_form: `out` (SupCon's L_out: mean over positives of their log-likelihood), `in` (L_in: log of their
            mean likelihood) or `ones` (sum over positives, as 1-to-K).
        direction_weight: Share of image-to-text, in [0, 1]; text-to-image has the rest.
        normaliser: What counts equally in a direction's mean: `observations`, `instances` or positive `pairs`.

    Returns:
        The loss, with components `hard` and `soft` (the latter absent at `soft_weight=0`).
    """
    observed = at_least_float32(observed)
    scale = scale.to(observed.image_embeds.dtype)
    instances = find_instances(observed.image_group_ids, observed.text_group_ids)
    if not instances.in_both.any():
        return no_pair(observed, scale)
    directions = both_directions(observed, instances, scale)
    weigh = partial(weigh_directions, directions=directions, share=direction_weight, normaliser=normaliser)

    hard = weigh([HARD_FORMS[hard_form](direction) for direction in directions])
    if soft_weight == 0:
        return ObjectiveOutput(hard, {"hard": hard.detach()})
    soft_scale = scale.detach() if soft_temperature is None else 1 / soft_temperature
    related = relatedness(observed, instances, soft_scale, soft_source, soft_detach)
    image_related = related.T if soft_columns == "transposed" else related
    soft = weigh([soft_losses(directions[0], image_related), soft_losses(directions[1], related)])
    loss = (1 - soft_weight) * hard + soft_weight * soft
    return ObjectiveOutput(loss, {"hard": hard.detach(), "soft": soft.detach()})


def clip(observed: Observations, scale: Tensor) -> ObjectiveOutput:
    """CLIP's symmetric InfoNCE on the first image and first text of each instance that has both.

    CLIP, Figure 3 (https://huggingface.co/papers/2103.00020). The collator draws folds at random, so first is a draw.

    Args:
        observed: Observations of the whole batch; embeddings of unit norm.
        scale: Exponentiated logit scale, `()` or `(1,)`.

    Returns:
        The loss, with components `image_to_text` and `text_to_image`.
    """
    observed = at_least_float32(observed)
    scale = scale.to(observed.image_embeds.dtype)
    instances = find_instances(observed.image_group_ids, observed.text_group_ids)
    in_both = instances.in_both
    if not in_both.any():
        return no_pair(observed, scale)
    images = observed.image_embeds[first_rows(instances.image_index, len(in_both))[in_both]]
    texts = observed.text_embeds[first_rows(instances.text_index, len(in_both))[in_both]]
    logits = scale * images @ texts.T
    diagonal = torch.arange(len(logits), device=logits.device)
    image_to_text, text_to_image = F.cross_entropy(logits, diagonal), F.cross_entropy(logits.T, diagonal)
    components = {"image_to_text": image_to_text.detach(), "text_to_image": text_to_image.detach()}
    return ObjectiveOutput((image_to_text + text_to_image) / 2, components)


def at_least_float32(observed: Observations) -> Observations:
    """The same observations with half-precision embeddings in float32; float64 stays float64."""
    dtype = torch.promote_types(observed.image_embeds.dtype, torch.float32)
    return observed._replace(image_embeds=observed.image_embeds.to(dtype), text_embeds=observed.text_embeds.to(dtype))


def no_pair(observed: Observations, scale: Tensor) -> ObjectiveOutput:
    """A zero loss that still reaches every input, for a batch in which no instance has both modalities."""
    warnings.warn(
        "No instance of this batch has both an image and a text, so its loss is 0; draw more instances a step, or "
        "drop one-sided instances in the builder.",
        stacklevel=3,
    )
    loss = 0 * (observed.image_embeds.sum() + observed.text_embeds.sum() + scale.sum())
    return ObjectiveOutput(loss, {})


def both_directions(observed: Observations, instances: Instances, scale: Tensor) -> tuple[Direction, Direction]:
    """Image-to-text and text-to-image, from one matrix of logits."""
    images, texts = scale * observed.image_embeds, scale * observed.text_embeds
    logits = images @ observed.text_embeds.T
    text_means = mean_by_index(observed.text_embeds, instances.text_index, instances.text_fold_sizes)
    image_means = mean_by_index(observed.image_embeds, instances.image_index, instances.image_fold_sizes)
    return (
        one_direction(logits, images, text_means, instances),
        one_direction(logits.T, texts, image_means, swap_modalities(instances)),
    )


def swap_modalities(instances: Instances) -> Instances:
    """The same instances with images and texts in each other's place."""
    return Instances(
        instances.text_index, instances.image_index, instances.text_fold_sizes, instances.image_fold_sizes
    )


def one_direction(logits: Tensor, queries: Tensor, key_means: Tensor, instances: Instances) -> Direction:
    """The queries that have a positive; `instances` has the queries in the place of images."""
    has_positive = instances.in_both[instances.image_index]
    logits, instance = logits[has_positive], instances.image_index[has_positive]
    return Direction(
        logits,
        logits.logsumexp(dim=1),
        queries[has_positive],
        key_means,
        instance,
        positive_mask(instance, instances.text_index),
        instances.text_fold_sizes[instance],
        instances.image_fold_sizes[instance],
    )


def hard_out(direction: Direction) -> Tensor:
    """Minus the mean log-likelihood of a query's positives, `(num_queries,)`; SupCon's L_out, Eq. 2."""
    return direction.log_normaliser - (direction.queries * direction.key_means[direction.instance]).sum(dim=1)


def hard_in(direction: Direction) -> Tensor:
    """Minus the log of the mean likelihood of a query's positives, `(num_queries,)`; SupCon's L_in, Eq. 3."""
    positives = direction.logits.masked_fill(~direction.positives, -torch.inf).logsumexp(dim=1)
    return direction.log_normaliser - positives + direction.num_positives.to(positives).log()


def hard_ones(direction: Direction) -> Tensor:
    """Minus the summed log-likelihood of a query's positives, `(num_queries,)`; 1-to-K without its division."""
    return direction.num_positives * hard_out(direction)


HARD_FORMS = {"out": hard_out, "in": hard_in, "ones": hard_ones}


def soft_losses(direction: Direction, related: Tensor) -> Tensor:
    """Cross-entropy of each query against mass `related` spread evenly over each instance's keys, `(num_queries,)`.

    The targets are never spread out: a mass shared evenly by a fold scores the fold's mean key.
    """
    mass = related.sum(dim=1)[direction.instance]
    expected_keys = (related @ direction.key_means)[direction.instance]
    return mass * direction.log_normaliser - (direction.queries * expected_keys).sum(dim=1)


def relatedness(
    observed: Observations, instances: Instances, soft_scale: Tensor | float, image_share: float, detach: bool
) -> Tensor:
    """How related instances are, `(num_instances, num_instances)`: rows sum to one over those in both modalities.

    Rows and columns of an instance that one modality did not observe are zero.
    """
    images, texts = observed.image_embeds, observed.text_embeds
    if detach:
        images, texts = images.detach(), texts.detach()
    in_both = instances.in_both
    image_centres = unit_norm(mean_by_index(images, instances.image_index, instances.image_fold_sizes)[in_both])
    text_centres = unit_norm(mean_by_index(texts, instances.text_index, instances.text_fold_sizes)[in_both])
    alike = image_share * image_centres @ image_centres.T + (1 - image_share) * text_centres @ text_centres.T
    places = in_both.nonzero().squeeze(1)
    related = alike.new_zeros(len(in_both), len(in_both))
    return related.index_put((places[:, None], places), (soft_scale * alike).softmax(dim=1))


def weigh_directions(
    losses: list[Tensor], directions: tuple[Direction, Direction], share: float, normaliser: str
) -> Tensor:
    """One loss from the queries' losses of both directions, `share` of it image-to-text."""
    image_to_text, text_to_image = (
        weighted_mean(loss, QUERY_WEIGHTS[normaliser](direction))
        for loss, direction in zip(losses, directions, strict=True)
    )
    return share * image_to_text + (1 - share) * text_to_image


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of values under weights that need not sum to one, `()`."""
    return (values * weights).sum() / weights.sum()


QUERY_WEIGHTS: dict[str, Callable[[Direction], Tensor]] = {
    "observations": lambda direction: torch.ones_like(direction.log_normaliser),
    "instances": lambda direction: 1 / direction.fold_size.to(direction.log_normaliser),
    "pairs": lambda direction: direction.num_positives.to(direction.log_normaliser),
}


OBJECTIVES: dict[str, Objective] = {"clip": clip, "mfh": mfh}

# What a setting may be, whichever objectives have it: one of these, or a share in [0, 1].
SETTING_CHOICES = {
    "hard_form": tuple(HARD_FORMS),
    "soft_columns": ("own", "transposed"),
    "normaliser": tuple(QUERY_WEIGHTS),
    "soft_detach": (False, True),
}
SHARES = ("soft_weight", "soft_source", "direction_weight")


def get_objective(name: str, settings: Mapping[str, object] | None = None) -> Objective:
    """The objective of that name with its settings, a function of observations and scale.

    Raises:
        ValueError: For an unknown objective or setting, or a value outside what the setting allows.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"`objective` must be one of {sorted(OBJECTIVES)}, got {name!r}.")
    settings = settings or {}
    known = setting_names(name)
    for setting, value in settings.items():
        if setting not in known:
            raise ValueError(f"`objective_settings` of {name!r} must be among {known}, got {setting!r}.")
        check_setting(setting, value)
    return partial(OBJECTIVES[name], **settings)


def setting_names(name: str) -> list[str]:
    """The settings that an objective has."""
    parameters = inspect.signature(OBJECTIVES[name]).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def check_setting(setting: str, value: object) -> None:
    """Raise a `ValueError` that names the setting unless it allows the value."""
    if setting in SETTING_CHOICES and value not in SETTING_CHOICES[setting]:
        raise ValueError(f"`{setting}` must be one of {list(SETTING_CHOICES[setting])}, got {value!r}.")
    if setting in SHARES and not (is_number(value) and 0 <= value <= 1):
        raise ValueError(f"`{setting}` must be a number in [0, 1], got {value!r}.")
    if setting == "soft_temperature" and not (value is None or (is_number(value) and value > 0)):
        raise ValueError(f"`soft_temperature` must be a positive number, or None for 1 / scale, got {value!r}.")


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a setting's value is an int or a float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)
