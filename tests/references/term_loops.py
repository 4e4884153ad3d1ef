"""The terms as their definitions read: loops over plain floats, float64."""

import math
from itertools import combinations, product
from random import Random

import numpy as np
import torch

from modeling_mxmclr.contrast_mxmclr import both_directions, prepare, shared_seed
from modeling_mxmclr.folds_mxmclr import Observations
from modeling_mxmclr.terms_mxmclr import draw_mixtures
from tests.references.objective_loops import (
    as_lists,
    average,
    dot,
    hard_of,
    in_both,
    lse,
    paired_loops,
    rows_of,
    within_rows,
)


def squared(a, b) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def own_pairs(observed: Observations):
    images, texts, image_ids, text_ids = as_lists(observed)
    return [
        (image, text)
        for image, i in zip(images, image_ids, strict=True)
        for text, j in zip(texts, text_ids, strict=True)
        if i == j
    ]


def alignment_loops(observed, scale) -> float:
    return average(squared(image, text) for image, text in own_pairs(observed))


def potential(one, one_ids, other, other_ids, t) -> float:
    values = [
        math.exp(-t * squared(a, b))
        for a, i in zip(one, one_ids, strict=True)
        for b, j in zip(other, other_ids, strict=True)
        if i != j
    ]
    return math.log(average(values)) if values else 0.0


def uniformity_loops(observed, scale, sides="both", t=2.0) -> float:
    images, texts, image_ids, text_ids = as_lists(observed)
    parts = {"images": (images, image_ids), "texts": (texts, text_ids)}
    return average(potential(*part, *part, t) for side, part in parts.items() if sides in ("both", side))


def cross_uniformity_loops(observed, scale, t=2.0) -> float:
    images, texts, image_ids, text_ids = as_lists(observed)
    return potential(images, image_ids, texts, text_ids, t)


def intra_modal_loops(observed, scale, sides="both", temperature=None) -> float:
    images, texts, image_ids, text_ids = as_lists(observed)
    scale = scale if temperature is None else 1 / temperature
    parts = {"images": (images, image_ids), "texts": (texts, text_ids)}
    ways = [within_rows(*part, scale) for side, part in parts.items() if sides in ("both", side)]
    ways = [[query for query in way if query[0] in query[2]] for way in ways]
    return average(average(hard_of(query, "out", "all") for query in way) for way in ways if way)


def fold_means(observed: Observations):
    images, texts, image_ids, text_ids = as_lists(observed)
    return [
        (np.mean(rows_of(images, image_ids, i), axis=0), np.mean(rows_of(texts, text_ids, i), axis=0))
        for i in in_both(observed)
    ]


def uniform_cyclic_loops(observed, scale) -> float:
    pairs = list(combinations(fold_means(observed), 2))
    return average((squared(a[0], b[0]) - squared(a[1], b[1])) ** 2 for a, b in pairs) if pairs else 0.0


def cyclic_direction_loops(observed, scale) -> float:
    pairs = product(fold_means(observed), repeat=2)
    return average(squared(a[0] - b[0], a[1] - b[1]) / len(a[0]) for a, b in pairs)


def vicreg_loops(observed, scale, invariance=25.0, variance=25.0, covariance=1.0) -> float:
    near = average(squared(image, text) / len(image) for image, text in own_pairs(observed))
    spread = correlation = 0.0
    for rows in as_lists(observed)[:2]:
        if len(rows) > 1:
            matrix = np.cov(np.array(rows).T)
            dim = len(matrix)
            spread += average(max(0.0, 1 - math.sqrt(matrix[d, d] + 1e-4)) for d in range(dim))
            correlation += sum(matrix[d, e] ** 2 for d in range(dim) for e in range(dim) if d != e) / dim
    return invariance * near + variance * spread + covariance * correlation


def pool(rows, pooling):
    mean = np.mean(rows, axis=0)
    if pooling == "max":
        pooled = np.max(rows, axis=0)
    elif pooling == "attention":
        weights = [math.exp(dot(row, mean / np.linalg.norm(mean))) for row in rows]
        pooled = sum(w * np.array(row) for w, row in zip(weights, rows, strict=True)) / sum(weights)
    else:
        pooled = mean
    return pooled / np.linalg.norm(pooled)


def pooled_loops(observed, scale, pooling="attention") -> float:
    images, texts, image_ids, text_ids = as_lists(observed)
    sides = [
        [pool(rows_of(rows, ids, i), pooling) for i in in_both(observed)]
        for rows, ids in ((images, image_ids), (texts, text_ids))
    ]
    return paired_loops(*sides, scale)


def mixup_loops(observed, scale, concentration=0.15, temperature=0.1) -> float:
    """The draws are ours; the embeddings are mixed here, and the logits there."""
    images, texts, image_ids, text_ids = as_lists(observed)
    observed, scale, instances = prepare(observed, torch.tensor(1 / temperature, dtype=torch.float64))
    draws, means = Random(shared_seed(observed)), []
    sides = ((images, image_ids, texts, text_ids), (texts, text_ids, images, image_ids))
    for way, (queries, query_ids, keys, key_ids) in zip(
        both_directions(observed, instances, scale), sides, strict=True
    ):
        kept, partner = draw_mixtures(way, concentration, draws)
        rows = [(np.array(row), i) for row, i in zip(queries, query_ids, strict=True) if i in key_ids]
        losses = []
        for (row, own), share, place in zip(rows, kept[:, 0].tolist(), partner.tolist(), strict=True):
            other, other_id = rows[place]
            scores = [dot(share * row + (1 - share) * other, key) / temperature for key in keys]
            for instance, mass in ((own, share), (other_id, 1 - share)):
                positives = [s for s, i in zip(scores, key_ids, strict=True) if i == instance]
                losses.append(mass * (lse(scores) - average(positives)))
        means.append(sum(losses) / len(rows))
    return average(means)


def near_frozen_loops(observed, scale, image_reference_embeds=None, text_reference_embeds=None) -> float:
    total = 0.0
    for rows, references in zip(observed[:2], (image_reference_embeds, text_reference_embeds), strict=True):
        if references is not None:
            total += 1 - average(dot(a, b) for a, b in zip(rows.tolist(), references.tolist(), strict=True))
    return total
