"""Terms that any objective can be given beside its own loss, and their one list, `TERMS`."""

from collections.abc import Callable
from random import Random
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .contrast_mxmclr import (
    Direction,
    Positive,
    hard_losses,
    in_pairs,
    matrix_directions,
    mean_of_queries,
    one_to_one,
    prepare,
    shared_seed,
    soft_losses,
    within,
)
from .folds_mxmclr import FOLD_POOLINGS, Observations, mean_by_index, unit_norm

Term = Callable[..., Tensor]


def alignment(observed: Observations, scale: Tensor) -> Tensor:
    """Mean squared distance of an image and a text of one instance, `()`.

    The contrastive gap's L_align (https://huggingface.co/papers/2405.18570), over all pairs within instances.
    """
    observed, _, instances = prepare(observed, scale)
    image, text = (instances.image_index[:, None] == instances.text_index).nonzero(as_tuple=True)
    return (observed.image_embeds[image] - observed.text_embeds[text]).square().sum(dim=1).mean()


def uniformity(
    observed: Observations, scale: Tensor, *, sides: Literal["both", "images", "texts"] = "both", t: Positive = 2.0
) -> Tensor:
    """Log of the mean Gaussian potential of two observations of different instances, per modality, averaged, `()`.

    Wang and Isola (https://huggingface.co/papers/2005.10242); pairs of one instance are left out.
    """
    observed, _, instances = prepare(observed, scale)
    parts = []
    if sides != "texts":
        parts.append(
            log_potential(
                observed.image_embeds, observed.image_embeds, instances.image_index, instances.image_index, t
            )
        )
    if sides != "images":
        parts.append(
            log_potential(observed.text_embeds, observed.text_embeds, instances.text_index, instances.text_index, t)
        )
    return torch.stack(parts).mean()


def cross_uniformity(observed: Observations, scale: Tensor, *, t: Positive = 2.0) -> Tensor:
    """Log of the mean Gaussian potential of an image and a text of different instances, `()`.

    The contrastive gap's L_xunif (https://huggingface.co/papers/2405.18570).
    """
    observed, _, instances = prepare(observed, scale)
    return log_potential(observed.image_embeds, observed.text_embeds, instances.image_index, instances.text_index, t)


def log_potential(one: Tensor, other: Tensor, one_instance: Tensor, other_instance: Tensor, t: float) -> Tensor:
    """Log of the mean of exp(-t · squared distance) over pairs of different instances, `()`; 0 where there is none."""
    first, second = (one_instance[:, None] != other_instance).nonzero(as_tuple=True)
    if len(first) == 0:
        return 0 * (one.sum() + other.sum())
    squares = (one * one).sum(dim=1)[:, None] + (other * other).sum(dim=1) - 2 * one @ other.T
    potentials = -t * squares[first, second]
    return potentials.logsumexp(dim=0) - torch.tensor(float(len(first)), dtype=one.dtype, device=one.device).log()


def uniform_cyclic(observed: Observations, scale: Tensor) -> Tensor:
    """Mean squared difference of two instances' squared distance in images and in texts, `()`; of the fold means."""
    images, texts = instance_means(observed, scale)
    rows, columns = torch.triu_indices(len(images), len(images), offset=1, device=images.device)
    if len(rows) == 0:
        return 0 * (images.sum() + texts.sum())
    apart = [(side[rows] - side[columns]).square().sum(dim=1) for side in (images, texts)]
    return (apart[0] - apart[1]).square().mean()


def cyclic_direction(observed: Observations, scale: Tensor) -> Tensor:
    """Mean squared difference of the way from an instance to another in images and in texts, `()`; of the fold means."""
    images, texts = instance_means(observed, scale)
    gaps = images - texts
    return (gaps[:, None] - gaps).square().mean()


