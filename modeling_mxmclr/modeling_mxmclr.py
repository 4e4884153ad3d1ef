"""MXMCLRModel: two towers, their heads, a learned scale, and a multifold objective inside `forward`."""

import json
import math
import os
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils import cached_file
from transformers.utils.generic import can_return_tuple

from .buckets_mxmclr import can_be_cut, holds_shards, pool_in_buckets
from .configuration_mxmclr import MXMCLRConfig
from .contrast_mxmclr import ObjectiveOutput
from .distributed_mxmclr import gather_batch, sum_over_ranks, world_size
from .folds_mxmclr import Observations, instance_embeddings, unit_norm
from .objectives_mxmclr import check_remembers, get_objective, input_names, setting_names
from .scale_mxmclr import LogitBias, LogitScale
from .towers_mxmclr import (
    HeadLinear,
    build_projection,
    build_tower,
    load_tower,
    pool_tower_output,
    route_keywords,
    tower_width,
)

TowerSource = str | os.PathLike[str] | PreTrainedConfig | dict[str, Any]

SIGMOID_BIAS = -10.0  # where SigLIP starts


@dataclass
class MXMCLROutput(ModelOutput):
    """What `MXMCLRModel` returns; what wasn't asked for is None.

    Args:
        loss: `()`, the objective over the observations of all ranks that trained this step.
        loss_components: The objective's named parts, each `()` and detached.
        logits_per_image: `(num_images, num_texts)`, at least float32; this rank's own observations.
        logits_per_text: `(num_texts, num_images)`, its transpose.
        image_embeds: `(num_images, projection_dim)`, unit norm, at least float32.
        text_embeds: `(num_texts, projection_dim)`, unit norm, at least float32.
        logit_scale: `(1,)`, the learned log scale, clamped.
        text_model_output: What the text tower returned; None where it ran in more than one part, see `text_buckets`.
        vision_model_output: What the image tower returned.
    """

    loss: Tensor | None = None
    loss_components: dict[str, Tensor] | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    logit_scale: Tensor | None = None
    text_model_output: ModelOutput | None = None
    vision_model_output: ModelOutput | None = None


