"""Every flag of training, its help and its default; a recipe is a YAML file of them, and flags override it."""

import difflib
import json
from collections.abc import Collection, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import HfArgumentParser

from training.redaction import redact

# What a recipe says of its own data set, which means nothing to another one.
DATASET_DETAILS = (
    "dataset_config",
    "data_dir",
    "instance_column",
    "image_columns",
    "caption_columns",
    "more_datasets",
    "dataset_weights",
)
# The keywords of `load_multifold` that an entry of `more_datasets` may have beside `dataset`.
SOURCE_KEYS = ("config", "data_dir", "instance_column", "image_columns", "caption_columns")


def flag(help: str, **keywords: Any) -> Any:
    """A dataclass field with its help."""
    return field(**keywords, metadata={"help": help})


@dataclass
class DataArguments:
    """The data set, what a step draws of it, and how images are varied."""

    dataset: str = flag(
        "An embedded data set (`shapes`), a folder with a metadata file, or a Hub id or Parquet folder with the row schema."
    )
    dataset_config: str | None = flag("Configuration of that data set, such as `small` of `shapes`.", default=None)
    data_dir: str | None = flag(
        "Folder with the raw files, for builders such as `text2shape` and `flickr30k`.", default=None
    )
    instance_column: str | None = flag(
        "Of a Hub or Parquet data set with other columns than ours: the one with the id that an instance's rows share.",
        default=None,
    )
    image_columns: list[str] = field(
        default_factory=list, metadata={"help": "With `instance_column`, those with images."}
    )
    caption_columns: list[str] = field(
        default_factory=list, metadata={"help": "With `instance_column`, those with captions."}
    )
    more_datasets: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Data sets whose training splits are mixed in; scores are of `dataset` alone. Each is a name like "
            "`dataset`, or a mapping (JSON as a flag) of `dataset` and, where it needs them, `config`, `data_dir`, "
            "`instance_column`, `image_columns` and `caption_columns`."
        },
    )
    dataset_weights: list[float] = field(
        default_factory=list,
        metadata={
            "help": "With `more_datasets`, how often an instance is drawn from each, `dataset` first, relative to the "
            "others; by default as many as each has, which streams can't tell."
        },
    )
    shared_instance_ids: bool = flag(
        "An `instance_id` that several data sets have means one and the same thing; else each has its own.",
        default=False,
    )
    streaming: bool = flag(
        "Read the training split while training, and store nothing: see docs/data_sources.md.", default=False
    )
    shuffle_buffer: int = flag(
        "With `streaming`, instances that each worker holds to shuffle them among each other.", default=1000
    )
    num_proc: int | None = flag("Processes that build the data set; all cores by default.", default=None)
    instances_per_step: int = flag("Instances that all ranks together draw in a step.", default=64)
    views_per_instance: str = flag("Images drawn of each fold in a step, a number or `all`.", default="4")
    captions_per_instance: str = flag("Captions drawn of each fold in a step, a number or `all`.", default="4")
    text_only_instances: int = flag(
        "Further instances of which a step sees captions alone, as negatives of its images; they cost what their text "
        "costs, which is next to nothing where the text tower is frozen. At most all others are drawn.",
        default=0,
    )
    crop_scale: float = flag(
        "Smallest share of an image's area that a training crop keeps, up to 1 for no crop.", default=1.0
    )
    rotation: float = flag("Largest angle, in degrees, by which training turns an image.", default=0.0)
    horizontal_flip: bool = flag("Mirror half of the images; wrong where captions say left or right.", default=False)
    colour_jitter: float = flag(
        "Largest relative change of brightness, contrast and saturation; wrong where captions name colours.",
        default=0.0,
    )
    num_workers: int = flag("Processes that load and vary images, on each rank.", default=1)
    prefetch_factor: int = flag("Batches that each of these processes keeps ready.", default=2)

    @property
    def source(self) -> dict[str, Any]:
        """The keywords by which `load_multifold` finds the data set."""
        names = ("instance_column", "image_columns", "caption_columns", "data_dir", "num_proc")
        given = {name: getattr(self, name) for name in names if getattr(self, name)}
        return {"dataset": self.dataset, "config": self.dataset_config, **given}

    @property
    def more_sources(self) -> list[dict[str, Any]]:
        """The same for each of `more_datasets`."""
        shared = {"num_proc": self.num_proc} if self.num_proc else {}
        return [read_source(entry) | shared for entry in self.more_datasets]

    def __post_init__(self) -> None:
        """Check what argparse can't."""
        for name in ("views_per_instance", "captions_per_instance"):
            count = getattr(self, name)
            if count != "all" and not (count.isdecimal() and int(count) > 0):
                raise ValueError(f"`{name}` must be a positive number or `all`, got {count!r}.")
        if not 0 < self.crop_scale <= 1:
            raise ValueError(f"`crop_scale` must lie in (0, 1], got {self.crop_scale}.")
        if self.prefetch_factor < 1:
            raise ValueError(f"`prefetch_factor` must be at least 1, got {self.prefetch_factor}.")
        if self.instances_per_step < 2:
            raise ValueError(f"`instances_per_step` must be at least 2, got {self.instances_per_step}.")
        if self.text_only_instances < 0:
            raise ValueError(f"`text_only_instances` must not be negative, got {self.text_only_instances}.")
        if self.text_only_instances and self.streaming:
            raise ValueError(
                f"`text_only_instances` needs stored rows, got {self.text_only_instances} with `streaming`: a stream "
                "can't be asked for captions alone; leave one of them out."
            )
        if self.shuffle_buffer < 1:
            raise ValueError(f"`shuffle_buffer` must be at least 1, got {self.shuffle_buffer}.")
        self._check_mixture()

    def _check_mixture(self) -> None:
        """Check the data sets that are mixed, and their weights."""
        sources = [(source["dataset"], source.get("config")) for source in (self.source, *self.more_sources)]
        if len(set(sources)) < len(sources):
            raise ValueError(f"`more_datasets` must name each data set once, got {sources}; raise its weight instead.")
        if self.dataset_weights and len(self.dataset_weights) != len(sources):
            raise ValueError(
                f"`dataset_weights` has {len(self.dataset_weights)} entries for {len(sources)} data sets; give one for "
                "`dataset`, then one for each of `more_datasets`."
            )
        if not all(0 < weight < float("inf") for weight in self.dataset_weights):
            raise ValueError(
                f"`dataset_weights` must be positive, got {self.dataset_weights}; leave out what isn't to be drawn."
            )
        if self.streaming and self.more_datasets and not self.dataset_weights:
            raise ValueError("`more_datasets` with `streaming` need `dataset_weights`: a stream has no size to go by.")


