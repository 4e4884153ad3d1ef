"""Flickr30K and Flickr8k from what people have on disk: one image and five captions an instance."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datasets.utils.logging import get_logger

from .flickr_annotations import SOURCES, Annotated, gather, read_list
from .listed_rows import Listed, ListedBuilder, ListedConfig, image_in, is_file, listed_row
from .raw_images import ImageRef
from .schema import SPLITS, RowError
from .zip_images import list_zip

logger = get_logger(__name__)

FOLDERS = (
    ".", "annotations", "splits", "flickr30k", "flickr30k_entities", "flickr30k-images", "flickr30k_images",
    "flickr30k_images/flickr30k_images", "Flickr8k", "Flickr8k_text",
)  # fmt: skip
IMAGE_FOLDERS = (
    "flickr30k-images", "flickr30k_images/flickr30k_images", "flickr30k_images", "Flicker8k_Dataset",
    "Flickr8k_Dataset/Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images", ".",
)  # fmt: skip
IMAGE_ZIPS = ("flickr30k-images.zip", "flickr30k_images.zip", "Flickr8k_Dataset.zip")


class Protocol(NamedTuple):
    """A published split: whose files say it, and whose captions go with it unless others are asked for."""

    captions: tuple[
        str, ...
    ]  # keys of SOURCES, the first that is there counts; without `lists` they hold the split too
    lists: tuple[str, ...]  # a file for each of SPLITS
    sizes: tuple[int, int, int]
    origin: str


PROTOCOLS = {
    "karpathy": Protocol(
        ("karpathy", "nlphuji", "albef"), (), (29_000, 1_014, 1_000), SOURCES["karpathy"].origin
    ),
    "entities": Protocol(
        ("token", "kaggle"),
        ("train.txt", "val.txt", "test.txt"),
        (29_783, 1_000, 1_000),
        "https://github.com/BryanPlummer/flickr30k_entities",
    ),
    "flickr8k": Protocol(
        ("token", "kaggle"),
        ("Flickr_8k.trainImages.txt", "Flickr_8k.devImages.txt", "Flickr_8k.testImages.txt"),
        (6_000, 1_000, 1_000),
        SOURCES["token"].origin,
    ),
}  # fmt: skip


@dataclass
class Flickr30kConfig(ListedConfig):
    """Settings of `Flickr30k`; the configuration's name is its protocol, a key of `PROTOCOLS`."""

    captions_from: str | None = None  # a key of SOURCES; by default the first of the protocol's that is there
    captions_per_image: int = 5  # 0 takes as many as there are

    def list_folder(self, folder: Path) -> Iterator[Listed]:
        """The images of the protocol's splits; others are left out."""
        annotated, splits = read_protocol(folder, self.name, self.captions_from, self.max_rows)
        if not splits:
            return
        find_image = image_finder(folder, next(iter(splits)))
        for name, split in splits.items():
            place, captions = captions_of(annotated, name, self.captions_per_image)
            row = {"instance_id": name.removesuffix(".jpg"), "captions": captions, "split": split}
            yield listed_row((place, row | {"images": [find_image(name, place)]}), folder)


class Flickr30k(ListedBuilder):
    """Flickr30K on the split of Karpathy (`karpathy`) or of Flickr30K Entities (`entities`), and `flickr8k`.

    `data_dir` holds the annotations in any form of `SOURCES`, and the images in one of `IMAGE_FOLDERS` or `IMAGE_ZIPS`.
    The id of an instance is its file's name without `.jpg`; captions and image files are taken as they are.
    """

    BUILDER_CONFIG_CLASS = Flickr30kConfig
    BUILDER_CONFIGS = [  # noqa: RUF012 (the base class declares it so)
        Flickr30kConfig(name="karpathy", description="Flickr30K on the split of Karpathy."),
        Flickr30kConfig(name="entities", description="Flickr30K on the split of Flickr30K Entities."),
        Flickr30kConfig(name="flickr8k", description="Flickr8k on its own split."),
    ]
    DEFAULT_CONFIG_NAME = "karpathy"


def read_protocol(
    folder: Path, name: str, captions_from: str | None, max_rows: int
) -> tuple[dict[str, Annotated], dict[str, str]]:
    """What is said of each image, and the split of each one that is in one, both by the image's file name."""
    protocol = PROTOCOLS[name]
    if captions_from is not None and captions_from not in SOURCES:
        raise ValueError(f"`captions_from` must be one of {sorted(SOURCES)} or None, got {captions_from!r}.")
    wanted = (captions_from,) if captions_from else protocol.captions
    annotated = read_first(folder, wanted, f"captions for '{name}'", max_rows)
    if protocol.lists:
        splits = read_lists(folder, protocol, max_rows)
    else:
        same = captions_from is None or captions_from in protocol.captions
        splitting = annotated if same else read_first(folder, protocol.captions, f"splits for '{name}'", max_rows)
        splits = {image: found.split for image, found in splitting.items() if found.split}
    compare_sizes(splits, name)
    return annotated, splits


