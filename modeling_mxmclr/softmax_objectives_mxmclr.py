"""The softmax objectives of the field over grouped observations, each from the core in contrast_mxmclr."""

from typing import Literal

import torch
from torch import Tensor

from .contrast_mxmclr import (
    WAYS,
    AnyDirection,
    Denominator,
    HardForm,
    Normaliser,
    ObjectiveOutput,
    Positive,
    Score,
    Share,
    Weight,
    both_directions,
    by_way,
    hard_floors,
    hard_losses,
    has_pair,
    in_pairs,
    logsumexp_by,
    mean_of_queries,
    no_pair,
    one_to_one,
    prepare,
    within,
)
from .folds_mxmclr import Instances, Observations, find_instances, first_rows


def clip(observed: Observations, scale: Tensor) -> ObjectiveOutput:
    """CLIP's symmetric InfoNCE on the first image and first text of each instance that has both.

    CLIP, Figure 3 (https://huggingface.co/papers/2103.00020). The collator draws folds at random, so first is a draw.

    Args:
        observed: Observations of the whole batch; embeddings of unit norm.
        scale: Exponentiated logit scale, `()` or `(1,)`.

    Returns:
        The loss, with components `image_to_text`, `text_to_image` and `kl`, which is the loss itself.
    """
    observed, scale, instances = prepare(observed, scale)
    in_both = instances.in_both
    if not in_both.any():
        return no_pair(observed, scale)
    image = first_rows(instances.image_index, len(in_both))[in_both]
    text = first_rows(instances.text_index, len(in_both))[in_both]
    pairs = in_pairs(observed.image_embeds[image], observed.text_embeds[text])
    if observed.image_queries is not None and observed.text_queries is not None:
        pairs = pairs._replace(image_queries=observed.image_queries[image], text_queries=observed.text_queries[text])
    loss, components = weigh(*one_to_one(pairs, scale), 0.5)
    return ObjectiveOutput(loss, components | {"kl": loss.detach()})


def unicl(
    observed: Observations,
    scale: Tensor,
    *,
    hard_form: HardForm = "out",
    denominator: Denominator = "all",
    score: Score = "observations",
    direction_weight: Share = 0.5,
    normaliser: Normaliser = "observations",
) -> ObjectiveOutput:
    """Every observation of an instance a positive of every one of the other modality, in both directions.

    UniCL (https://huggingface.co/papers/2204.03610), grouped as in X-Decoder
    (https://huggingface.co/papers/2212.11270). `mfh` with `soft_weight=0` is the same.

    Args:
        observed: Observations of the whole batch; embeddings of unit norm.
        scale: Exponentiated logit scale, `()` or `(1,)`.
        hard_form: `out`, `in`, `ones` or `inverse`, see `mfh`.
        denominator: `all`, `one_positive` or `negatives`, see `mfh`.
        score: `observations`, `max_sim` or `attentive`, see `mfh`.
        direction_weight: Share of image-to-text, in [0, 1]; X-Decoder's loss on unique texts has 0.7.
        normaliser: `observations`, `instances` or `pairs`, see `mfh`.

    Returns:
        The loss, with components `image_to_text`, `text_to_image` and `kl`, the loss less the entropy of its targets, so
        that fold sizes compare; no `kl` where only negatives compete, since such a loss has no least value.
    """
    observed, scale, instances = prepare(observed, scale)
    if not has_pair(observed, instances):
        return no_pair(observed, scale)
    directions = both_directions(observed, instances, scale, score)
    means = [mean_of_queries(hard_losses(way, hard_form, denominator), way, normaliser) for way in directions]
    loss, components = weigh(means[0], means[1], direction_weight)
    if denominator != "negatives":
        floors = [mean_of_queries(hard_floors(way, hard_form, denominator), way, normaliser) for way in directions]
        components["kl"] = loss.detach() - weigh(floors[0], floors[1], direction_weight).loss
    return ObjectiveOutput(loss, components)


def one_to_k(
    observed: Observations,
    scale: Tensor,
    *,
    divide: bool = True,
    score: Score = "observations",
    normaliser: Normaliser = "observations",
) -> ObjectiveOutput:
    """1-to-K: a target of one, not of a share, on each of an instance's observations; text-to-image weighs less.

    CCRK (https://huggingface.co/papers/2406.18254), whose folds hold one image and K texts, or the reverse.

    Args:
        observed: Observations of the whole batch; embeddings of unit norm.
        scale: Exponentiated logit scale, `()` or `(1,)`.
        divide: Whether to divide by K; with ragged folds, by the mean fold size of the side with more observations.
        score: `observations`, `max_sim` or `attentive`, see `mfh`.
        normaliser: `observations`, `instances` or `pairs`, see `mfh`.

    Returns:
        The loss, with components `image_to_text`, `text_to_image` and `kl`, see `unicl`.
    """
    output = unicl(observed, scale, hard_form="ones", score=score, normaliser=normaliser)
    if not divide or not output.components:
        return output
    instances = find_instances(observed.image_group_ids, observed.text_group_ids)
    sizes = [folds[instances.in_both].sum() for folds in (instances.image_fold_sizes, instances.text_fold_sizes)]
    mean_fold = torch.maximum(*sizes) / instances.in_both.sum()
    return ObjectiveOutput(
        output.loss / mean_fold, {name: part / mean_fold for name, part in output.components.items()}
    )


