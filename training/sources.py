"""Where a run's rows come from: one data set or several, stored or streamed, and what each split holds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

from accelerate.logging import get_logger
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, concatenate_datasets

from datasets_scripts.loading import load_multifold
from datasets_scripts.schema import FEATURES
from training.arguments import DataArguments
from training.data import RawRows, named_splits, splits_by_name
from training.streams import Stream

logger = get_logger(__name__)

SAMPLE_ROWS = 256  # of a stream, to look at
SAMPLE_CAPTIONS = 10_000  # rows of a stream whose captions teach a tokenizer
MAX_SPLIT_BYTES = 4 * 2**30  # of the images of a split that is evaluated while training is streamed


class StreamSample(RawRows):
    """The first rows of a stream, which stand for it where a look is enough."""


@dataclass
class Sources:
    """The rows of a run.

    Attributes:
        splits: The splits by our names. That of training holds the rows of all data sets one after the other, or only
            a sample of a stream.
        sizes: How many rows of it belong to each data set; nothing where they are streamed.
        streams: The training split of each data set, where they are streamed.
    """

    splits: dict[str, RawRows]
    sizes: list[int] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)

    def captions(self) -> Iterator[str]:
        """The captions that a fresh text tower's tokenizer is learned from: all, or those of a stream's first rows."""
        if not self.streams:
            yield from (caption for fold in self.splits["train"].column("captions") for caption in fold)
            return
        logger.info("The tokenizer is learned from the first %d rows of each stream.", SAMPLE_CAPTIONS)
        for stream in self.streams:
            rows = stream.rows(columns=("instance_id", "captions"))
            yield from (caption for row in islice(rows, SAMPLE_CAPTIONS) for caption in row["captions"])


def load_sources(data: DataArguments) -> Sources:
    """The rows that a run's arguments name."""
    sources = [data.source, *data.more_sources]
    # Ids are unique within a data set only: that two count from 0 makes no positives.
    prefixes = ["", *("" if data.shared_instance_ids else f"{number}:" for number in range(1, len(sources)))]
    if data.streaming:
        # Nothing is built, and `datasets` refuses to stream with processes that build.
        streamed = [load_multifold(**source | {"num_proc": None}, streaming=True) for source in sources]
        return stream_splits([splits_by_name(cast("IterableDatasetDict", each)) for each in streamed], prefixes)
    loaded = [named_splits(cast("DatasetDict", load_multifold(**source))) for source in sources]
    if len(loaded) == 1:
        return Sources(loaded[0], [len(loaded[0]["train"])])
    parts = [with_prefix(splits["train"].rows, prefix) for splits, prefix in zip(loaded, prefixes, strict=True)]
    return Sources(loaded[0] | {"train": RawRows(concatenate_datasets(parts))}, [len(part) for part in parts])


def with_prefix(rows: Dataset, prefix: str) -> Dataset:
    """The rows in the columns of the schema alone, as those of several data sets fit together."""
    kept = rows.with_format(None).select_columns([column for column in FEATURES if column in rows.features])
    for column in kept.column_names:
        if kept.features[column] != FEATURES[column]:
            kept = kept.cast_column(column, FEATURES[column])
    if not prefix:
        return kept
    ids = [prefix + instance_id for instance_id in kept["instance_id"]]
    return kept.remove_columns("instance_id").add_column("instance_id", ids, feature=FEATURES["instance_id"])


def stream_splits(loaded: Sequence[Mapping[str, IterableDataset]], prefixes: Sequence[str]) -> Sources:
    """The training splits as streams, and the first data set's other splits in memory."""
    streams = [Stream(splits["train"], prefix) for splits, prefix in zip(loaded, prefixes, strict=True)]
    splits: dict[str, RawRows] = {"train": StreamSample(in_memory(islice(streams[0].rows(), SAMPLE_ROWS)))}
    for name, rows in loaded[0].items():
        if name != "train":
            splits[name] = RawRows(in_memory(limited(Stream(rows).rows(), name)))
    return Sources(splits, streams=streams)


def in_memory(rows: Iterable[Mapping[str, Any]]) -> Dataset:
    """Rows that were read, in the columns of the schema."""
    return Dataset.from_list([{column: row.get(column) for column in FEATURES} for row in rows], features=FEATURES)


def limited(rows: Iterable[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    """The rows of a split that is evaluated.

    Raises:
        ValueError: If they are too large to be kept.
    """
    size = 0
    for row in rows:
        size += sum(len(image["bytes"] or b"") for image in row["images"])
        if size > MAX_SPLIT_BYTES:
            raise ValueError(
                f"The images of the split `{name}` must not exceed {MAX_SPLIT_BYTES} bytes with `streaming`, got more; "
                "evaluate on fewer instances, in a copy of that split, or leave out `streaming`."
            )
        yield row
