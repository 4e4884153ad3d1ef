"""`mfh`, the multifold-aware hybrid loss: our reconstruction of the loss of MXM-CLR, and its soft targets."""

from typing import Literal, NamedTuple

from torch import Tensor

from .contrast_mxmclr import (
    Denominator,
    HardForm,
    Normaliser,
    ObjectiveOutput,
    Positive,
    Score,
    Share,
    both_directions,
    hard_floors,
    hard_losses,
    has_pair,
    mean_of_queries,
    no_pair,
    prepare,
    soft_parts,
)
from .folds_mxmclr import Instances, Observations, mean_by_index, unit_norm
from .relation_mxmclr import Relation, weigh_sides


def mfh(
    observed: Observations,
    scale: Tensor,
    *,
    soft_weight: Share = 0.5,
    soft_source: Share = 0.5,
    soft_temperature: Positive | None = None,
    soft_columns: Literal["own", "transposed"] = "own",
    soft_level: Literal["instance", "observation"] = "instance",
    soft_detach: bool = True,
    hard_form: HardForm = "out",
    denominator: Denominator = "all",
    score: Score = "observations",
    direction_weight: Share = 0.5,
    normaliser: Normaliser = "observations",
    image_teacher_embeds: Tensor | None = None,
    text_teacher_embeds: Tensor | None = None,
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
        soft_level: `instance` relates the query's instance to the others; `observation` relates, on the query's own
            side, the query itself.
        soft_detach: Whether the soft targets are constants.
        hard_form: `out` (SupCon's L_out: mean over positives of their log-likelihood), `in` (L_in: log of their
            mean likelihood), `ones` (sum over positives, as 1-to-K) or `inverse` (log of the mean of their inverse
            likelihoods).
        denominator: What a positive of the hard part competes with: `all` keys, the negatives and itself
            (`one_positive`), or the `negatives`.
        score: `observations`, or an instance's views scored as one: `max_sim` or `attentive`.
        direction_weight: Share of image-to-text, in [0, 1]; text-to-image has the rest.
        normaliser: What counts equally in a direction's mean: `observations`, `instances` or positive `pairs`.
        image_teacher_embeds: `(num_images, any)`, unit norm, of a teacher: by these, not by the model's own, the soft
            part tells how related instances are.
        text_teacher_embeds: The same of texts, `(num_texts, any)`; a frozen tower's vectors cost nothing.

    Returns:
        The loss, with components `hard` and `soft`, and, less the entropy of their targets, `hard_kl` and `soft_kl`, so
        that fold sizes compare. Those of `soft` are absent at `soft_weight=0`, `hard_kl` where only negatives compete.

    Raises:
        ValueError: When `soft_level` is `observation` and `soft_columns` is `transposed`, or the views are scored as one.
    """
    if soft_level == "observation" and (soft_columns == "transposed" or score != "observations"):
        raise ValueError(
            "`soft_level` 'observation' needs `soft_columns` 'own' and `score` 'observations', "
            f"got {soft_columns!r} and {score!r}."
        )
    observed, scale, instances = prepare(observed, scale)
    if not has_pair(observed, instances):
        return no_pair(observed, scale)
    directions = both_directions(observed, instances, scale, score)
    shares = (direction_weight, 1 - direction_weight)

    def mean(losses: list[Tensor]) -> Tensor:
        means = [mean_of_queries(each, way, normaliser) for each, way in zip(losses, directions, strict=True)]
        return shares[0] * means[0] + shares[1] * means[1]

    hard = mean([hard_losses(way, hard_form, denominator) for way in directions])
    components = {"hard": hard.detach()}
    if denominator != "negatives":
        components["hard_kl"] = hard.detach() - mean([hard_floors(way, hard_form, denominator) for way in directions])
    if soft_weight == 0:
        return ObjectiveOutput(hard, components)
    soft_scale = scale.detach() if soft_temperature is None else 1 / soft_temperature
    judged = seen_by_teacher(observed, image_teacher_embeds, text_teacher_embeds, soft_detach)
    centres = find_centres(judged, instances)
    if soft_level == "observation":
        relations = relate_observations(judged, instances, centres, soft_scale, soft_source)
        places = [way.queries.answered for way in directions]
    else:
        relations = (relate_instances(centres, soft_scale, soft_source),) * 2
        number = centres.in_both.cumsum(0) - 1
        places = [number[way.query_instance] for way in directions]
    parts = [
        soft_parts(way, relation, place, transposed)
        for way, relation, place, transposed in zip(
            directions, relations, places, (soft_columns == "transposed", False), strict=True
        )
    ]
    soft, floor = (mean(list(each)) for each in zip(*parts, strict=True))
    loss = (1 - soft_weight) * hard + soft_weight * soft
    return ObjectiveOutput(loss, components | {"soft": soft.detach(), "soft_kl": soft.detach() - floor})


class Centres(NamedTuple):
    """What the soft targets relate: the mean of each fold of each instance."""

    images: Tensor  # (num_instances, dim), unit norm; zero without images
    texts: Tensor  # (num_instances, dim), unit norm; zero without texts
    in_both: Tensor  # (num_instances,) bool, the instances that take part


def seen_by_teacher(observed: Observations, images: Tensor | None, texts: Tensor | None, detach: bool) -> Observations:
    """The observations with a teacher's embeddings, where it gives any, in the place of the model's own."""
    own = [rows.detach() if detach else rows for rows in observed[:2]]
    judged = [rows if given is None else given.to(rows) for rows, given in zip(own, (images, texts), strict=True)]
    return observed._replace(image_embeds=judged[0], text_embeds=judged[1])


def find_centres(observed: Observations, instances: Instances) -> Centres:
    """The unit-norm mean of each instance's images and texts."""
    images, texts = observed[:2]
    return Centres(
        unit_norm(mean_by_index(images, instances.image_index, instances.image_fold_sizes)),
        unit_norm(mean_by_index(texts, instances.text_index, instances.text_fold_sizes)),
        instances.in_both,
    )


def relate_instances(centres: Centres, soft_scale: Tensor | float, image_share: float) -> Relation:
    """How related the instances in both modalities are: the softmax over them of how alike their means are."""
    images, texts = centres.images[centres.in_both], centres.texts[centres.in_both]
    return weigh_sides(images, texts, images, texts, soft_scale, image_share, centres.in_both)


def relate_observations(
    observed: Observations,
    instances: Instances,
    centres: Centres,
    soft_scale: Tensor | float,
    image_share: float,
) -> tuple[Relation, Relation]:
    """How related each query is to the instances, for images and for texts.

    As `relate_instances`, with the query itself in the place of its fold's mean.
    """
    images, texts = observed[:2]
    in_both = centres.in_both
    of_image, of_text = in_both[instances.image_index], in_both[instances.text_index]
    own_text, own_image = centres.texts[instances.image_index[of_image]], centres.images[instances.text_index[of_text]]
    keys = centres.images[in_both], centres.texts[in_both]
    return (
        weigh_sides(images[of_image], own_text, *keys, soft_scale, image_share, in_both),
        weigh_sides(own_image, texts[of_text], *keys, soft_scale, image_share, in_both),
    )
