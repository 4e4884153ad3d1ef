"""Builders that list all instances first, and read their images one row at a time."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from datasets import BuilderConfig, DatasetInfo, DownloadManager, Features, SplitGenerator, Value

from .raw_images import MAX_PIXELS, ImageRef, check_max_pixels, read_image
from .raw_text import MAX_ROWS, RawRow
from .schema import (
    FEATURES,
    REQUIRED_COLUMNS,
    SPLITS,
    RowBuilder,
    RowError,
    check_row,
    check_text,
    check_unique,
    split_of,
)

VERSION = "1.1.0"
MEMORY_PER_ROW = 768  # bytes of a listing, on average: `max_rows` limits its memory as well
MEMORY_PER_VALUE = 100  # about what a short string takes


class JSONText(str):
    """JSON of a value that is no scalar: it takes a twentieth of the memory of what it stands for."""

    __slots__ = ()


class Listed(NamedTuple):
    """An instance as the raw data lists it, and its place there for messages."""

    place: str
    instance_id: str
    images: list[ImageRef]
    captions: list[str]
    category: str | None = None
    split: str | None = None
    extra: dict[str, object] = {}  # noqa: RUF012 (never written to)

    @property
    def memory(self) -> int:
        """About how many bytes it takes."""
        texts = [
            self.place,
            self.instance_id,
            *self.captions,
            *(image.name for image in self.images),
            *map(str, self.extra.values()),
        ]
        return MEMORY_PER_VALUE * (1 + len(texts) + len(self.extra)) + sum(map(len, texts))


@dataclass
class ListedConfig(BuilderConfig):
    """Settings of a builder that lists a folder's instances.

    The cache's name holds a hash of the listing and of the size and time of each file that it names, so that an edited
    folder is read again.
    """

    version: str = VERSION
    data_dir: str | None = None
    max_pixels: int = MAX_PIXELS  # of one image; larger ones are refused before they are decoded
    max_rows: int = MAX_ROWS  # of the raw data; a longer listing is refused
    listed: list[Listed] = field(default_factory=list, init=False, repr=False, compare=False)

    def create_config_id(self, config_kwargs: dict[str, object], custom_features: Features | None = None) -> str:
        """The cache's name. The raw data is listed here, once: it may be a pipe."""
        check_max_pixels(self.max_pixels)
        if not isinstance(self.max_rows, int) or self.max_rows < 1:
            raise ValueError(f"`max_rows` must be a whole number from 1, got {self.max_rows!r}.")
        if not self.data_dir:
            raise ValueError("`data_dir` must be the folder with the raw data, got none.")
        self.data_dir = str(Path(self.data_dir).resolve())
        self.listed = check_listing(self.list_folder(Path(self.data_dir)), self.data_dir, self.max_rows)
        config_kwargs = config_kwargs | {"data_dir": self.data_dir}
        return f"{super().create_config_id(config_kwargs, custom_features)}-{state_of(self.listed)}"

    def list_folder(self, folder: Path) -> Iterable[Listed]:
        """The folder's instances."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, object]:
        """Worker processes get their share of the listing with their task, and not the whole besides."""
        return vars(self) | {"listed": []}


class ListedBuilder(RowBuilder):
    """A builder of what its config lists; images are stored as the bytes they are."""

    DEFAULT_WRITER_BATCH_SIZE = 64

    def _info(self) -> DatasetInfo:
        features = Features(FEATURES | extra_features(self.config.listed))
        return DatasetInfo(description=self.config.description, features=features)

    def _split_generators(self, dl_manager: DownloadManager) -> list[SplitGenerator]:
        by_split: dict[str, list[Listed]] = {split: [] for split in SPLITS}
        for instance in self.config.listed:
            by_split[instance.split or split_of(instance.instance_id)].append(instance)
        return [SplitGenerator(split, {"listed": found}) for split, found in by_split.items() if found]

    def _generate_examples(self, listed: list[Listed]) -> Iterator[tuple[str, dict[str, object]]]:
        for instance in listed:
            yield instance.instance_id, row_of(instance, self.info.features, self.config.max_pixels)


def row_of(instance: Listed, features: Features, max_pixels: int = MAX_PIXELS) -> dict[str, object]:
    """The row, its images read and checked."""
    images = [read_image(image, instance.place, max_pixels) for image in instance.images]
    row = {column: getattr(instance, column) for column in FEATURES} | {"images": images}
    return row | extra_values(instance.extra, features)


def check_listing(listed: Iterable[Listed], source: str, max_rows: int = MAX_ROWS) -> list[Listed]:
    """All instances of a source, checked against one another.

    Raises:
        RowError: If there are none, two have one id, some name a split and some don't, or they are too many.
    """
    kept, memory = [], 0
    for instance in listed:
        kept.append(instance)
        memory += instance.memory
        if len(kept) > max_rows or memory > max_rows * MEMORY_PER_ROW:
            raise RowError(
                f"{instance.place}: expected at most `max_rows`={max_rows} instances of {MEMORY_PER_ROW} bytes on "
                "average, without their images, got more; raise `max_rows` if it is meant to be so large."
            )
    if not kept:
        raise RowError(f"'{source}' lists no instance; write one row for each.")
    check_unique((instance.instance_id, instance.place) for instance in kept)
    check_splits(kept)
    return kept


def listed_row(raw: RawRow, folder: Path) -> Listed:
    """The raw row, checked; its images are paths relative to the folder, or already found."""
    place, row = raw
    check_row(row, place)
    checked = cast("dict[str, Any]", row)
    instance_id, names, captions = (checked[column] for column in REQUIRED_COLUMNS)
    category, split = checked.get("category") or None, checked.get("split") or None
    where = f"{place}, instance `{instance_id}`"
    images = [name if isinstance(name, ImageRef) else image_in(folder, name, where) for name in names]
    if split is not None and (not isinstance(split, str) or split not in SPLITS):
        raise RowError(f"{place}: `split` must be one of {list(SPLITS)}, got {split!r}; rename it.")
    extra = {
        column: extra_value(value, column, where)
        for column, value in row.items()
        if column not in FEATURES and column != "split"
    }
    return Listed(place, instance_id, images, captions, category, split, extra)


def extra_value(value: object, column: str, where: str) -> object:
    """The value of a further column, as JSON text if it isn't a scalar.

    Raises:
        RowError: If it can't be stored.
    """
    check_text(column, f"{where}, column names")
    if value is None or isinstance(value, bool | int | float):
        return value
    try:
        text = value if isinstance(value, str) else JSONText(as_json(value))
    except (ValueError, RecursionError) as error:
        raise RowError(f"{where}: `{column}` can't be stored ({error}); make it simpler.") from error
    check_text(text, f"{where}, `{column}`")
    return text


def image_in(folder: Path, name: object, where: str) -> ImageRef:
    """Where the image of that name lies in the folder.

    Raises:
        RowError: If the name leads out of the folder, or to no file.
    """
    if not isinstance(name, str) or not name:
        raise RowError(f"{where}: every image must be a path, got {name!r}.")
    check_text(name, where)
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise RowError(
            f"{where}: image paths must be relative and stay inside the folder, got '{name}'; move it there."
        )
    if not is_file(folder / name):
        raise RowError(f"{where}: image '{name}' isn't in '{folder}'; add the file or take it off the list.")
    return ImageRef(str(folder / name), name)


def is_file(path: Path) -> bool:
    """Whether there is such a file; not if the name is longer than a file system takes."""
    try:
        return path.is_file()
    except OSError:
        return False


def check_splits(listed: list[Listed]) -> None:
    """Raise RowError unless every row names a split, or none does."""
    named = next((instance.place for instance in listed if instance.split), None)
    without = next((instance.place for instance in listed if not instance.split), None)
    if named and without:
        raise RowError(f"{without}: `split` is missing, but {named} has one; give every row a split or none.")


def extra_features(listed: list[Listed]) -> dict[str, Value]:
    """The type of every column that isn't in the schema, in order of appearance."""
    columns = dict.fromkeys(column for instance in listed for column in instance.extra)
    return {column: column_type(instance.extra.get(column) for instance in listed) for column in columns}


