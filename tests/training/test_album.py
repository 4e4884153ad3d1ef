import base64
import io

import pytest
import torch
from PIL import Image

from tests.references.evaluations import embeddings_of, rows_of
from training.album import PICTURE_PIXELS, Album, as_jpeg_uri

PREFIX = "data:image/jpeg;base64,"


def colour(uri: str) -> tuple[int, ...]:
    """The colour in the middle of a picture."""
    picture = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(PREFIX))))
    assert picture.size == (PICTURE_PIXELS, PICTURE_PIXELS)
    return picture.getpixel((PICTURE_PIXELS // 2, PICTURE_PIXELS // 2))


def near(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 8


def test_a_picture_is_the_one_of_its_row():
    rows = rows_of({"first": ["a"], "second": ["b"], "third": ["c"]}, views=2)
    album = Album(rows, embeddings_of(rows, noise=0.5))
    expected = [(255, 0, 0), (255, 0, 0), (0, 128, 0), (0, 128, 0), (0, 0, 255), (0, 0, 255)]
    assert all(near(colour(album.picture(row)), each) for row, each in enumerate(expected))


def test_a_picture_is_small_whatever_the_image():
    noise = torch.randint(0, 256, (900, 1600, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    uri = as_jpeg_uri(Image.fromarray(noise.numpy()))
    assert len(uri) < 20_000
    assert near(colour(as_jpeg_uri(Image.new("RGB", (90, 300), "blue"))), (0, 0, 255))


def test_a_picture_is_made_once():
    rows = rows_of({"only": ["a"]})
    album = Album(rows, embeddings_of(rows, noise=0.5))
    assert album.picture(1) is album.picture(1)


def test_a_broken_image_is_an_error_that_names_its_instance():
    rows = rows_of({"only": ["a"]})
    album = Album(rows, embeddings_of(rows, noise=0.5))
    album.rows = [{"images": [{"bytes": b"no image", "path": None}] * 2}]
    with pytest.raises(ValueError, match="Instance 'only' has an image"):
        album.picture(0)
