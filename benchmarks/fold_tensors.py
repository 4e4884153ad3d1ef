"""A data set as tensors for short trainings: images decoded and shrunk once, captions through a frozen tower once."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from datasets_scripts.loading import load_multifold
from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor
from modeling_mxmclr.folds_mxmclr import hash_instance_id
from training.data import RawRows, decode_image, named_splits
from training.durable import write_durably
from training.frozen_text import FrozenTextFeatures

SMALLEST_GALLERY = 5
SPLITS = ("train", "validation", "test")
TENSORS = ("images", "image_instance", "texts", "text_instance")


class FoldTensors(NamedTuple):
    """A split of a data set, its observations in the order of its instances."""

    images: Tensor  # (num_images, 3, size, size), uint8
    image_instance: Tensor  # (num_images,), int64, ascending, the row of each image's instance
    texts: Tensor  # (num_captions, width), float32, what the frozen text tower made of each caption
    text_instance: Tensor  # (num_captions,), int64, ascending
    captions: list[str]
    instance_ids: list[str]

    @property
    def group_ids(self) -> Tensor:
        """The group id of each instance, `(num_instances,)`."""
        return torch.tensor([hash_instance_id(each) for each in self.instance_ids])


class Fold(NamedTuple):
    """Where the folds of one modality lie among its rows."""

    starts: Tensor  # (num_instances,), int64
    sizes: Tensor  # (num_instances,), int64

    @classmethod
    def of(cls, instance: Tensor, num_instances: int) -> "Fold":
        """The folds of rows that are ordered by instance."""
        sizes = instance.bincount(minlength=num_instances)
        return cls(sizes.cumsum(0) - sizes, sizes)

    def draw(self, instances: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Up to `count` different rows of each instance, and the place of its instance among `instances` of each.

        The rows of an instance come in random order, those of the first instance first.
        """
        widest = int(self.sizes[instances].max())
        sizes = self.sizes[instances, None]
        places = torch.arange(widest)
        # Whoever has fewer than the widest keeps what it hasn't at the end.
        order = (torch.rand(len(instances), widest, generator=generator) + (places >= sizes)).argsort(dim=1)
        drawn = places < sizes.clamp(max=count)
        return (self.starts[instances, None] + order)[drawn], drawn.nonzero()[:, 0]


def load_fold_tensors(
    source: dict[str, str], model: MXMCLRModel, processor: MXMCLRProcessor, size: int, folder: Path
) -> dict[str, FoldTensors]:
    """The splits of a data set, from `folder` where they were made before.

    Args:
        source: Keywords of `load_multifold`.
        model: Its frozen text tower reads the captions.
        processor: Its tokenizer.
        size: Height and width that images are shrunk to, in pixels.
        folder: Where the tensors are kept.

    Raises:
        ValueError: When the data set lacks a split, or one is smaller than the ranks that are counted.
    """
    splits = named_splits(load_multifold(**source))
    if missing := [name for name in SPLITS if name not in splits]:
        raise ValueError(
            f"{source['dataset']!r} needs the splits {list(SPLITS)}, it lacks {missing}; say in a column `split` of its "
            "metadata which instance belongs where."
        )
    for name in SPLITS:
        if len(splits[name]) < SMALLEST_GALLERY:
            raise ValueError(
                f"The split {name!r} of {source['dataset']!r} must have at least {SMALLEST_GALLERY} instances, got "
                f"{len(splits[name])}; put more into it."
            )
    return {name: _load_split(name, splits[name], model, processor, size, folder) for name in SPLITS}


def _load_split(
    name: str, rows: RawRows, model: MXMCLRModel, processor: MXMCLRProcessor, size: int, folder: Path
) -> FoldTensors:
    key = hashlib.sha256(f"{rows.fingerprint} {size} {model.config.text_config.to_json_string()}".encode()).hexdigest()
    path = folder / f"{name}-{key[:12]}.safetensors"
    captions = [caption for fold in rows.column("captions") for caption in fold]
    ids = rows.column("instance_id")
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        owners = dict(zip(captions, (ids[row] for row in _instances(rows, "captions")), strict=True))
        encoded = FrozenTextFeatures.encode(model, processor, owners, show_progress=True)
        tensors = {
            "images": torch.stack(list(_small_images(rows, size))),
            "image_instance": torch.tensor(_instances(rows, "images")),
            "texts": encoded(captions),
            "text_instance": torch.tensor(_instances(rows, "captions")),
        }
        write_durably(path, save(tensors))
    loaded = load_file(path)
    return FoldTensors(*(loaded[each] for each in TENSORS), captions, ids)


def _instances(rows: RawRows, column: str) -> list[int]:
    return [row for row, size in enumerate(rows.fold_sizes(column)) for _ in range(size)]


def _small_images(rows: RawRows, size: int) -> Iterator[Tensor]:
    for number in tqdm(range(len(rows)), desc="images", leave=False):
        row = rows[number]
        for value in row["images"]:
            image = decode_image(value, row["instance_id"])
            small = image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=2.0)
            yield torch.from_numpy(np.array(small)).permute(2, 0, 1)


def crop(images: Tensor, size: int, smallest_share: float, generator: torch.Generator | None) -> Tensor:
    """Crops as pixel values from -1 to 1, `(num_images, 3, size, size)`; the whole images without a generator.

    Args:
        images: `(num_images, 3, height, width)`, uint8.
        size: Height and width, in pixels.
        smallest_share: Smallest share of the area that a crop keeps.
        generator: Draws the crops.
    """
    count = len(images)
    side, shift = torch.ones(count), torch.zeros(count, 2)
    if generator is not None:
        share = smallest_share + (1 - smallest_share) * torch.rand(count, generator=generator)
        side = share.sqrt()
        shift = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - side)[:, None]
    boxes = torch.zeros(count, 2, 3)
    boxes[:, 0, 0] = boxes[:, 1, 1] = side
    boxes[:, :, 2] = shift
    grid = F.affine_grid(boxes, [count, 3, size, size], align_corners=False)
    pixels = images.float().div_(127.5).sub_(1)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