def column_type(values: Iterable[object]) -> Value:
    """`string`, `int64`, `float64` or `bool` where all values are so; else `large_string`, for JSON text."""
    present = [value for value in values if value is not None]
    kinds = {type(value) for value in present}
    if any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in present):
        return Value("large_string")
    if kinds == {int, float}:
        return Value("float64")
    if len(kinds) != 1:
        return Value("large_string")
    return Value({str: "string", int: "int64", float: "float64", bool: "bool"}.get(kinds.pop(), "large_string"))


def extra_values(extra: dict[str, object], features: Features) -> dict[str, object]:
    """The row's further columns, as JSON text where their type is that."""
    return {
        column: as_json(extra[column])
        if extra.get(column) is not None and feature.dtype == "large_string"
        else extra.get(column)
        for column, feature in features.items()
        if column not in FEATURES
    }


def as_json(value: object) -> str:
    """The value as JSON text."""
    return value if isinstance(value, JSONText) else json.dumps(value, ensure_ascii=False, default=str)


def state_of(listed: list[Listed]) -> str:
    """A hash of the listing, and of the size and time of each file that it names."""
    state = hashlib.sha256()
    for instance in listed:
        state.update(repr(instance).encode())
    for file in dict.fromkeys(image.file for instance in listed for image in instance.images):
        found = Path(file).stat()
        state.update(f"{file} {found.st_size} {found.st_mtime_ns}\n".encode())
    return state.hexdigest()[:16]