@dataclass
class ModelArguments:
    """Where the model starts from, and its head and objective."""

    model: str | None = flag("A checkpoint of ours to go on from, a Hub id or folder.", default=None)
    clip_model: str | None = flag("A CLIP or SigLIP checkpoint to take over whole.", default=None)
    text_model: str | None = flag(
        "Checkpoint of the text tower: a Hub id, a folder, or `package:NAME/FOLDER` inside an installed package.",
        default=None,
    )
    vision_model: str | None = flag("The same for the image tower.", default=None)
    text_config: str | None = flag(
        "Config of a fresh text tower, a mapping (JSON as a flag) with `model_type`.", default=None
    )
    vision_config: str | None = flag("The same for the image tower.", default=None)
    vocabulary_size: int = flag(
        "Entries of the tokenizer that a fresh text tower learns from the captions.", default=4000
    )
    max_text_length: int | None = flag(
        "Longest caption in tokens; the tokenizer's own limit by default.", default=None
    )
    image_size: int | None = flag("Height and width in pixels; the image tower's own by default.", default=None)
    projection_dim: int = flag("Width of the shared space.", default=512)
    text_projection: str = flag("Head of the text tower: `linear`, `mlp` or `none`.", default="linear")
    vision_projection: str = flag("Head of the image tower: `linear`, `mlp` or `none`.", default="linear")
    projection_hidden_dim: int | None = flag("Hidden width of an `mlp` head; the tower's by default.", default=None)
    projection_dropout: float = flag("Dropout of the towers' vectors before the heads.", default=0.0)
    text_pooling: str | None = flag(
        "`auto`, `pooler`, `mean`, `cls` or `last`; as the checkpoint says by default.", default=None
    )
    vision_pooling: str = flag("`auto`, `pooler`, `mean` or `cls`.", default="auto")
    objective: str = flag("Training objective, a key of `modeling_mxmclr.OBJECTIVES`.", default="mfh")
    objective_settings: str | None = flag("Its settings, a mapping (JSON as a flag).", default=None)
    logit_scale_init_value: float = flag("Start of the learned log scale.", default=2.6592)
    freeze_text_tower: str = flag("`none`, `all`, or how many of its first layers stay as they are.", default="none")
    freeze_vision_tower: str = flag("The same for the image tower.", default="none")
    freeze_batch_norms: bool = flag(
        "Keep the statistics and weights of batch norms as they are, for pretrained towers; micro-batches need it.",
        default=False,
    )

    def __post_init__(self) -> None:
        """Read the mappings, and check that there is one start for each tower."""
        for name in ("text_config", "vision_config", "objective_settings"):
            setattr(self, name, read_mapping(name, getattr(self, name)))
        wholes = [name for name in ("model", "clip_model") if getattr(self, name)]
        halves = [name for name in HALVES if getattr(self, name)]
        if len(wholes) + bool(halves) != 1:
            raise ValueError(f"A model starts from one of `model`, `clip_model` or two towers, got {wholes + halves}.")
        for modality in ("text", "vision"):
            if halves and (f"{modality}_model" in halves) == (f"{modality}_config" in halves):
                raise ValueError(
                    f"The {modality} tower needs one of `{modality}_model` and `{modality}_config`, got {halves}."
                )
        for name in ("freeze_text_tower", "freeze_vision_tower"):
            value = getattr(self, name)
            if value not in ("none", "all") and not value.isdecimal():
                raise ValueError(f"`{name}` must be `none`, `all` or a number of layers, got {value!r}.")


