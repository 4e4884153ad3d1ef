"""TCL: contrast across modalities, within them, and between an observation and its local features."""

import torch
from torch import Tensor

from .contrast_mxmclr import (
    ObjectiveOutput,
    Share,
    both_directions,
    hard_floors,
    hard_losses,
    no_pair,
    prepare,
    undivided,
    within,
)
from .folds_mxmclr import Instances, Observations, positive_mask

Parts = dict[str, tuple[Tensor, Tensor]]  # the loss of each part, and the least that it can be


@undivided
def tcl(
    observed: Observations,
    scale: Tensor,
    *,
    distill_weight: Share = 0.4,
    image_momentum_embeds: Tensor | None = None,
    text_momentum_embeds: Tensor | None = None,
    image_queue_embeds: Tensor | None = None,
    text_queue_embeds: Tensor | None = None,
    queue_group_ids: Tensor | None = None,
    image_local_embeds: Tensor | None = None,
    text_local_embeds: Tensor | None = None,
    text_local_mask: Tensor | None = None,
) -> ObjectiveOutput:
    """Triple contrastive learning: the mean of its cross-modal, intra-modal and local parts.

    TCL (https://huggingface.co/papers/2202.10401), as its public retrieval code has it. Other observations of
    an instance are positives, but for the local parts, where they are negatives. Momentum and local parts are there
    where such features are given: without a momentum model the cross-modal part is `unicl`, and an observation is no
    positive of itself.

    Args:
        observed: Observations of the whole batch; embeddings of unit norm.
        scale: Exponentiated logit scale, `()` or `(1,)`.
        distill_weight: Share of the momentum model's own softmax in the cross-modal targets, in [0, 1].
        image_momentum_embeds: `(num_images, dim)`, unit norm, of the momentum model; with `text_momentum_embeds`.
        text_momentum_embeds: `(num_texts, dim)`.
        image_queue_embeds: `(queue_size, dim)`, earlier momentum embeddings, with their `queue_group_ids`.
        text_queue_embeds: `(queue_size, dim)`.
        queue_group_ids: `(queue_size,)` int64.
        image_local_embeds: `(num_images, num_patches, dim)`, unit norm.
        text_local_embeds: `(num_texts, num_tokens, dim)`, unit norm.
        text_local_mask: `(num_texts, num_tokens)`, true for real tokens; None for all.

    Returns:
        The loss, with components `image_to_text`, `text_to_image`, `image_to_image`, `text_to_text`, `image_local` and
        `text_local` where there are, and `kl`, the loss less the entropies of its targets.

    Raises:
        ValueError: If one of two features that belong together is missing, or a queue has no momentum model.
    """
    check_together("image_momentum_embeds", image_momentum_embeds, "text_momentum_embeds", text_momentum_embeds)
    for name, queue in (("image_queue_embeds", image_queue_embeds), ("text_queue_embeds", text_queue_embeds)):
        check_together(name, queue, "queue_group_ids", queue_group_ids)
    if queue_group_ids is not None and image_momentum_embeds is None:
        raise ValueError(
            "`queue_group_ids` needs `image_momentum_embeds` and `text_momentum_embeds`, whose earlier values a queue "
            "holds; got neither."
        )
    observed, scale, instances = prepare(observed, scale)
    if not instances.in_both.any():
        return no_pair(observed, scale)
    if image_momentum_embeds is None or text_momentum_embeds is None:
        parts = without_momentum(observed, scale, instances)
    else:
        momentum = observed._replace(
            image_embeds=image_momentum_embeds.to(scale), text_embeds=text_momentum_embeds.to(scale)
        )
        keys = with_queue(momentum, image_queue_embeds, text_queue_embeds, queue_group_ids)
        parts = with_momentum(observed, momentum, keys, scale, distill_weight)
    if image_local_embeds is not None:
        loss = local_loss(observed.image_embeds, image_local_embeds.to(scale), None, scale)
        parts["image_local"] = loss, torch.zeros_like(loss)
    if text_local_embeds is not None:
        loss = local_loss(observed.text_embeds, text_local_embeds.to(scale), text_local_mask, scale)
        parts["text_local"] = loss, torch.zeros_like(loss)
    losses, floors = (torch.stack(each) for each in zip(*parts.values(), strict=True))
    components = {name: part.detach() for name, (part, _) in parts.items()}
    return ObjectiveOutput(losses.mean(), components | {"kl": (losses - floors).mean().detach()})


