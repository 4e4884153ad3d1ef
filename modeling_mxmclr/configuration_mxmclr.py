"""MXMCLRConfig: the fields that rebuild the architecture of a multifold dual encoder."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

TOWER_POOLINGS = ("auto", "pooler", "mean", "cls", "last")
PROJECTIONS = ("linear", "mlp", "none")
VIEW_POOLINGS = ("mean", "max", "attention")
# Keys by which a config could name code to run or files to read that are not ours.
FOREIGN_CODE = ("auto_map", "custom_pipelines", "trust_remote_code", "transformers_weights")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a `ValueError` that names the field unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}, got {value!r}.")


def without_foreign_code(config: Any) -> Any:
    """The config of a tower, an object or a dict and whatever it nests, without keys that name code to run."""
    if isinstance(config, dict):
        return {key: without_foreign_code(value) for key, value in config.items() if key not in FOREIGN_CODE}
    if isinstance(config, PreTrainedConfig):
        for key in FOREIGN_CODE:
            vars(config).pop(key, None)
        for key, value in vars(config).items():
            vars(config)[key] = without_foreign_code(value)
    return config


@strict
class MXMCLRConfig(PreTrainedConfig):
    """Configuration of an `MXMCLRModel`: two towers, their heads, and the multifold objective.

    Args:
        text_config: Configuration of any transformers text model, an object or its dict with `model_type`.
        vision_config: Configuration of any transformers vision model, an object or its dict with `model_type`.
        projection_dim: Width of the shared space that both heads project to.
        text_projection: `linear` (no bias, as CLIP), `mlp` (linear, GELU, linear), or `none` (as SigLIP).
        vision_projection: The same for the image side.
        projection_hidden_dim: Hidden width of an `mlp` head; its default is the width of its tower.
        projection_dropout: Dropout probability of the towers' vectors before the heads.
        text_pooling: How the text tower's output becomes one vector a caption: `pooler` (its own `pooler_output`),
            `mean` (over attended tokens), `cls` (first token), `last` (last attended token), or `auto`: the pooler
            where the tower has one, else the mean.
        vision_pooling: The same for the image tower, where tokens are patches and `last` is not allowed.
        view_pooling: How `get_instance_features` joins the observations of a fold: `mean`, `max` or `attention`.
        objective: Name of the training objective, a key of `OBJECTIVES`.
        objective_settings: Keyword settings of that objective; what is absent takes the objective's default.
        logit_scale_init_value: Start of the learned log scale; log(1 / 0.07) by default, as CLIP.
        logit_scale_max: Largest value of the exponentiated scale.
        logit_bias_init_value: Constant added to the logits, as SigLIP learned it; None for no bias.

    Raises:
        StrictDataclassError: For a field of the wrong type or outside its range; the message names the field.
    """

    model_type = "mxmclr"
    sub_configs_defaults = {  # noqa: RUF012 - the base class declares it as a plain dict
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="vit"),
    }
    # What `Trainer.evaluate` would otherwise try to gather and concatenate batch by batch; it takes no tuple.
    keys_to_ignore_at_inference = [  # noqa: RUF012 - the base class declares it so
        "loss_components",
        "logit_scale",
        "text_model_output",
        "vision_model_output",
    ]

    text_config: PreTrainedConfig | dict | None = None
    vision_config: PreTrainedConfig | dict | None = None
    projection_dim: int = 512
    text_projection: str = "linear"
    vision_projection: str = "linear"
    projection_hidden_dim: int | None = None
    projection_dropout: float | int = 0.0
    text_pooling: str = "auto"
    vision_pooling: str = "auto"
    view_pooling: str = "mean"
    objective: str = "mfh"
    objective_settings: dict | None = None
    logit_scale_init_value: float | int = 2.6592
    logit_scale_max: float | int = 100.0
    logit_bias_init_value: float | int | None = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration of a `config.json`'s fields.

        Raises:
            ValueError: For the config of another model type, which transformers would take with a warning.
        """
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(
                f"`model_type` must be {cls.model_type!r}, the checkpoint's config says {found!r}; "
                "use `from_clip_pretrained` or `from_text_vision_pretrained` to start from another model."
            )
        # No saved config says how attention is computed; one that does may name a kernel to fetch and run.
        ours = {key: value for key, value in config_dict.items() if key != "attn_implementation"}
        return super().from_dict(ours, **kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        """Build the towers' configs; neither they nor this one carry on trust in code from elsewhere."""
        self.text_config = without_foreign_code(self.text_config)
        self.vision_config = without_foreign_code(self.vision_config)
        # The Auto classes look for the model's class in this config's own `auto_map`; saving writes a new one.
        own = {"auto_map": kwargs["auto_map"]} if "auto_map" in kwargs else {}
        super().__post_init__(**without_foreign_code(kwargs), **own)

    def validate_choices(self) -> None:
        """Every named choice is one that exists."""
        check_choice("text_pooling", self.text_pooling, TOWER_POOLINGS)
        check_choice("vision_pooling", self.vision_pooling, TOWER_POOLINGS[:-1])
        check_choice("text_projection", self.text_projection, PROJECTIONS)
        check_choice("vision_projection", self.vision_projection, PROJECTIONS)
        check_choice("view_pooling", self.view_pooling, VIEW_POOLINGS)

    def validate_ranges(self) -> None:
        """Every number lies where it means something."""
        if self.projection_dim < 1:
            raise ValueError(f"`projection_dim` must be at least 1, got {self.projection_dim}.")
        if self.projection_hidden_dim is not None and self.projection_hidden_dim < 1:
            raise ValueError(f"`projection_hidden_dim` must be at least 1, got {self.projection_hidden_dim}.")
        if not 0 <= self.projection_dropout < 1:
            raise ValueError(f"`projection_dropout` must lie in [0, 1), got {self.projection_dropout}.")
        if self.logit_scale_max <= 0:
            raise ValueError(f"`logit_scale_max` must be positive, got {self.logit_scale_max}.")
