"""Pictures under examination: what is wrong with each, and which are equal or nearly so."""

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
from datasets.utils import tqdm
from numpy.typing import NDArray
from PIL import Image

from ..pictures import as_rgb
from ..raw_images import IMAGE_FORMATS, MAX_PIXELS
from ..schema import SPLITS
from .findings import IMAGES, Corpus, Finding, Place, listed
from .near import (
    Indices,
    Occurrences,
    count_bits,
    members_by_group,
    pairs_in_buckets,
    star_groups,
    unique_pairs,
)

HASH_SIZE, FREQUENCIES, THUMB_SIZE = 32, 8, 16
MIN_COEFFICIENT = 100.0  # below it lies what a lossy copy changes, so that symmetric pictures have stable bits
MAX_HASH_BITS = 4
NUM_BANDS = MAX_HASH_BITS + 1  # two hashes that differ in 4 bits agree in at least one of 5 bands
MAX_MEAN_LEVELS, MAX_LEVELS = 4.0, 20  # of 255, between thumbnails
WINDOW = 256
BLANK_LEVELS = 6
FACTS_AT_ONCE, PAIRS_AT_ONCE = 4096, 65_536
MAX_ASPECT = 5

FACTS = np.dtype(
    [
        ("row", "i8"),
        ("number", "i8"),
        ("width", "i8"),
        ("height", "i8"),
        ("digest", "u8"),
        ("hash", "u8"),
        ("thumb", "u1", (THUMB_SIZE, THUMB_SIZE, 3)),
    ]
)


class Limits(NamedTuple):
    """What an image may measure."""

    min_side: int = 16  # of the shorter side
    max_pixels: int = MAX_PIXELS  # above it an image isn't decoded


class ImageFaultError(ValueError):
    """An image that can't be used; its kind, and a message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Look(NamedTuple):
    """What there is to know of an image that decodes."""

    width: int
    height: int
    digest: int  # of the pixels
    hash: int  # perceptual, 64 bits
    thumb: NDArray[np.uint8]  # (16, 16, 3)
    is_blank: bool


def examine_images(corpus: Corpus, known: Iterable[Finding], limits: Limits) -> tuple[NDArray[np.void], list[Finding]]:
    """The facts of every usable image, `(num_images,)` of `FACTS`, and what is wrong with the others."""
    skipped = {place for finding in known for place in finding.drops}
    findings: list[Finding] = []
    facts: list[tuple[object, ...]] = []
    packed: list[NDArray[np.void]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files; what matters becomes a finding
        for row in tqdm(range(len(corpus.rows)), desc="images"):
            if Place(row) in skipped or not corpus.rows[row].images:
                continue
            for number, content in enumerate(corpus.source.images_of(row)):
                place = Place(row, IMAGES, number)
                if place not in skipped:
                    look, found = examine_image(content, place, corpus.value_at(place), limits)
                    findings += found
                    facts += [] if look is None else [(row, number, *look[:5])]
            if len(facts) >= FACTS_AT_ONCE:
                packed.append(np.array(facts, dtype=FACTS))
                facts.clear()
    return np.concatenate([*packed, np.array(facts, dtype=FACTS)]), findings


def examine_image(content: bytes | None, place: Place, name: str, limits: Limits) -> tuple[Look | None, list[Finding]]:
    """What an image looks like, None if it can't be used; and what is wrong with it."""
    try:
        look = look_at(content, limits)
    except ImageFaultError as fault:
        return None, [Finding(fault.kind, f"Image '{name}' {fault}", (place,), (place,))]
    if look.is_blank:
        message = f"Image '{name}' has one colour only, to within {BLANK_LEVELS} of 255."
        return None, [Finding("blank_image", message, (place,), (place,))]
    if max(look.width, look.height) > MAX_ASPECT * min(look.width, look.height):
        return look, [Finding("stretched_image", f"Image '{name}' measures {look.width} x {look.height}.", (place,))]
    return look, []


