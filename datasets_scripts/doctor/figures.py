"""Figures of a data set: counts, histograms and lengths, as they stand in the report."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from datasets.utils import tqdm
from numpy.typing import NDArray

from ..schema import SPLITS
from .captions import Captions
from .findings import Corpus, Finding, LooseRow

NO_LIMIT = 10**6  # tokenizers without a limit name a huge one
TEXTS_AT_ONCE = 1000

QUANTILES = ("least", "median", "95 %", "99 %", "most")

Row = dict[str, float]  # by the column's heading
Table = dict[str, Row]  # by what the row is of


class Tokenizer(Protocol):
    """As much of a transformers tokenizer as it takes to count tokens."""

    model_max_length: int

    def __call__(self, text: list[str], *, verbose: bool) -> dict[str, list[list[int]]]:
        """The tokens of each text as `input_ids`."""


def check_lengths(
    corpus: Corpus, captions: Captions, tokenizer: Tokenizer, max_length: int | None
) -> tuple[Row, list[Finding]]:
    """How many tokens the captions have, and those over the limit: `max_length`, else the tokenizer's own."""
    own_limit = tokenizer.model_max_length if tokenizer.model_max_length < NO_LIMIT else None
    limit = max_length or own_limit
    texts, lengths = [corpus.value_at(place) for place in captions.places], []
    for start in tqdm(range(0, len(texts), TEXTS_AT_ONCE), desc="tokens"):
        encoded = tokenizer(texts[start : start + TEXTS_AT_ONCE], verbose=False)["input_ids"]
        lengths += [len(tokens) for tokens in encoded]
    findings = [
        Finding("long_caption", f"{text!r:.80} has {length} tokens, the limit is {limit}.", [place])
        for place, text, length in zip(captions.places, texts, lengths, strict=True)
        if limit is not None and length > limit
    ]
    return quantiles(lengths) | ({"limit": limit} if limit else {}) | {"over the limit": len(findings)}, findings


def quantiles(values: Sequence[int]) -> Row:
    """The least, the median, the 95th and 99th in a hundred, and the most."""
    points = np.percentile(values, (0, 50, 95, 99, 100)) if len(values) else [0] * 5
    return {name: round(float(point), 1) for name, point in zip(QUANTILES, points, strict=True)}


def describe(corpus: Corpus, facts: NDArray[np.void], captions: Captions, dropped: set[int]) -> dict[str, Table]:
    """How many of everything there is, and how it is spread."""
    rows = [row for number, row in enumerate(corpus.rows) if number not in dropped]
    tables = {
        "counts": {
            "instances": by_split(rows, lambda row: 1),
            "images": by_split(rows, lambda row: len(row.images)),
            "captions": by_split(rows, lambda row: len(row.captions)),
        },
        "images per instance": histogram(rows, lambda row: f"{len(row.images)}"),
        "captions per instance": histogram(rows, lambda row: f"{len(row.captions)}"),
        "categories": histogram(rows, lambda row: row.category or "none"),
        "sizes": {
            "width of images": quantiles(facts["width"].tolist()),
            "height of images": quantiles(facts["height"].tolist()),
            "words of captions": quantiles([len(corpus.value_at(place).split()) for place in captions.places]),
        },
    }
    if list(tables["categories"]) == ["none"]:
        del tables["categories"]
    return tables


def splits_in(rows: Sequence[LooseRow]) -> list[str]:
    """The splits of the rows, those of the schema first."""
    found = {row.split for row in rows}
    return [split for split in SPLITS if split in found] + sorted(found - set(SPLITS))


def by_split(rows: Sequence[LooseRow], count: Callable[[LooseRow], int]) -> Row:
    """A count for each split, and for all."""
    counts: Row = dict.fromkeys(splits_in(rows), 0)
    for row in rows:
        counts[row.split] += count(row)
    return counts | {"all": sum(counts.values())}


def histogram(rows: Sequence[LooseRow], label: Callable[[LooseRow], str]) -> Table:
    """How many rows of each split, and of all, have each label; numbers in their order, other labels by frequency."""
    labels = Counter(label(row) for row in rows)
    is_numeric = all(name.isdigit() for name in labels)
    order = sorted(labels, key=int) if is_numeric else [name for name, _ in labels.most_common()]
    by_label: dict[str, list[LooseRow]] = {name: [] for name in order}
    for row in rows:
        by_label[label(row)].append(row)
    zeros = dict.fromkeys(splits_in(rows), 0)
    return {name: zeros | by_split(found, lambda row: 1) for name, found in by_label.items()}