def check_together(name: str, one: Tensor | None, other_name: str, other: Tensor | None) -> None:
    """Raise ValueError if only one of two features is given."""
    if (one is None) != (other is None):
        raise ValueError(f"`{name}` and `{other_name}` go together, got only one of them; pass both or neither.")


def without_momentum(observed: Observations, scale: Tensor, instances: Instances) -> Parts:
    """The cross-modal and intra-modal parts on the embeddings themselves."""
    across = both_directions(observed, instances, scale)
    inside = [
        within(observed.image_embeds, instances.image_index, scale),
        within(observed.text_embeds, instances.text_index, scale),
    ]
    ways = [*across, *(way.with_positives() for way in inside)]
    parts = [
        (hard_losses(way).mean(), hard_floors(way).mean())
        if len(way.query_instance)
        else (0 * way.log_sums().sum(),) * 2
        for way in ways
    ]
    return dict(zip(("image_to_text", "text_to_image", "image_to_image", "text_to_text"), parts, strict=True))


def with_queue(
    momentum: Observations, images: Tensor | None, texts: Tensor | None, group_ids: Tensor | None
) -> Observations:
    """The momentum embeddings of the batch and of the queue."""
    if images is None or texts is None or group_ids is None:
        return momentum
    return Observations(
        torch.cat([momentum.image_embeds, images.to(momentum.image_embeds)]),
        torch.cat([momentum.text_embeds, texts.to(momentum.text_embeds)]),
        torch.cat([momentum.image_group_ids, group_ids]),
        torch.cat([momentum.text_group_ids, group_ids]),
    )


def with_momentum(
    observed: Observations, momentum: Observations, keys: Observations, scale: Tensor, distill_weight: float
) -> Parts:
    """The cross-modal parts, against distilled targets, and the intra-modal ones, against hard targets."""
    sides = {"image": 0, "text": 1}
    rows, of_momentum, of_keys = observed[:4], momentum[:4], keys[:4]
    parts: Parts = {}
    for query, key in (("image", "text"), ("text", "image"), ("image", "image"), ("text", "text")):
        place, other = sides[query], sides[key]
        hard = positive_mask(rows[place + 2], of_keys[other + 2]).to(scale)
        targets = hard / hard.sum(dim=1, keepdim=True).clamp(min=1)
        if query != key:
            with torch.no_grad():
                soft = (scale * of_momentum[place] @ of_keys[other].T).softmax(dim=1)
            targets = distill_weight * soft + (1 - distill_weight) * targets
        logits = scale * rows[place] @ of_keys[other].T
        loss = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
        parts[f"{query}_to_{key}"] = loss, torch.special.entr(targets).sum(dim=1).mean()
    return parts


def local_loss(rows: Tensor, local: Tensor, mask: Tensor | None, scale: Tensor) -> Tensor:
    """Each observation against each of its local features, with those of all other observations as negatives, `()`.

    Args:
        rows: `(num_rows, dim)`.
        local: `(num_rows, num_local, dim)`.
        mask: `(num_rows, num_local)`, true where a feature counts; None for all. A row needs at least one.
        scale: Exponentiated logit scale.
    """
    valid = torch.ones(local.shape[:2], dtype=torch.bool, device=rows.device) if mask is None else mask.bool()
    logits = scale * torch.einsum("nd,mkd->nmk", rows, local)
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)[:, :, None]
    others = logits.masked_fill(itself | ~valid, -torch.inf).flatten(1)
    alone = ~others.isfinite().any(dim=1)
    negatives = others.masked_fill(alone[:, None], 0).logsumexp(dim=1).masked_fill(alone, -torch.inf)
    own = logits.diagonal().T  # (num_rows, num_local)
    losses = (torch.logaddexp(own, negatives[:, None]) - own) * valid
    return (losses.sum(dim=1) / valid.sum(dim=1)).mean()
