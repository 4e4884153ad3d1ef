"""The softmax objectives and SigLIP as their definitions read: nested loops over plain floats, float64, one query at a time."""

import math

import numpy as np

from modeling_mxmclr.folds_mxmclr import Observations


def dot(a, b) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def as_lists(observed: Observations):
    return tuple(tensor.tolist() for tensor in observed[:4])


def lse(values) -> float:
    values = list(values)
    highest = max(values, default=0.0)
    return highest + math.log(sum(math.exp(value - highest) for value in values)) if values else -math.inf


def average(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def in_both(observed: Observations) -> list[int]:
    return sorted(set(observed.image_group_ids.tolist()) & set(observed.text_group_ids.tolist()))


def rows_of(rows, ids, instance):
    return [row for row, owner in zip(rows, ids, strict=True) if owner == instance]


def score_rows(observed: Observations, scale: float, score: str = "observations"):
    """The scores of each image, or of each instance's images as one, with each text, and their instances."""
    images, texts, image_ids, text_ids = as_lists(observed)
    scores = [[scale * dot(image, text) for text in texts] for image in images]
    if score == "observations":
        return scores, image_ids, text_ids
    instances = sorted(set(image_ids))
    merged = []
    for instance in instances:
        columns = list(zip(*rows_of(scores, image_ids, instance), strict=True))
        if score == "max_sim":
            merged.append([max(column) for column in columns])
        else:
            merged.append([sum(math.exp(s - lse(column)) * s for s in column) for column in columns])
    return merged, instances, text_ids


def ways_of(observed: Observations, scale: float, score: str = "observations"):
    """Both directions: for each query with a positive its instance, its scores and its keys' instances."""
    scores, image_ids, text_ids = score_rows(observed, scale, score)
    columns = list(zip(*scores, strict=True))
    image_to_text = [(i, row, text_ids) for i, row in zip(image_ids, scores, strict=True) if i in text_ids]
    text_to_image = [(i, list(row), image_ids) for i, row in zip(text_ids, columns, strict=True) if i in image_ids]
    return image_to_text, text_to_image


def within_rows(rows, ids, scale: float):
    """Each row against all others."""
    return [
        (ids[a], [scale * dot(rows[a], rows[b]) for b in range(len(rows)) if b != a], ids[:a] + ids[a + 1 :])
        for a in range(len(rows))
    ]


def hard_of(query, form="out", denominator="all") -> float:
    instance, scores, key_ids = query
    positives = [s for s, i in zip(scores, key_ids, strict=True) if i == instance]
    negatives = [s for s, i in zip(scores, key_ids, strict=True) if i != instance]
    terms = []
    for s in positives:
        rivals = {"all": scores, "one_positive": [s, *negatives], "negatives": negatives or [s]}[denominator]
        terms.append(s - lse(rivals))
    return {
        "out": lambda: -average(terms),
        "in": lambda: -math.log(average(map(math.exp, terms))),
        "ones": lambda: -sum(terms),
        "inverse": lambda: math.log(average(math.exp(-term) for term in terms)),
    }[form]()


def weighted(losses, ids, other_ids, normaliser) -> float:
    weight = {
        "observations": lambda i: 1,
        "instances": lambda i: 1 / ids.count(i),
        "pairs": other_ids.count,
    }[normaliser]
    kept = [(loss, weight(i)) for loss, i in losses]
    return sum(loss * w for loss, w in kept) / sum(w for _, w in kept)


def mean_of_way(way, losses, normaliser="observations") -> float:
    query_ids = [instance for instance, _, _ in way]
    pairs = list(zip(losses, query_ids, strict=True))
    return weighted(pairs, query_ids, way[0][2], normaliser)


def paired_loops(one, other, scale) -> float:
    return average(
        lse(scale * dot(query, key) for key in keys) - scale * dot(query, keys[n])
        for queries, keys in ((one, other), (other, one))
        for n, query in enumerate(queries)
    )


def unicl_loops(
    observed,
    scale,
    hard_form="out",
    denominator="all",
    score="observations",
    direction_weight=0.5,
    normaliser="observations",
) -> float:
    means = [
        mean_of_way(way, [hard_of(query, hard_form, denominator) for query in way], normaliser)
        for way in ways_of(observed, scale, score)
    ]
    return direction_weight * means[0] + (1 - direction_weight) * means[1]


def one_to_k_loops(observed, scale, divide=True, score="observations", normaliser="observations") -> float:
    loss = unicl_loops(observed, scale, "ones", score=score, normaliser=normaliser)
    if not divide:
        return loss
    both = in_both(observed)
    counts = [sum(i in both for i in ids.tolist()) for ids in observed[2:4]]
    return loss / (max(counts) / len(both))


def supcon_loops(
    observed,
    scale,
    sides="union",
    hard_form="out",
    denominator="all",
    anchors="all",
    lonely="zero",
    base_temperature=None,
    normaliser="observations",
) -> float:
    images, texts, image_ids, text_ids = as_lists(observed)
    ways = {
        "union": lambda: [within_rows(images + texts, image_ids + text_ids, scale)],
        "images": lambda: [within_rows(images, image_ids, scale)],
        "texts": lambda: [within_rows(texts, text_ids, scale)],
        "cross": lambda: list(ways_of(observed, scale)),
    }[sides]()
    means = []
    for way in ways:
        queries = way
        if anchors == "first":
            queries = [q for n, q in enumerate(way) if q[0] not in [instance for instance, _, _ in way[:n]]]
        ids = [instance for instance, _, _ in queries]
        total = weights = 0.0
        for query in queries:
            num_positives = query[2].count(query[0])
            weight = {"observations": 1, "instances": 1 / ids.count(query[0]), "pairs": num_positives}[normaliser]
            if num_positives:
                total += weight * hard_of(query, hard_form, denominator)
            if num_positives or lonely == "zero":
                weights += weight
        means.append(total / weights)
    return average(means) / (1 if base_temperature is None else scale * base_temperature)


def stablerep_loops(observed, scale, image_weight=1.0, cross_weight=1.0, image_temperature=0.1) -> float:
    images = supcon_loops(observed, 1 / image_temperature, sides="images")
    return image_weight * images + cross_weight * unicl_loops(observed, scale)


def milnce_loops(observed, scale, anchors="both") -> float:
    images, texts, image_ids, text_ids = as_lists(observed)

    def one_way(queries, query_ids, keys, key_ids):
        losses = []
        for query, own in zip(queries, query_ids, strict=True):
            if own not in key_ids:
                continue
            bag = rows_of(keys, key_ids, own)
            positives = [scale * dot(query, key) for key in bag]
            denominator = [scale * dot(query, key) for key in keys]
            others = [row for row, i in zip(queries, query_ids, strict=True) if i != own]
            from_bag = [scale * dot(other, key) for other in others for key in bag]
            losses.append(lse(denominator + from_bag + positives) - lse(positives))
        return average(losses)

    ways = {
        "images": one_way(images, image_ids, texts, text_ids),
        "texts": one_way(texts, text_ids, images, image_ids),
    }
    return average(ways.values()) if anchors == "both" else ways[anchors]


def soft_of(query, masses: dict[int, float]) -> float:
    """Cross-entropy against a mass on each instance, spread evenly over the instance's keys."""
    _, scores, key_ids = query
    total = lse(scores)
    return -sum(masses.get(i, 0) / key_ids.count(i) * (s - total) for s, i in zip(scores, key_ids, strict=True))


def soft_clip_loops(
    observed,
    scale,
    soft_source=0.5,
    temperature_use="multiply",
    soft_columns="transposed",
    soft_detach=False,  # has no effect on the value
    direction_weight=0.5,
    normaliser="observations",
) -> float:
    images, texts, image_ids, text_ids = as_lists(observed)
    both = in_both(observed)
    centres = {
        i: [np.mean(rows_of(rows, ids, i), axis=0) for rows, ids in ((images, image_ids), (texts, text_ids))]
        for i in both
    }
    factor = 1 / scale if temperature_use == "multiply" else scale
    related = {}
    for i in both:
        alike = [
            factor * (soft_source * centres[i][0] @ centres[j][0] + (1 - soft_source) * centres[i][1] @ centres[j][1])
            for j in both
        ]
        related |= {(i, j): math.exp(value - lse(alike)) for j, value in zip(both, alike, strict=True)}
    means = []
    for place, way in enumerate(ways_of(observed, scale)):
        turned = place == 0 and soft_columns == "transposed"
        masses = [{j: related[(j, q[0]) if turned else (q[0], j)] for j in both} for q in way]
        losses = [soft_of(query, mass) for query, mass in zip(way, masses, strict=True)]
        means.append(mean_of_way(way, losses, normaliser))
    return direction_weight * means[0] + (1 - direction_weight) * means[1]


def cwcl_loops(observed, scale, image_reference_embeds=None, text_weights="none") -> float:
    images, texts, image_ids, text_ids = as_lists(observed)
    references = images if image_reference_embeds is None else image_reference_embeds.tolist()
    both = in_both(observed)

    def weights(rows, ids, row):
        return {j: dot(row, np.mean(rows_of(rows, ids, j), axis=0)) / 2 + 0.5 for j in both}

    ways = ways_of(observed, scale)
    kept = [row for row, i in zip(references, image_ids, strict=True) if i in text_ids]
    total = 0.0
    for query, row in zip(ways[0], kept, strict=True):
        w = weights(references, image_ids, row)
        total += soft_of(query, {j: value / sum(w.values()) for j, value in w.items()}) / len(ways[0])
    if text_weights == "none":
        return total + average(hard_of(query) for query in ways[1])
    kept = [row for row, i in zip(texts, text_ids, strict=True) if i in image_ids]
    for query, row in zip(ways[1], kept, strict=True):
        w = weights(texts, text_ids, row)
        total += soft_of(query, w) / len(ways[1])
    return total


def hn_nce_loops(observed, scale, alpha=1.0, beta=0.25) -> float:
    total = 0.0
    for way in ways_of(observed, scale):
        losses = []
        for instance, scores, key_ids in way:
            negatives = [s for s, i in zip(scores, key_ids, strict=True) if i != instance]
            norm = sum(math.exp(beta * s) for s in negatives)
            weighed = sum(len(negatives) * math.exp(beta * s) / norm * math.exp(s) for s in negatives)
            positives = [s for s, i in zip(scores, key_ids, strict=True) if i == instance]
            losses.append(average(math.log(alpha * math.exp(s) + weighed) - s for s in positives))
        total += average(losses)
    return total


def public_hn_nce_loops(observed, scale, alpha=1.0, beta=0.25) -> float:
    """As SCA3D has it, one image and one text an instance: image i's weight of text j is divided by j's row sum."""
    scores = np.array(score_rows(observed, scale)[0])
    size = len(scores)
    rows = [sum(math.exp(beta * scores[i, j]) for j in range(size) if j != i) for i in range(size)]
    columns = [sum(math.exp(beta * scores[i, j]) for i in range(size) if i != j) for j in range(size)]
    total = 0.0
    for k in range(size):
        others = [j for j in range(size) if j != k]
        image = sum((size - 1) * math.exp((1 + beta) * scores[k, j]) / rows[j] for j in others)
        text = sum((size - 1) * math.exp((1 + beta) * scores[j, k]) / columns[k] for j in others)
        own = scores[k, k]
        total += sum(math.log(alpha * math.exp(own) + weighed) - own for weighed in (image, text)) / size
    return total


def siglip_loops(observed, scale, bias=-10.0, normaliser="images") -> float:
    scores, image_ids, text_ids = score_rows(observed, scale)
    total, num_pairs = 0.0, 0
    for row, i in zip(scores, image_ids, strict=True):
        for s, j in zip(row, text_ids, strict=True):
            sign = 1 if i == j else -1
            num_pairs += i == j
            total += math.log1p(math.exp(-sign * (s + float(bias))))
    return total / {"images": len(image_ids), "texts": len(text_ids), "pairs": num_pairs}[normaliser]
