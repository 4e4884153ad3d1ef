"""Images to pixel values: bit for bit what an image processor of transformers makes of them, without its detours."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_backends import PilBackend

# What a subclass may override to do more, or other, than to resize, to crop, and to map each value of each channel.
STEPS = (
    "preprocess",
    "_standardize_kwargs",
    "_preprocess_image_like_inputs",
    "_prepare_image_like_inputs",
    "_prepare_images_structure",
    "process_image",
    "convert_to_rgb",
    "_preprocess",
    "resize",
    "center_crop",
    "rescale",
    "normalize",
)


def pixel_values(image_processor: Any, images: Sequence[Any], keywords: dict[str, Any]) -> Tensor:
    """What `image_processor(images, **keywords)` returns as `pixel_values`, `(num_images, channels, height, width)`.

    Plain processors copy, convert and check each image several times over, and scale in float64. Where one is plain,
    Pillow resizes the image itself, and each of the 256 values of a channel is looked up in a table that the processor
    made. Any other goes its own way.

    Args:
        image_processor: Any image processor.
        images: PIL images in RGB, or what else it takes; at least one.
        keywords: For its call.
    """
    if keywords == {"return_tensors": "pt"} and is_plain(image_processor):
        resized = [resize(image_processor, image) for image in images]
        done = [image for image in resized if image is not None]
        if len(done) == len(images) and len({image.size for image in done}) == 1:
            return look_up(value_table(image_processor), done)
    return image_processor(list(images), **keywords)["pixel_values"]


def is_plain(image_processor: Any) -> bool:
    """Whether it does what the class of transformers does, and pads nothing."""
    own = type(image_processor)
    return (
        isinstance(image_processor, PilBackend)
        and all(getattr(own, step) is getattr(PilBackend, step) for step in STEPS)
        and not getattr(image_processor, "do_pad", None)
    )


def resize(image_processor: Any, image: Any) -> Image.Image | None:
    """An RGB image as the processor resizes and crops it; None for what isn't worked out here."""
    if not isinstance(image, Image.Image) or image.mode != "RGB":
        return None
    if image_processor.do_resize:
        size = output_size(dict(image_processor.size), image.size)
        if size is None or not isinstance(image_processor.resample, int):
            return None
        if size != image.size:
            image = image.resize(size, image_processor.resample)
    if not image_processor.do_center_crop:
        return image
    crop = dict(image_processor.crop_size)
    left, upper = (image.width - crop["width"]) // 2, (image.height - crop["height"]) // 2
    if left < 0 or upper < 0:
        return None
    return image.crop((left, upper, left + crop["width"], upper + crop["height"]))


def output_size(wanted: dict[str, int], size: tuple[int, int]) -> tuple[int, int] | None:
    """Width and height after resizing, for a processor's `size` and an image's; None for a rule of another kind."""
    if set(wanted) == {"height", "width"}:
        return wanted["width"], wanted["height"]
    if set(wanted) != {"shortest_edge"}:
        return None
    short = wanted["shortest_edge"]
    long = int(short * max(size) / min(size))
    return (short, long) if size[0] <= size[1] else (long, short)


def value_table(image_processor: Any) -> np.ndarray:
    """What the processor makes of each of the 256 values of each channel, `(3, 256)`."""
    values = np.repeat(np.arange(256, dtype=np.uint8)[None, None], 3, axis=0)
    if image_processor.do_rescale:
        values = image_processor.rescale(values, image_processor.rescale_factor)
    if image_processor.do_normalize:
        values = image_processor.normalize(values, image_processor.image_mean, image_processor.image_std)
    return values[:, 0]


def look_up(table: np.ndarray, images: Sequence[Image.Image]) -> Tensor:
    """The values of RGB images of one size, `(num_images, 3, height, width)`."""
    width, height = images[0].size
    values = np.empty((len(images), 3, height, width), dtype=table.dtype)
    for image, out in zip(images, values, strict=True):
        pixels = np.asarray(image)
        for channel in range(3):
            # Bytes can't be out of range; without a mode that says so, numpy works in a buffer of its own.
            np.take(table[channel], pixels[:, :, channel], out=out[channel], mode="clip")
    return torch.from_numpy(values)
