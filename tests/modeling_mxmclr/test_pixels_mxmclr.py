"""Pixel values equal those of the image processor, bit for bit, whichever way they are made."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from modeling_mxmclr import pixels_mxmclr
from modeling_mxmclr.pixels_mxmclr import is_plain, output_size, pixel_values
from tests.references.tiny import picture

KEYWORDS = {"return_tensors": "pt"}
SQUARE = {"size": {"height": 24, "width": 24}, "do_center_crop": False}
PLAIN = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}),
    "squeezed to a square": CLIPImageProcessorPil(**SQUARE),
    "a smaller crop of odd margins": CLIPImageProcessorPil(
        size={"shortest_edge": 25}, crop_size={"height": 20, "width": 16}
    ),
    "siglip": SiglipImageProcessorPil(size={"height": 24, "width": 32}),
    "vit": ViTImageProcessorPil(size={"height": 24, "width": 24}, resample=Image.Resampling.NEAREST),
    "bit": BitImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}),
    "values as they are": CLIPImageProcessorPil(**SQUARE, do_rescale=False, do_normalize=False),
    "not normalised": CLIPImageProcessorPil(**SQUARE, do_normalize=False),
    "another scale": CLIPImageProcessorPil(**SQUARE, rescale_factor=1 / 127.5, image_mean=[0.1, 0.2, 0.9]),
}
OWN_WAY = {
    "a crop of its own": ConvNextImageProcessorPil(size={"shortest_edge": 24}, crop_pct=0.8),
    "a crop beyond the image": CLIPImageProcessorPil(
        size={"shortest_edge": 20}, crop_size={"height": 30, "width": 24}
    ),
}


def pictures():
    """Wide, tall, large, small and of the very size."""
    sizes = [(40, 30), (31, 57), (300, 200), (24, 24), (9, 7)]
    return [picture(place, size=max(size)).resize(size) for place, size in enumerate(sizes)]


@pytest.mark.parametrize("image_processor", [*PLAIN.values(), *OWN_WAY.values()], ids=[*PLAIN, *OWN_WAY])
def test_values_are_the_processors_own(image_processor):
    expected = image_processor(pictures(), **KEYWORDS)["pixel_values"]
    found = pixel_values(image_processor, pictures(), KEYWORDS)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_processors_do_not_see_the_images(name, monkeypatch):
    expected = PLAIN[name](pictures(), **KEYWORDS)["pixel_values"]
    made = pixels_mxmclr.value_table(PLAIN[name])
    monkeypatch.setattr(pixels_mxmclr, "value_table", lambda _: made)
    monkeypatch.setattr(type(PLAIN[name]), "__call__", None)
    torch.testing.assert_close(pixel_values(PLAIN[name], pictures(), KEYWORDS), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("images", "keywords"),
    [
        ([np.asarray(picture())], KEYWORDS),
        ([torch.zeros(3, 8, 8, dtype=torch.uint8)], KEYWORDS),
        ([picture(mode="L").convert("RGB")], KEYWORDS | {"do_normalize": False}),
    ],
    ids=["an array", "a tensor", "a keyword"],
)
def test_what_is_not_plain_goes_through_the_processor(images, keywords):
    expected = PLAIN["clip"](images, **keywords)["pixel_values"]
    torch.testing.assert_close(pixel_values(PLAIN["clip"], images, keywords), expected, rtol=0, atol=0)


def test_a_subclass_that_does_more_is_left_alone():
    class Inverted(CLIPImageProcessorPil):
        def rescale(self, image, scale, **keywords):
            return 1 - super().rescale(image, scale, **keywords)

    assert is_plain(PLAIN["clip"])
    assert not is_plain(OWN_WAY["a crop of its own"])
    assert not is_plain(CLIPImageProcessorPil(**SQUARE, do_pad=True, pad_size={"height": 30, "width": 30}))
    inverted = Inverted(**SQUARE)
    expected = inverted(pictures(), **KEYWORDS)["pixel_values"]
    torch.testing.assert_close(pixel_values(inverted, pictures(), KEYWORDS), expected, rtol=0, atol=0)


def test_sizes_of_other_kinds_are_left_to_the_processor():
    assert output_size({"shortest_edge": 10}, (40, 30)) == (13, 10)
    assert output_size({"shortest_edge": 10}, (30, 40)) == (10, 13)
    assert output_size({"height": 5, "width": 7}, (30, 40)) == (7, 5)
    assert output_size({"shortest_edge": 10, "longest_edge": 20}, (30, 40)) is None
