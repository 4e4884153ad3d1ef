"""Towers: any transformers text or vision model, built from its config, and one vector out of whatever it returns."""

import inspect
import os
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from .configuration_mxmclr import without_foreign_code

SHARED_KEYWORDS = ("output_attentions", "output_hidden_states")
# Text models that no Auto class maps.
UNMAPPED_CLASSES = {"siglip_text_model": "SiglipTextModel", "siglip2_text_model": "Siglip2TextModel"}


def tower_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of transformers that this config describes; the encoder alone where there is a decoder too.

    Raises:
        ValueError: For the config of a whole dual encoder, or of no model that transformers knows.
    """
    if hasattr(config, "text_config") and hasattr(config, "vision_config"):
        raise ValueError(
            f"A tower needs the config of one modality, got that of {config.model_type!r}; pass its "
            "`.text_config` or `.vision_config`."
        )
    if config.model_type in UNMAPPED_CLASSES:
        return getattr(transformers, UNMAPPED_CLASSES[config.model_type])
    for auto_class in (AutoModelForTextEncoding, AutoModel):
        if type(config) in auto_class._model_mapping:
            found: Any = auto_class._model_mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise ValueError(f"A tower must be a model of transformers, got a config of type {config.model_type!r}.")


def pooler_keywords(cls: type[PreTrainedModel], pooling: str) -> dict[str, Any]:
    """Keywords that build a tower without a pooling layer that nobody reads; empty where it can't be left out."""
    optional = "add_pooling_layer" in inspect.signature(cls).parameters
    return {"add_pooling_layer": False} if optional and pooling in TOKEN_POOLINGS else {}


def build_tower(config: PreTrainedConfig, pooling: str) -> PreTrainedModel:
    """A tower of this config with fresh weights."""
    cls = tower_class(config)
    return cls._from_config(config, **pooler_keywords(cls, pooling))


def load_tower(
    source: str | os.PathLike[str] | PreTrainedConfig | dict[str, Any], modality: str, pooling: str
) -> PreTrainedModel:
    """A tower out of what a caller has.

    Args:
        source: A checkpoint's Hub id or folder, of one model or of a dual encoder whose half is taken; or the config of
            a tower, an object or its dict with `model_type`, for fresh weights. Only safetensors is read, and no code.
        modality: `text` or `vision`.
        pooling: How its output will be pooled, see `MXMCLRConfig`.
    """
    if isinstance(source, dict):
        source = AutoConfig.for_model(**source)
    if isinstance(source, PreTrainedConfig):
        return build_tower(source, pooling)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    config = without_foreign_code(getattr(config, f"{modality}_config", config))
    cls = tower_class(config)
    return cls.from_pretrained(source, config=config, use_safetensors=True, **pooler_keywords(cls, pooling))


def tower_width(tower: PreTrainedModel, pooling: str) -> int:
    """Length of the vector that `pool_tower_output` takes from this tower."""
    config = tower.config
    if pooling in ("auto", "pooler") and hasattr(config, "projection_size"):
        return config.projection_size  # SigLIP's text tower projects its pooled token
    if getattr(config, "hidden_sizes", None):
        return config.hidden_sizes[-1]
    return config.hidden_size if hasattr(config, "hidden_size") else probe_width(tower, pooling)


def probe_width(tower: PreTrainedModel, pooling: str) -> int:
    """The width found by running shapes alone through an image tower whose config doesn't say it."""
    size = getattr(tower.config, "image_size", 32)
    with torch.device("meta"), torch.no_grad():
        twin = type(tower)(tower.config).eval()
        images = torch.empty(1, getattr(tower.config, "num_channels", 3), size, size)
        return pool_tower_output(twin(pixel_values=images), pooling).shape[1]


