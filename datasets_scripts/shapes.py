"""The embedded data set: procedural chairs, tables and primitives, rendered from all sides, with captions."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from datasets import BuilderConfig, DatasetInfo, DownloadManager, SplitGenerator
from numpy.typing import NDArray
from PIL import Image

from .rendering import MAX_SIZE, MAX_VIEWS, render_views
from .schema import FEATURES, SPLITS, RowBuilder, split_of
from .shape_captions import captions_of
from .shape_geometry import PRIMITIVE_BOUNDS, build_mesh
from .shape_specs import DRAW, Primitive, Shape, pick

# Raise it whenever the same settings begin to give other rows: caches are found by it.
VERSION = "1.0.0"
SPLIT_SALT = "mxmclr-shapes-29:"  # one that splits `small` close to 70/10/20: 1,047, 151 and 302 shapes


@dataclass
class ShapesConfig(BuilderConfig):
    """Settings of `Shapes`; each of them changes the cache's name.

    A shape depends on `seed`, its number and `kinds` only, so `full` begins with the shapes of `small`, and each is in
    the same split of both.
    """

    version: str = VERSION
    num_shapes: int = 1500
    image_size: int = 64
    num_views: int = 12
    seed: int = 0
    kinds: tuple[str, ...] = ("chair", "table")


class Shapes(RowBuilder):
    """Chairs and tables in the manner of Text2Shape (`small`, `full`), or single solids (`primitives`).

    Example:
        >>> from datasets_scripts.shapes import Shapes
        >>> builder = Shapes(num_shapes=12, image_size=16)
        >>> rows = list(builder.as_streaming_dataset(split="train"))
        >>> len(rows[0]["images"]), rows[0]["images"][0].size
        (12, (16, 16))
    """

    BUILDER_CONFIG_CLASS = ShapesConfig
    BUILDER_CONFIGS = [  # noqa: RUF012 (the base class declares it so)
        ShapesConfig(name="small", description="1,500 chairs and tables at 64 px."),
        ShapesConfig(
            name="full", description="15,000 chairs and tables at 128 px.", num_shapes=15_000, image_size=128
        ),
        ShapesConfig(name="primitives", description="1,500 solids at 64 px.", kinds=("primitive",)),
    ]
    DEFAULT_CONFIG_NAME = "small"
    DEFAULT_WRITER_BATCH_SIZE = 256

    def _info(self) -> DatasetInfo:
        check_config(self.config)
        return DatasetInfo(
            description="Procedural 3D shapes, each seen from all sides and described by several captions.",
            features=FEATURES.copy(),
            license="Apache-2.0",
        )

    def _split_generators(self, dl_manager: DownloadManager) -> list[SplitGenerator]:
        numbers: dict[str, list[int]] = {split: [] for split in SPLITS}
        for number in range(self.config.num_shapes):
            numbers[split_of(instance_id_of(self.config, number), SPLIT_SALT)].append(number)
        return [SplitGenerator(split, {"numbers": found}) for split, found in numbers.items() if found]

    def _generate_examples(self, numbers: list[int]) -> Iterator[tuple[int, dict[str, object]]]:
        for number in numbers:
            yield number, build_row(self.config, number)


def check_config(config: ShapesConfig) -> None:
    """Raise ValueError unless every setting can be used."""
    most = {"num_shapes": 10_000_000, "image_size": MAX_SIZE, "num_views": MAX_VIEWS}
    for name, limit in most.items():
        value = getattr(config, name)
        if not isinstance(value, int) or not 1 <= value <= limit:
            raise ValueError(f"`{name}` must be a whole number within 1 and {limit}, got {value!r}.")
    if not isinstance(config.seed, int) or config.seed < 0:
        raise ValueError(f"`seed` must be a whole number from 0, got {config.seed!r}.")
    unknown = sorted(set(config.kinds) - set(DRAW))
    if isinstance(config.kinds, str) or unknown or not config.kinds:
        raise ValueError(f"`kinds` must be a list of some of {sorted(DRAW)}, got {config.kinds!r}.")


def instance_id_of(config: ShapesConfig, number: int) -> str:
    """The id of a shape; other seeds and kinds have others, so that their data sets can be joined."""
    return f"{'-'.join(config.kinds)}-{config.seed}-{number:05d}"


def draw_shape(config: ShapesConfig, number: int) -> tuple[Shape, str, np.random.Generator]:
    """A shape by its number, its kind, and the generator to draw the rest of its row from."""
    rng = np.random.default_rng((config.seed, number))
    kind = pick(rng, tuple(config.kinds))
    return DRAW[kind](rng), kind, rng


def build_row(config: ShapesConfig, number: int) -> dict[str, object]:
    """The row of a shape; the same wherever and in whatever order it is built."""
    shape, kind, rng = draw_shape(config, number)
    instance_id, captions = instance_id_of(config, number), captions_of(shape, rng)
    bounds = PRIMITIVE_BOUNDS if isinstance(shape, Primitive) else None
    views = render_views(build_mesh(shape, rng), config.num_views, config.image_size, bounds=bounds)
    images = [{"bytes": png(view), "path": f"{instance_id}-{place:02d}.png"} for place, view in enumerate(views)]
    return {"instance_id": instance_id, "images": images, "captions": captions, "category": kind}


def png(view: NDArray[np.uint8]) -> bytes:
    """The view as a PNG file."""
    buffer = BytesIO()
    Image.fromarray(view).save(buffer, format="PNG")
    return buffer.getvalue()
