import struct
import zlib
from io import BytesIO

import pytest
from PIL import Image

from datasets_scripts import raw_images
from datasets_scripts.raw_images import CappedFile, ImageRef, check_image, inflate, read_image
from datasets_scripts.schema import RowError


def encoded(kind, size=(6, 5)):
    buffer = BytesIO()
    Image.new("RGB", size, "red").save(buffer, kind)
    return buffer.getvalue()


def png_bomb(side=100_000):
    """A PNG of a few bytes whose header speaks of ten billion pixels."""
    header = struct.pack(">II5B", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


@pytest.mark.parametrize("kind", ["AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TGA", "TIFF", "WEBP"])
def test_images_of_the_usual_formats_pass(kind):
    check_image(encoded(kind), "a", "here")


@pytest.mark.parametrize("side", [9_000, 100_000])
def test_bombs_are_refused_by_their_header(side):
    with pytest.raises(RowError, match=r"here: image 'a' (has \d+ pixels, over|doesn't decode \(.*bomb)"):
        check_image(png_bomb(side), "a", "here")


@pytest.mark.parametrize(
    "content", [b"", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", encoded("PNG", (99, 99))[:-50]]
)
def test_what_is_no_image_or_runs_programs_is_refused(content):
    with pytest.raises(RowError, match="here: image 'a' doesn't decode"):
        check_image(content, "a", "here")


def test_images_are_read_from_stretches_of_files(tmp_path):
    content = encoded("PNG")
    deflated = zlib.compress(content, wbits=-15)
    (tmp_path / "pack").write_bytes(b"xx" + content + deflated)
    stored = ImageRef(str(tmp_path / "pack"), "a", 2, len(content))
    packed = ImageRef(str(tmp_path / "pack"), "b", 2 + len(content), len(deflated), len(content))
    assert read_image(stored, "here") == {"bytes": content, "path": "a"}
    assert read_image(packed, "here") == {"bytes": content, "path": "b"}


@pytest.mark.parametrize(
    ("change", "message"), [(1, "expected 101 bytes, got 100"), (-1, "expected 99 bytes, got more")]
)
def test_deflated_sizes_that_lie_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        inflate(zlib.compress(bytes(100), wbits=-15), 100 + change)


def test_large_and_missing_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(RowError, match=r"here: image 'a' can't be read .*No such file"):
        read_image(ImageRef(str(tmp_path / "a"), "a"), "here")
    (tmp_path / "a").write_bytes(encoded("BMP"))
    monkeypatch.setattr(raw_images, "MAX_IMAGE_BYTES", 20)
    with pytest.raises(RowError, match="here: image 'a' has more than 20 bytes; shrink it"):
        read_image(ImageRef(str(tmp_path / "a"), "a"), "here")


def test_headers_get_no_more_than_their_share():
    file = CappedFile(BytesIO(bytes(100)), 10)
    assert len(file.read(10)) == 10
    for size in (11, -1):
        with pytest.raises(ValueError, match="more than 10 bytes of headers"):
            file.read(size)
