"""How embeddings lie on the sphere: the gap between modalities, alignment, uniformity, spread, rank and hubness."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_embeds
from .search import top_k

ROWS_AT_ONCE = 1024


def geometry(
    image_embeds: Tensor,
    image_group_ids: Tensor,
    text_embeds: Tensor,
    text_group_ids: Tensor,
    hub_k: int = 10,
    sample: int = 8192,
    seed: int = 0,
) -> dict[str, float]:
    """The figures of this module by name, ready for JSON; those that these embeddings leave undefined are absent.

    "modality_gap", "alignment", "uniformity_image", "uniformity_text", "within_instance_spread_image",
    "within_instance_spread_text", "effective_rank_image", "effective_rank_text", and "hubness_text_to_instance" and
    "hubness_instance_to_text", where an instance is the unit-norm mean of its images.

    Args:
        image_embeds: `(num_images, dim)`, unit norm, any float type.
        image_group_ids: `(num_images,)`, int64, the instance of each.
        text_embeds: `(num_texts, dim)`, unit norm.
        text_group_ids: `(num_texts,)`, int64.
        hub_k: Length of the lists in which hubs are counted, or the gallery where that is smaller.
        sample: Rows from which uniformity is estimated where there are more.
        seed: Seed of that sample.

    Raises:
        ValueError: If embeddings and ids don't fit.
    """
    check_embeds("image", image_embeds, image_group_ids)
    check_embeds("text", text_embeds, text_group_ids)
    if image_embeds.shape[1] != text_embeds.shape[1]:
        raise ValueError(
            f"`image_embeds` and `text_embeds` must have one dimension, got {image_embeds.shape[1]} and "
            f"{text_embeds.shape[1]}; embed both sides with the same model."
        )
    instances, _ = _fold_means(image_embeds, image_group_ids)
    instances = F.normalize(instances, dim=1).float()
    figures = {
        "modality_gap": modality_gap(image_embeds, text_embeds),
        "alignment": alignment(image_embeds, text_embeds, image_group_ids, text_group_ids),
        "uniformity_image": uniformity(image_embeds, sample, seed),
        "uniformity_text": uniformity(text_embeds, sample, seed),
        "within_instance_spread_image": within_instance_spread(image_embeds, image_group_ids),
        "within_instance_spread_text": within_instance_spread(text_embeds, text_group_ids),
        "effective_rank_image": effective_rank(image_embeds),
        "effective_rank_text": effective_rank(text_embeds),
        "hubness_text_to_instance": hubness(text_embeds, instances, min(hub_k, len(instances))),
        "hubness_instance_to_text": hubness(instances, text_embeds, min(hub_k, len(text_embeds))),
    }
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def modality_gap(image_embeds: Tensor, text_embeds: Tensor) -> float:
    """Euclidean distance of the mean image embedding from the mean text embedding; from 0 to 2.

    Liang et al., Mind the Gap (https://huggingface.co/papers/2203.02053), over all observations.

    Example:
        >>> modality_gap(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[-1.0, 0.0], [0.0, 1.0]]))
        1.0
    """
    return (_mean(image_embeds) - _mean(text_embeds)).norm().item()


def alignment(image_embeds: Tensor, text_embeds: Tensor, image_group_ids: Tensor, text_group_ids: Tensor) -> float:
    """Mean squared distance of an image and a text of the same instance, over all such pairs; from 0 to 4.

    Wang and Isola, Eq. 4 with exponent 2 (https://huggingface.co/papers/2005.10242). Lower is better aligned. NaN where
    no instance has both.

    Args:
        image_embeds: `(num_images, dim)`, unit norm.
        text_embeds: `(num_texts, dim)`, unit norm.
        image_group_ids: `(num_images,)`, int64.
        text_group_ids: `(num_texts,)`, int64.
    """
    images, image_counts = _fold_means(image_embeds, image_group_ids)
    texts, text_counts = _fold_means(text_embeds, text_group_ids)
    of_images = torch.isin(image_group_ids.unique(), text_group_ids)
    of_texts = torch.isin(text_group_ids.unique(), image_group_ids)
    # The mean product of a pair is the product of the means, so that no pair needs to be formed.
    cosines = (images[of_images] * texts[of_texts]).sum(dim=1)
    num_pairs = image_counts[of_images] * text_counts[of_texts]
    return 2 - 2 * ((cosines * num_pairs).sum() / num_pairs.sum()).item()


def uniformity(embeds: Tensor, sample: int = 8192, seed: int = 0) -> float:
    """Logarithm of the mean of exp(-2 * squared distance) over pairs of different rows; from -8 to 0.

    Wang and Isola, Eq. 5 with t = 2 (https://huggingface.co/papers/2005.10242). Lower is more uniform. NaN for one row.

    Args:
        embeds: `(num_rows, dim)`, unit norm.
        sample: Rows drawn where there are more; up to that many, the figure is exact.
        seed: Seed of the draw.

    Example:
        Opposite rows are 4 apart when squared.

        >>> round(uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), 4)
        -8.0
    """
    if sample < 2:
        raise ValueError(f"`sample` must be at least 2, got {sample}.")
    if len(embeds) > sample:
        drawn = torch.randperm(len(embeds), generator=torch.Generator().manual_seed(seed))[:sample]
        embeds = embeds[drawn.to(embeds.device)]
    rows = embeds.float()
    if len(rows) == 1:
        return math.nan
    kernel_sum = torch.zeros((), dtype=torch.float64, device=rows.device)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = rows[start : start + ROWS_AT_ONCE]
        kernel = (4 * (block @ rows[start:].T) - 4).exp()  # -2 * squared distance is 4 * cosine - 4
        kernel_sum += kernel.triu(diagonal=1).sum(dtype=torch.float64)
    return (kernel_sum / math.comb(len(rows), 2)).log().item()


def within_instance_spread(embeds: Tensor, group_ids: Tensor) -> float:
    """Mean squared distance of two different observations of an instance in one modality; from 0 to 4.

    First over the pairs of an instance, then over the instances with at least two observations: comparable with
    `alignment`, and with itself whatever the fold sizes. NaN where no instance has two.

    Args:
        embeds: `(num_observations, dim)`, unit norm.
        group_ids: `(num_observations,)`, int64.

    Example:
        >>> within_instance_spread(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([7, 7, 8]))
        2.0
    """
    means, counts = _fold_means(embeds, group_ids)
    means, counts = means[counts > 1], counts[counts > 1]
    return (2 * (1 - means.square().sum(dim=1)) * counts / (counts - 1)).mean().item()


def effective_rank(embeds: Tensor) -> float:
    """Exponential of the entropy of the singular values, normalised to sum 1; from 1 to `dim`.

    Roy and Vetterli, The effective rank (https://ieeexplore.ieee.org/document/7098875), of the embeddings as they are, without
    centring: a common direction of all rows lowers it.

    Args:
        embeds: `(num_rows, dim)`, any float type.

    Example:
        >>> round(effective_rank(torch.eye(3)), 4), round(effective_rank(torch.ones(5, 3)), 4)
        (3.0, 1.0)
    """
    triangle = embeds.new_zeros(0, embeds.shape[1], dtype=torch.float64)
    for block in embeds.split(ROWS_AT_ONCE):  # the factor R has the singular values of all rows so far
        triangle = torch.linalg.qr(torch.cat([triangle, block.double()]), mode="r").R
    values = torch.linalg.svdvals(triangle)
    return torch.special.entr(values / values.sum()).sum().exp().item()


def hubness(query_embeds: Tensor, gallery_embeds: Tensor, k: int = 10) -> float:
    """Skewness of how often each gallery item is among the k nearest of a query; 0 where all are equally often.

    Radovanović, Nanopoulos and Ivanović, Hubs in Space (https://jmlr.org/papers/v11/radovanovic10a.html), Eq. 1. Above
    0, a few items are in many lists. Of items that tie at place k, the lists hold those that `top_k` takes.

    Args:
        query_embeds: `(num_queries, dim)`, unit norm.
        gallery_embeds: `(num_gallery, dim)`, unit norm.
        k: Length of a list, at most `num_gallery`.
    """
    _, rows = top_k(query_embeds, gallery_embeds, k)
    return skewness(rows.flatten().bincount(minlength=len(gallery_embeds)))


def skewness(counts: Tensor) -> float:
    """Third central moment of some numbers over the cube of their population deviation; 0 where all are equal.

    Example:
        >>> round(skewness(torch.tensor([0, 0, 0, 4])), 4)
        1.1547
    """
    deviations = counts.double() - counts.double().mean()
    variance = deviations.square().mean()
    return (deviations.pow(3).mean() / variance.pow(1.5)).item() if variance > 0 else 0.0


def _mean(embeds: Tensor) -> Tensor:
    """`(dim,)` float64."""
    return embeds.mean(dim=0, dtype=torch.float64)


def _fold_means(embeds: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Mean row of each instance, `(num_instances, dim)` float64, by ascending id, and how many rows it has."""
    _, rows, counts = group_ids.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), embeds.shape[1], dtype=torch.float64, device=embeds.device)
    for block, of_block in zip(embeds.split(ROWS_AT_ONCE), rows.split(ROWS_AT_ONCE), strict=True):
        sums.index_add_(0, of_block, block.double())
    return sums / counts[:, None], counts
