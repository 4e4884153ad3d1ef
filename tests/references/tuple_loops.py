"""The objectives over views and tuples, PMRL and TCL as their definitions read: loops over plain floats, float64."""

import math
from itertools import combinations, product

import numpy as np
import torch

from modeling_mxmclr.contrast_mxmclr import shared_seed
from modeling_mxmclr.folds_mxmclr import Observations
from tests.references.objective_loops import (
    as_lists,
    average,
    dot,
    hard_of,
    in_both,
    lse,
    paired_loops,
    rows_of,
    ways_of,
    within_rows,
)


def view_folds(observed: Observations, sides="union"):
    """The views of each instance, in ascending order of their ids, `[instance][view]`."""
    images, texts, image_ids, text_ids = as_lists(observed)
    return [
        [
            *(rows_of(images, image_ids, i) if sides != "texts" else []),
            *(rows_of(texts, text_ids, i) if sides != "images" else []),
        ]
        for i in sorted(set(image_ids + text_ids))
    ]


def mv_infonce_loops(observed, scale, sides="union") -> float:
    views = view_folds(observed, sides)
    losses = []
    for i, own in enumerate(views):
        positives = [scale * dot(own[a], own[b]) for a, b in product(range(len(own)), repeat=2) if a != b]
        everything = [
            scale * dot(own[a], views[j][m])
            for a in range(len(own))
            for j in range(len(views))
            for m in range(len(own))
            if (j, m) != (i, a)
        ]
        losses.append(lse(everything) - lse(positives))
    return average(losses)


def mv_dhel_loops(observed, scale, sides="union") -> float:
    views = view_folds(observed, sides)
    losses = []
    for i, own in enumerate(views):
        positives = lse(scale * dot(a, b) for a, b in combinations(own, 2))
        spread = sum(
            lse(scale * dot(own[a], views[j][a]) for j in range(len(views)) if j != i) for a in range(len(own))
        )
        losses.append(spread - positives)
    return average(losses)


def pvc_loops(observed, scale, sides="union", mean="geometric") -> float:
    views = view_folds(observed, sides)
    losses = []  # [instance][view][other view]
    for i, own in enumerate(views):
        negatives = [[scale * dot(a, b) for j, fold in enumerate(views) if j != i for b in fold] for a in own]
        losses.append(
            [
                [lse([scale * dot(a, b), *negatives[n]]) - scale * dot(a, b) for m, b in enumerate(own) if m != n]
                for n, a in enumerate(own)
            ]
        )
    values = np.array(losses)
    if mean == "geometric":
        return float(values.mean())
    if mean == "arithmetic":
        return float(np.log(np.exp(values).mean(axis=2)).mean())
    return float(np.mean([lse(row) for row in values.mean(axis=0)]) - math.log(len(views)))


def ntxent_loops(observed, scale, sides="union", pairing="pairwise") -> float:
    views = [list(view) for view in zip(*view_folds(observed, sides), strict=True)]  # [view][instance]
    if pairing == "pairwise":
        pairs = list(combinations(views, 2))
    else:
        pairs = [
            (
                view,
                [list(np.mean([views[m][i] for m in range(len(views)) if m != n], axis=0)) for i in range(len(view))],
            )
            for n, view in enumerate(views)
        ]
    ids = list(range(len(views[0]))) * 2
    return average(average(hard_of(query) for query in within_rows(one + other, ids, scale)) for one, other in pairs)


def smoothed_cross_entropy(scores, place, smoothing) -> float:
    masses = [smoothing / len(scores) + (1 - smoothing) * (n == place) for n in range(len(scores))]
    return -sum(mass * (s - lse(scores)) for mass, s in zip(masses, scores, strict=True))


def gram_loops(observed, scale, label_smoothing=0.1) -> float:
    images, texts, image_ids, text_ids = as_lists(observed)
    instances = sorted(set(image_ids))
    captions = [rows_of(texts, text_ids, i) for i in instances]
    tuples = [rows_of(images, image_ids, i) + captions[n][1:] for n, i in enumerate(instances)]

    def volume(anchor, others):
        rows = np.array([anchor, *others])
        return math.sqrt(max(0.0, np.linalg.det(rows @ rows.T)))

    logits = [[-scale * volume(fold[0], others) for others in tuples] for fold in captions]
    columns = list(zip(*logits, strict=True))
    losses = [
        smoothed_cross_entropy(side[n], n, label_smoothing) for side in (logits, columns) for n in range(len(side))
    ]
    return average(losses)