def read_first(folder: Path, names: Sequence[str], what: str, max_rows: int) -> dict[str, Annotated]:
    """What the first of these sources that is there says.

    Raises:
        RowError: If none is there.
    """
    for source in (SOURCES[name] for name in names):
        found = [path for file in source.files if (path := find_file(folder, file))]
        if found and (len(found) == len(source.files) or not source.needs_all):
            return gather(source, found if source.needs_all else found[:1], max_rows)
    choices = (
        f"{' and '.join(source.files) if source.needs_all else ' or '.join(source.files)} (from {source.origin})"
        for source in (SOURCES[name] for name in names)
    )
    raise RowError(
        f"`data_dir` must hold {what}; looked in '{folder}' and its folders {list(FOLDERS[1:])} for "
        f"{'; or '.join(choices)}, found none; put one there."
    )


def find_file(folder: Path, name: str) -> Path | None:
    """The file or pipe of that name, in one of the places where people keep it."""
    places = (folder / inner / name for inner in FOLDERS)
    return next((place for place in places if place.exists() and not place.is_dir()), None)


def read_lists(folder: Path, protocol: Protocol, max_rows: int) -> dict[str, str]:
    """The split of each image, by the protocol's lists.

    Raises:
        RowError: If a list isn't there, or an image is listed twice.
    """
    splits: dict[str, str] = {}
    for split, name in zip(SPLITS, protocol.lists, strict=True):
        path = find_file(folder, name)
        if path is None:
            raise RowError(
                f"`data_dir` must hold the split lists {list(protocol.lists)}; looked in '{folder}' and its folders "
                f"{list(FOLDERS[1:])}, found no '{name}'; get it from {protocol.origin}."
            )
        for place, image in read_list(path, max_rows):
            if image in splits:
                raise RowError(f"{place}: '{image}' is already listed in {splits[image]}; drop one.")
            splits[image] = split
    return splits


def compare_sizes(splits: dict[str, str], name: str) -> None:
    """Warn if the splits haven't their published sizes: results on others can't be compared."""
    sizes = Counter(splits.values())
    for split, size in zip(SPLITS, PROTOCOLS[name].sizes, strict=True):
        if sizes[split] != size:
            logger.warning("'%s' has %d images in %s, the published split %d.", name, sizes[split], split, size)


def captions_of(annotated: dict[str, Annotated], image: str, number: int) -> tuple[str, list[str]]:
    """Where an image's captions stand, and they themselves in the order of their numbers.

    Raises:
        RowError: If there are none, or not as many as there should be.
    """
    if image not in annotated:
        raise RowError(f"'{image}' is in a split, but has no captions; get the annotations again.")
    found = annotated[image]
    if number and len(found.captions) != number:
        raise RowError(
            f"{found.place}: '{image}' must have {number} captions, got {len(found.captions)}; get the file again, or "
            "set `captions_per_image` (0 takes any number)."
        )
    return found.place, [caption for _, caption in sorted(found.captions.items())]


def image_finder(folder: Path, first: str) -> Callable[[str, str], ImageRef]:
    """Who finds images by file name and place: in the first folder, or else zip, that has the first of them.

    Raises:
        RowError: If none has.
    """
    for inner in IMAGE_FOLDERS:
        if is_file(folder / inner / first):
            return lambda name, place: image_in(folder / inner, name, place)
    for zipped in (folder / name for name in IMAGE_ZIPS):
        if is_file(zipped) and first in (images := list_zip(zipped)):
            return lambda name, place: image_in_zip(images, name, f"{place}, '{zipped.name}'")
    raise RowError(
        f"`data_dir` must hold the images; looked in '{folder}' for '{first}' in the folders {list(IMAGE_FOLDERS)} and "
        f"in {list(IMAGE_ZIPS)}, found it in none; get them where the captions are from: "
        f"{SOURCES['token'].origin}; {SOURCES['kaggle'].origin}."
    )


def image_in_zip(images: dict[str, ImageRef], name: str, where: str) -> ImageRef:
    """Where the image lies in the zip, or RowError if it doesn't."""
    if name not in images:
        raise RowError(f"{where}: image '{name}' isn't in it; get the zip again.")
    return images[name]
