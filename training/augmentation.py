"""Variations of training images that leave standing what captions speak of."""

from dataclasses import dataclass
from math import ceil

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

# As the `reducing_gap` of Pillow, from which on a reduced image can hardly be told from the whole one.
REDUCING_GAP = 2.0
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image.

    Args:
        size: `(height, width)` in pixels of what comes out.
        crop_scale: Smallest share of the area that a crop keeps; 1 for no crop.
        rotation: Largest angle in degrees; corners are filled with the colour of the first pixel.
        horizontal_flip: Whether to mirror half of the images.
        colour_jitter: Largest relative change of brightness, contrast and saturation.
    """

    size: tuple[int, int]
    crop_scale: float = 1.0
    rotation: float = 0.0
    horizontal_flip: bool = False
    colour_jitter: float = 0.0

    @property
    def smallest_source(self) -> tuple[int, int]:
        """Width and height from which on an image is large enough for any crop, in pixels."""
        height, width = (ceil(REDUCING_GAP * extent / self.crop_scale**0.5) for extent in self.size)
        return width, height

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """A variation of an RGB image."""
        if self.rotation:
            angle = generator.uniform(-self.rotation, self.rotation)
            image = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=image.getpixel((0, 0)))
        if self.crop_scale < 1:
            box = random_box(image.size, self.crop_scale, generator)
            image = image.resize(self.size[::-1], Image.Resampling.BICUBIC, box=box, reducing_gap=REDUCING_GAP)
        if self.horizontal_flip and generator.random() < 0.5:
            image = ImageOps.mirror(image)
        if self.colour_jitter:
            for enhancer in ENHANCERS:
                image = enhancer(image).enhance(1 + generator.uniform(-self.colour_jitter, self.colour_jitter))
        return image


def random_box(
    size: tuple[int, int], smallest_share: float, generator: np.random.Generator
) -> tuple[float, float, float, float]:
    """The left, upper, right and lower edge of a crop of the image's own proportions, anywhere within it."""
    side = np.sqrt(generator.uniform(smallest_share, 1))
    width, height = side * size[0], side * size[1]
    left, upper = generator.uniform(0, size[0] - width), generator.uniform(0, size[1] - height)
    return left, upper, left + width, upper + height