def vicreg(
    observed: Observations,
    scale: Tensor,
    *,
    invariance: Positive = 25.0,
    variance: Positive = 25.0,
    covariance: Positive = 1.0,
) -> Tensor:
    """VICReg, `()`: near within instances, spread and uncorrelated within each modality, as CCRK offers it.

    VICReg, Eq. 6 (https://huggingface.co/papers/2105.04906). Invariance is the mean squared difference over all pairs
    of an image and a text of one instance; variance and covariance are those of each modality's observations.

    Args:
        observed: Observations of the whole batch.
        scale: Not used.
        invariance: Weight of the invariance.
        variance: Weight of the hinge on each coordinate's standard deviation, summed over the modalities.
        covariance: Weight of the squared covariances, summed over the modalities.
    """
    observed, scale, instances = prepare(observed, scale)
    image, text = (instances.image_index[:, None] == instances.text_index).nonzero(as_tuple=True)
    near = (observed.image_embeds[image] - observed.text_embeds[text]).square().mean()
    spreads = [spread_of(rows) for rows in observed[:2] if len(rows) > 1]
    spread, correlation = (torch.stack(parts).sum() for parts in zip(*spreads, strict=True)) if spreads else (0, 0)
    return invariance * near + variance * spread + covariance * correlation


def spread_of(rows: Tensor) -> tuple[Tensor, Tensor]:
    """How much the coordinates' deviations fall short of 1, and their squared covariances a dimension, `()` each."""
    centred = rows - rows.mean(dim=0)
    # 1e-4 keeps the root's slope finite.
    deviations = (centred.square().sum(dim=0) / (len(rows) - 1) + 1e-4).sqrt()
    covariances = centred.T @ centred / (len(rows) - 1)
    correlation = (covariances.square().sum() - covariances.diagonal().square().sum()) / rows.shape[1]
    return (1 - deviations).relu().mean(), correlation