class MXMCLRModel(PreTrainedModel):
    """A dual encoder for multifold data: any transformers text tower and any image tower in one space.

    A reconstruction of MXM-CLR (https://huggingface.co/papers/2303.10839), whose code and equations are not public.

    Args:
        config: Towers, heads and objective.
        text_model: A text tower to take over; its config replaces `config.text_config`.
        vision_model: An image tower to take over; its config replaces `config.vision_config`.

    Attributes:
        text_buckets: How many calls of the text tower may share a batch of texts, so that short ones aren't padded to
            the longest and equal ones are encoded once. 1, where a model starts, is one call with the texts as they
            are. For towers whose vectors ignore padding; not saved.

    Raises:
        ValueError: For an unknown objective or setting, or towers and heads that don't fit.
    """

    config: Any  # an `MXMCLRConfig`; its tower configs may be given as dicts, and are objects from then on
    config_class = MXMCLRConfig
    base_model_prefix = "mxmclr"
    input_modalities = ["image", "text"]  # noqa: RUF012 - the base class declares it so
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # else `Trainer` passes `num_items_in_batch`, which no objective here averages by
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    text_buckets = 1

    def __init__(
        self,
        config: MXMCLRConfig,
        text_model: PreTrainedModel | None = None,
        vision_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        self.objective = get_objective(config.objective, config.objective_settings)
        self.text_model = text_model or build_tower(self.config.text_config, config.text_pooling)
        self.vision_model = vision_model or build_tower(self.config.vision_config, config.vision_pooling)
        # A tower may have changed its config (its attention, say); one object describes it.
        config.text_config, config.vision_config = self.text_model.config, self.vision_model.config
        self.text_projection = self._build_projection(
            config.text_projection, tower_width(self.text_model, config.text_pooling)
        )
        self.visual_projection = self._build_projection(
            config.vision_projection, tower_width(self.vision_model, config.vision_pooling)
        )
        self.projection_dropout = nn.Dropout(config.projection_dropout)
        self.logit_scale = LogitScale(config.logit_scale_max)
        self.objective_inputs = input_names(config.objective, config.objective_settings)  # read off signatures, once
        if config.logit_bias_init_value is None and "bias" in self.objective_inputs:
            config.logit_bias_init_value = SIGMOID_BIAS
        self.logit_bias = None if config.logit_bias_init_value is None else LogitBias()
        self.post_init()

    def _build_projection(self, kind: str, width: int) -> nn.Module:
        return build_projection(kind, width, self.config.projection_dim, self.config.projection_hidden_dim)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LogitScale):
            init.constant_(module.weight, self.config.logit_scale_init_value)
        elif isinstance(module, LogitBias) and self.config.logit_bias_init_value is not None:
            init.constant_(module.weight, self.config.logit_bias_init_value)
        elif isinstance(module, HeadLinear):
            init.normal_(module.weight, std=module.in_features**-0.5)

    @classmethod
    def from_text_vision_pretrained(cls, text: TowerSource, vision: TowerSource, **config_fields: Any) -> Self:
        """A model of two towers with fresh heads.

        Args:
            text: Hub id or folder of any text model, or of a dual encoder whose text half is taken; or a config, an
                object or its dict with `model_type`, for a tower with fresh weights.
            vision: The same for images.
            config_fields: Fields of `MXMCLRConfig`. Without `text_pooling`, a sentence-transformers checkpoint keeps
                the pooling that it was trained with.

        Raises:
            TypeError: For a field that `MXMCLRConfig` doesn't have.
        """
        check_config_fields(config_fields)
        config_fields.setdefault("text_pooling", declared_pooling(text))
        text_model = load_tower(text, "text", config_fields["text_pooling"])
        vision_model = load_tower(vision, "vision", config_fields.get("vision_pooling", "auto"))
        config = cls.config_class(
            text_config=text_model.config.to_dict(), vision_config=vision_model.config.to_dict(), **config_fields
        )
        return cls(config, text_model=text_model, vision_model=vision_model)

    @classmethod
    def from_clip_pretrained(cls, name: str, **config_fields: Any) -> Self:
        """A CLIP or SigLIP model taken over whole: towers, projections, scale and bias, so embeddings stay equal.

        Args:
            name: Hub id or folder of the checkpoint.
            config_fields: Fields of `MXMCLRConfig` that the checkpoint doesn't settle, such as `objective`.

        Raises:
            TypeError: For a field that `MXMCLRConfig` doesn't have, or that the checkpoint settles.
            ValueError: For a checkpoint that is not of a dual encoder in CLIP's form.
        """
        check_config_fields(config_fields)
        source = AutoModel.from_pretrained(name, trust_remote_code=False, use_safetensors=True)
        if not all(hasattr(source, part) for part in ("text_model", "vision_model", "logit_scale")):
            raise ValueError(
                f"`from_clip_pretrained` needs a CLIP or SigLIP checkpoint, {name!r} holds a {type(source).__name__}; "
                "use `from_text_vision_pretrained` for two towers."
            )
        projects = hasattr(source, "visual_projection")
        log_scale = source.logit_scale.item()
        architecture = {
            "text_config": source.text_model.config.to_dict(),
            "vision_config": source.vision_model.config.to_dict(),
            "text_projection": "linear" if projects else "none",
            "vision_projection": "linear" if projects else "none",
            "projection_dim": (
                source.config.projection_dim if projects else tower_width(source.vision_model, "pooler")
            ),
            "logit_scale_init_value": log_scale,
            "logit_scale_max": max(100.0, math.exp(log_scale)),
            "logit_bias_init_value": source.logit_bias.item() if hasattr(source, "logit_bias") else None,
        }
        if settled := sorted(architecture.keys() & config_fields.keys()):
            raise TypeError(f"{settled} are taken over from {str(name)!r}; leave them out.")
        model = cls(cls.config_class(**architecture, **config_fields), source.text_model, source.vision_model)
        if projects:
            model.text_projection.load_state_dict(source.text_projection.state_dict())
            model.visual_projection.load_state_dict(source.visual_projection.state_dict())
        return model.eval()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """The model of a checkpoint, a Hub id or folder, as `PreTrainedModel.from_pretrained` but from safetensors alone.

        Raises:
            ValueError: When pickled weights are asked for.
        """
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError("`use_safetensors` must be True, got False: weights are never unpickled; convert them.")
        return super().from_pretrained(*args, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save weights (safetensors), config and this package's source, so that the folder loads on its own."""
        if self._auto_class is not None:
            # `_auto_class` holds one name; the zero-shot pipeline looks for this one.
            zero_shot = {"AutoModelForZeroShotImageClassification": "modeling_mxmclr.MXMCLRModel"}
            self.config.auto_map = zero_shot  # transformers adds the others, all of them ours
        super().save_pretrained(save_directory, *args, **kwargs)

    def get_image_features(self, pixel_values: Tensor, **keywords: Any) -> Tensor:
        """One unit vector an image, `(num_images, projection_dim)`, at least float32.

        Args:
            pixel_values: `(num_images, channels, height, width)`.
            keywords: Passed to the image tower.
        """
        return self._embed_images(pixel_values, keywords)[0]

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None, **keywords: Any) -> Tensor:
        """One unit vector a text, `(num_texts, projection_dim)`, at least float32.

        Args:
            input_ids: `(num_texts, length)` int64.
            attention_mask: `(num_texts, length)`, 1 for real tokens.
            keywords: Passed to the text tower.
        """
        return self._embed_texts(input_ids, attention_mask, keywords)[0]

    def get_instance_features(self, embeds: Tensor, group_ids: Tensor, pooling: str | None = None) -> Tensor:
        """One unit vector an instance, `(num_instances, dim)`, in the order in which instances first appear.

        Args:
            embeds: `(num_observations, dim)`, the unit vectors of images or of texts.
            group_ids: `(num_observations,)` int64, the instance of each.
            pooling: `mean`, `max` or `attention`; None takes `config.view_pooling`.

        Raises:
            ValueError: When there are not as many ids as rows.
        """
        check_group_ids("group_ids", group_ids, embeds)
        return instance_embeddings(embeds, group_ids, pooling or self.config.view_pooling)

    def get_text_tower_output(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **keywords: Any
    ) -> Tensor:
        """The text tower's pooled vectors before the head, `(num_texts, width)`: what `forward` takes for a frozen tower."""
        return self._pool_texts(input_ids, attention_mask, keywords)[0]

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        image_group_ids: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        text_group_ids: Tensor | None = None,
        return_loss: bool | None = None,
        text_tower_output: Tensor | None = None,
        image_embeds: Tensor | None = None,
        text_embeds: Tensor | None = None,
        soft_weight: float | None = None,
        objective_inputs: dict[str, Tensor] | None = None,
        memory: Observations | None = None,
        gather: bool | None = None,
        output_logits: bool | None = None,
        **keywords: Any,
    ) -> MXMCLROutput:
        """Embed the observations of a batch, and score them by the objective.

        Args:
            pixel_values: `(num_images, channels, height, width)`, all drawn views of all instances.
            image_group_ids: `(num_images,)` int64, the instance of each image.
            input_ids: `(num_texts, length)` int64, all drawn captions.
            attention_mask: `(num_texts, length)`, 1 for real tokens.
            text_group_ids: `(num_texts,)` int64, the instance of each text.
            return_loss: Whether to compute the loss; None does where both group ids are given.
            text_tower_output: `(num_texts, width)` of `get_text_tower_output`, in place of `input_ids`, where a frozen
                text tower was run once for all epochs.
            image_embeds: `(num_images, projection_dim)` of `get_image_features`, in place of `pixel_values`, to be
                scored alone; gradients reach them.
            text_embeds: `(num_texts, projection_dim)` of `get_text_features`, in place of `input_ids`.
            soft_weight: Overrides the objective's setting of that name for this step, for a schedule.
            objective_inputs: What the objective or its terms take beside the observations, such as
                `image_reference_embeds`, with the rows of this rank's images or texts.
            memory: Observations of earlier steps, of all ranks, the same on each: further keys, and positives of their own
                instances, without gradient. For `mfh` and `unicl`.
            gather: Whether the loss is over the observations of all ranks; None does so in training mode.
            output_logits: Whether to return logits; None does where there is no loss.
            keywords: Passed to the tower that takes them, such as `token_type_ids`.

        Raises:
            ValueError: When a loss is asked for without both modalities and their group ids, or ids don't match rows.
            TypeError: For a keyword that neither tower takes.
        """
        text_keywords, vision_keywords = route_keywords(keywords, self.text_model, self.vision_model)
        text_output = vision_output = None
        if pixel_values is not None:
            image_embeds, vision_output = self._embed_images(pixel_values, vision_keywords)
        if text_tower_output is not None:
            text_embeds = self._project(self.text_projection, text_tower_output)
        elif input_ids is not None:
            text_embeds, text_output = self._embed_texts(input_ids, attention_mask, text_keywords)

        log_scale = self.logit_scale()
        if return_loss is None:
            return_loss = image_group_ids is not None and text_group_ids is not None
        loss = components = None
        if return_loss:
            observed = checked_observations(image_embeds, text_embeds, image_group_ids, text_group_ids)
            loss, components = self._score(
                observed, log_scale, soft_weight, objective_inputs, memory, self.training if gather is None else gather
            )
        logits = None
        if (
            image_embeds is not None
            and text_embeds is not None
            and (not return_loss if output_logits is None else output_logits)
        ):
            logits = self._logits(image_embeds, text_embeds, log_scale)
        return MXMCLROutput(
            loss=loss,
            loss_components=components,
            logits_per_image=logits,
            logits_per_text=None if logits is None else logits.T,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            logit_scale=log_scale,
            text_model_output=text_output,
            vision_model_output=vision_output,
        )

    def _embed_images(self, pixel_values: Tensor, keywords: dict[str, Any]) -> tuple[Tensor, ModelOutput]:
        # A rank without images still runs the tower, on blank ones, so that collectives inside and after it don't stall.
        rows = pixel_values if len(pixel_values) else pixel_values.new_zeros(2, *pixel_values.shape[1:])
        output = self.vision_model(pixel_values=rows, **keywords)
        pooled = pool_tower_output(output, self.config.vision_pooling)
        return self._project(self.visual_projection, pooled[: len(pixel_values)]), output

    def _embed_texts(
        self, input_ids: Tensor, attention_mask: Tensor | None, keywords: dict[str, Any]
    ) -> tuple[Tensor, ModelOutput | None]:
        pooled, output = self._pool_texts(input_ids, attention_mask, keywords)
        return self._project(self.text_projection, pooled), output

    def _pool_texts(
        self, input_ids: Tensor, attention_mask: Tensor | None, keywords: dict[str, Any]
    ) -> tuple[Tensor, ModelOutput | None]:
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask} | keywords
        tokens = {name: value for name, value in tokens.items() if value is not None}
        if self.text_buckets > 1 and can_be_cut(tokens):
            min_calls = self.text_buckets if holds_shards(self.text_model) else 1
            return pool_in_buckets(self._run_text_tower, tokens, self.text_buckets, min_calls), None
        if len(input_ids) == 0:
            blank = input_ids.new_zeros(2, max(1, input_ids.shape[1]))
            tokens = {"input_ids": blank, "attention_mask": torch.ones_like(blank)}
        output = self.text_model(**tokens)
        pooled = pool_tower_output(output, self.config.text_pooling, tokens.get("attention_mask"))
        return pooled[: len(input_ids)], output

    def _run_text_tower(self, tokens: dict[str, Tensor]) -> Tensor:
        output = self.text_model(**tokens)
        return pool_tower_output(output, self.config.text_pooling, tokens["attention_mask"])

    def _project(self, projection: nn.Module, pooled: Tensor) -> Tensor:
        projected = projection(self.projection_dropout(pooled))
        return unit_norm(projected.to(torch.promote_types(projected.dtype, torch.float32)))

    def _score(
        self,
        observed: Observations,
        log_scale: Tensor,
        soft_weight: float | None,
        inputs: dict[str, Tensor] | None,
        memory: Observations | None,
        gather: bool,
    ) -> ObjectiveOutput:
        settings = {} if soft_weight is None else {"soft_weight": soft_weight}
        if settings and "soft_weight" not in setting_names(self.config.objective):
            raise ValueError(f"`soft_weight` is no setting of the objective {self.config.objective!r}; leave it out.")
        inputs = self._checked_inputs(inputs or {}, observed)
        learned = {"scale": log_scale.exp()}
        if self.logit_bias is not None and "bias" in self.objective_inputs:
            learned["bias"] = self.logit_bias()
        if gather:
            observed, inputs, learned = gather_batch(observed, inputs, learned)
        if memory is not None:
            check_remembers(self.config.objective, self.config.objective_settings)
            if inputs:
                raise ValueError(
                    f"`memory` can't be had with {sorted(inputs)}, which it lacks; leave one of them out."
                )
            observed = observed.remembering(memory)
        with full_precision(observed.image_embeds):
            output = self.objective(observed, **learned, **settings, **inputs)
        if not gather or world_size() == 1:
            return output
        loss, components = sum_over_ranks(*output)
        if torch.is_grad_enabled():
            loss = loss + self.touch_parameters()
        return ObjectiveOutput(loss, components)

    def _checked_inputs(self, inputs: dict[str, Tensor], observed: Observations) -> dict[str, Tensor]:
        known = self.objective_inputs - {"bias"}
        sizes = {"image": len(observed.image_embeds), "text": len(observed.text_embeds)}
        for name, rows in inputs.items():
            if name not in known:
                raise ValueError(
                    f"`objective_inputs` of {self.config.objective!r} must be among {sorted(known)}, got {name!r}."
                )
            size = len(rows) if "queue" in name else sizes[name.partition("_")[0]]
            if len(rows) != size:
                raise ValueError(f"`{name}` has {len(rows)} rows for {size} observations; pass one for each.")
        return dict(inputs)

    def touch_parameters(self) -> Tensor:
        """A zero, `()`, that reaches every trainable parameter, since DDP waits for the gradient of each.

        Towers hold parameters that a step may not use, such as DINOv2's mask token or a pooler that nobody reads.
        FSDP shards don't need it, and can't be mixed with plain tensors.
        """
        plain = [weight for weight in self.parameters() if weight.requires_grad and type(weight) is nn.Parameter]
        return sum((0 * weight.flatten()[:1].float().sum() for weight in plain), torch.zeros((), device=self.device))

    def _logits(self, image_embeds: Tensor, text_embeds: Tensor, log_scale: Tensor) -> Tensor:
        with full_precision(image_embeds):
            logits = log_scale.exp() * image_embeds @ text_embeds.T
        return logits if self.logit_bias is None else logits + self.logit_bias()