@dataclass
class LoraArguments:
    """A low-rank adapter on a checkpoint of ours, in place of training all of its weights."""

    lora_rank: int | None = flag(
        "Rank of a LoRA adapter on `--model`, whose own weights stay as they are; 0 or nothing trains all weights.",
        default=None,
    )
    lora_alpha: float = flag("Its updates are scaled by alpha / rank.", default=16.0)
    lora_dropout: float = flag("Dropout probability of what goes into the adapter.", default=0.0)
    use_rslora: bool = flag("Scale by alpha / sqrt(rank) instead, so that high ranks learn as fast.", default=False)
    use_dora: bool = flag(
        "Learn the length of each weight's rows beside their direction (DoRA); slower.", default=False
    )
    lora_towers: str = flag(
        "Towers that get an adapter: `both`, `text` or `vision`; heads always learn.", default="both"
    )
    lora_norms: bool = flag(
        "Let the norms of these towers learn whole as well, with their batch statistics: for a corpus that looks unlike "
        "the base's.",
        default=False,
    )
    lora_targets: list[str] = field(
        default_factory=lambda: ["auto"],
        metadata={
            "help": "`auto` for every linear layer, embedding table and plain convolution that a result depends on, or regular "
            "expressions of the ends of module names, such as `query value` or `attention\\..*`."
        },
    )

    def __post_init__(self) -> None:
        """Check what argparse can't."""
        changed = [each.name for each in fields(self) if getattr(self, each.name) != default_of(each)]
        if self.lora_rank is None and changed:
            raise ValueError(f"{changed} need a `lora_rank`; name one, or `lora_rank: 0` to train all weights.")
        if (self.lora_rank or 0) < 0:
            raise ValueError(f"`lora_rank` must not be negative, got {self.lora_rank}.")
        if self.lora_alpha <= 0:
            raise ValueError(f"`lora_alpha` must be positive, got {self.lora_alpha}.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"`lora_dropout` must lie in [0, 1), got {self.lora_dropout}.")
        if self.lora_towers not in ("both", "text", "vision"):
            raise ValueError(f"`lora_towers` must be one of ['both', 'text', 'vision'], got {self.lora_towers!r}.")


@dataclass
class OptimizationArguments:
    """How long and how fast to learn, when to look, and where the run is kept."""

    output_dir: str | None = flag(
        "Run folder; `runs/` and the recipe's name by default. A folder with an earlier run is moved aside, not lost.",
        default=None,
    )
    resume_from_checkpoint: str | None = flag(
        "`auto` goes on where the run in the run folder was interrupted, if one was; a folder `.../state/step-N` of that "
        "run goes on from there.",
        default=None,
    )
    checkpoint_every: int | None = flag(
        "Steps between training states, from which a run can be resumed; as many as between evaluations by default, 0 "
        "keeps none.",
        default=None,
    )
    keep_checkpoints: int = flag("How many of the newest training states stay on disk until the end.", default=2)
    max_steps: int = flag("Steps of the optimiser.", default=1000)
    learning_rate: float = flag("Peak learning rate of the towers.", default=1e-4)
    head_learning_rate: float | None = flag(
        "Peak learning rate of heads and scale; the towers' by default.", default=None
    )
    weight_decay: float = flag("Decoupled weight decay, never on norms, biases and the scale.", default=0.05)
    warmup_steps: int = flag("Steps of linear warm-up before the cosine.", default=100)
    memory_batches: int = flag(
        "Past batches whose embeddings are further keys, without gradient, of the objectives `mfh` and `unicl`: more "
        "negatives, and positives of the same instances, that nobody has to encode. See docs/fold_budget.md.",
        default=0,
    )
    memory_from: float = flag(
        "Share of the run after which they are used; before, embeddings change too fast for old ones to tell much.",
        default=0.5,
    )
    max_grad_norm: float = flag("Largest norm of the whole gradient; 0 for no clipping.", default=1.0)
    gradient_accumulation_steps: int = flag("Batches whose gradients are averaged before a step.", default=1)
    micro_batch_images: int | None = flag(
        "Images that pass the tower at once: the gradient stays that of the whole batch, the memory becomes that of so "
        "few (GradCache), for up to a third more time. Micro-batches of n instances are n times `views_per_instance`.",
        default=None,
    )
    micro_batch_texts: int | None = flag("The same for captions.", default=None)
    micro_batch_tokens: int | None = flag(
        "Tokens, padding included, that pass the text tower at once; beside or in place of a number of captions.",
        default=None,
    )
    gradient_checkpointing: bool = flag("Recompute activations in the backward pass to save memory.", default=False)
    text_buckets: int = flag(
        "Calls of the text tower among which a batch's captions are shared by length, each padded to its own longest; "
        "identical captions are encoded once. 1 pads all to the longest.",
        default=6,
    )
    compile_towers: bool = flag(
        "Compile both towers by `torch.compile`; needs a C++ compiler on a CPU, Triton on a GPU.", default=False
    )
    mixed_precision: str = flag("`no`, `bf16` or `fp16`.", default="no")
    eval_every: int = flag("Steps between evaluations on the validation split.", default=200)
    log_every: int = flag("Steps between log entries.", default=10)
    best_metric: str = flag(
        "Validation metric, higher is better, that chooses the checkpoint to keep.", default="text_to_instance_mrr"
    )
    seed: int = flag("Seed of weights, order, draws and dropout.", default=0)
    num_processes: int | None = flag(
        "Processes that the run is for; with another number it stops and says how to start them. Any by default.",
        default=None,
    )
    cpu: bool = flag("Train on the CPU even where there is an accelerator.", default=False)
    push_to_hub: str | None = flag(
        "Hub id that every kept checkpoint and the finished run are pushed to, as whoever is logged in.", default=None
    )
    private: bool = flag("Create that repository as a private one.", default=False)
    hub_branch: str | None = flag("Branch to push to, created where it isn't there; `main` by default.", default=None)
    hub_tag: str | None = flag("Tag for the finished run's commit.", default=None)

    def __post_init__(self) -> None:
        """Check what argparse can't."""
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"`mixed_precision` must be one of ['no', 'bf16', 'fp16'], got {self.mixed_precision!r}.")
        at_least_one = "max_steps gradient_accumulation_steps eval_every log_every text_buckets keep_checkpoints"
        at_least_one += " num_processes micro_batch_images micro_batch_texts micro_batch_tokens"
        for name in at_least_one.split():
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.memory_batches < 0:
            raise ValueError(f"`memory_batches` must not be negative, got {self.memory_batches}.")
        if not 0 <= self.memory_from <= 1:
            raise ValueError(f"`memory_from` must lie in [0, 1], got {self.memory_from}.")
        if self.checkpoint_every is None:
            self.checkpoint_every = self.eval_every
        if self.checkpoint_every < 0:
            raise ValueError(f"`checkpoint_every` must not be negative, got {self.checkpoint_every}.")
        if self.push_to_hub is not None:
            check_repo_id(self.push_to_hub)


