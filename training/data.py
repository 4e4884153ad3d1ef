"""Rows to batches: splits, which observations a step sees, and the collator that calls the processor."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow
import pyarrow.compute
import torch
from datasets import Dataset, DatasetDict
from PIL import Image as PILImage

from datasets_scripts.raw_images import MAX_PIXELS
from modeling_mxmclr import MXMCLRProcessor
from modeling_mxmclr.folds_mxmclr import flatten_folds, hash_instance_id
from training.frozen_text import FrozenTextFeatures
from training.mixtures import TextOnly

Row = Mapping[str, Any]
Split = TypeVar("Split")
SPLIT_ALIASES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


class RawRows(torch.utils.data.Dataset):
    """The rows of a split with their images left encoded, so that only what is drawn gets decoded.

    Args:
        rows: A split with the row schema.
    """

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows.with_format("arrow")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index].to_pylist()[0]

    def without_images(self, index: int) -> dict[str, Any]:
        """A row with its captions alone, which takes no time to read."""
        ids, captions = self._texts
        return {"instance_id": ids[index].as_py(), "images": [], "captions": captions[index].as_py()}

    @cached_property
    def _texts(self) -> tuple[pyarrow.ChunkedArray, pyarrow.ChunkedArray]:
        return self.rows["instance_id"], self.rows["captions"]

    def column(self, name: str) -> list[Any]:
        """All values of a column other than `images`."""
        return self.rows[name].to_pylist()

    def fold_sizes(self, name: str) -> list[int]:
        """How many observations each instance has in `images` or `captions`."""
        return pyarrow.compute.list_value_length(self.rows[name]).to_pylist()

    @property
    def fingerprint(self) -> str:
        """A hash of how the rows came about."""
        return self.rows._fingerprint


def named_splits(loaded: DatasetDict) -> dict[str, RawRows]:
    """The splits by our names, see `splits_by_name`."""
    return {name: RawRows(rows) for name, rows in splits_by_name(loaded).items()}


def splits_by_name(loaded: Mapping[str, Split]) -> dict[str, Split]:
    """The splits by our names, stored or streamed.

    Raises:
        ValueError: When there is no training split.
    """
    found = {
        name: loaded[alias] for name, aliases in SPLIT_ALIASES.items() for alias in aliases[::-1] if alias in loaded
    }
    if "train" not in found:
        raise ValueError(f"`dataset` must have a split `train`, got {sorted(loaded)}.")
    return found


def caption_owners(parts: Iterable[RawRows]) -> dict[str, str]:
    """Every distinct caption of some splits, and the `instance_id` of one instance that has it."""
    return {
        caption: instance_id
        for rows in parts
        for instance_id, fold in zip(rows.column("instance_id"), rows.column("captions"), strict=True)
        for caption in fold
    }


class EpochRows(torch.utils.data.Dataset):
    """Rows that say in which epoch they were asked for, under indices `(row, epoch)`, without images for `TextOnly`."""

    def __init__(self, rows: RawRows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        row, epoch = index
        read = self.rows.without_images if isinstance(index, TextOnly) else self.rows.__getitem__
        return read(row) | {"epoch": epoch}


class FoldCollator:
    """Rows to a flat batch: draws observations of each fold, decodes and varies the images, calls the processor.

    A draw depends on seed, epoch and instance alone: not on rank, worker or batch. Rows without an `epoch` are drawn
    by torch's global generator, so that the collator serves any loader, such as that of transformers' `Trainer`.

    Args:
        processor: Processor of the model.
        views_per_instance: Images drawn of each fold, at most as many as it has; None for all.
        captions_per_instance: The same for captions.
        augment: Variation of a drawn image, called with it and a random generator.
        frozen_text: Features that replace tokens where the text tower never changes.
        seed: Seed of the draws.
        smallest_source: Width and height to which a JPEG may be reduced while it is decoded; None decodes it whole.
    """

    def __init__(
        self,
        processor: MXMCLRProcessor,
        views_per_instance: int | None = None,
        captions_per_instance: int | None = None,
        augment: Callable[[PILImage.Image, np.random.Generator], PILImage.Image] | None = None,
        frozen_text: FrozenTextFeatures | None = None,
        seed: int = 0,
        smallest_source: tuple[int, int] | None = None,
    ) -> None:
        self.smallest_source = smallest_source
        self.processor, self.augment, self.frozen_text, self.seed = processor, augment, frozen_text, seed
        self.views_per_instance, self.captions_per_instance = views_per_instance, captions_per_instance

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """The flat batch of these rows, see `MXMCLRProcessor.__call__`."""
        ids = [row["instance_id"] for row in rows]
        generators = [self._generator(row) for row in rows]
        images = [self._draw_images(row, generator) for row, generator in zip(rows, generators, strict=True)]
        captions = [
            draw(row["captions"], self.captions_per_instance, generator)
            for row, generator in zip(rows, generators, strict=True)
        ]
        if self.frozen_text is None:
            return dict(self.processor(images=images, text=captions, instance_ids=ids))
        batch = dict(self.processor(images=images, instance_ids=ids))
        flat, batch["text_group_ids"] = flatten_folds(captions, [hash_instance_id(each) for each in ids])
        return batch | {"text_tower_output": self.frozen_text(flat)}

    def _generator(self, row: Row) -> np.random.Generator:
        epoch = row["epoch"] if "epoch" in row else int(torch.randint(2**62, ()))
        return np.random.default_rng([self.seed, epoch, hash_instance_id(row["instance_id"])])

    def _draw_images(self, row: Row, generator: np.random.Generator) -> list[PILImage.Image]:
        drawn = draw(row["images"], self.views_per_instance, generator)
        images = [decode_image(value, row["instance_id"], self.smallest_source) for value in drawn]
        return images if self.augment is None else [self.augment(image, generator) for image in images]


def draw(fold: Sequence[Any], count: int | None, generator: np.random.Generator) -> list[Any]:
    """Up to `count` different observations of a fold, in random order; all of them where `count` is None."""
    return [fold[place] for place in generator.permutation(len(fold))[:count]]


def decode_image(value: Any, instance_id: str, smallest: tuple[int, int] | None = None) -> PILImage.Image:
    """An image of a row as PIL in RGB: given as such, or as the encoded `{"bytes", "path"}` of `datasets`.

    Args:
        value: The image.
        instance_id: Whose it is, for messages.
        smallest: Width and height that are enough. A larger JPEG is reduced by 2, 4 or 8 while it is decoded, which is
            faster; other formats have no such way. None decodes any image whole.

    Raises:
        ValueError: For an image that is missing, broken, or larger than `MAX_PIXELS`.
    """
    try:
        if isinstance(value, PILImage.Image):
            image = value
        else:
            image = PILImage.open(io.BytesIO(value["bytes"]) if value["bytes"] else value["path"])
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} is more than {MAX_PIXELS} pixels")
        if smallest is not None:
            image.draft(None, smallest)
        image.load()
    except (OSError, ValueError, SyntaxError, TypeError, PILImage.DecompressionBombError) as error:
        where = value.get("path") if isinstance(value, dict) else None
        raise ValueError(
            f"Instance {instance_id!r} has an image {where or ''} that can't be read: {error}; replace or drop it."
        ) from error
    return MXMCLRProcessor.to_rgb(image)


def fold_count(flag: str) -> int | None:
    """A count flag as `FoldCollator` takes it: a number, or None for `all`."""
    return None if flag == "all" else int(flag)


def loader_processes(num_workers: int, prefetch_factor: int) -> dict[str, Any]:
    """Keywords of a `DataLoader` whose processes live as long as it does, and work ahead."""
    if num_workers == 0:
        return {"num_workers": 0}
    return {"num_workers": num_workers, "prefetch_factor": prefetch_factor, "persistent_workers": True}
