"""Where the doctor reads from: a folder or the splits of a table, row by row, whatever is broken."""

import csv
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset

from .. import nested_folder, webdataset_tars
from ..listed_rows import is_file
from ..multifold_folder import READERS, has_metadata, metadata_path
from ..raw_images import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, ImageRef, read_content
from ..raw_text import BYTE_ORDER_MARK, MAX_LINE, check_header, shortened
from ..schema import UNSTORABLE, RowError
from .findings import CAPTIONS, IMAGES, LooseRow, RawRow

ROWS_AT_ONCE = 50

LooseLine = tuple[str, dict[str, object] | None, str]  # its place, its values or None, why there are none


class FolderSource:
    """A folder in any layout of `MultifoldFolder`; where it has metadata, its rows may be broken in any way."""

    def __init__(self, folder: Path) -> None:
        self.name, self.folder, self.has_metadata = str(folder), folder, has_metadata(folder)
        self.images: list[list[object]] = []  # of each row, as it names them

    def raw_rows(self) -> Iterator[RawRow]:
        """All rows."""
        self.images = []
        for place, values, problem in self.loose_rows():
            self.images.append(as_fold((values or {}).get(IMAGES)))
            yield RawRow(place, None, values, problem)

    def loose_rows(self) -> Iterator[LooseLine]:
        """The rows of the metadata, or those of the layout up to one that can't be read."""
        if self.has_metadata:
            yield from read_metadata(metadata_path(self.folder))
            return
        layout = webdataset_tars if webdataset_tars.is_one(self.folder) else nested_folder
        try:
            for place, values in layout.list_instances(self.folder):
                yield place, values, ""
        except RowError as error:
            yield self.name, None, f"{error} What comes after it was not read."

    def images_of(self, row: int) -> list[bytes | None]:
        """The image files of a row."""
        return [self.read(image) for image in self.images[row]]

    def read(self, image: object) -> bytes | None:
        """One image file, None if it can't be read."""
        try:
            return None if self.image_problem(image) else read_content(self.ref_of(image), "")
        except RowError:
            return None

    def ref_of(self, image: object) -> ImageRef:
        """Where an image lies."""
        return image if isinstance(image, ImageRef) else ImageRef(str(self.folder / str(image)), str(image))

    def image_problem(self, image: object) -> tuple[str, str] | None:
        """What is wrong with an image's path."""
        if isinstance(image, ImageRef):
            return None
        if not is_text(image) or not image:
            return "wrong_type", f"An image must be a path, got {image!r:.80}."
        name = str(image)
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return "outside_image", f"Image '{name}' must be a path inside the folder."
        if not is_file(self.folder / name):
            return "missing_image", f"Image '{name}' isn't in the folder."
        num_bytes = (self.folder / name).stat().st_size
        if num_bytes > MAX_IMAGE_BYTES:
            return "huge_image", f"Image '{name}' has {num_bytes:,} bytes, over {MAX_IMAGE_BYTES:,}."
        return None

    def unlisted_files(self, rows: Sequence[LooseRow]) -> list[str]:
        """Image files in the folder that no row of the metadata lists."""
        if not self.has_metadata:
            return []
        names = {os.path.normpath(name) for row in rows for name in row.images}
        found = (path for path in sorted(self.folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES)
        return [name for path in found if (name := str(path.relative_to(self.folder))) not in names]


class TableSource:
    """Splits that `datasets` has loaded, whose rows may be broken in any way."""

    def __init__(self, name: str, splits: Mapping[str, Dataset]) -> None:
        self.name = name
        self.features = {split: table.features for split, table in splits.items()}
        # Arrow leaves every column as it is stored, images undecoded.
        self.splits = {split: table.with_format("arrow") for split, table in splits.items()}

    def raw_rows(self) -> Iterator[RawRow]:
        """The rows of all splits."""
        for split, table in self.splits.items():
            number = 0
            for batch in table.iter(batch_size=ROWS_AT_ONCE):
                for values in batch.to_pylist():
                    yield RawRow(f"{split}, row {number}", split, self.with_category_name(split, values))
                    number += 1

    def with_category_name(self, split: str, values: dict[str, Any]) -> dict[str, object]:
        """The row, with the name of its category where the table holds its number."""
        feature, category = self.features[split].get("category"), values.get("category")
        if isinstance(feature, ClassLabel) and category is not None:
            return values | {"category": feature.int2str(category) if category >= 0 else None}
        return values

    def images_of(self, row: int) -> list[bytes | None]:
        """The image files of a row."""
        for table in self.splits.values():
            if row < len(table):
                (values,) = table[row : row + 1].to_pylist()
                return [image_bytes(image) for image in as_fold(values.get(IMAGES))]
            row -= len(table)
        raise IndexError(row)

    def image_problem(self, image: object) -> tuple[str, str] | None:
        """Whether there is an image at all."""
        if image is not None and not isinstance(image, dict):
            return "wrong_type", f"An image must be an image, got {image!r:.80}."
        if image_bytes(image) is None:
            return "missing_image", f"{image_name(image, 0)!r} has neither bytes nor a file."
        return None

    def unlisted_files(self, rows: Sequence[LooseRow]) -> list[str]:
        """None: a table has no files beside it."""
        return []


def image_bytes(image: object) -> bytes | None:
    """The image file that a table's cell holds or names, None if neither."""
    if not isinstance(image, dict):
        return None
    content, path = image.get("bytes"), image.get("path")
    if isinstance(content, bytes) or not path or not is_file(Path(path)):
        return content
    try:
        return read_content(ImageRef(path, path), "")
    except RowError:
        return None


def image_name(image: object, number: int) -> str:
    """What to call an image: its path, or its place in the fold."""
    if isinstance(image, ImageRef):
        return image.name
    path = image.get("path") if isinstance(image, dict) else image
    return path if isinstance(path, str) and path else f"image {number}"


def as_fold(value: object) -> list[Any]:
    """A fold, whatever stands there: a single text as a fold of one, and nothing for what can't be one."""
    if isinstance(value, list | tuple):
        return list(value)
    return [value] if isinstance(value, str) and value.strip() else []


def is_text(value: object) -> bool:
    """Whether it is a string that can be stored and read back everywhere."""
    return isinstance(value, str) and not UNSTORABLE.search(value)


def read_metadata(path: Path) -> Iterator[LooseLine]:
    """The rows of a metadata file, or what is wrong with each.

    Raises:
        RowError: If it isn't a regular file: the doctor reads it more than once.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise RowError(f"'{path}' must be a regular file, got a pipe or a device; copy its content to a file.")
    yield from LOOSE_READERS[path.suffix](path)


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The place and the bytes of each line; of a line that is too long, pieces that won't parse."""
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
            yield f"{path.name}:{number}", line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line


def read_loose_jsonl(path: Path) -> Iterator[LooseLine]:
    """The rows of a JSON-lines file."""
    for place, line in read_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError) as error:  # also bytes that aren't UTF-8, and endless brackets
            yield place, None, f"Expected one JSON object a line, got {shortened(line)} ({error})."
            continue
        problem = "" if isinstance(row, dict) else f"Expected an object in braces, got {shortened(line)}."
        yield place, row if isinstance(row, dict) else None, problem


