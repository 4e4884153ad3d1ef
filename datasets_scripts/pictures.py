"""Pictures as people see them: any mode to RGB, on white, and into a square."""

import numpy as np
from PIL import Image, ImageOps


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture as it is seen: on white where it is transparent, deep greys stretched to 8 bits."""
    if image.mode.startswith(("I", "F")):
        levels = np.asarray(image, dtype=np.float64)
        low, high = float(levels.min()), float(levels.max())
        image = Image.fromarray(((levels - low) / (high - low or 1.0) * 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


def white_square(image: Image.Image, size: int) -> Image.Image:
    """The whole picture, `as_rgb`, in the middle of a white square of that many pixels."""
    return ImageOps.pad(as_rgb(image), (size, size), color="white")
