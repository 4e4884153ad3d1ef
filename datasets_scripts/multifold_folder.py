"""Any folder of images with a metadata file that lists its instances."""

import csv
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow
import pyarrow.parquet
from datasets import BuilderConfig, DatasetInfo, DownloadManager, Features, SplitGenerator, Value
from PIL import Image

from .schema import FEATURES, REQUIRED_COLUMNS, SPLITS, RowBuilder, RowError, check_row, check_unique, split_of

VERSION = "1.0.0"
MAX_PIXELS = 2**26
BROKEN_CHARS = 60

RawRow = tuple[str, dict[str, object]]  # its place in the metadata, and what stands there


class Listed(NamedTuple):
    """An instance as the metadata lists it, and its place there for messages."""

    place: str
    instance_id: str
    images: list[str]
    captions: list[str]
    category: str | None
    split: str | None
    extra: dict[str, object]


@dataclass
class MultifoldFolderConfig(BuilderConfig):
    """Settings of `MultifoldFolder`.

    The cache's name holds a hash of the metadata and of the size and time of each listed image, so that an edited
    folder is read again.
    """

    version: str = VERSION
    data_dir: str | None = None
    max_pixels: int = MAX_PIXELS  # of one image; larger ones are refused before they are decoded

    def create_config_id(self, config_kwargs: dict[str, object], custom_features: Features | None = None) -> str:
        """The cache's name."""
        check_max_pixels(self.max_pixels)
        if not self.data_dir:
            raise ValueError("`data_dir` must be a folder with a metadata file, got none.")
        self.data_dir = str(Path(self.data_dir).resolve())
        config_kwargs = config_kwargs | {"data_dir": self.data_dir}
        return f"{super().create_config_id(config_kwargs, custom_features)}-{folder_state(Path(self.data_dir))}"


class MultifoldFolder(RowBuilder):
    """A folder with `metadata.jsonl`, `metadata.csv` or `metadata.parquet`, one row an instance.

    Columns: `instance_id`, `images` (paths relative to the folder), `captions`, and optionally `category` and `split`
    (`train`, `validation` or `test` for every row; without it, `split_of` the id). In CSV, `images` and `captions` are
    JSON lists. Further columns pass through: strings, whole numbers, fractions and booleans as they are, a column that
    holds anything else as JSON text.
    """

    BUILDER_CONFIG_CLASS = MultifoldFolderConfig
    DEFAULT_WRITER_BATCH_SIZE = 64

    def _info(self) -> DatasetInfo:
        return DatasetInfo(description="Instances listed in a folder's metadata file.")

    def _split_generators(self, dl_manager: DownloadManager) -> list[SplitGenerator]:
        listed = read_folder(Path(self.config.data_dir))
        self.info.features = Features(FEATURES | extra_features(listed))
        by_split: dict[str, list[Listed]] = {split: [] for split in SPLITS}
        for instance in listed:
            by_split[instance.split or split_of(instance.instance_id)].append(instance)
        return [SplitGenerator(split, {"listed": found}) for split, found in by_split.items() if found]

    def _generate_examples(self, listed: list[Listed]) -> Iterator[tuple[str, dict[str, object]]]:
        folder, max_pixels = Path(self.config.data_dir), self.config.max_pixels
        for instance in listed:
            images = [read_image(folder, name, instance.place, max_pixels) for name in instance.images]
            row = {column: getattr(instance, column) for column in FEATURES} | {"images": images}
            yield instance.instance_id, row | extra_values(instance.extra, self.info.features)


def check_max_pixels(max_pixels: int) -> None:
    """Raise ValueError unless an image of that many pixels can be read back by Pillow without a warning."""
    limit = Image.MAX_IMAGE_PIXELS or MAX_PIXELS
    if not isinstance(max_pixels, int) or not 1 <= max_pixels <= limit:
        raise ValueError(f"`max_pixels` must lie within 1 and Pillow's own limit {limit}, got {max_pixels!r}.")


def metadata_path(folder: Path) -> Path:
    """The folder's metadata file.

    Raises:
        ValueError: If it has none or several.
    """
    names = [f"metadata{suffix}" for suffix in READERS]
    found = [name for name in names if (folder / name).is_file()]
    if len(found) != 1:
        raise ValueError(f"'{folder}' must hold exactly one of {names}, got {found or 'none'}.")
    return folder / found[0]


def has_metadata(folder: Path) -> bool:
    """Whether the folder is one for `MultifoldFolder`."""
    return any((folder / f"metadata{suffix}").is_file() for suffix in READERS)


def read_folder(folder: Path) -> list[Listed]:
    """All rows of the folder's metadata, checked but for what is inside the image files.

    Raises:
        RowError: If a row breaks the schema or names an image that isn't there.
    """
    path = metadata_path(folder)
    listed = [listed_row(place, row, folder) for place, row in READERS[path.suffix](path)]
    if not listed:
        raise RowError(f"'{path}' lists no instance; write one row for each.")
    check_unique((instance.instance_id, instance.place) for instance in listed)
    check_splits(listed)
    return listed


def listed_row(place: str, row: dict[str, object], folder: Path) -> Listed:
    """The row, checked."""
    check_row(row, place)
    checked = cast("dict[str, Any]", row)
    instance_id, images, captions = (checked[column] for column in REQUIRED_COLUMNS)
    category, split = checked.get("category") or None, checked.get("split") or None
    for name in images:
        check_image_path(folder, name, f"{place}, instance `{instance_id}`")
    if split is not None and split not in SPLITS:
        raise RowError(f"{place}: `split` must be one of {list(SPLITS)}, got {split!r}; rename it.")
    extra = {column: value for column, value in row.items() if column not in (*FEATURES, "split")}
    return Listed(place, instance_id, images, captions, category, split, extra)


