"""The captions of Text2Shape: the CSV of the ShapeNet models, and the texts of the primitives."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from datasets.utils.logging import get_logger

from .raw_text import MAX_ROWS, RawRow, read_csv, read_lines, shortened
from .schema import RowError
from .text2shape_splits import check_id

COLUMNS = ("id", "modelId", "description", "category", "topLevelSynsetId", "subSynsetId")
CATEGORY = re.compile(r"[A-Za-z][A-Za-z0-9 _-]{0,63}", re.ASCII)
SYNSET = re.compile(r"[0-9]{7,8}", re.ASCII)
GLUED_SENTENCE = re.compile(r"(?<=[a-z0-9])([.,;!?])(?=[^\W\d_])")

logger = get_logger(__name__)


class Described(NamedTuple):
    """A model and what was written about it, as it stands in the file."""

    place: str
    model_id: str
    category: str
    synset_id: str
    sub_synset_id: str
    captions: list[str]


def read_captions(path: Path, max_rows: int = MAX_ROWS) -> dict[str, Described]:
    """The models of a `captions.tablechair.csv` by id, in order of appearance; a model's rows may lie anywhere.

    Raises:
        RowError: If it isn't such a file, is longer than `max_rows`, or its rows contradict one another.
    """
    models = group_captions(read_csv(path, max_rows))
    if not models:
        raise RowError(f"'{path}' has no captions; get it again.")
    return models


def group_captions(rows: Iterable[RawRow]) -> dict[str, Described]:
    """The models of the CSV's rows by id; rows without a text are left out, which is logged."""
    models: dict[str, Described] = {}
    places: dict[str, str] = {}
    blank: list[str] = []
    for place, row in rows:
        model, caption_id, caption = described_row(row, place)
        if places.setdefault(caption_id, place) != place:
            raise RowError(f"{place}: caption `{caption_id}` is already at {places[caption_id]}; take one out.")
        known = models.setdefault(model.model_id, model)
        if (known.category, known.synset_id) != (model.category, model.synset_id):
            raise RowError(
                f"{place}: model `{model.model_id}` is a {model.category} of synset {model.synset_id}, but at {known.place} "
                f"a {known.category} of {known.synset_id}; repair one."
            )
        (known.captions if caption.strip() else blank).append(caption if caption.strip() else place)
    if blank:
        logger.warning("Left out %d rows without a text, the first at %s.", len(blank), blank[0])
    return models


def described_row(row: dict[str, object], place: str) -> tuple[Described, str, str]:
    """A row's model, without captions yet, and its caption's id and text."""
    missing = [column for column in COLUMNS if column not in row]
    if missing:
        raise RowError(
            f"{place}: expected the columns {list(COLUMNS)}, got none named {missing}; use the original file."
        )
    caption_id, model_id, caption, category, synset_id, sub_synset_id = (str(row[column]) for column in COLUMNS)
    check_id(model_id, place)
    if not CATEGORY.fullmatch(category) or not SYNSET.fullmatch(synset_id):
        raise RowError(
            f"{place}: expected a category such as Chair and a synset id of 8 digits, got {shortened(category)} and "
            f"{shortened(synset_id)}; use the original file."
        )
    return Described(place, model_id, category, synset_id, sub_synset_id, []), caption_id, caption


def read_descriptions(path: Path, max_rows: int = MAX_ROWS) -> list[str]:
    """The descriptions that the primitives of one folder share, one a line."""
    lines = (line.rstrip("\r\n") for _, line in read_lines(path, max_rows))
    return [line for line in lines if line.strip()]


def normalised(caption: str) -> str:
    """A caption in lower case, with a blank behind each sentence and no others than single ones.

    Example:
        >>> normalised("A RED  chair.It has 4.5 legs ")
        'a red chair. it has 4.5 legs'
    """
    text = " ".join(unicodedata.normalize("NFKC", caption).lower().split())
    return GLUED_SENTENCE.sub(r"\1 ", text)