def instance_means(observed: Observations, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The mean image and the mean text of each instance that has both, `(num_instances, dim)` each."""
    observed, _, instances = prepare(observed, scale)
    images = mean_by_index(observed.image_embeds, instances.image_index, instances.image_fold_sizes)
    texts = mean_by_index(observed.text_embeds, instances.text_index, instances.text_fold_sizes)
    return images[instances.in_both], texts[instances.in_both]


def pooled(
    observed: Observations, scale: Tensor, *, pooling: Literal["mean", "max", "attention"] = "attention"
) -> Tensor:
    """CLIP's loss between the pooled images and the pooled texts of each instance, `()`.

    Args:
        observed: Observations of the whole batch.
        scale: Exponentiated logit scale.
        pooling: How a fold becomes one unit vector, see `instance_embeddings`.
    """
    observed, scale, instances = prepare(observed, scale)
    count = len(instances.in_both)
    sides = [
        unit_norm(FOLD_POOLINGS[pooling](rows, index, count))[instances.in_both]
        for rows, index in (
            (observed.image_embeds, instances.image_index),
            (observed.text_embeds, instances.text_index),
        )
    ]
    return torch.stack(one_to_one(in_pairs(*sides), scale)).mean()


def intra_modal(
    observed: Observations,
    scale: Tensor,
    *,
    sides: Literal["both", "images", "texts"] = "both",
    temperature: Positive | None = None,
) -> Tensor:
    """Each observation against the others of its own modality, its fold mates as positives, averaged, `()`.

    SupCon's L_out (https://huggingface.co/papers/2004.11362) within images, as in StableRep, and within texts.

    Args:
        observed: Observations of the whole batch.
        scale: Exponentiated logit scale.
        sides: Whose observations.
        temperature: Of the logits; None takes 1 / `scale`.
    """
    observed, scale, instances = prepare(observed, scale)
    scale = scale if temperature is None else scale.new_tensor(1 / temperature)
    folds = (observed.image_embeds, instances.image_index), (observed.text_embeds, instances.text_index)
    chosen = {"both": folds, "images": folds[:1], "texts": folds[1:]}[sides]
    ways = [within(rows, index, scale).with_positives() for rows, index in chosen]
    losses = [mean_of_queries(hard_losses(way), way) for way in ways if len(way.query_instance)]
    return torch.stack(losses).mean() if losses else 0 * (observed.image_embeds.sum() + observed.text_embeds.sum())


def mixup(
    observed: Observations, scale: Tensor, *, concentration: Positive = 0.15, temperature: Positive = 0.1
) -> Tensor:
    """Mixtures of two observations of a modality against the other's, whose targets are mixed alike, `()`.

    M3CoL (https://huggingface.co/papers/2409.17777): half of the rows are mixed, by shares of a Beta
    distribution. The draw is a function of the batch, whatever the order of its rows, so that all ranks mix the same.

    Args:
        observed: Observations of the whole batch.
        scale: Not used: the mixtures have their own temperature.
        concentration: Both parameters of the Beta distribution.
        temperature: Temperature of the logits.
    """
    observed, scale, instances = prepare(observed, scale)
    directions = matrix_directions(observed, instances, scale.new_tensor(1 / temperature))
    losses, draws = [], Random(shared_seed(observed))
    for way in (each.with_positives() for each in directions):
        kept, partner = draw_mixtures(way, concentration, draws)
        # The logits of mixed queries are their mixed logits.
        mixed = way._replace(logits=kept * way.logits + (1 - kept) * way.logits[partner])
        own = F.one_hot(way.query_instance, len(instances.in_both)).to(scale)
        losses.append(mean_of_queries(soft_losses(mixed, kept * own + (1 - kept) * own[partner]), way))
    return torch.stack(losses).mean()


def draw_mixtures(direction: Direction, concentration: float, draws: Random) -> tuple[Tensor, Tensor]:
    """Which share of itself each query keeps, `(num_queries, 1)`, and the row of the one that it is mixed with."""
    # Queries in an order of their own: by instance, then by what they score.
    by_score = direction.logits.detach().sum(dim=1).argsort()
    order = by_score[direction.query_instance[by_score].argsort(stable=True)]
    count = len(order)
    shares = [draws.betavariate(concentration, concentration) if draws.random() < 0.5 else 1.0 for _ in range(count)]
    kept, partner = direction.logits.new_empty(count, 1), torch.empty_like(order)
    kept[order, 0] = kept.new_tensor(shares)
    partner[order] = order[torch.tensor(draws.sample(range(count), count), device=order.device)]
    return kept, partner


def near_frozen(
    observed: Observations,
    scale: Tensor,
    *,
    image_reference_embeds: Tensor | None = None,
    text_reference_embeds: Tensor | None = None,
) -> Tensor:
    """How far the embeddings have moved from those of the frozen model, one minus the mean cosine per modality, `()`.

    MMRL++ (https://huggingface.co/papers/2505.10088).

    Args:
        observed: Observations of the whole batch.
        scale: Not used.
        image_reference_embeds: `(num_images, dim)`, unit norm, of the frozen model.
        text_reference_embeds: `(num_texts, dim)`, unit norm.

    Raises:
        ValueError: If neither is given.
    """
    observed, scale, _ = prepare(observed, scale)
    pairs = [
        (rows, reference.to(rows))
        for rows, reference in zip(observed[:2], (image_reference_embeds, text_reference_embeds), strict=True)
        if reference is not None
    ]
    if not pairs:
        raise ValueError("`near_frozen` needs `image_reference_embeds` or `text_reference_embeds`, got neither.")
    moved = [1 - (rows * reference).sum(dim=1).sum() / max(1, len(rows)) for rows, reference in pairs]
    return torch.stack(moved).sum()


TERMS: dict[str, Term] = {
    "alignment": alignment,
    "cross_uniformity": cross_uniformity,
    "cyclic_direction": cyclic_direction,
    "intra_modal": intra_modal,
    "mixup": mixup,
    "near_frozen": near_frozen,
    "pooled": pooled,
    "uniform_cyclic": uniform_cyclic,
    "uniformity": uniformity,
    "vicreg": vicreg,
}