def supcon(
    observed: Observations,
    scale: Tensor,
    *,
    sides: Literal["union", "images", "texts", "cross"] = "union",
    hard_form: HardForm = "out",
    denominator: Denominator = "all",
    anchors: Literal["all", "first"] = "all",
    lonely: Literal["zero", "drop"] = "zero",
    base_temperature: Positive | None = None,
    normaliser: Normaliser = "observations",
) -> ObjectiveOutput:
    """Supervised contrastive loss with instances as classes: each observation against all others.

    SupCon, Eq. 2 and 3 (https://huggingface.co/papers/2004.11362). Across modalities alone it is `unicl`.

    Args:
        observed: Observations of the whole batch; embeddings of unit norm.
        scale: Exponentiated logit scale, `()` or `(1,)`: one over the temperature.
        sides: `union` of views and captions, `images` or `texts`, or `cross`: the other modality alone.
        hard_form: `out` (Eq. 2), `in` (Eq. 3), `ones` or `inverse`, see `mfh`.
        denominator: What a positive competes with: `all`, itself and the negatives (`one_positive`; NT-Xent), or the
            `negatives` (as DCL, https://huggingface.co/papers/2110.06848, and not bounded below).
        anchors: `all`, or the `first` observation of each instance.
        lonely: What an anchor without a positive does: `zero` counts it with a loss of 0, as the public code does, and
            `drop` leaves it out of the mean.
        base_temperature: The loss is divided by `scale` times this; None leaves it.
        normaliser: `observations`, `instances` or `pairs`, see `mfh`.

    Returns:
        The loss, with component `kl`, see `unicl`.
    """
    observed, scale, instances = prepare(observed, scale)
    if not instances.in_both.any():
        return no_pair(observed, scale)
    directions = SIDES[sides](observed, instances, scale)
    if anchors == "first":
        directions = [first_of_each(way, len(instances.in_both)) for way in directions]
    factor = 1 if base_temperature is None else 1 / (scale.squeeze() * base_temperature)
    parts = [supervised(way, hard_form, denominator, lonely, normaliser) for way in directions]
    loss = factor * torch.stack([loss for loss, _ in parts]).mean()
    if denominator == "negatives":
        return ObjectiveOutput(loss, {})
    floor = torch.stack([floor for _, floor in parts]).mean()
    return ObjectiveOutput(loss, {"kl": (loss - factor * floor).detach()})


def supervised(
    direction: AnyDirection,
    hard_form: HardForm,
    denominator: Denominator,
    lonely: Literal["zero", "drop"],
    normaliser: Normaliser,
) -> tuple[Tensor, Tensor]:
    """The mean loss of some anchors, and the least that it can be, `()` each; 0 where none has a positive."""
    has_positive = direction.queries.num_positives > 0
    kept = direction.only(has_positive)
    if len(kept.query_instance) == 0:
        nothing = 0 * kept.log_sums().sum()
        return nothing, nothing
    weights = direction.queries.weights(normaliser, direction.dtype)
    share = weights[has_positive].sum() / weights.sum() if lonely == "zero" else 1.0
    losses = hard_losses(kept, hard_form, denominator), hard_floors(kept, hard_form, denominator)
    mean, floor = (share * mean_of_queries(each, kept, normaliser) for each in losses)
    return mean, floor


def first_of_each(direction: AnyDirection, num_instances: int) -> AnyDirection:
    """The first query of each instance."""
    instance = direction.queries.instance
    rows = first_rows(instance, num_instances)
    kept = torch.zeros_like(instance, dtype=torch.bool)
    kept[rows[rows < len(kept)]] = True
    return direction.only(kept)


def _union(observed: Observations, instances: Instances, scale: Tensor) -> list[AnyDirection]:
    rows = torch.cat([observed.image_embeds, observed.text_embeds])
    asked = None
    if observed.image_queries is not None and observed.text_queries is not None:
        asked = torch.cat([observed.image_queries, observed.text_queries])
    return [within(rows, torch.cat([instances.image_index, instances.text_index]), scale, asked)]


def _images(observed: Observations, instances: Instances, scale: Tensor) -> list[AnyDirection]:
    return [within(observed.image_embeds, instances.image_index, scale, observed.image_queries)]


def _texts(observed: Observations, instances: Instances, scale: Tensor) -> list[AnyDirection]:
    return [within(observed.text_embeds, instances.text_index, scale, observed.text_queries)]