def pool_tower_output(output: ModelOutput, pooling: str, attention_mask: Tensor | None = None) -> Tensor:
    """One vector a row out of a tower's output, `(num_rows, width)`.

    Args:
        output: What the tower returned: `pooler_output` of `(num_rows, width)` or `(num_rows, width, 1, 1)`, and
            `last_hidden_state` of `(num_rows, length, width)` or `(num_rows, width, height, width)`.
        pooling: `auto`, `pooler`, `mean`, `cls` or `last`, see `MXMCLRConfig`.
        attention_mask: `(num_rows, length)`, 1 for real tokens; absent where all are.

    Raises:
        ValueError: When `pooler` is asked of a tower that has none.
    """
    pooled = output.get("pooler_output")
    if pooling == "pooler" and pooled is None:
        raise ValueError("`pooler` needs a tower with a `pooler_output`, this one has none; use `mean` or `cls`.")
    if pooled is not None and pooling in ("auto", "pooler"):
        return pooled.flatten(1)
    return TOKEN_POOLINGS["mean" if pooling == "auto" else pooling](tokens_of(output), attention_mask)


def tokens_of(output: ModelOutput) -> Tensor:
    """The last hidden state as tokens, `(num_rows, length, width)`; a feature map's cells are its tokens."""
    hidden = output["last_hidden_state"]
    return hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden


def _mean_token(tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
    if attention_mask is None:
        return tokens.mean(dim=1)
    mask = attention_mask[..., None].bool()
    return tokens.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _first_token(tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
    if attention_mask is None:
        return tokens[:, 0]
    # Padding may stand on the left.
    return tokens[torch.arange(len(tokens), device=tokens.device), attention_mask.int().argmax(dim=1)]


def _last_token(tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
    if attention_mask is None:
        return tokens[:, -1]
    places = torch.arange(tokens.shape[1], device=tokens.device)
    return tokens[torch.arange(len(tokens), device=tokens.device), (attention_mask * places).argmax(dim=1)]


TOKEN_POOLINGS = {"mean": _mean_token, "cls": _first_token, "last": _last_token}


def build_projection(kind: str, width: int, projection_dim: int, hidden_dim: int | None) -> nn.Module:
    """The head that maps a tower's vectors to the shared space.

    Raises:
        ValueError: When `none` is asked of a tower whose width is not `projection_dim`.
    """
    if kind == "linear":
        return HeadLinear(width, projection_dim, bias=False)
    if kind == "mlp":
        return MLPHead(width, hidden_dim or width, projection_dim)
    if width != projection_dim:
        raise ValueError(
            f"A projection of `none` needs `projection_dim` equal to the tower's width {width}, got {projection_dim}."
        )
    return nn.Identity()


class HeadLinear(nn.Linear):
    """A linear layer of a head, a class of its own because it starts with variance 1 / in_features, as in CLIP."""


class MLPHead(nn.Module):
    """Linear, GELU, linear: `(num_rows, width)` to `(num_rows, projection_dim)`."""

    def __init__(self, width: int, hidden_dim: int, projection_dim: int) -> None:
        super().__init__()
        self.hidden = HeadLinear(width, hidden_dim)
        self.output = HeadLinear(hidden_dim, projection_dim, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        """Project rows, `(num_rows, projection_dim)`."""
        return self.output(F.gelu(self.hidden(rows)))


def route_keywords(
    keywords: dict[str, object], text_model: PreTrainedModel, vision_model: PreTrainedModel
) -> tuple[dict[str, object], dict[str, object]]:
    """The keywords that the text tower takes and those that the image tower takes; outputs asked of both go to both.

    Raises:
        TypeError: For a keyword that neither tower's `forward` names.
    """
    routed = []
    for tower in (text_model, vision_model):
        names = {*inspect.signature(tower.forward).parameters, *SHARED_KEYWORDS}
        routed.append({name: value for name, value in keywords.items() if name in names})
    if unknown := sorted(keywords.keys() - routed[0].keys() - routed[1].keys()):
        raise TypeError(
            f"`forward` got {unknown}, which neither {type(text_model).__name__} nor "
            f"{type(vision_model).__name__} takes; check the spelling."
        )
    return routed[0], routed[1]
