"""MXMCLRModule: a checkpoint as the one module of a `sentence_transformers.SentenceTransformer`."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from sentence_transformers.base.modality import is_image_url_or_path
from sentence_transformers.base.modules import InputModule
from torch import Tensor
from transformers import AutoModel, AutoProcessor, PreTrainedModel, ProcessorMixin


class Fold(NamedTuple):
    """The observations that one input of `encode` holds, all of one modality."""

    images: list[Any]
    texts: list[str]


class MXMCLRModule(InputModule):
    """Texts, images, and several views or captions of one instance to one unit vector each.

    `SentenceTransformer(modules=[MXMCLRModule.load("runs/shapes_cpu")])` encodes a caption (`"a red chair"`), an image
    (PIL, array or the path of a file), and a list of images or of captions as one instance, pooled as the model's
    config says; `{"image": [...]}` and `{"text": [...]}` mean the same as the lists. What it saves is a checkpoint of
    ours with a `modules.json`.

    Args:
        model: An `MXMCLRModel`.
        processor: Its `MXMCLRProcessor`.

    Raises:
        ValueError: For another kind of model.
    """

    # "message" is what sentence-transformers calls a batch of several modalities; chats are refused one by one.
    modalities = ["text", "image", "message"]  # noqa: RUF012 - a property in the base class

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        super().__init__()
        if model.config.model_type != "mxmclr":
            raise ValueError(
                f"`model` must be an MXMCLRModel, got a {type(model).__name__}; `SentenceTransformer(name)` loads other models."
            )
        self.model: Any = model
        self.processor: Any = processor

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the text tower."""
        return self.processor.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self.processor.tokenizer = tokenizer

    @property
    def max_seq_length(self) -> int:
        """The number of tokens that a text is cut to."""
        return self.tokenizer.model_max_length

    @max_seq_length.setter
    def max_seq_length(self, length: int) -> None:
        self.tokenizer.model_max_length = length

    def get_embedding_dimension(self) -> int:
        """Length of every embedding."""
        return self.model.config.projection_dim

    # These name their keywords where the base class takes any, so that one which means nothing here is an error.
    def preprocess(  # type: ignore[override]
        self, inputs: Sequence[Any], prompt: str | None = None, task: str | None = None
    ) -> dict[str, Tensor]:
        """The flat batch of some inputs, each an instance of its own.

        Args:
            inputs: Captions, images, or lists of either.
            prompt: Text to put before every caption.
            task: Ignored: queries and documents are embedded alike.

        Raises:
            ValueError: For an input that is neither.
        """
        folds = [read_fold(one) for one in inputs]
        images = [fold.images for fold in folds]
        texts = [[(prompt or "") + text for text in fold.texts] for fold in folds]
        return dict(self.processor(images=images if any(images) else None, text=texts if any(texts) else None))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        """The features with `sentence_embedding`, `(num_inputs, projection_dim)`, unit norm."""
        inputs = {name: value for name, value in features.items() if not name.endswith("group_ids")}
        output = self.model(**inputs, return_loss=False, output_logits=False)
        kinds = [kind for kind in ("image", "text") if f"{kind}_group_ids" in features]
        embeds = torch.cat([output[f"{kind}_embeds"] for kind in kinds])
        group_ids = torch.cat([features[f"{kind}_group_ids"] for kind in kinds])
        # An input has one modality, so its rows stand together; the group ids count the inputs.
        pooled = self.model.get_instance_features(embeds, group_ids)
        return features | {"sentence_embedding": pooled[group_ids.unique_consecutive().argsort()]}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Save a checkpoint of ours.

        Raises:
            ValueError: When pickled weights are asked for.
        """
        if not safe_serialization:
            raise ValueError("`safe_serialization` must stay True: weights are saved as safetensors only.")
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        backend: str = "torch",
    ) -> Self:
        """The module of a checkpoint, a folder or an id on the Hub.

        Raises:
            ValueError: For another backend than torch; `training/export_onnx.py` exports the towers.
        """
        if backend != "torch":
            raise ValueError(
                f"`backend` must be 'torch', got {backend!r}; training/export_onnx.py exports the towers."
            )
        where = {
            "subfolder": subfolder,
            "token": token,
            "cache_dir": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
            "trust_remote_code": trust_remote_code,
        }
        model = AutoModel.from_pretrained(model_name_or_path, **where, **(config_kwargs or {}), **(model_kwargs or {}))
        return cls(model, AutoProcessor.from_pretrained(model_name_or_path, **where, **(processor_kwargs or {})))


def read_fold(one: Any) -> Fold:
    """What an input holds.

    Example:
        >>> read_fold(["a red chair", "a chair"])
        Fold(images=[], texts=['a red chair', 'a chair'])

    Raises:
        ValueError: For an input that is not a caption, an image, or a list of either. (A TypeError would make
            sentence-transformers try again in its old way.)
    """
    observations = one
    if isinstance(one, dict):
        if len(one) != 1 or not one.keys() <= {"image", "text"}:
            raise ValueError(f"An input must have `image` or `text`, got {sorted(map(str, one))}; encode each alone.")
        (observations,) = one.values()
    if not isinstance(observations, list | tuple):
        observations = [observations]
    texts = [value for value in observations if is_caption(value)]
    images = [read_image(value) for value in observations if not is_caption(value)]
    if bool(images) == bool(texts):
        raise ValueError(
            f"An input must hold images or captions, got {len(images)} and {len(texts)}; encode each modality alone."
        )
    return Fold(images, texts)


def is_caption(value: Any) -> bool:
    """Whether a value is a text that sentence-transformers doesn't take for the place of an image."""
    return isinstance(value, str) and not is_image_url_or_path(value)


def read_image(value: Any) -> Any:
    """An image that the processor takes.

    Raises:
        ValueError: For a URL, which is never fetched, or what is no image.
    """
    if isinstance(value, str) and Path(value).is_file():
        with Image.open(value) as image:
            image.load()
        return image
    if not isinstance(value, Image.Image | np.ndarray | Tensor):
        what = repr(value[:40]) if isinstance(value, str) else type(value).__name__
        raise ValueError(f"An image must be a PIL image, an array or the path of a file, got {what}; open it first.")
    return value


def add_sentence_transformers_files(folder: str | os.PathLike[str]) -> None:
    """Make a checkpoint's folder one that `SentenceTransformer(folder, trust_remote_code=True)` loads anywhere.

    It gets this file and a `modules.json` that names it, so that the package need not be installed.
    """
    shutil.copy(__file__, folder)
    reference = f"{Path(__file__).stem}.{MXMCLRModule.__name__}"
    modules = [{"idx": 0, "name": "0", "path": "", "type": reference}]
    (Path(folder) / "modules.json").write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