def symile_loops(observed, scale, negatives="shuffled") -> float:
    views = np.array(view_folds(observed)).transpose(1, 0, 2)  # (num_modalities, num_instances, dim)
    num_modalities, size, _ = views.shape
    if negatives == "pairwise":
        return sum(paired_loops(one, other, scale) for one, other in combinations(views.tolist(), 2))
    generator = torch.Generator().manual_seed(shared_seed(observed))
    losses = []
    for anchor in range(num_modalities):
        others = [m for m in range(num_modalities) if m != anchor]
        orders = (
            [torch.randperm(size, generator=generator).tolist() for _ in others] if negatives == "shuffled" else []
        )
        for i in range(size):
            own = scale * (views[anchor, i] * np.prod([views[m, i] for m in others], axis=0)).sum()
            if negatives == "all":
                tuples = [each for each in product(range(size), repeat=len(others)) if each != (i,) * len(others)]
            else:
                tuples = [[order[j] for order in orders] for j in range(size) if j != i]
            rivals = [
                scale
                * (views[anchor, i] * np.prod([views[m, j] for m, j in zip(others, each, strict=True)], axis=0)).sum()
                for each in tuples
            ]
            losses.append(lse([own, *rivals]) - own)
    return average(losses)


def pmrl_loops(observed, scale, intra_temperature=0.05, intra_weight=1.0, inter_weight=1.0) -> float:
    images, texts, image_ids, text_ids = as_lists(observed)
    intra, leading = [], []
    for i in in_both(observed):
        rows = np.array(rows_of(images, image_ids, i) + rows_of(texts, text_ids, i))
        left, values, _ = np.linalg.svd(rows.T, full_matrices=False)
        intra.append(lse(values / intra_temperature) - values[0] / intra_temperature)
        leading.append(left[:, 0] * np.sign((rows @ left[:, 0]).sum()))
    scores = [[scale * float(a @ b) for b in leading] for a in leading]
    inter = average(lse(row) - row[n] for n, row in enumerate(scores))
    return intra_weight * average(intra) + inter_weight * inter


def tcl_loops(observed, scale, distill_weight=0.4, text_local_mask=None, **given) -> float:
    images, texts, image_ids, text_ids = as_lists(observed)
    given = {name: tensor.tolist() for name, tensor in given.items()}
    sides = {"image": (images, image_ids), "text": (texts, text_ids)}
    if "image_momentum_embeds" in given:
        parts = tcl_momentum_parts(sides, given, scale, distill_weight)
    else:
        across = [average(hard_of(query) for query in way) for way in ways_of(observed, scale)]
        inside = [[q for q in within_rows(*side, scale) if q[0] in q[2]] for side in sides.values()]
        parts = across + [average(hard_of(query) for query in way) if way else 0.0 for way in inside]
    masks = {"text": text_local_mask.tolist()} if text_local_mask is not None else {}
    for side, (rows, _) in sides.items():
        if (local := given.get(f"{side}_local_embeds")) is not None:
            parts.append(local_loops(rows, local, masks.get(side), scale))
    return average(parts)


def tcl_momentum_parts(sides, given, scale, distill_weight):
    queue_ids = given.get("queue_group_ids", [])
    momentum = {side: given[f"{side}_momentum_embeds"] for side in sides}
    parts = []
    for query, key in (("image", "text"), ("text", "image"), ("image", "image"), ("text", "text")):
        rows, ids = sides[query]
        keys = momentum[key] + given.get(f"{key}_queue_embeds", [])
        key_ids = sides[key][1] + queue_ids
        losses = []
        for n, own in enumerate(ids):
            target = [(i == own) / max(1, key_ids.count(own)) for i in key_ids]
            if query != key:
                soft = [scale * dot(momentum[query][n], k) for k in keys]
                soft = [math.exp(s - lse(soft)) for s in soft]
                target = [distill_weight * s + (1 - distill_weight) * t for s, t in zip(soft, target, strict=True)]
            scores = [scale * dot(rows[n], k) for k in keys]
            losses.append(-sum(t * (s - lse(scores)) for t, s in zip(target, scores, strict=True)))
        parts.append(average(losses))
    return parts


def local_loops(rows, local, mask, scale) -> float:
    mask = mask or [[True] * len(each) for each in local]
    losses = []
    for n, row in enumerate(rows):
        others = [
            scale * dot(row, local[m][k])
            for m in range(len(rows))
            for k in range(len(local[m]))
            if m != n and mask[m][k]
        ]
        own = [scale * dot(row, feature) for feature, real in zip(local[n], mask[n], strict=True) if real]
        losses.append(average(lse([s, *others]) - s for s in own))
    return average(losses)
