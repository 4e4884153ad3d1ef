"""Single queries and what they retrieve, for pictures."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from training.searches import Embeddings, image_side


class Neighbour(NamedTuple):
    """A gallery instance that a query retrieved."""

    group_id: int
    instance_id: str
    score: float
    is_hit: bool


def nearest_instances(embeddings: Embeddings, text_rows: Sequence[int], k: int = 5) -> list[list[Neighbour]]:
    """The k nearest mean-pooled instances of each of these captions, nearest first; fewer in a smaller gallery."""
    instances = image_side(embeddings, "mean")
    scores = embeddings.text_embeds[list(text_rows)].float() @ instances.embeds.T
    ranked = scores.sort(dim=1, descending=True, stable=True)
    neighbours = []
    for text_row, values, places in zip(text_rows, ranked.values[:, :k], ranked.indices[:, :k], strict=True):
        target = int(embeddings.text_group_ids[text_row])
        found = zip(instances.group_ids[places].tolist(), values.tolist(), strict=True)
        neighbours.append([Neighbour(i, embeddings.instance_ids[i], score, i == target) for i, score in found])
    return neighbours


def sample_queries(embeddings: Embeddings, count: int, seed: int = 0) -> list[int]:
    """Rows of up to `count` captions drawn at random, of as many different instances, all of them in the gallery."""
    with_images = set(embeddings.image_group_ids.tolist())
    order = torch.randperm(len(embeddings.captions), generator=torch.Generator().manual_seed(seed))
    row_of: dict[int, int] = {}
    for row in order.tolist():
        group_id = int(embeddings.text_group_ids[row])
        if group_id in with_images and len(row_of) < count:
            row_of.setdefault(group_id, row)
    return list(row_of.values())