HALVES = ("text_model", "text_config", "vision_model", "vision_config")
GROUPS = (DataArguments, ModelArguments, LoraArguments, OptimizationArguments)


@dataclass(frozen=True)
class Arguments:
    """All arguments of a run, as resolved from its recipe and flags."""

    data: DataArguments
    model: ModelArguments
    lora: LoraArguments
    optimization: OptimizationArguments
    recipe: str | None

    def __post_init__(self) -> None:
        """Check what one group asks of another."""
        if not self.lora.lora_rank:
            return
        if not self.model.model:
            raise ValueError("`lora_rank` needs `model`, a saved checkpoint of ours, for the adapter to refer to.")
        for name in ("freeze_text_tower", "freeze_vision_tower"):
            if getattr(self.model, name) != "none":
                raise ValueError(
                    f"`{name}` and `lora_rank` exclude each other: LoRA freezes all of the base. Choose what learns by "
                    "`lora_towers` and `lora_targets`."
                )

    def as_dict(self) -> dict[str, Any]:
        """Every flag and its value, in a recipe's form; but for where this launch goes on, which is not the run's."""
        groups = (self.data, self.model, self.lora, self.optimization)
        values = {name: value for group in groups for name, value in vars(group).items()}
        return {name: value for name, value in values.items() if name != "resume_from_checkpoint"}


