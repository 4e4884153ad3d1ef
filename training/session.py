"""What all stages of a training run share, from its arguments: accelerator, run folder, data, model, log."""

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import ProjectConfiguration, set_seed
from datasets.utils import logging as datasets_logging
from transformers.utils import logging as transformers_logging

from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor
from training.arguments import Arguments
from training.data import RawRows, caption_owners
from training.frozen_text import FrozenTextFeatures
from training.hardware import use_every_core
from training.hub import Destination, Pusher
from training.initial_embeddings import encode_sample, save_initial_embeddings
from training.lora import Adapter, attach_adapter, describe_adapter
from training.models import build_model, is_frozen
from training.redaction import RedactingFormatter
from training.run_folder import RunFolder
from training.sources import Sources, load_sources
from training.state_folder import SavedState
from training.tower_calls import compile_towers, share_texts

logger = get_logger(__name__)


@dataclass
class Session:
    """What all stages of a run share."""

    arguments: Arguments
    accelerator: Accelerator
    sources: Sources
    model: MXMCLRModel
    processor: MXMCLRProcessor
    adapter: Adapter | None  # within the model, whose own weights then stay as they are
    frozen_text: FrozenTextFeatures | None
    folder: RunFolder | None  # of the main process alone
    pusher: Pusher | None  # of the main process alone, where the run is pushed
    resumed: SavedState | None = None  # where the run goes on, until it does
    started: float = field(default_factory=time.monotonic)

    @property
    def splits(self) -> dict[str, RawRows]:
        """The splits by our names."""
        return self.sources.splits

    @property
    def seconds(self) -> float:
        """Seconds since the data and the model stood ready."""
        return time.monotonic() - self.started

    def log(self, step: int, values: dict[str, float]) -> None:
        """A log entry in the history and in TensorBoard."""
        self.accelerator.log(values, step=step)
        if self.folder is not None:
            self.folder.log(step, values)


def start(arguments: Arguments) -> Accelerator:
    """The accelerator, with seeds, threads and logging set."""
    options, output_dir = arguments.optimization, Path(arguments.optimization.output_dir or "")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else each forked loader process warns
    accelerator = Accelerator(
        cpu=options.cpu,
        mixed_precision=options.mixed_precision,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        log_with="tensorboard",
        project_config=ProjectConfiguration(str(output_dir), logging_dir=str(output_dir / "tensorboard")),
    )
    use_every_core(accelerator)
    logging.basicConfig(level=logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(RedactingFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    for noisy in ("httpx", "httpx2", "datasets", "transformers", "PIL", "matplotlib", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if not accelerator.is_main_process:
        transformers_logging.disable_progress_bar()
        datasets_logging.disable_progress_bar()
    set_seed(options.seed)
    return accelerator


def open_folder(arguments: Arguments, resumed: SavedState | None = None) -> RunFolder:
    """The run folder, with the log and the resolved arguments in it."""
    folder = RunFolder(arguments.optimization.output_dir or "", None if resumed is None else resumed.values["step"])
    handler = logging.FileHandler(folder.path / "train.log", encoding="utf-8")
    handler.setFormatter(RedactingFormatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)
    if folder.moved_to:
        logger.info("An earlier run in %s was moved to %s.", folder.path, folder.moved_to)
    folder.write_arguments(arguments.as_dict())
    return folder


def prepare(
    arguments: Arguments, accelerator: Accelerator, folder: RunFolder | None, resumed: SavedState | None = None
) -> Session:
    """Data and model, before anything is learned."""
    data, options = arguments.data, arguments.optimization
    with accelerator.main_process_first():  # the others read what the first one built
        sources = load_sources(data)
    splits = sources.splits
    transformers_logging.set_verbosity_error()  # of each fresh head and unused key of a pretrained tower
    model, processor = build_model(arguments.model, sources.captions())
    adapter = attach_adapter(model, processor, arguments.lora) if arguments.lora.lora_rank else None
    if adapter is not None:
        logger.info("Only an adapter learns:\n%s", describe_adapter(adapter))
    if options.gradient_checkpointing:
        model.activation_checkpointing_enable()
    model.to(accelerator.device)
    frozen_text = None
    if is_frozen(model.text_model) and not sources.streams:  # whose captions nobody has seen
        owners = caption_owners(splits.values())
        frozen_text = FrozenTextFeatures.encode(model, processor, owners, accelerator.is_main_process)
    if folder is not None and resumed is None:
        sample = encode_sample(model, processor, splits[final_split(splits)], frozen_text, data.num_workers)
        save_initial_embeddings(sample, folder.path)
    if frozen_text is None:
        share_texts(model, processor, options.text_buckets)
        logger.info("A step's captions share up to %d calls of the text tower.", model.text_buckets)
    if options.compile_towers:
        compile_towers(model)
    # Equal weights on every rank so far; from here on each drops out its own units.
    set_seed(options.seed, device_specific=True)
    pusher = open_pusher(arguments, folder)
    return Session(arguments, accelerator, sources, model, processor, adapter, frozen_text, folder, pusher, resumed)


def open_pusher(arguments: Arguments, folder: RunFolder | None) -> Pusher | None:
    """What pushes kept checkpoints in the background, where that was asked for."""
    options = arguments.optimization
    if folder is None or options.push_to_hub is None:
        return None
    to = Destination(options.push_to_hub, options.private, options.hub_branch, options.hub_tag)
    return Pusher(folder.path, to)


def final_split(splits: Mapping[str, RawRows]) -> str:
    """The split whose scores a run ends with."""
    return next(name for name in ("test", "validation", "train") if name in splits)
