"""One way to load any multifold data set: an embedded one, a folder, or whatever `datasets` can load."""

from pathlib import Path
from typing import TypeAlias

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset

from .multifold_folder import READERS, MultifoldFolder, has_metadata
from .schema import RowBuilder, check_columns, check_unique
from .shapes import Shapes

BUILDERS: dict[str, type[RowBuilder]] = {"shapes": Shapes}

Multifold: TypeAlias = Dataset | DatasetDict | IterableDataset | IterableDatasetDict


def load_multifold(
    dataset: str,
    *,
    config: str | None = None,
    split: str | None = None,
    num_proc: int | None = None,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    **settings: object,
) -> Multifold:
    """A data set with the row schema of `datasets_scripts.schema`, all its splits or one.

    What it is stands in `.info` (`builder_name`, `config_name`, `version`) and, unless streamed, in `._fingerprint`,
    which changes with the settings and with the folder's files.

    Args:
        dataset: The name of an embedded data set (`shapes`), a folder with a metadata file (see `MultifoldFolder`), or
            what `datasets.load_dataset` takes: an id on the Hub, a folder of Parquet files. For a local folder that is
            called like an embedded data set write `./shapes`.
        config: The configuration of that name, where the data set has several.
        split: `train`, `validation` or `test`; None gives all as a dict.
        num_proc: Processes to build with.
        streaming: Build rows while they are read, and store nothing.
        cache_dir: Where built data sets are kept; the Hugging Face cache by default.
        **settings: Settings of the builder, such as `num_shapes` of `shapes` or `max_pixels` of a folder.

    Raises:
        ValueError: If there is no such data set, it lacks a column of the schema, or its raw data is broken
            (`RowError`).
    """
    where = None if cache_dir is None else str(cache_dir)
    if dataset in BUILDERS:
        builder = BUILDERS[dataset](config_name=config, cache_dir=where, **settings)
    elif has_metadata(Path(dataset)):
        if config is not None:
            raise ValueError(f"`config` must be left out for the folder '{dataset}', got {config!r}.")
        builder = MultifoldFolder(data_dir=dataset, cache_dir=where, **settings)
    else:
        return load_elsewhere(dataset, config, split, num_proc, streaming, where, **settings)
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare(num_proc=num_proc)
    return builder.as_dataset(split=split)


def load_elsewhere(
    dataset: str,
    config: str | None,
    split: str | None,
    num_proc: int | None,
    streaming: bool,
    cache_dir: str | None,
    **settings: object,
) -> Multifold:
    """What `datasets.load_dataset` finds, if it has the schema's columns and, where it isn't streamed, unique ids."""
    try:
        loaded = load_dataset(
            dataset, config, split=split, num_proc=num_proc, streaming=streaming, cache_dir=cache_dir, **settings
        )
    except (FileNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"`dataset` must be one of {sorted(BUILDERS)}, a folder with a metadata file ({', '.join(READERS)}), or "
            f"what `datasets.load_dataset` finds, got {dataset!r} ({error})."
        ) from error
    parts = loaded if isinstance(loaded, dict) else {str(loaded.split): loaded}
    for part in parts.values():
        check_columns(part.features or part.take(1)._resolve_features().features, dataset)
    if not streaming:
        check_unique(
            (instance_id, f"row {row} of '{dataset}' {name}")
            for name, part in parts.items()
            for row, instance_id in enumerate(part["instance_id"])
        )
    return loaded
