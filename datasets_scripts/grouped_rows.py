"""Data sets with columns of any names, to rows of the schema: rows that share an id become one instance."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from datasets import (
    BuilderConfig,
    Dataset,
    DatasetInfo,
    DownloadManager,
    Features,
    Image,
    IterableDataset,
    LargeList,
    List,
    SplitGenerator,
    Value,
)
from datasets.utils.file_utils import xopen

from .raw_images import MAX_IMAGE_BYTES, MAX_PIXELS, check_image, check_max_pixels
from .schema import FEATURES, RowBuilder, RowError, check_row, is_alike

VERSION = "1.0.0"
STREAM_BATCH = 16  # rows that a stream reads at once


class Columns(NamedTuple):
    """Which columns of a data set hold what; those of images and captions hold one value or a list."""

    instance: str
    images: tuple[str, ...]
    captions: tuple[str, ...]


@dataclass
class GroupedRowsConfig(BuilderConfig):
    """Settings of `GroupedRows`."""

    version: str = VERSION
    source: Mapping[str, Dataset] | None = None  # by split
    columns: Columns | None = None
    max_pixels: int = MAX_PIXELS

    def create_config_id(self, config_kwargs: dict[str, object], custom_features: Features | None = None) -> str:
        """The cache's name, which changes with the source."""
        check_max_pixels(self.max_pixels)
        parts = {split: part._fingerprint for split, part in (self.source or {}).items()}
        return str(super().create_config_id(config_kwargs | {"source": str(parts)}, custom_features))


class GroupedRows(RowBuilder):
    """The rows of a data set, grouped by an id.

    The images and captions of an instance are those of all its rows in order; what a former row has is not taken again
    (data sets with a row for each pair repeat the image in each). `category` is that of the first row that has one;
    other columns are left out.
    """

    BUILDER_CONFIG_CLASS = GroupedRowsConfig
    DEFAULT_WRITER_BATCH_SIZE = 64

    def _info(self) -> DatasetInfo:
        return DatasetInfo(description="Rows grouped by an id.", features=FEATURES.copy())

    def _split_generators(self, dl_manager: DownloadManager) -> list[SplitGenerator]:
        instance = self.config.columns.instance
        return [
            SplitGenerator(split, {"groups": rows_by_id(part, instance, split), "split": split})
            for split, part in self.config.source.items()
        ]

    def _generate_examples(
        self, groups: list[tuple[str, list[int]]], split: str
    ) -> Iterator[tuple[str, dict[str, object]]]:
        part = with_columns(self.config.source[split], self.config.columns).with_format("arrow")
        for instance_id, rows in groups:
            place = f"row {rows[0]} of {split}"
            yield (
                instance_id,
                join_rows(instance_id, part[rows].to_pylist(), self.config.columns, place, self.config.max_pixels),
            )


def group_stream(
    source: IterableDataset, columns: Columns, split: str, max_pixels: int = MAX_PIXELS
) -> IterableDataset:
    """The same of a stream, whose rows of one instance must come one after the other, in one of its files."""
    count = source.num_shards
    sources = [source.shard(num_shards=count, index=index) for index in range(count)]  # a list can be dealt to readers
    arguments = {"sources": sources, "columns": columns, "split": split, "max_pixels": max_pixels}
    return IterableDataset.from_generator(join_runs, features=FEATURES, gen_kwargs=arguments, split=split)


def join_runs(
    sources: list[IterableDataset], columns: Columns, split: str, max_pixels: int
) -> Iterator[dict[str, object]]:
    """A row for each run of rows with one id.

    Raises:
        RowError: If an id comes again after another, or a row is broken.
    """
    seen: set[str] = set()
    rows = enumerate(row for source in sources for row in rows_of(with_columns(source, columns).decode(False)))
    try:
        for instance_id, run in groupby(rows, key=lambda row: id_of(row[1][columns.instance], row[0], split)):
            [(first, values), *others] = run
            if instance_id in seen:
                raise RowError(
                    f"row {first} of {split}: instance `{instance_id}` was in former rows, with others between; a "
                    "stream needs the rows of an instance together: sort them, or load without `streaming`."
                )
            seen.add(instance_id)
            group = [values, *(row for _, row in others)]
            yield join_rows(instance_id, group, columns, f"row {first} of {split}", max_pixels)
    except pyarrow.ArrowException as error:
        raise RowError(f"{split}: the rows can't be read ({error}); get the files again.") from error


def rows_of(source: IterableDataset) -> Iterator[dict[str, Any]]:
    """All rows of a stream, also in a process of a loader: there its own iteration would leave out the others' shares."""
    for batch in source.iter(STREAM_BATCH):
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def with_columns(source: Any, columns: Columns) -> Any:
    """The data set, map-style or streamed, with no more columns than are needed."""
    wanted = dict.fromkeys((columns.instance, *columns.images, *columns.captions, *category_of(features_of(source))))
    return source.select_columns(list(wanted))