def full_precision(rows: Tensor) -> torch.autocast:
    """A context in which autocast leaves matrix products in the type of their arguments."""
    return torch.autocast(rows.device.type, enabled=False)


def checked_observations(
    image_embeds: Tensor | None,
    text_embeds: Tensor | None,
    image_group_ids: Tensor | None,
    text_group_ids: Tensor | None,
) -> Observations:
    """The observations of a batch, once both modalities and their ids are seen to be there and to match."""
    if image_group_ids is None or text_group_ids is None:
        raise ValueError(
            "`return_loss=True` needs `image_group_ids` and `text_group_ids`; the processor returns both when it is "
            "given folds."
        )
    if image_embeds is None or text_embeds is None:
        raise ValueError(
            "A loss needs `pixel_values` and `input_ids`, got one modality; pass `return_loss=False` to embed it alone."
        )
    check_group_ids("image_group_ids", image_group_ids, image_embeds)
    check_group_ids("text_group_ids", text_group_ids, text_embeds)
    return Observations(image_embeds, text_embeds, image_group_ids, text_group_ids)


def check_group_ids(name: str, group_ids: Tensor, rows: Tensor) -> None:
    """Raise unless there is one instance id a row."""
    if group_ids.shape != rows.shape[:1]:
        raise ValueError(
            f"`{name}` has shape {tuple(group_ids.shape)} for {len(rows)} observations; pass one instance id each."
        )


def check_config_fields(config_fields: dict[str, Any]) -> None:
    """Raise for a field that the config doesn't have, which transformers would store without a word."""
    known = {field.name for field in fields(MXMCLRConfig)}
    if unknown := sorted(config_fields.keys() - known):
        raise TypeError(f"`MXMCLRConfig` has no field {unknown}; it has {sorted(known)}.")


def declared_pooling(source: TowerSource) -> str:
    """The pooling that a sentence-transformers checkpoint declares, else `auto`."""
    if isinstance(source, dict | PreTrainedConfig):
        return "auto"
    path = cached_file(
        source,
        "1_Pooling/config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return "auto"
    with open(path) as file:
        declared = json.load(file)
    modes = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
    return next((pooling for mode, pooling in modes.items() if declared.get(mode)), "auto")