def check_splits(listed: list[Listed]) -> None:
    """Raise RowError unless every row names a split, or none does."""
    named = [instance.place for instance in listed if instance.split]
    without = [instance.place for instance in listed if not instance.split]
    if named and without:
        raise RowError(f"{without[0]}: `split` is missing, but {named[0]} has one; give every row a split or none.")


def check_image_path(folder: Path, name: object, where: str) -> None:
    """Raise RowError unless the name is that of a file inside the folder."""
    if not isinstance(name, str) or not name:
        raise RowError(f"{where}: every image must be a path, got {name!r}.")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise RowError(
            f"{where}: image paths must be relative and stay inside the folder, got '{name}'; move it there."
        )
    if not (folder / name).is_file():
        raise RowError(f"{where}: image '{name}' isn't in '{folder}'; add the file or take it off the list.")


def read_jsonl(path: Path) -> Iterator[RawRow]:
    """The rows of a JSON-lines file; blank lines are skipped."""
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"{path.name}:{number}"
        row = parse_json(line, place, "one JSON object a line")
        if not isinstance(row, dict):
            raise RowError(f"{place}: expected one JSON object a line, got {shortened(line)}; wrap it in braces.")
        yield place, row


def read_csv(path: Path) -> Iterator[RawRow]:
    """The rows of a CSV file with a header; an empty cell is no value."""
    try:
        reader = csv.DictReader(StringIO(path.read_text(encoding="utf-8-sig"), newline=""), strict=True)
        for row in reader:
            place = f"{path.name}:{reader.line_num}"
            if None in row or None in row.values():
                raise RowError(
                    f"{place}: expected {len(reader.fieldnames or ())} cells as in the header; quote commas."
                )
            folds = {
                column: parse_json(row[column].encode(), f"{place}, `{column}`", 'a JSON list such as ["a", "b"]')
                for column in ("images", "captions")
                if column in row
            }
            yield place, {column: value or None for column, value in row.items()} | folds
    except UnicodeDecodeError as error:
        raise RowError(f"{path.name}: expected UTF-8, got {error}; save it as UTF-8.") from error
    except csv.Error as error:
        raise RowError(
            f"{path.name}:{reader.reader.line_num}: expected CSV, got {error}; check the quotes."
        ) from error


def read_parquet(path: Path) -> Iterator[RawRow]:
    """The rows of a Parquet file."""
    try:
        rows = pyarrow.parquet.read_table(pyarrow.BufferReader(path.read_bytes())).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise RowError(f"'{path}' can't be read as Parquet ({error}); write it again.") from error
    for number, row in enumerate(rows):
        yield f"{path.name}, row {number}", row


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
}


def parse_json(text: bytes, place: str, expected: str) -> object:
    """The JSON value.

    Raises:
        RowError: If it isn't one, with what was expected.
    """
    try:
        return json.loads(text.decode())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RowError(f"{place}: expected {expected}, got {shortened(text)} ({error}); repair it.") from error


def shortened(text: bytes) -> str:
    """The beginning of a text, quoted."""
    readable = text.decode(errors="replace").strip()
    return repr(readable if len(readable) <= BROKEN_CHARS else readable[:BROKEN_CHARS] + "…")


def read_image(folder: Path, name: str, place: str, max_pixels: int) -> dict[str, object]:
    """The image file as it lies there, after decoding it once.

    Raises:
        RowError: If it doesn't decode, or has too many pixels.
    """
    try:
        content = (folder / name).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `max_pixels` is stricter
            with Image.open(BytesIO(content)) as image:
                check_pixels(image.width * image.height, name, place, max_pixels)
                image.load()
    except RowError:
        raise
    except Exception as error:  # each format's decoder fails in its own way
        raise RowError(f"{place}: image '{name}' doesn't decode ({error}); replace it or take it off.") from error
    return {"bytes": content, "path": name}


def check_pixels(pixels: int, name: str, place: str, max_pixels: int) -> None:
    """Raise RowError if an image has more pixels than allowed."""
    if pixels > max_pixels:
        raise RowError(
            f"{place}: image '{name}' has {pixels} pixels, over `max_pixels`={max_pixels}; shrink it or raise the limit."
        )


def extra_features(listed: list[Listed]) -> dict[str, Value]:
    """The type of every column that isn't in the schema, in order of appearance."""
    columns = dict.fromkeys(column for instance in listed for column in instance.extra)
    return {column: column_type(instance.extra.get(column) for instance in listed) for column in columns}


def column_type(values: Iterable[object]) -> Value:
    """`string`, `int64`, `float64` or `bool` where all values are so; else `large_string`, for JSON text."""
    present = [value for value in values if value is not None]
    kinds = {type(value) for value in present}
    if kinds == {int, float}:
        return Value("float64")
    if len(kinds) != 1 or any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in present):
        return Value("large_string")
    return Value({str: "string", int: "int64", float: "float64", bool: "bool"}.get(kinds.pop(), "large_string"))


def extra_values(extra: dict[str, object], features: Features) -> dict[str, object]:
    """The row's further columns, as JSON text where their type is that."""
    return {
        column: json.dumps(extra[column], ensure_ascii=False, default=str)
        if extra.get(column) is not None and feature.dtype == "large_string"
        else extra.get(column)
        for column, feature in features.items()
        if column not in FEATURES
    }


def folder_state(folder: Path) -> str:
    """A hash of the metadata, and of the size and time of each image that it lists."""
    state = hashlib.sha256(metadata_path(folder).read_bytes())
    for instance in read_folder(folder):
        for name in instance.images:
            file = (folder / name).stat()
            state.update(f"{name} {file.st_size} {file.st_mtime_ns}\n".encode())
    return state.hexdigest()[:16]