def features_of(source: Any) -> Features:
    """The columns of a data set; a stream may have to look at its first row."""
    return source.features or source.take(1)._resolve_features().features


def category_of(features: Features) -> list[str]:
    """The column for `category`, if there is one."""
    return ["category"] if is_alike(features.get("category"), FEATURES["category"]) else []


def rows_by_id(part: Dataset, column: str, split: str) -> list[tuple[str, list[int]]]:
    """Each id with the numbers of its rows, in order of appearance."""
    groups: dict[str, list[int]] = {}
    for row, value in enumerate(part[column]):
        groups.setdefault(id_of(value, row, split), []).append(row)
    return list(groups.items())


def id_of(value: object, row: int, split: str) -> str:
    """An instance's id, as a string.

    Raises:
        RowError: If there is none.
    """
    if value is None or value == "":
        raise RowError(f"row {row} of {split}: the instance column must hold an id, got {value!r}; drop the row.")
    return str(value)


def join_rows(
    instance_id: str, rows: Iterable[Mapping[str, Any]], columns: Columns, place: str, max_pixels: int
) -> dict[str, object]:
    """The row of an instance.

    Raises:
        RowError: If an image is broken, or the row breaks the schema.
    """
    images: dict[bytes, str | None] = {}
    captions: list[str] = []
    categories: list[str] = []
    where = f"{place}, instance `{instance_id}`"
    for row in rows:
        for value in values_of(row, columns.images):
            content, name = image_of(value, where)
            images.setdefault(content, name)
        former = set(captions)
        captions += [value for value in values_of(row, columns.captions) if value not in former]
        categories += [row["category"]] if row.get("category") else []
    for content in images:
        check_image(content, str(images[content]), where, max_pixels)
    joined: dict[str, object] = {
        "instance_id": instance_id,
        "images": [{"bytes": content, "path": name} for content, name in images.items()],
        "captions": captions,
        "category": next(iter(categories), None),
    }
    check_row(joined, place)
    return joined


def values_of(row: Mapping[str, Any], columns: Sequence[str]) -> list[Any]:
    """What stands in these columns, lists unpacked; None is no value."""
    folds = (row[column] if isinstance(row[column], list) else [row[column]] for column in columns)
    return [value for fold in folds for value in fold if value is not None]


def image_of(value: Any, where: str) -> tuple[bytes, str | None]:
    """The bytes and the name of an image as a data set stores it.

    Raises:
        RowError: If they can't be had.
    """
    stored: dict[str, Any] = {"bytes": value} if isinstance(value, bytes) else value
    path = stored.get("path")
    content = stored["bytes"] if stored["bytes"] is not None else read_path(path, where)
    if len(content) > MAX_IMAGE_BYTES:
        raise RowError(f"{where}: image '{path}' has more than {MAX_IMAGE_BYTES} bytes; shrink it.")
    return content, Path(path).name if path else None


def read_path(path: str | None, where: str) -> bytes:
    """The bytes of an image that a data set only names: a local file, or one of the Hub.

    Raises:
        RowError: If it is anything else, or can't be read.
    """
    source = (path or "").rpartition("::")[2]
    if not path or ("://" in source and not source.startswith(("hf://", "file://"))):
        raise RowError(
            f"{where}: images must be embedded, or files of the data set, got {path!r}; download them first."
        )
    try:
        with xopen(path, "rb") as file:
            return file.read(MAX_IMAGE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise RowError(f"{where}: image '{path}' can't be read ({error}); get it again.") from error


def check_chosen(features: Features, columns: Columns, dataset: str) -> None:
    """Check that a data set has these columns, and of types that serve.

    Raises:
        ValueError: If not.
    """
    missing = [name for name in (columns.instance, *columns.images, *columns.captions) if name not in features]
    if missing:
        raise ValueError(f"'{dataset}' has no columns {missing}, it has {list(features)}; choose among these.")
    ids = features[columns.instance]
    if not isinstance(ids, Value) or not ids.dtype.startswith(("string", "large_string", "int", "uint")):
        raise ValueError(f"`instance_column` of '{dataset}' must hold strings or whole numbers, got {ids}; cast it.")
    for name in columns.images:
        if not holds_images(element_of(features[name])):
            raise ValueError(
                f"`image_columns`: '{name}' of '{dataset}' must hold images or lists of them, got {features[name]}; "
                "use `cast_column`."
            )
    for name in columns.captions:
        if not is_alike(element_of(features[name]), FEATURES["captions"].feature):
            raise ValueError(
                f"`caption_columns`: '{name}' of '{dataset}' must hold strings or lists of them, got {features[name]}."
            )


def element_of(feature: Any) -> Any:
    """The type of one value in a column of values or of lists."""
    return feature.feature if isinstance(feature, List | LargeList) else feature


def holds_images(feature: Any) -> bool:
    """Whether values of this type can be images: `Image`, files as bytes, or what `Image` is stored as."""
    if isinstance(feature, dict):
        return "bytes" in feature and holds_images(feature["bytes"])
    return isinstance(feature, Image) or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))
