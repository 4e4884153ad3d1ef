"""Single queries and what they found, in words and pictures: the exhibits of an evaluation's page."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from training.album import Album
from training.evaluation import Evaluation
from training.multifold_retrieval.search import TopItems, top_k
from training.searches import Search, Side

PICTURES_OF_QUERY, PICTURES_OF_ANSWER, LONGEST_TEXT = 4, 1, 280
SHOWN_RELEVANT = 3


class Item(NamedTuple):
    """A query or a gallery item, as it is shown."""

    texts: list[str]
    pictures: list[str]  # data URIs
    name: str  # of its instance; empty for a class


class Answer(NamedTuple):
    """A gallery item that a query found."""

    item: Item
    score: float
    is_hit: bool


class Exhibit(NamedTuple):
    """A query, what it should have found, and what it found, nearest first."""

    query: Item
    category: str
    relevant: list[Item]
    rank: float  # expected rank of the first hit, from 1
    answers: list[Answer]


class Curator:
    """Shows items of the searches of an evaluation.

    Args:
        evaluation: What was evaluated.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.album = Album(evaluation.rows, evaluation.embeddings)
        self.class_names = evaluation.classes.names if evaluation.classes else []

    def exhibits(self, direction: str, items: Sequence[int], k: int) -> list[Exhibit]:
        """Some queries of a direction with the k nearest items of its gallery."""
        search, scores = self.evaluation.searches[direction], self.evaluation.scores[direction]
        ranks = dict(zip(scores.query_rows.tolist(), scores.values["rank"].tolist(), strict=True))
        top = top_items(search, items, k)
        return [
            self._exhibit(search, item, ranks[item], found.tolist(), places.tolist())
            for item, found, places in zip(items, top.scores, top.rows, strict=True)
        ]

    def item(self, side: Side, item: int, num_pictures: int = PICTURES_OF_QUERY) -> Item:
        """A query or gallery item in words and pictures."""
        embeddings, rows = self.evaluation.embeddings, side.rows_of(item)
        if side.unit == "class":
            return Item([self.class_names[item]], [], "")
        if side.unit.startswith("caption"):
            name = embeddings.instance_ids[int(embeddings.text_group_ids[rows[0]])]
            return Item([shortened(embeddings.captions[row]) for row in rows], [], name)
        name = embeddings.instance_ids[int(embeddings.image_group_ids[rows[0]])]
        return Item([], [self.album.picture(row) for row in spread_out(rows, num_pictures)], name)

    def instance(self, group_id: int, num_pictures: int = PICTURES_OF_QUERY) -> Item:
        """An instance by its views alone."""
        embeddings = self.evaluation.embeddings
        rows = (embeddings.image_group_ids == group_id).nonzero()[:, 0].tolist()
        pictures = [self.album.picture(row) for row in spread_out(rows, num_pictures)]
        return Item([], pictures, embeddings.instance_ids[group_id])

    def _exhibit(self, search: Search, item: int, rank: float, scores: list[float], places: list[int]) -> Exhibit:
        queries, gallery = search.queries, search.gallery
        is_relevant = gallery.group_ids == queries.group_ids[item]
        relevant = is_relevant.nonzero()[:SHOWN_RELEVANT, 0].tolist()
        return Exhibit(
            self.item(queries, item),
            self.evaluation.embeddings.categories.get(int(search.query_instances[item]), ""),
            [self.item(gallery, place, PICTURES_OF_ANSWER) for place in relevant],
            rank,
            [
                Answer(self.item(gallery, place, PICTURES_OF_ANSWER), score, bool(is_relevant[place]))
                for place, score in zip(places, scores, strict=True)
            ],
        )


def top_items(search: Search, items: Sequence[int], k: int) -> TopItems:
    """The k nearest gallery items of some queries, or all of a smaller gallery."""
    embeds, sets = rows_of_items(search.queries, items)
    gallery = search.gallery
    k = min(k, len(gallery.group_ids))
    return top_k(embeds, gallery.embeds, k, query_sets=sets, gallery_sets=gallery.sets)


def rows_of_items(side: Side, items: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """The embeddings of some items, and the item of each row, numbered anew, where a row is no item by itself."""
    if side.sets is None:
        return side.embeds[list(items)], None
    parts = [side.embeds[side.sets == item] for item in items]
    return torch.cat(parts), torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))


def spread_out(rows: Sequence[int], count: int) -> list[int]:
    """Up to `count` of the rows, evenly from first to last.

    Example:
        >>> spread_out(range(12), 4)
        [0, 3, 6, 9]
    """
    return [rows[place * len(rows) // count] for place in range(count)] if len(rows) > count else list(rows)


def shortened(text: str) -> str:
    """A text of at most `LONGEST_TEXT` characters, and where it was longer an ellipsis."""
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
