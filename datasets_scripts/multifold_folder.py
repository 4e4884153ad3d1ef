"""Any folder of images: one with a metadata file, one with a folder an instance, or one of tar files."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet

from . import nested_folder, webdataset_tars
from .listed_rows import MEMORY_PER_ROW, Listed, ListedBuilder, ListedConfig, listed_row
from .raw_text import MAX_ROWS, RawRow, parse_json, read_csv, read_jsonl
from .schema import RowError

PARQUET_BATCH = 64  # rows; a few bytes of a file can stand for a long text in each of them


@dataclass
class MultifoldFolderConfig(ListedConfig):
    """Settings of `MultifoldFolder`."""

    description: str | None = "Instances of a folder."

    def list_folder(self, folder: Path) -> Iterable[Listed]:
        """The folder's instances."""
        return list_folder(folder, self.max_rows)


class MultifoldFolder(ListedBuilder):
    """A folder in one of three layouts.

    - `metadata.jsonl`, `metadata.csv` or `metadata.parquet`, one row an instance. Columns: `instance_id`, `images`
      (paths relative to the folder), `captions`, and optionally `category` and `split` (`train`, `validation` or
      `test`). In CSV, `images` and `captions` are JSON lists. Further columns pass through: strings, whole numbers,
      fractions and booleans as they are, a column that holds anything else as JSON text.
    - Nested folders, one an instance: see `nested_folder.list_instances`.
    - WebDataset tar files, one sample an instance: see `webdataset_tars.list_instances`.

    Every row names a split, or none does; then it is `split_of` the id.
    """

    BUILDER_CONFIG_CLASS = MultifoldFolderConfig


def list_folder(folder: Path, max_rows: int = MAX_ROWS) -> Iterator[Listed]:
    """The instances of a folder in any layout.

    Raises:
        ValueError: If it is in none.
        RowError: If a row breaks the schema or names an image that isn't there.
    """
    if has_metadata(folder):
        path = metadata_path(folder)
        rows = READERS[path.suffix](path, max_rows)
    elif webdataset_tars.is_one(folder):
        rows = webdataset_tars.list_instances(folder)
    elif nested_folder.is_one(folder):
        rows = nested_folder.list_instances(folder, max_rows)
    else:
        raise ValueError(f"'{folder}' must hold {LAYOUTS}, got none of them.")
    return (listed_row(row, folder) for row in rows)


def is_multifold_folder(folder: Path) -> bool:
    """Whether the folder is in a layout for `MultifoldFolder`."""
    return has_metadata(folder) or webdataset_tars.is_one(folder) or nested_folder.is_one(folder)


def metadata_path(folder: Path) -> Path:
    """The folder's metadata file, or the pipe in its place.

    Raises:
        ValueError: If it has none or several.
    """
    found = [name for name in METADATA if (folder / name).exists()]
    if len(found) != 1:
        raise ValueError(f"'{folder}' must hold exactly one of {METADATA}, got {found or 'none'}.")
    return folder / found[0]


def has_metadata(folder: Path) -> bool:
    """Whether the folder has a metadata file."""
    return any((folder / name).exists() for name in METADATA)


def read_metadata_csv(path: Path, max_rows: int = MAX_ROWS) -> Iterator[RawRow]:
    """The rows of a CSV file whose folds are JSON lists; an empty cell is no value."""
    for place, row in read_csv(path, max_rows):
        folds = {
            column: parse_json(str(row[column]), f"{place}, `{column}`", 'a JSON list such as ["a", "b"]')
            for column in ("images", "captions")
            if column in row
        }
        yield place, {column: value or None for column, value in row.items()} | folds


def read_parquet(path: Path, max_rows: int = MAX_ROWS) -> Iterator[RawRow]:
    """The rows of a Parquet file.

    Raises:
        RowError: If it isn't one, or says that it is too large.
    """
    try:
        with pyarrow.parquet.ParquetFile(pyarrow.OSFile(str(path))) as file:
            check_parquet_size(file.metadata, path, max_rows)
            batches = file.iter_batches(batch_size=PARQUET_BATCH)
            for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
                yield f"{path.name}, row {number}", row
    except RowError:
        raise
    except Exception as error:  # besides Arrow's own errors also KeyError, OverflowError and UnicodeDecodeError
        raise RowError(f"'{path}' can't be read as Parquet ({error}); write it again.") from error


def check_parquet_size(metadata: pyarrow.parquet.FileMetaData, path: Path, max_rows: int) -> None:
    """Raise RowError if a Parquet file has more than `max_rows` rows, or more than fit in memory with them."""
    memory = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    if metadata.num_rows > max_rows or memory > max_rows * MEMORY_PER_ROW:
        raise RowError(
            f"{path.name}: expected at most `max_rows`={max_rows} rows of {MEMORY_PER_ROW} bytes on average, got "
            f"{metadata.num_rows} rows of {memory} bytes together; raise `max_rows` if the file is meant to be so large."
        )


READERS: dict[str, Callable[..., Iterator[RawRow]]] = {
    ".jsonl": read_jsonl,
    ".csv": read_metadata_csv,
    ".parquet": read_parquet,
}
METADATA = [f"metadata{suffix}" for suffix in READERS]
LAYOUTS = f"one of {METADATA}, `*.tar` files, or a folder with `captions.txt` for each instance"
