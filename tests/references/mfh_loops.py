"""The hybrid loss and CLIP's loss as their definitions read: nested loops over plain floats."""

import math

from modeling_mxmclr.folds_mxmclr import Observations
from tests.references.objective_loops import (
    as_lists,
    average,
    dot,
    hard_of,
    in_both,
    lse,
    mean_of_way,
    paired_loops,
    rows_of,
    soft_of,
    ways_of,
)


def unit_mean(rows):
    mean = [average(column) for column in zip(*rows, strict=True)]
    norm = math.sqrt(dot(mean, mean))
    return [x / norm for x in mean]


def mfh_loops(
    observed: Observations,
    scale: float,
    soft_weight=0.5,
    soft_source=0.5,
    soft_temperature=None,
    soft_columns="own",
    soft_level="instance",
    soft_detach=True,  # has no effect on the value
    hard_form="out",
    denominator="all",
    score="observations",
    direction_weight=0.5,
    normaliser="observations",
    image_teacher_embeds=None,
    text_teacher_embeds=None,
) -> float:
    images, texts, image_ids, text_ids = as_lists(observed)
    images, texts = (
        rows if given is None else given.tolist()
        for rows, given in ((images, image_teacher_embeds), (texts, text_teacher_embeds))
    )
    both = in_both(observed)
    image_centres, text_centres = (
        {i: unit_mean(rows_of(rows, ids, i)) for i in both} for rows, ids in ((images, image_ids), (texts, text_ids))
    )
    soft_scale = scale if soft_temperature is None else 1 / soft_temperature

    def related(image, text):
        """The mass on each instance, for what stands for a query in each modality."""
        alike = [
            soft_scale * (soft_source * dot(image, image_centres[j]) + (1 - soft_source) * dot(text, text_centres[j]))
            for j in both
        ]
        return {j: math.exp(value - lse(alike)) for j, value in zip(both, alike, strict=True)}

    between = {i: related(image_centres[i], text_centres[i]) for i in both}

    def masses(place):
        """For each query of a direction, its mass on each instance."""
        rows, ids = ((images, image_ids), (texts, text_ids))[place]
        if soft_level == "observation":
            kept = [(row, i) for row, i in zip(rows, ids, strict=True) if i in both]
            return [related(row, text_centres[i]) if place == 0 else related(image_centres[i], row) for row, i in kept]
        queries = [query[0] for query in ways_of(observed, scale, score)[place]]
        if soft_columns == "transposed" and place == 0:
            return [{j: between[j][i] for j in both} for i in queries]
        return [between[i] for i in queries]

    directions = []
    for place, way in enumerate(ways_of(observed, scale, score)):
        hard = [hard_of(query, hard_form, denominator) for query in way]
        soft = [soft_of(query, mass) for query, mass in zip(way, masses(place), strict=True)]
        directions.append(
            (1 - soft_weight) * mean_of_way(way, hard, normaliser) + soft_weight * mean_of_way(way, soft, normaliser)
        )
    return direction_weight * directions[0] + (1 - direction_weight) * directions[1]


def clip_loops(observed: Observations, scale: float) -> float:
    images, texts, image_ids, text_ids = as_lists(observed)
    both = in_both(observed)
    first_images = [rows_of(images, image_ids, i)[0] for i in both]
    first_texts = [rows_of(texts, text_ids, i)[0] for i in both]
    return paired_loops(first_images, first_texts, scale)
