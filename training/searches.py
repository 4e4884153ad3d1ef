"""What searches what under a protocol: queries and gallery of each direction, and the observations they came from."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from modeling_mxmclr.folds_mxmclr import FOLD_POOLINGS, unit_norm
from training.protocol import Protocol


class Embeddings(NamedTuple):
    """A split of a data set as a model sees it, one row per observation."""

    image_embeds: Tensor  # (num_images, dim), unit norm
    image_group_ids: Tensor  # (num_images,), int64
    text_embeds: Tensor  # (num_texts, dim), unit norm
    text_group_ids: Tensor  # (num_texts,), int64
    captions: list[str]  # the text of each row of `text_embeds`
    instance_ids: dict[int, str]  # by group id
    categories: dict[int, str]  # by group id, where the data set has them


class ClassEmbeddings(NamedTuple):
    """The classes of a zero-shot search."""

    names: list[str]
    embeds: Tensor  # (num_classes, dim), unit norm


class Side(NamedTuple):
    """The items of one side of a search, as `score_queries` takes them, and which observations each shows."""

    unit: str  # what an item is: "image", "instance", "caption", "captions" or "class"
    embeds: Tensor  # (num_rows, dim), unit norm; one row an item unless there are `sets`
    group_ids: Tensor  # (num_items,) int64, equal where query and gallery item are relevant to each other
    sets: Tensor | None  # (num_rows,) int64 ascending, the item of each row, which then scores by its best one
    rows: Tensor  # (num_observations,) int64, rows of `Embeddings`' images or texts; for a class its number
    items: Tensor  # (num_observations,) int64, the item that each of `rows` belongs to

    def rows_of(self, item: int) -> list[int]:
        """The rows of `Embeddings` that an item shows, in their order."""
        return self.rows[self.items == item].tolist()


class Search(NamedTuple):
    """One direction: every query ranks the whole gallery."""

    queries: Side
    gallery: Side
    query_instances: Tensor  # (num_queries,) int64, the group id of each query's instance


def searches(embeddings: Embeddings, protocol: Protocol, classes: ClassEmbeddings | None = None) -> dict[str, Search]:
    """The searches of a protocol by direction, in its order.

    Args:
        embeddings: All observations of a split.
        protocol: What is searched by what.
        classes: Needed where classes are searched, see `training.zero_shot.embed_classes`.

    Example:
        Two views and three captions of two instances, and the captions of each fused into one query:

        >>> from dataclasses import replace
        >>> from training.protocol import load_protocol
        >>> eye, ids = torch.eye(3), torch.tensor([7, 7, 8])
        >>> names = {7: "chair-0", 8: "table-0"}
        >>> shown = Embeddings(eye[:2], ids[1:], eye, ids, ["a chair", "a seat", "a table"], names, {})
        >>> protocol = replace(load_protocol("multifold/instance"), captions_per_query=None)
        >>> queries = searches(shown, protocol)["text_to_instance"].queries
        >>> queries.group_ids.tolist(), queries.rows_of(0)
        ([7, 8], [0, 1])
    """
    if protocol.gallery_unit == "class":
        return _class_searches(embeddings, protocol, classes)
    kept = kept_captions(embeddings, protocol)
    images, captions = image_side(embeddings, protocol.pooling), caption_side(embeddings, kept, 1)
    texts = (
        captions if protocol.captions_per_query == 1 else caption_side(embeddings, kept, protocol.captions_per_query)
    )
    found = {
        "text_to_instance": Search(texts, images, texts.group_ids),
        "instance_to_text": Search(images, captions, images.group_ids),
    }
    return {direction: found[direction] for direction in protocol.directions}


def image_side(embeddings: Embeddings, pooling: str) -> Side:
    """Every view for pooling `none`, else every instance with views, by ascending group id."""
    embeds, group_ids = embeddings.image_embeds, embeddings.image_group_ids
    if pooling == "none":
        rows = torch.arange(len(embeds))
        return Side("image", embeds, group_ids, None, rows, rows)
    distinct, index = group_ids.unique(return_inverse=True)
    rows = index.argsort(stable=True)
    items = index[rows]
    if pooling == "max_sim":
        return Side("instance", embeds[rows], distinct, items, rows, items)
    pooled = unit_norm(FOLD_POOLINGS[pooling](embeds.float(), index, len(distinct)))
    return Side("instance", pooled, distinct, None, rows, items)


def caption_side(embeddings: Embeddings, kept: Tensor, captions_per_item: int | None) -> Side:
    """Every so many captions that follow each other in an instance, fused into their unit-norm mean.

    Args:
        embeddings: All observations of a split.
        kept: Rows of its texts that take part, ascending.
        captions_per_item: 1 fuses none and keeps the order; None fuses all. An instance's last item may hold fewer.
    """
    embeds, group_ids = embeddings.text_embeds, embeddings.text_group_ids
    if captions_per_item == 1:
        whole = len(kept) == len(embeds)  # spare a copy
        return Side("caption", embeds if whole else embeds[kept], group_ids[kept], None, kept, torch.arange(len(kept)))
    _, index = group_ids[kept].unique(return_inverse=True)
    chunks = places_in_folds(index) // (captions_per_item or max(1, len(kept)))
    pairs, index = torch.stack([index, chunks], dim=1).unique(dim=0, return_inverse=True)
    fused = unit_norm(FOLD_POOLINGS["mean"](embeds[kept].float(), index, len(pairs)))
    order = index.argsort(stable=True)
    first = torch.searchsorted(index[order], torch.arange(len(pairs)))
    return Side("captions", fused, group_ids[kept[order[first]]], None, kept[order], index[order])


def places_in_folds(group_ids: Tensor) -> Tensor:
    """How many rows of the same instance come before each row, `(num_rows,)` int64.

    Example:
        >>> places_in_folds(torch.tensor([7, 8, 7, 7, 8])).tolist()
        [0, 0, 1, 2, 1]
    """
    sorted_ids, order = group_ids.sort(stable=True)
    places = torch.arange(len(order)) - torch.searchsorted(sorted_ids, sorted_ids)
    return torch.empty_like(order).index_copy(0, order, places)


def kept_captions(embeddings: Embeddings, protocol: Protocol) -> Tensor:
    """Rows of the captions that take part: duplicates dropped first, then so many of each instance kept; ascending.

    Raises:
        ValueError: If the protocol leaves none.
    """
    captions, group_ids = embeddings.captions, embeddings.text_group_ids
    rows = list(range(len(captions)))
    if protocol.identical_captions != "keep":
        rows = first_copies(captions, group_ids.tolist())
    if protocol.identical_captions == "drop_shared":
        owners = owners_of(captions, group_ids.tolist())
        rows = [row for row in rows if len(owners[captions[row]]) == 1]
    if captions and not rows:
        raise ValueError("`identical_captions: drop_shared` leaves no caption: each text has several instances.")
    kept = torch.tensor(rows, dtype=torch.int64)
    if protocol.captions_per_instance is None:
        return kept
    return kept[places_in_folds(group_ids[kept]) < protocol.captions_per_instance]


def first_copies(captions: Sequence[str], group_ids: Sequence[int]) -> list[int]:
    """Rows of the first copy of each text of each instance, ascending.

    Example:
        >>> first_copies(["a chair", "a chair", "a chair", "a red chair"], [7, 7, 8, 8])
        [0, 2, 3]
    """
    row_of: dict[tuple[str, int], int] = {}
    for row, key in enumerate(zip(captions, group_ids, strict=True)):
        row_of.setdefault(key, row)
    return list(row_of.values())


def owners_of(captions: Sequence[str], group_ids: Sequence[int]) -> dict[str, set[int]]:
    """By text, the instances that have it."""
    owners: dict[str, set[int]] = defaultdict(set)
    for caption, group_id in zip(captions, group_ids, strict=True):
        owners[caption].add(group_id)
    return owners


def _class_searches(embeddings: Embeddings, protocol: Protocol, classes: ClassEmbeddings | None) -> dict[str, Search]:
    if classes is None:
        raise ValueError(f"`classes` is needed for '{protocol.name}'; `training.zero_shot.embed_classes` gives it.")
    numbers = torch.arange(len(classes.names))
    gallery = Side("class", classes.embeds, numbers, None, numbers, numbers)
    poolings = {"image_to_class": "none", "instance_to_class": protocol.pooling}
    found = {}
    for direction in protocol.directions:
        side = image_side(embeddings, poolings[direction])
        class_of = {name: number for number, name in enumerate(classes.names)}
        of_query = [class_of.get(embeddings.categories.get(each, ""), -1) for each in side.group_ids.tolist()]
        found[direction] = Search(
            side._replace(group_ids=torch.tensor(of_query, dtype=torch.int64)), gallery, side.group_ids
        )
    return found