def check_repo_id(name: str) -> None:
    """Raise unless this can be the id of a repository on the Hub: after hours of training it is late to learn that."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"`push_to_hub` must be a Hub id such as 'org/name', got {redact(name)!r}.") from error


def default_of(setting: Field) -> Any:
    """The default of a dataclass field."""
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def read_mapping(name: str, value: str | None) -> Any:
    """A flag's JSON object as a dict, None as None."""
    if value is None:
        return None
    try:
        mapping = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"`{name}` must be a JSON object, got {value!r} ({error}).") from error
    if not isinstance(mapping, dict):
        raise ValueError(f"`{name}` must be a mapping, got {mapping!r}.")
    return mapping


def read_source(entry: str) -> dict[str, Any]:
    """An entry of `more_datasets` as keywords of `load_multifold`."""
    if not entry.startswith("{"):
        return {"dataset": entry, "config": None}
    given = read_mapping("more_datasets", entry)
    if not isinstance(given.get("dataset"), str) or not given.keys() <= {"dataset", *SOURCE_KEYS}:
        raise ValueError(f"`more_datasets` must have `dataset` and some of {list(SOURCE_KEYS)}, got {given}.")
    return {"config": None, **given}


def parse_arguments(arguments: Sequence[str], usage: str) -> Arguments:
    """The arguments of a command line whose first word may be a recipe.

    Raises:
        ValueError: For a recipe that is missing or broken, an unknown key or flag, or a value that doesn't fit.
        SystemExit: For a value of the wrong type, as argparse does.
    """
    parser = HfArgumentParser(GROUPS, description=usage, allow_abbrev=False)  # type: ignore[arg-type]
    parser.usage = "accelerate launch training/train.py [RECIPE.yaml] [--flag value ...]"
    recipe = arguments[0] if arguments and not arguments[0].startswith("-") else None
    flags = list(arguments[1:] if recipe else arguments)
    data, model, lora, optimization, unknown = parser.parse_args_into_dataclasses(
        recipe_flags(recipe, without=DATASET_DETAILS if names_dataset(flags) else ()) + flags,
        look_for_args_file=False,
        return_remaining_strings=True,
    )
    if unknown:
        name = unknown[0].removeprefix("--").partition("=")[0]
        raise ValueError(f"Unknown flag {unknown[0]!r}; {hint_for(name)}")
    if optimization.output_dir is None:
        optimization.output_dir = str(Path("runs") / (Path(recipe).stem if recipe else "train"))
    return Arguments(data, model, lora, optimization, recipe)


def names_dataset(flags: Sequence[str]) -> bool:
    """Whether a command line names a data set, in place of the recipe's and of all that describes it."""
    return any(word.partition("=")[0] == "--dataset" for word in flags)


def recipe_flags(recipe: str | None, without: Collection[str] = ()) -> list[str]:
    """A recipe as the flags that say the same, so that both are checked in one place."""
    if recipe is None:
        return []
    try:
        settings = yaml.safe_load(Path(recipe).read_text(encoding="utf-8")) or {}
    except FileNotFoundError as error:
        raise ValueError(f"Recipe {recipe!r} does not exist; those of ours are in training/configs.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"Recipe {recipe!r} is not valid YAML: {error}") from error
    flags = []
    for key, value in settings.items():
        if key not in flag_names():
            raise ValueError(f"Recipe {recipe!r} has an unknown key `{key}`; {hint_for(str(key))}")
        if value is not None and key not in without:
            flags += as_flags(key, value)
    return flags


def as_flags(key: str, value: Any) -> list[str]:
    """One setting of a recipe as words of a command line."""
    if isinstance(value, list):
        return [f"--{key}", *(each if isinstance(each, str) else json.dumps(each) for each in value)] if value else []
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}"]


def flag_names() -> list[str]:
    """Every flag."""
    return [each.name for group in GROUPS for each in fields(group)]


def hint_for(name: str) -> str:
    """What somebody who wrote an unknown flag may have meant."""
    close = difflib.get_close_matches(name, flag_names(), n=1)
    return f"did you mean `{close[0]}`?" if close else "see `--help` for those there are."
