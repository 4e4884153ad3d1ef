"""Rows to Parquet files and back: a file is planned, written beside its place and renamed, so that none is half there."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.compute
import pyarrow.parquet
from datasets import Features, IterableDataset
from datasets.iterable_dataset import ExamplesIterable
from datasets.table import embed_table_storage
from datasets.utils.sharding import _split_gen_kwargs
from multiprocess import Pool
from tqdm.auto import tqdm

from .schema import check_row

ROW_GROUP = 100  # rows: what a writer, and a reader that streams, hold in memory
PARTIAL = ".partial"

RawRows = Iterable[Mapping[str, Any]]


class Part(NamedTuple):
    """A part of a split: its rows as a builder yields them, images as bytes or paths, and how many where it's known."""

    rows: Callable[[], RawRows]
    size: int | None


class Shard(NamedTuple):
    """A Parquet file to be."""

    path: Path
    part: Part
    features: Features


class FoldSizes(NamedTuple):
    """How many rows of a split have how many images and captions."""

    images: Counter[int]
    captions: Counter[int]

    @property
    def instances(self) -> int:
        """The number of rows."""
        return self.images.total()


def plan_shards(splits: Mapping[str, IterableDataset], folder: Path, rows_per_shard: int) -> list[Shard]:
    """The files of all splits, in order, named as the Hub names them."""
    shards = []
    for split, rows in splits.items():
        features = rows.features or rows._resolve_features().features
        parts = split_rows(rows, rows_per_shard)
        for number, part in enumerate(parts):
            path = folder / f"{split}-{number:05d}-of-{len(parts):05d}.parquet"
            shards.append(Shard(path, part, features))
    return shards


def split_rows(rows: IterableDataset, rows_per_shard: int) -> list[Part]:
    """A streamed split in parts that follow one another: of our builders' rows, or of another data set's own files."""
    source = rows._ex_iterable
    if not isinstance(source, ExamplesIterable):
        return [Part(partial(stored_rows, rows, rows.num_shards, part), None) for part in range(rows.num_shards)]
    # `IterableDataset.shard` looks at every instance for every shard, minutes for 100,000 instances.
    count = ceil(source.num_shards / rows_per_shard)
    parts = _split_gen_kwargs(source.kwargs, max_num_jobs=count)
    return [Part(partial(built_rows, source.generate_examples_fn, part), instances_in(part)) for part in parts]


def instances_in(part: Mapping[str, object]) -> int:
    """How many instances a builder was given: the length of its lists."""
    return max((len(value) for value in part.values() if isinstance(value, list)), default=1)


def built_rows(generate: Callable[..., Iterable[tuple[object, Mapping[str, Any]]]], part: dict[str, Any]) -> RawRows:
    """The rows that a builder makes of a part of its raw data."""
    return (row for _, row in generate(**part))


def stored_rows(rows: IterableDataset, count: int, number: int) -> RawRows:
    """The rows of a stored data set's file, their images not decoded."""
    return iter(rows.decode(False).shard(count, number))


def write_shards(shards: Sequence[Shard], num_proc: int) -> None:
    """Write the files that aren't there yet, with a progress bar."""
    missing = [shard for shard in shards if not shard.path.exists()]
    done = sum(count_rows(shard.path) for shard in shards if shard.path.exists())
    sizes = [shard.part.size for shard in missing]
    total = None if None in sizes else done + sum(size or 0 for size in sizes)
    with tqdm(desc="Building", unit=" instances", initial=done, total=total) as bar:
        bar.set_postfix_str(f"{len(shards) - len(missing)}/{len(shards)} files")
        for written, rows in enumerate(in_processes(write_shard, missing, num_proc), start=1):
            bar.update(rows)
            bar.set_postfix_str(f"{len(shards) - len(missing) + written}/{len(shards)} files")


def in_processes(function: Callable[[Shard], int], shards: Sequence[Shard], num_proc: int) -> Iterator[int]:
    """The function's values, as they come."""
    if num_proc == 1 or len(shards) < 2:
        yield from map(function, shards)
        return
    with Pool(min(num_proc, len(shards))) as pool:  # of `multiprocess`, which `datasets` uses too: it takes closures
        yield from pool.imap_unordered(function, shards)


def write_shard(shard: Shard) -> int:
    """Write a file beside its place and rename it; the number of its rows.

    Raises:
        RowError: If a row breaks the schema.
    """
    half = shard.path.with_name(shard.path.name + PARTIAL)
    rows = iter(shard.part.rows())
    count = 0
    with pyarrow.parquet.ParquetWriter(half, shard.features.arrow_schema) as writer:
        while group := list(islice(rows, ROW_GROUP)):
            for place, row in enumerate(group, start=count):
                check_row(row, f"{shard.path.name}, row {place}")
            writer.write_table(to_table(group, shard.features))
            count += len(group)
    half.replace(shard.path)
    return count


def to_table(rows: Sequence[Mapping[str, Any]], features: Features) -> pyarrow.Table:
    """Rows as a table that holds the bytes of their images."""
    encoded = [features.encode_example({column: row.get(column) for column in features}) for row in rows]
    return embed_table_storage(pyarrow.Table.from_pylist(encoded, schema=features.arrow_schema))


def count_rows(path: Path) -> int:
    """The number of rows in a file, from its footer."""
    return int(pyarrow.parquet.read_metadata(path).num_rows)


def instance_ids(paths: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Every instance id in the files, and its place."""
    for path in paths:
        ids = read_columns(path, "instance_id")["instance_id"]
        yield from ((instance_id, f"{path.name}, row {row}") for row, instance_id in enumerate(ids.to_pylist()))


def read_columns(path: Path, *columns: str) -> pyarrow.Table:
    """Some columns of a file; one within another is named by its path in Parquet's own schema."""
    with pyarrow.parquet.ParquetFile(path) as file:
        return file.read(columns=list(columns))


def fold_sizes(paths: Iterable[Path]) -> FoldSizes:
    """The fold sizes in the files; no image is read for it."""
    sizes = FoldSizes(Counter(), Counter())
    for path in paths:
        table = read_columns(path, "images.list.element.path", "captions")
        for column, counter in (("images", sizes.images), ("captions", sizes.captions)):
            counter.update(pyarrow.compute.list_value_length(table[column]).to_pylist())
    return sizes
