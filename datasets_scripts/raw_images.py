"""Image files that nobody vouches for: where their bytes lie, and whether they can be decoded within limits."""

import warnings
import zlib
from io import BytesIO
from typing import BinaryIO, NamedTuple

from PIL import Image

from .schema import RowError

MAX_PIXELS = 2**26
MAX_IMAGE_BYTES = 2**27  # of one image file; a PNG of `MAX_PIXELS` random RGB pixels has 2^27.6
IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Pillow reads more: some by running other programs (EPS), some with far more memory than their pixels (JPEG 2000).
IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TGA", "TIFF", "WEBP")


class ImageRef(NamedTuple):
    """Where an image's bytes lie: a whole file, or a stretch of an archive."""

    file: str
    name: str  # in messages, and the image's `path` in the row
    start: int = 0
    size: int | None = None  # in the file; None is up to its end
    inflated: int | None = None  # once inflated, where the stretch is a raw deflate stream


class CappedFile:
    """A file that gives only so many bytes at a time: readers of archives ask for as many as a header says."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self.file, self.limit, self.seek, self.tell = file, limit, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """The next bytes, or all if `size` is -1.

        Raises:
            ValueError: If they are too many.
        """
        content = b"" if size > self.limit else self.file.read(size if size >= 0 else self.limit + 1)
        if max(size, len(content)) > self.limit:
            raise ValueError(f"it wants more than {self.limit} bytes of headers")
        return content


def check_max_pixels(max_pixels: int) -> None:
    """Raise ValueError unless an image of that many pixels can be read back by Pillow without a warning."""
    limit = Image.MAX_IMAGE_PIXELS or MAX_PIXELS
    if not isinstance(max_pixels, int) or not 1 <= max_pixels <= limit:
        raise ValueError(f"`max_pixels` must lie within 1 and Pillow's own limit {limit}, got {max_pixels!r}.")


def read_image(ref: ImageRef, place: str, max_pixels: int = MAX_PIXELS) -> dict[str, object]:
    """The image's bytes as they lie there, after decoding them once.

    Raises:
        RowError: If they can't be read, don't decode, or have too many pixels.
    """
    content = read_content(ref, place)
    check_image(content, ref.name, place, max_pixels)
    return {"bytes": content, "path": ref.name}


def read_content(ref: ImageRef, place: str) -> bytes:
    """The bytes of an image file, inflated if need be.

    Raises:
        RowError: If they can't be read, or are too many.
    """
    limit = MAX_IMAGE_BYTES + 1
    try:
        with open(ref.file, "rb") as file:
            file.seek(ref.start)
            content = file.read(limit if ref.size is None else min(ref.size, limit))
        if ref.inflated is not None and ref.inflated < limit:
            content = inflate(content, ref.inflated)
    except (OSError, ValueError, zlib.error) as error:
        raise RowError(f"{place}: image '{ref.name}' can't be read ({error}); replace it or take it off.") from error
    if max(len(content), ref.inflated or 0) >= limit:
        raise RowError(f"{place}: image '{ref.name}' has more than {MAX_IMAGE_BYTES} bytes; shrink it.")
    return content


def inflate(deflated: bytes, size: int) -> bytes:
    """The content of a raw deflate stream.

    Raises:
        ValueError: If it isn't of that size.
    """
    content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(deflated, size + 1)
    if len(content) != size:
        raise ValueError(f"expected {size} bytes, got {'more' if len(content) > size else len(content)}")
    return content


def check_image(content: bytes, name: str, place: str, max_pixels: int = MAX_PIXELS) -> None:
    """Check that an image decodes.

    Raises:
        RowError: If it doesn't, or has too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a bomb, where `max_pixels` is stricter, and of odd metadata
            with Image.open(BytesIO(content), formats=IMAGE_FORMATS) as image:
                check_pixels(image.width * image.height, name, place, max_pixels)
                image.load()
    except RowError:
        raise
    except Exception as error:  # each format's decoder fails in its own way
        raise RowError(f"{place}: image '{name}' doesn't decode ({error}); replace it or take it off.") from error


def check_pixels(pixels: int, name: str, place: str, max_pixels: int) -> None:
    """Raise RowError if an image has more pixels than allowed."""
    if pixels > max_pixels:
        raise RowError(
            f"{place}: image '{name}' has {pixels} pixels, over `max_pixels`={max_pixels}; shrink it or raise the limit."
        )
