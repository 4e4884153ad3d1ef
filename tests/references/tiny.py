"""Tiny random towers, a tokenizer and folds, so that tests need no network and no time."""

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, CLIPImageProcessorPil, PreTrainedTokenizerFast

from modeling_mxmclr import MXMCLRConfig, MXMCLRModel, MXMCLRProcessor

WORDS = ["red", "blue", "green", "chair", "table", "round", "tall", "a", "with", "legs"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
CLIP_TEXT = {**SMALL, "vocab_size": 40, "max_position_embeddings": 20, "bos_token_id": 1, "eos_token_id": 2}
CLIP_TEXT |= {"pad_token_id": 0}
CLIP_VISION = {**SMALL, "image_size": 32, "patch_size": 16}
BERT = {**SMALL, "vocab_size": 40, "max_position_embeddings": 20, "pad_token_id": 0}

TEXT_TOWERS = {
    "bert": BERT,
    "roberta": {**BERT, "max_position_embeddings": 30},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 37, "vocab_size": 40},
    "modernbert": {**BERT, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    "clip_text_model": CLIP_TEXT,
    "siglip_text_model": {**CLIP_TEXT, "projection_size": 24},
    "t5": {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_kv": 16, "d_ff": 37, "vocab_size": 40},
    "mpnet": {**BERT, "max_position_embeddings": 30},
}
VISION_TOWERS = {
    "vit": CLIP_VISION,
    "clip_vision_model": CLIP_VISION,
    "siglip_vision_model": CLIP_VISION,
    "dinov2": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    },
    "swin": {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "mobilenet_v2": {"image_size": 32, "depth_multiplier": 0.35},
}


def tiny_config(text: str = "bert", vision: str = "vit", **fields) -> MXMCLRConfig:
    return MXMCLRConfig(
        text_config={"model_type": text, **TEXT_TOWERS[text]},
        vision_config={"model_type": vision, **VISION_TOWERS[vision]},
        **{"projection_dim": 16, **fields},
    )


def tiny_model(text: str = "bert", vision: str = "vit", seed: int = 0, **fields) -> MXMCLRModel:
    torch.manual_seed(seed)
    return MXMCLRModel(tiny_config(text, vision, **fields)).eval()


def tower_config(model_type: str, **fields):
    return AutoConfig.for_model(model_type, **{**TEXT_TOWERS, **VISION_TOWERS}[model_type], **fields)


def tiny_tokenizer(eos: bool = False) -> PreTrainedTokenizerFast:
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **names)


def tiny_image_processor(size: int = 32) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"height": size, "width": size}, do_center_crop=False)


def tiny_processor(**fields) -> MXMCLRProcessor:
    return MXMCLRProcessor(tiny_image_processor(), tiny_tokenizer(), **fields)


def picture(seed: int = 0, mode: str = "RGB", size: int = 20) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def tiny_batch(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, torch.Tensor]:
    """Seven images and six texts of six instances; two of them are one-sided."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([5, 3, 5, 4, 2, 5])
    ids = torch.randint(4, 14, (6, 5), generator=generator)
    mask = (torch.arange(5) < lengths[:, None]).long()
    ids[:, 0] = 1
    ids = (ids * mask).scatter(1, lengths[:, None] - 1, 2)
    return {
        "pixel_values": torch.randn(7, 3, 32, 32, generator=generator).to(dtype),
        "image_group_ids": torch.tensor([0, 0, 0, 1, 2, 3, 3]) + 2**40,
        "input_ids": ids,
        "attention_mask": mask,
        "text_group_ids": torch.tensor([0, 0, 1, 3, 3, 5]) + 2**40,
    }


def equal_batch(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The rows of `tiny_batch` that make two images and two texts of each of two instances."""
    rows = {"images": torch.tensor([0, 1, 5, 6]), "texts": torch.tensor([0, 1, 3, 4])}
    of_images = ("pixel_values", "image_group_ids")
    return {name: each[rows["images" if name in of_images else "texts"]] for name, each in tiny_batch(dtype).items()}
