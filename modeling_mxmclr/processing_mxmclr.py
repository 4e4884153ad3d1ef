"""MXMCLRProcessor: folds of images and captions in, flat tensors and group ids out; draws nothing at random."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_base import ImageProcessingMixin
from transformers.processing_utils import ProcessingKwargs

from .folds_mxmclr import flatten_folds, hash_instance_id
from .pixels_mxmclr import pixel_values

PADDINGS = ("longest", "max_length")


class MXMCLRProcessorKwargs(ProcessingKwargs, total=False):
    """Keywords of `MXMCLRProcessor.__call__`, with their defaults."""

    _defaults = {  # type: ignore[misc]  # noqa: RUF012 - how every processor of transformers declares it
        "text_kwargs": {"truncation": True},
        "common_kwargs": {"return_tensors": "pt"},
    }


class MXMCLRProcessor(ProcessorMixin):
    """Folds to the flat batch that `MXMCLRModel` takes; nothing is padded along views or captions.

    Args:
        image_processor: Image processor of the image tower.
        tokenizer: Tokenizer of the text tower.
        text_padding: `longest` of a call, or `max_length`, which SigLIP's text tower was trained with.

    `processor(images=[views_of_a, views_of_b], text=[["a red chair"], []], instance_ids=["a", "b"])` is the
    batch of two instances, of which the second has no caption.
    """

    valid_processor_kwargs = MXMCLRProcessorKwargs

    def __init__(
        self,
        image_processor: ImageProcessingMixin | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_padding: str = "longest",
        **kwargs: Any,
    ) -> None:
        if text_padding not in PADDINGS:
            raise ValueError(f"`text_padding` must be one of {list(PADDINGS)}, got {text_padding!r}.")
        self.text_padding = text_padding
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """The processor of a checkpoint, a Hub id or folder; trust in its code ends here, its two parts get none of it."""
        return super().from_pretrained(*args, **{**kwargs, "trust_remote_code": False})

    @classmethod
    def from_clip_pretrained(cls, name: str) -> Self:
        """The processor that goes with `MXMCLRModel.from_clip_pretrained` of the same checkpoint."""
        source = AutoProcessor.from_pretrained(name, trust_remote_code=False)
        # SigLIP pools the last position, so its texts must end where they ended in training.
        padding = "max_length" if type(source).__name__.startswith("Siglip") else "longest"
        return cls(source.image_processor, source.tokenizer, text_padding=padding)

    def __call__(
        self,
        images: Sequence[Sequence[Any]] | None = None,
        text: Sequence[Sequence[str]] | None = None,
        instance_ids: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """The flat batch of some instances.

        Args:
            images: The views of each instance: PIL images of any mode, or uint8 arrays `(height, width, channels)`.
            text: The captions of each instance. An instance may have an empty fold on one side.
            instance_ids: The id of each instance; hashed, they mean the same on every rank and in every run. Without
                them instances are numbered, which holds for this call alone.
            kwargs: Passed to the tokenizer and the image processor.

        Returns:
            `pixel_values` `(num_images, C, H, W)` and `image_group_ids` `(num_images,)` int64 where `images` is given;
            `input_ids` and `attention_mask` `(num_texts, length)` and `text_group_ids` `(num_texts,)` int64 where
            `text` is.

        Raises:
            TypeError: When folds are not nested as lists of lists.
            ValueError: When images, text and ids are not of the same instances, an instance has neither, or a caption
                has no token.
        """
        check_nesting("images", images, "views", is_image)
        check_nesting("text", text, "captions", lambda caption: isinstance(caption, str))
        names = name_instances(images, text, instance_ids)
        if instance_ids is None:
            group_ids = list(range(len(names)))
        else:
            group_ids = [hash_instance_id(instance_id) for instance_id in instance_ids]
        defaults: Any = MXMCLRProcessorKwargs
        merged = self._merge_kwargs(defaults, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        batch: dict[str, Any] = {}
        if images is not None:
            flat_images, batch["image_group_ids"] = flatten_folds(images, group_ids)
            batch["pixel_values"] = self._pixel_values(flat_images, merged["images_kwargs"])
        if text is not None:
            captions, batch["text_group_ids"] = flatten_folds(text, group_ids)
            owners = [name for name, fold in zip(names, text, strict=True) for _ in fold]
            batch |= self._tokens(captions, owners, merged["text_kwargs"])
        return BatchFeature(batch)

    @staticmethod
    def to_rgb(image: Any) -> Any:
        """A PIL image of any mode in RGB, transparency on white; arrays pass as they are."""
        if not isinstance(image, Image.Image) or image.mode == "RGB":
            return image
        if image.mode.startswith("I;16") or image.mode == "I":
            return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
        if "A" in image.mode or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image).convert("RGB")
        return image.convert("RGB")

    def _pixel_values(self, images: list[Any], keywords: dict[str, Any]) -> Tensor:
        # The image processor knows the shape of an image even where there is none.
        blank = [Image.new("RGB", (8, 8))] if not images else []
        rgb = [self.to_rgb(image) for image in images]
        return pixel_values(self.image_processor, rgb or blank, keywords)[: len(images)]

    def _tokens(self, captions: list[str], owners: list[str], keywords: dict[str, Any]) -> dict[str, Tensor]:
        keywords = {"padding": self.text_padding} | keywords
        encoded = self.tokenizer(captions or ["a"], return_special_tokens_mask=True, **keywords)
        own_tokens = (encoded.pop("special_tokens_mask") == 0).any(dim=1).tolist()
        for owner, caption, has_token in zip(owners, captions, own_tokens, strict=False):
            if not has_token:
                raise ValueError(
                    f"Every caption must hold at least one token, {caption!r} of {owner} has none; drop it in the builder."
                )
        return {name: rows[: len(captions)] for name, rows in encoded.items()}


def is_image(value: object) -> bool:
    """Whether a value is one image rather than a fold of them."""
    return isinstance(value, Image.Image | np.ndarray | torch.Tensor)


def check_nesting(name: str, folds: Any, kind: str, is_observation: Any) -> None:
    """Raise unless `folds` is None or a list, per instance, of lists of observations."""
    if folds is None:
        return
    cure = f"wrap the {kind} of one instance as `[{kind}]`"
    if is_observation(folds) or not isinstance(folds, Sequence):
        raise TypeError(f"`{name}` must hold a list of {kind} per instance, got one {type(folds).__name__}; {cure}.")
    for place, fold in enumerate(folds):
        if is_observation(fold) or not isinstance(fold, Sequence):
            raise TypeError(
                f"`{name}` must hold a list of {kind} per instance, got {type(fold).__name__} at place {place}; {cure}."
            )
        for observation in fold:
            if not is_observation(observation):
                raise TypeError(
                    f"`{name}` holds {type(observation).__name__} in the fold at place {place}; it must hold {kind} only."
                )


def name_instances(
    images: Sequence[Sequence[Any]] | None, text: Sequence[Sequence[str]] | None, instance_ids: Sequence[str] | None
) -> list[str]:
    """What errors call each instance, once all arguments are seen to speak of the same instances."""
    sides = {"images": images, "text": text, "instance_ids": instance_ids}
    given = {name: len(side) for name, side in sides.items() if side is not None}
    if images is None and text is None:
        raise ValueError("`images` or `text` must be given, got neither.")
    if len(set(given.values())) > 1:
        raise ValueError(f"`images`, `text` and `instance_ids` must speak of the same instances, got {given}.")
    count = next(iter(given.values()))
    names = [f"instance {name!r}" for name in (instance_ids if instance_ids is not None else range(count))]
    folds = [side for side in (images, text) if side is not None]
    for place, name in enumerate(names):
        if len(folds) == 2 and not any(len(side[place]) for side in folds):
            raise ValueError(f"Every instance must have an image or a caption, {name} has neither; drop it.")
    return names
