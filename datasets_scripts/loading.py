"""One way to load any multifold data set: an embedded one, a folder, or whatever `datasets` can load."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, cast

import pyarrow
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError

from .emoji import Emoji
from .flickr30k import Flickr30k
from .grouped_rows import Columns, GroupedRows, check_chosen, features_of, group_stream
from .multifold_folder import LAYOUTS, MultifoldFolder, is_multifold_folder
from .raw_images import MAX_PIXELS
from .schema import RowBuilder, RowError, check_columns, check_unique
from .shapes import Shapes
from .text2shape import Text2Shape

BUILDERS: dict[str, type[RowBuilder]] = {
    "emoji": Emoji,
    "flickr30k": Flickr30k,
    "shapes": Shapes,
    "text2shape": Text2Shape,
}

Multifold: TypeAlias = Dataset | DatasetDict | IterableDataset | IterableDatasetDict


def load_multifold(
    dataset: str,
    *,
    config: str | None = None,
    split: str | None = None,
    num_proc: int | None = None,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    instance_column: str | None = None,
    image_columns: Sequence[str] = (),
    caption_columns: Sequence[str] = (),
    **settings: object,
) -> Multifold:
    """A data set with the row schema of `datasets_scripts.schema`, all its splits or one.

    What it is stands in `.info` (`builder_name`, `config_name`, `version`) and, unless streamed, in `._fingerprint`,
    which changes with the settings and with the folder's files.

    Args:
        dataset: The name of a builder (`shapes`, or with `data_dir="…"` for the raw files one of the others), a folder
            (see `MultifoldFolder`), or what `datasets.load_dataset` takes: an id on the Hub, a folder of Parquet files.
            For a local folder that is called like a builder write `./shapes`.
        config: The configuration of that name, where the data set has several.
        split: `train`, `validation` or `test`; None gives all as a dict.
        num_proc: Processes to build with.
        streaming: Build rows while they are read, and store nothing.
        cache_dir: Where built data sets are kept; the Hugging Face cache by default.
        instance_column: For a data set of `datasets.load_dataset` with other columns than the schema's: the one with
            the id. Rows that share an id become one instance (see `GroupedRows`).
        image_columns: With `instance_column`, those with an image or a list of images.
        caption_columns: With `instance_column`, those with a caption or a list of captions.
        **settings: Settings of the builder, such as `num_shapes` of `shapes` or `max_pixels` of a folder.

    Raises:
        ValueError: If there is no such data set, it lacks a column of the schema, or its raw data is broken
            (`RowError`).
    """
    where = None if cache_dir is None else str(cache_dir)
    columns = chosen_columns(instance_column, image_columns, caption_columns)
    if dataset in BUILDERS:
        if columns is not None:
            raise ValueError(f"`instance_column` must be left out for '{dataset}', got {instance_column!r}.")
        builder = BUILDERS[dataset](config_name=config, cache_dir=where, **settings)
    elif columns is None and is_multifold_folder(Path(dataset)):
        if config is not None:
            raise ValueError(f"`config` must be left out for the folder '{dataset}', got {config!r}.")
        builder = MultifoldFolder(data_dir=dataset, cache_dir=where, **settings)
    else:
        # Only rows that are grouped are read here, so that only then a limit of pixels is ours to keep.
        max_pixels = MAX_PIXELS if columns is None else cast("int", settings.pop("max_pixels", MAX_PIXELS))
        loaded = found(
            dataset, config, split=split, num_proc=num_proc, streaming=streaming, cache_dir=where, **settings
        )
        if columns is None:
            return check_rows(loaded, dataset, streaming)
        return group_rows(loaded, dataset, columns, split, num_proc, streaming, where, max_pixels)
    return built(builder, split, num_proc, streaming)


def chosen_columns(
    instance_column: str | None, image_columns: Sequence[str], caption_columns: Sequence[str]
) -> Columns | None:
    """The columns that were chosen; None if none were.

    Raises:
        ValueError: If only some of what it takes was chosen, or one twice.
    """
    for name, chosen in (("image_columns", image_columns), ("caption_columns", caption_columns)):
        if isinstance(chosen, str):
            raise ValueError(f"`{name}` must be a list of columns, got {chosen!r}; wrap a single one as `[...]`.")
    observed = [*image_columns, *caption_columns]
    if instance_column is None and not observed:
        return None
    if not instance_column or not observed:
        raise ValueError(
            "`instance_column` goes with `image_columns` or `caption_columns`, got "
            f"{instance_column!r}, {list(image_columns)} and {list(caption_columns)}; give the column with the ids, and "
            "those with the observations."
        )
    if len({instance_column, *observed}) <= len(observed):
        raise ValueError(f"`instance_column` and the others must all differ, got {[instance_column, *observed]}.")
    return Columns(instance_column, tuple(image_columns), tuple(caption_columns))


def built(builder: RowBuilder, split: str | None, num_proc: int | None, streaming: bool) -> Multifold:
    """What the builder builds."""
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare(num_proc=num_proc)
    return builder.as_dataset(split=split)


def check_rows(loaded: Multifold, dataset: str, streaming: bool) -> Multifold:
    """What was found, if it has the schema's columns and, where it isn't streamed, unique ids."""
    parts = parts_of(loaded)
    for part in parts.values():
        check_columns(features_of(part), dataset)
    if not streaming:
        check_unique(
            (instance_id, f"row {row} of '{dataset}' {name}")
            for name, part in parts.items()
            for row, instance_id in enumerate(part["instance_id"])
        )
    return loaded


def group_rows(
    loaded: Multifold,
    dataset: str,
    columns: Columns,
    split: str | None,
    num_proc: int | None,
    streaming: bool,
    cache_dir: str | None,
    max_pixels: int,
) -> Multifold:
    """What was found, its rows grouped by an id."""
    parts = parts_of(loaded)
    for part in parts.values():
        check_chosen(features_of(part), columns, dataset)
    if streaming:
        grouped = {name: group_stream(part, columns, name, max_pixels) for name, part in parts.items()}
        return IterableDatasetDict(grouped) if isinstance(loaded, dict) else next(iter(grouped.values()))
    check_unique(
        (str(instance_id), f"'{dataset}' {name}")
        for name, part in parts.items()
        for instance_id in dict.fromkeys(part[columns.instance])
    )
    builder = GroupedRows(source=parts, columns=columns, max_pixels=max_pixels, cache_dir=cache_dir)
    return built(builder, split, num_proc, streaming=False)


def parts_of(loaded: Multifold) -> dict[str, Dataset | IterableDataset]:
    """The data set's parts by split."""
    return dict(loaded) if isinstance(loaded, dict) else {str(loaded.split): loaded}


def found(dataset: str, config: str | None, **arguments: object) -> Multifold:
    """What `datasets.load_dataset` finds.

    Raises:
        ValueError: If it finds nothing.
        RowError: If it can't read what it finds.
    """
    try:
        return load_dataset(dataset, config, **arguments)
    except (FileNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"`dataset` must be one of {sorted(BUILDERS)}, a folder with {LAYOUTS}, or "
            f"what `datasets.load_dataset` finds, got {dataset!r} ({error})."
        ) from error
    except (DatasetGenerationError, pyarrow.ArrowException, OSError) as error:
        raise RowError(f"'{dataset}' can't be read ({error.__cause__ or error}); get its files again.") from error