def _across(observed: Observations, instances: Instances, scale: Tensor) -> list[AnyDirection]:
    return list(both_directions(observed, instances, scale))


SIDES = {"union": _union, "images": _images, "texts": _texts, "cross": _across}


def stablerep(
    observed: Observations,
    scale: Tensor,
    *,
    image_weight: Weight = 1.0,
    cross_weight: Weight = 1.0,
    image_temperature: Positive = 0.1,
) -> ObjectiveOutput:
    """StableRep with language: multi-positive contrast among the images, and between images and texts.

    StableRep+ (https://huggingface.co/papers/2306.00984); its images are several of one caption.

    Args:
        observed: Observations of the whole batch; embeddings of unit norm.
        scale: Exponentiated logit scale between images and texts, `()` or `(1,)`.
        image_weight: Weight of the contrast among images, `supcon`.
        cross_weight: Weight of that between images and texts, `unicl`.
        image_temperature: Temperature among images.

    Returns:
        The loss, with components `images`, `cross` and `kl`, the loss less the entropies of its targets.
    """
    observed, scale, instances = prepare(observed, scale)
    if not instances.in_both.any():
        return no_pair(observed, scale)
    cross = unicl(observed, scale)
    images = supcon(observed, scale.new_tensor(1 / image_temperature), sides="images")
    kl = image_weight * images.components["kl"] + cross_weight * cross.components["kl"]
    components = {"images": images.loss.detach(), "cross": cross.loss.detach(), "kl": kl}
    return ObjectiveOutput(image_weight * images.loss + cross_weight * cross.loss, components)


def milnce(
    observed: Observations, scale: Tensor, *, anchors: Literal["both", "images", "texts"] = "both"
) -> ObjectiveOutput:
    """MIL-NCE: an anchor against the bag of its instance's observations on the other side, negatives on both sides.

    MIL-NCE (https://huggingface.co/papers/1912.06430), as its public code has it: positives stand in the
    denominator twice, so that the least loss is log 2. An anchor's denominator holds its own logits, and those of
    other instances' anchors with its bag. With one anchor and one bag size an instance it is that code.

    Args:
        observed: Observations of the whole batch; embeddings of unit norm (there they have any norm).
        scale: Exponentiated logit scale, `()` or `(1,)` (there 1).
        anchors: `images` against bags of texts, `texts` against bags of images, or the mean of `both`.

    Returns:
        The loss, with components `image_to_text` and `text_to_image`, as far as there are.
    """
    observed, scale, instances = prepare(observed, scale)
    if not instances.in_both.any():
        return no_pair(observed, scale)
    directions = both_directions(with_fold_mates(observed, instances), instances, scale)
    sides = (instances.image_index, observed.image_queries), (instances.text_index, observed.text_queries)
    losses = {}
    for place in {"images": (0,), "texts": (1,), "both": (0, 1)}[anchors]:
        way, (index, asked) = directions[place], sides[place]
        each = multiple_instance(way, directions[1 - place], len(instances.in_both))
        if asked is not None:  # fold mates were needed for their bag, and are answered for by others
            each = each.masked_fill(~asked[instances.in_both[index]][way.queries.answered], 0)
        losses[WAYS[place]] = mean_of_queries(each, way)
    loss = torch.stack(list(losses.values())).mean()
    return ObjectiveOutput(loss, {name: part.detach() for name, part in losses.items()})


def with_fold_mates(observed: Observations, instances: Instances) -> Observations:
    """The same observations, asking for all of each instance of which any is asked for."""
    if observed.image_queries is None or observed.text_queries is None:
        return observed
    asked = torch.cat([instances.image_index[observed.image_queries], instances.text_index[observed.text_queries]])
    is_asked = torch.zeros_like(instances.in_both).index_fill(0, asked, True)
    return observed._replace(
        image_queries=is_asked[instances.image_index], text_queries=is_asked[instances.text_index]
    )


def multiple_instance(anchors: AnyDirection, bags: AnyDirection, num_instances: int) -> Tensor:
    """The MIL-NCE loss of each anchor, `(num_answered,)`; the bags' queries are those of the same instances."""
    everything = anchors.log_sums()
    query, scores = anchors.positive_scores()
    positives = logsumexp_by(scores, query, len(anchors.query_instance))
    # What other instances' anchors score with the bag of an instance: the negatives of the bag's own queries.
    others = bags.log_sums_of_negatives()
    any_other = others.isfinite()
    from_bag = logsumexp_by(others[any_other], bags.query_instance[any_other], num_instances)[anchors.query_instance]
    denominator = torch.logaddexp(everything, torch.logaddexp(positives, from_bag))
    return denominator - positives


def weigh(image_to_text: Tensor, text_to_image: Tensor, share: float) -> ObjectiveOutput:
    """Both directions as one loss, `share` of it image-to-text, and as components."""
    loss = share * image_to_text + (1 - share) * text_to_image
    return ObjectiveOutput(loss, by_way((image_to_text, text_to_image)))
