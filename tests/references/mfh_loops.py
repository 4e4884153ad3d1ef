"""The hybrid loss and CLIP's loss as their definitions read: nested loops over plain floats."""

import math

from modeling_mxmclr.folds_mxmclr import Observations


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit_mean(rows):
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    norm = math.sqrt(dot(mean, mean))
    return [x / norm for x in mean]


def as_lists(observed: Observations):
    return tuple(tensor.tolist() for tensor in observed)


def log_likelihood(query, keys, place, scale):
    return scale * dot(query, keys[place]) - math.log(sum(math.exp(scale * dot(query, key)) for key in keys))


def hard_of_query(query, query_id, keys, key_ids, scale, form):
    terms = [log_likelihood(query, keys, j, scale) for j in range(len(keys)) if key_ids[j] == query_id]
    if form == "out":
        return -sum(terms) / len(terms)
    if form == "in":
        return -math.log(sum(math.exp(term) for term in terms) / len(terms))
    return -sum(terms)


def soft_of_query(query, query_id, keys, key_ids, scale, target):
    """`target(query_instance, key_instance)` is the mass of a key's whole fold."""
    return -sum(
        target(query_id, key_ids[j]) / key_ids.count(key_ids[j]) * log_likelihood(query, keys, j, scale)
        for j in range(len(keys))
    )


def related_instances(images, texts, image_ids, text_ids, image_share, soft_scale):
    both = sorted(set(image_ids) & set(text_ids))
    centre = {
        side: {i: unit_mean([row for row, owner in zip(rows, ids, strict=True) if owner == i]) for i in both}
        for side, rows, ids in (("image", images, image_ids), ("text", texts, text_ids))
    }
    related = {}
    for i in both:
        alike = {
            j: image_share * dot(centre["image"][i], centre["image"][j])
            + (1 - image_share) * dot(centre["text"][i], centre["text"][j])
            for j in both
        }
        total = sum(math.exp(soft_scale * value) for value in alike.values())
        for j in both:
            related[i, j] = math.exp(soft_scale * alike[j]) / total
    return related


def weighted(losses, ids, other_ids, normaliser):
    weight = {
        "observations": lambda i: 1,
        "instances": lambda i: 1 / ids.count(i),
        "pairs": other_ids.count,
    }[normaliser]
    kept = [(loss, weight(i)) for loss, i in losses]
    return sum(loss * w for loss, w in kept) / sum(w for _, w in kept)


def mfh_loops(
    observed: Observations,
    scale: float,
    soft_weight=0.5,
    soft_source=0.5,
    soft_temperature=None,
    soft_columns="own",
    soft_detach=True,  # has no effect on the value
    hard_form="out",
    direction_weight=0.5,
    normaliser="observations",
) -> float:
    images, texts, image_ids, text_ids = as_lists(observed)
    soft_scale = scale if soft_temperature is None else 1 / soft_temperature
    related = related_instances(images, texts, image_ids, text_ids, soft_source, soft_scale)

    def own(query_id, key_id):
        return related.get((query_id, key_id), 0)

    def transposed(query_id, key_id):
        return related.get((key_id, query_id), 0)

    sides = [
        (images, image_ids, texts, text_ids, transposed if soft_columns == "transposed" else own),
        (texts, text_ids, images, image_ids, own),
    ]
    directions = []
    for queries, query_ids, keys, key_ids, target in sides:
        kept = [(query, i) for query, i in zip(queries, query_ids, strict=True) if i in key_ids]
        hard = [(hard_of_query(query, i, keys, key_ids, scale, hard_form), i) for query, i in kept]
        soft = [(soft_of_query(query, i, keys, key_ids, scale, target), i) for query, i in kept]
        directions.append(
            (1 - soft_weight) * weighted(hard, query_ids, key_ids, normaliser)
            + soft_weight * weighted(soft, query_ids, key_ids, normaliser)
        )
    return direction_weight * directions[0] + (1 - direction_weight) * directions[1]


def clip_loops(observed: Observations, scale: float) -> float:
    images, texts, image_ids, text_ids = as_lists(observed)
    both = sorted(set(image_ids) & set(text_ids))
    first_images = [images[image_ids.index(i)] for i in both]
    first_texts = [texts[text_ids.index(i)] for i in both]
    total = 0.0
    for n in range(len(both)):
        total -= log_likelihood(first_images[n], first_texts, n, scale)
        total -= log_likelihood(first_texts[n], first_images, n, scale)
    return total / (2 * len(both))