def look_at(content: bytes | None, limits: Limits) -> Look:
    """What an image looks like.

    Raises:
        ImageFaultError: If it can't be used.
    """
    if content is None:
        raise ImageFaultError("missing_image", "can't be read.")
    try:
        image = Image.open(BytesIO(content), formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageFaultError("huge_image", f"has too many pixels ({error}).") from error
    except Exception as error:  # each format's decoder fails in its own way
        raise ImageFaultError("broken_image", f"is no image ({error}).") from error
    with image:
        if image.width * image.height > limits.max_pixels:
            raise ImageFaultError(
                "huge_image", f"has {image.width} x {image.height} pixels, over {limits.max_pixels:,} in all."
            )
        try:
            image.load()
            picture = as_rgb(image)
        except Exception as error:
            raise ImageFaultError("truncated_image", f"breaks off or is damaged ({error}).") from error
        if min(image.size) < limits.min_side:
            raise ImageFaultError("tiny_image", f"measures {image.width} x {image.height}, under {limits.min_side}.")
    small = picture.resize((HASH_SIZE, HASH_SIZE), Image.Resampling.BILINEAR)
    thumb = np.asarray(small.resize((THUMB_SIZE, THUMB_SIZE), Image.Resampling.BOX))
    is_blank = int(np.ptp(np.asarray(picture), axis=(0, 1)).max()) <= BLANK_LEVELS
    return Look(*picture.size, pixel_digest(picture), perceptual_hash(small), thumb, is_blank)


def pixel_digest(picture: Image.Image) -> int:
    """A hash of size and pixels, 64 bits: equal for equal pictures, in whatever format they are stored."""
    digest = hashlib.blake2b(picture.tobytes(), digest_size=8, salt=f"{picture.width}x{picture.height}".encode()[:16])
    return int.from_bytes(digest.digest(), "big")


def cosine_transform() -> NDArray[np.float64]:
    """The lowest rows of the discrete cosine transform, `(8, 32)`."""
    frequency, place = np.arange(FREQUENCIES)[:, None], np.arange(HASH_SIZE)[None, :]
    return np.cos(np.pi / HASH_SIZE * (place + 0.5) * frequency)


TRANSFORM = cosine_transform()


def perceptual_hash(small: Image.Image) -> int:
    """64 bits, one for each low frequency of the grey picture, set where its coefficient is well above zero."""
    spectrum = TRANSFORM @ np.asarray(small.convert("L"), dtype=np.float64) @ TRANSFORM.T
    return int.from_bytes(np.packbits(spectrum > MIN_COEFFICIENT).tobytes(), "big")


def near_pairs(hashes: NDArray[np.uint64], thumbs: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pairs of pictures that look alike: up to 4 of 64 bits apart, and nowhere of another colour."""
    pairs = []
    for band in range(NUM_BANDS):
        low, high = 64 * band // NUM_BANDS, 64 * (band + 1) // NUM_BANDS
        keys = hashes >> np.uint64(low) & np.uint64(2 ** (high - low) - 1)
        for some, others in pairs_in_buckets(keys, hashes, WINDOW):
            is_near = count_bits(hashes[some] ^ hashes[others]) <= MAX_HASH_BITS
            some, others = some[is_near], others[is_near]
            for start in range(0, len(some), PAIRS_AT_ONCE):
                first, second = some[start : start + PAIRS_AT_ONCE], others[start : start + PAIRS_AT_ONCE]
                is_near = is_alike(thumbs[first], thumbs[second])
                pairs.append((first[is_near], second[is_near]))
    return unique_pairs(pairs)


def is_alike(some: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether each two thumbnails have nearly the same colours everywhere, `(num_pairs,)`."""
    levels = np.abs(some.astype(np.int16) - others)
    return (levels.mean(axis=(1, 2, 3)) <= MAX_MEAN_LEVELS) & (levels.max(axis=(1, 2, 3), initial=0) <= MAX_LEVELS)


def compare_images(corpus: Corpus, facts: NDArray[np.void], instances: Indices) -> tuple[Occurrences, list[Finding]]:
    """The groups of equal and nearly equal images, and a finding for each that is within a row or across instances."""
    _, firsts, digests = np.unique(facts["digest"], return_index=True, return_inverse=True)
    leaders = star_groups(len(firsts), near_pairs(facts["hash"][firsts], facts["thumb"][firsts]))
    places = [Place(int(row), IMAGES, int(number)) for row, number in zip(facts["row"], facts["number"], strict=True)]
    owners = instances[facts["row"]]
    findings: list[Finding] = []
    for members in members_by_group(digests):
        findings += equal_findings(corpus, [places[member] for member in members], owners[members])
    groups = leaders[digests]
    for members in members_by_group(groups):
        if len(set(digests[members])) > 1:
            findings += near_findings(
                corpus, [places[member] for member in members], digests[members], owners[members]
            )
    return Occurrences(groups, owners), findings


def equal_findings(corpus: Corpus, places: Sequence[Place], owners: Indices) -> Iterator[Finding]:
    """The findings of one picture that comes several times."""
    for same_row in rows_of(places).values():
        if len(same_row) > 1:
            names = listed(corpus.value_at(place) for place in same_row)
            instance_id = corpus.rows[same_row[0].row].instance_id
            yield Finding("repeated_image", f"'{instance_id}' has one picture as {names}.", same_row, same_row[1:])
    if len(set(owners.tolist())) > 1:
        splits = splits_of(corpus, places)
        kind = "leaked_image" if len(splits) > 1 else "shared_image"
        ids = listed(dict.fromkeys(corpus.rows[place.row].instance_id for place in places))
        drops = [place for place in places if corpus.rows[place.row].split != splits[-1]] if len(splits) > 1 else []
        yield Finding(kind, f"One picture in {' and '.join(splits)}: instances {ids}.", places, drops)


def near_findings(corpus: Corpus, places: Sequence[Place], digests: Indices, owners: Indices) -> Iterator[Finding]:
    """The findings of a group of pictures that look alike but aren't all equal."""
    digest_of = dict(zip(places, digests.tolist(), strict=True))
    for same_row in rows_of(places).values():
        if len({digest_of[place] for place in same_row}) > 1:
            instance_id = corpus.rows[same_row[0].row].instance_id
            message = f"'{instance_id}' has {len(same_row)} pictures that look alike."
            yield Finding("near_repeated_image", message, same_row)
    if len(set(owners.tolist())) > 1:
        splits = splits_of(corpus, places)
        kind = "near_leaked_image" if len(splits) > 1 else "near_shared_image"
        ids = listed(dict.fromkeys(corpus.rows[place.row].instance_id for place in places))
        yield Finding(kind, f"Pictures that look alike in {' and '.join(splits)}: instances {ids}.", places)


def rows_of(places: Iterable[Place]) -> dict[int, list[Place]]:
    """The places by their row."""
    by_row: dict[int, list[Place]] = defaultdict(list)
    for place in places:
        by_row[place.row].append(place)
    return by_row


def splits_of(corpus: Corpus, places: Iterable[Place]) -> list[str]:
    """The splits of the places, `train` first and the one to keep last."""
    found = {corpus.rows[place.row].split for place in places}
    return sorted(found, key=lambda split: SPLITS.index(split) if split in SPLITS else -1)