def read_loose_csv(path: Path) -> Iterator[LooseLine]:
    """The rows of a CSV file, its folds JSON lists."""
    reader = csv.reader(line.decode(errors="surrogateescape") for _, line in read_lines(path))
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"{path.name}:{reader.line_num}", None, f"Expected CSV, got {error}; check the quotes."
            continue
        if header is None:
            check_header(cells, f"{path.name}:1")
            header = cells
        elif cells:
            yield read_cells(header, cells, f"{path.name}:{reader.line_num}")


def read_cells(header: Sequence[str], cells: Sequence[str], place: str) -> LooseLine:
    """One row of a CSV file; an empty cell is no value."""
    if len(cells) != len(header):
        return place, None, f"Expected {len(header)} cells as in the header, got {len(cells)}; quote commas."
    if not all(map(is_text, cells)):
        return place, None, "Expected text in UTF-8 without NULs; save the file as UTF-8."
    row: dict[str, object] = {column: cell or None for column, cell in zip(header, cells, strict=True)}
    for column in (IMAGES, CAPTIONS):
        if column in row:
            row[column] = parsed_or_text(str(row[column] or ""))
    return place, row, ""


def parsed_or_text(cell: str) -> object:
    """The cell's JSON value, or its text if it has none."""
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell


def read_loose_parquet(path: Path) -> Iterator[LooseLine]:
    """The rows of a Parquet file."""
    for place, row in READERS[".parquet"](path, 2**31):
        yield place, row, ""


LOOSE_READERS: dict[str, Callable[[Path], Iterator[LooseLine]]] = {
    ".jsonl": read_loose_jsonl,
    ".csv": read_loose_csv,
    ".parquet": read_loose_parquet,
}
