"""The one row schema of every data set, the split by hash, and what makes a row valid."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypedDict

import PIL.Image
from datasets import Features, GeneratorBasedBuilder, Image, LargeList, List, Value
from datasets.exceptions import DatasetGenerationError

FEATURES = Features(
    {
        "instance_id": Value("string"),
        "images": List(Image()),
        "captions": List(Value("string")),
        "category": Value("string"),
    }
)
REQUIRED_COLUMNS = ("instance_id", "images", "captions")
SPLITS = ("train", "validation", "test")
SPLIT_ENDS = (0.7, 0.8, 1.0)
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
SPLIT_NAMES = {split: split for split in SPLITS} | dict.fromkeys(("val", "valid", "dev"), "validation")


class Row(TypedDict):
    """A row as it is read from a data set."""

    instance_id: str
    images: list[PIL.Image.Image]
    captions: list[str]
    category: str | None


class RowError(ValueError):
    """Raw data that cannot become a row; the message names the row, the rule and the cure."""


def split_of(instance_id: str, salt: str = "") -> str:
    """The split an instance belongs to: 70 % train, 10 % validation, 20 % test, by the hash of its id.

    Example:
        >>> split_of("1f600", salt="mxm-emoji-0:")
        'test'
    """
    digest = hashlib.sha256((salt + instance_id).encode()).digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    return next(split for split, end in zip(SPLITS, SPLIT_ENDS, strict=True) if fraction < end)


def check_row(row: Mapping[str, object], where: str) -> None:
    """Check one raw row; `where` is its place in the raw data, for the message.

    Raises:
        RowError: If a column is missing or of the wrong type, or the row holds neither an image nor a caption.
    """
    for column in REQUIRED_COLUMNS:
        if column not in row:
            raise RowError(f"{where}: `{column}` is missing; every row needs {list(REQUIRED_COLUMNS)}.")
    instance_id = row["instance_id"]
    if not isinstance(instance_id, str) or not instance_id:
        raise RowError(f"{where}: `instance_id` must be a non-empty string, got {instance_id!r}.")
    for column in ("images", "captions"):
        check_fold(row[column], column, f"{where}, instance `{instance_id}`")
    if not row["images"] and not row["captions"]:
        raise RowError(f"{where}: instance `{instance_id}` has neither images nor captions; give it one or drop it.")
    if not isinstance(row.get("category") or "", str):
        raise RowError(f"{where}, instance `{instance_id}`: `category` must be a string, got {row['category']!r}.")
    for text in (instance_id, row.get("category") or ""):
        check_text(str(text), where)


def check_fold(fold: object, column: str, where: str) -> None:
    """Check that a fold is a list, and that captions are strings with something in them.

    Raises:
        RowError: If it isn't so.
    """
    if not isinstance(fold, list | tuple):
        raise RowError(f"{where}: `{column}` must be a list, got {fold!r}; wrap a single one as `[...]`.")
    if column != "captions":
        return
    for caption in fold:
        if not isinstance(caption, str) or not caption.strip():
            raise RowError(f"{where}: every caption must be a non-blank string, got {caption!r}; drop or quote it.")
        check_text(caption, where)


def check_text(text: str, where: str) -> None:
    """Check that a text can be stored and read back everywhere.

    Raises:
        RowError: If it holds a NUL, or half of a surrogate pair (as JSON can write it), which UTF-8 has no bytes for.
    """
    if UNSTORABLE.search(text):
        raise RowError(f"{where}: text must have neither NULs nor lone surrogates, got {text[:60]!r}; take them out.")


def check_unique(ids_and_places: Iterable[tuple[str, str]]) -> None:
    """Check that no instance id comes twice in the whole data set, whichever the split.

    Raises:
        RowError: If one does; both places are named. (`datasets` accepts equal keys in silence.)
    """
    first_place: dict[str, str] = {}
    for instance_id, place in ids_and_places:
        if instance_id in first_place:
            raise RowError(
                f"`instance_id` must be unique, got {instance_id!r} at {first_place[instance_id]} and at {place}; "
                "merge the two rows into one instance or rename one."
            )
        first_place[instance_id] = place


def check_columns(features: Features, dataset: str) -> None:
    """Check that a data set made elsewhere has the columns of the schema; `category` and others may be there or not.

    Raises:
        ValueError: If one is missing or of another type.
    """
    missing = [column for column in REQUIRED_COLUMNS if column not in features]
    if missing:
        raise ValueError(
            f"'{dataset}' lacks the columns {missing}, it has {list(features)}; rename or build them, one row an instance."
        )
    for column in REQUIRED_COLUMNS:
        if not is_alike(features[column], FEATURES[column]):
            raise ValueError(
                f"`{column}` of '{dataset}' must be {FEATURES[column]}, got {features[column]}; use `cast_column`."
            )


def is_alike(feature: object, wanted: object) -> bool:
    """Whether a column's type serves for the one wanted: strings may be large, images stored in any way."""
    if isinstance(wanted, List):
        return isinstance(feature, List | LargeList) and is_alike(feature.feature, wanted.feature)
    if isinstance(wanted, Image):
        return isinstance(feature, Image)
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string", "string_view")


class RowBuilder(GeneratorBasedBuilder):
    """A builder whose `RowError`s reach the caller as they are, also from a worker process."""

    def _prepare_split_single(self, *args: object, **kwargs: object) -> Iterator[object]:
        # `datasets` wraps whatever goes wrong in "An error occurred while generating the dataset", and the cause
        # does not survive the way out of a worker.
        try:
            yield from super()._prepare_split_single(*args, **kwargs)
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, RowError):
                raise error.__cause__ from None
            raise
