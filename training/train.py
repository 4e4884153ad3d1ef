"""Train a multifold dual encoder, evaluate it, and leave a run folder worth looking at.

Usage:
    accelerate launch training/train.py training/configs/shapes_cpu.yaml
    accelerate launch training/train.py training/configs/emoji_cpu.yaml --seed 1 --output_dir runs/emoji-1
    accelerate launch training/train.py training/configs/emoji_cpu.yaml --dataset path/to/my/folder

A recipe names settings, and a flag overrides it. The run folder gets the checkpoint that was best on validation with
its processor, `arguments.yaml`, `metrics.json` of the test split, `history.jsonl`, pictures and a model card.
"""

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Launched by path, this file's folder comes first, where `evaluate` would be ours instead of the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import ProjectConfiguration, gather_object, set_seed
from datasets.utils import logging as datasets_logging
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup
from transformers.utils import logging as transformers_logging

from datasets_scripts.loading import load_multifold
from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor
from training.arguments import Arguments, parse_arguments
from training.augmentation import Augmentation
from training.budget_curves import BudgetSettings, budget_curves
from training.budget_plots import plot_budgets
from training.card import save_run_card
from training.data import (
    EpochRows,
    FoldCollator,
    InstanceBatches,
    RawRows,
    caption_owners,
    fold_count,
    named_splits,
)
from training.encoding import encode_rows
from training.frozen_text import FrozenTextFeatures
from training.hardware import use_every_core
from training.hub import Destination, Pusher
from training.initial_embeddings import encode_sample, save_initial_embeddings
from training.lora import Adapter, attach_adapter, describe_adapter, load_checkpoint
from training.models import build_model, image_size_of, is_frozen, set_training_mode
from training.optimization import build_optimizer
from training.plots import plot_curves, retrieval_grid
from training.redaction import RedactingFormatter, redact_uncaught_errors
from training.report import (
    describe_plan,
    describe_run,
    draw_queries,
    find_failures,
    flat_scores,
    relations_per_observation,
)
from training.retrieval import Report, retrieval_report
from training.run_folder import RunFolder, write_json
from training.score_tables import format_table
from training.searches import Embeddings

logger = get_logger(__name__)

CARD_BUDGETS = BudgetSettings(poolings=("mean",), draws=2, resamples=200)  # `training/budgets.py` measures them well


@dataclass
class Session:
    """What all stages of a run share."""

    arguments: Arguments
    accelerator: Accelerator
    splits: dict[str, RawRows]
    model: MXMCLRModel
    processor: MXMCLRProcessor
    adapter: Adapter | None  # within the model, whose own weights then stay as they are
    frozen_text: FrozenTextFeatures | None
    folder: RunFolder | None  # of the main process alone
    pusher: Pusher | None  # of the main process alone, where the run is pushed
    started: float = field(default_factory=time.monotonic)


def main(words: Sequence[str]) -> None:
    """Train, evaluate and report, as a command line says."""
    arguments = parse_arguments(words, __doc__ or "")
    accelerator = start(arguments)
    folder = open_folder(arguments) if accelerator.is_main_process else None
    session = prepare(arguments, accelerator, folder)
    views, captions = (fold_count(getattr(arguments.data, f"{kind}_per_instance")) for kind in ("views", "captions"))
    logger.info("About to train:\n%s", describe_plan(arguments, session.splits, session.model, views, captions))
    train(session, build_loader(session, views, captions))
    finish(session, time.monotonic() - session.started)
    accelerator.end_training()


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


def open_folder(arguments: Arguments) -> RunFolder:
    """The run folder, with the log and the resolved arguments in it."""
    folder = RunFolder(arguments.optimization.output_dir or "")
    handler = logging.FileHandler(folder.path / "train.log", encoding="utf-8")
    handler.setFormatter(RedactingFormatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)
    if folder.moved_to:
        logger.info("An earlier run in %s was moved to %s.", folder.path, folder.moved_to)
    folder.write_arguments(arguments.as_dict())
    return folder


def prepare(arguments: Arguments, accelerator: Accelerator, folder: RunFolder | None) -> Session:
    """Data and model, before anything is learned."""
    data, options = arguments.data, arguments.optimization
    with accelerator.main_process_first():  # the others read what the first one built
        loaded = load_multifold(**data.source)
    splits = named_splits(loaded)
    captions = (caption for fold in splits["train"].column("captions") for caption in fold)
    transformers_logging.set_verbosity_error()  # of each fresh head and unused key of a pretrained tower
    model, processor = build_model(arguments.model, captions)
    adapter = attach_adapter(model, processor, arguments.lora) if arguments.lora.lora_rank else None
    if adapter is not None:
        logger.info("Only an adapter learns:\n%s", describe_adapter(adapter))
    if options.gradient_checkpointing:
        model.activation_checkpointing_enable()
    model.to(accelerator.device)
    frozen_text = None
    if is_frozen(model.text_model):
        owners = caption_owners(splits.values())
        frozen_text = FrozenTextFeatures.encode(model, processor, owners, accelerator.is_main_process)
    if folder is not None:
        sample = encode_sample(model, processor, splits[final_split(splits)], frozen_text, data.num_workers)
        save_initial_embeddings(sample, folder.path)
    # Equal weights on every rank so far; from here on each drops out its own units.
    set_seed(options.seed, device_specific=True)
    pusher = open_pusher(arguments, folder)
    return Session(arguments, accelerator, splits, model, processor, adapter, frozen_text, folder, pusher)


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


def build_loader(session: Session, views: int | None, captions: int | None) -> DataLoader:
    """Batches of this rank until the run ends."""
    data, options, accelerator = session.arguments.data, session.arguments.optimization, session.accelerator
    rows = session.splits["train"]
    if data.instances_per_step > len(rows):
        logger.warning(
            "`instances_per_step` is %d, the data set has %d: each step draws all.", data.instances_per_step, len(rows)
        )
    batches = InstanceBatches(
        len(rows),
        data.instances_per_step,
        options.max_steps * options.gradient_accumulation_steps,
        options.seed,
        accelerator.process_index,
        accelerator.num_processes,
    )
    augment = Augmentation(
        image_size_of(session.processor), data.crop_scale, data.rotation, data.horizontal_flip, data.colour_jitter
    )
    collator = FoldCollator(session.processor, views, captions, augment, session.frozen_text, options.seed)
    return DataLoader(
        EpochRows(rows),
        batch_sampler=batches,
        collate_fn=collator,
        num_workers=data.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )


def train(session: Session, loader: DataLoader) -> None:
    """The loop: batches to steps, with a log entry and an evaluation every so often."""
    accelerator, options = session.accelerator, session.arguments.optimization
    optimizer = build_optimizer(session.model, options)
    scheduler = get_cosine_schedule_with_warmup(optimizer, options.warmup_steps, options.max_steps)
    model, optimizer = accelerator.prepare(session.model, optimizer)
    accelerator.init_trackers("")
    bar = tqdm(total=options.max_steps, desc="training", disable=not accelerator.is_main_process)
    meter = Meter(accelerator)
    step, best = 0, -float("inf")
    set_training_mode(session.model)
    for batch in loader:
        with accelerator.accumulate(model):
            output = model(**{name: rows.to(accelerator.device, non_blocking=True) for name, rows in batch.items()})
            accelerator.backward(output.loss)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(model.parameters(), options.max_grad_norm or float("inf"))
            optimizer.step()
            optimizer.zero_grad()
        meter.add(batch, output)
        if not accelerator.sync_gradients:
            continue
        rate = scheduler.get_last_lr()[0]
        scheduler.step()
        step += 1
        if step % options.log_every == 0 or step == options.max_steps:
            values = meter.read(step) | {"train/grad_norm": float(norm), "train/lr": rate}
            bar.set_postfix(loss=f"{values['train/loss']:.3f}", refresh=False)
            log(session, step, values)
        if step % options.eval_every == 0 or step == options.max_steps:
            best = evaluate_and_keep(session, step, best)
            meter.restart_clock()
        bar.update()
    bar.close()


class Meter:
    """Means of what was seen since the last log entry."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.restart()

    def restart(self) -> None:
        """Forget what was seen."""
        self.sums: dict[str, Tensor] = {}
        self.batches = self.images = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Count images per second from now on."""
        self.images, self.since = 0, time.monotonic()

    def add(self, batch: dict[str, Tensor], output: object) -> None:
        """Take in one batch and what the model made of it."""
        parts = {"loss": output.loss, **output.loss_components}  # type: ignore[attr-defined]
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()
        self.batches += 1
        self.images += len(batch["pixel_values"])
        self.ids = batch["image_group_ids"], batch["text_group_ids"]
        self.log_scale = output.logit_scale.detach()  # type: ignore[attr-defined]

    def read(self, step: int) -> dict[str, float]:
        """The means, and start again; every rank must call it.

        Raises:
            FloatingPointError: When the loss is no longer a finite number.
        """
        values = {f"train/{name}": (total / self.batches).item() for name, total in self.sums.items()}
        if not np.isfinite(values["train/loss"]):
            raise FloatingPointError(
                f"The loss is {values['train/loss']} at step {step}; lower `learning_rate` or use `mixed_precision: bf16`. "
                "The last checkpoint is whole."
            )
        image_ids, text_ids = (torch.cat(gather_object([ids])) for ids in self.ids)
        relations = relations_per_observation(image_ids, text_ids)
        values |= {f"train/{name}": value for name, value in relations.items()}
        values["train/scale"] = self.log_scale.exp().item()
        images = self.images * self.accelerator.num_processes
        values["train/images_per_second"] = images / (time.monotonic() - self.since)
        self.restart()
        return values


def log(session: Session, step: int, values: dict[str, float]) -> None:
    """A log entry in the history and in TensorBoard."""
    session.accelerator.log(values, step=step)
    if session.folder is not None:
        session.folder.log(step, values)


def evaluate(session: Session, model: MXMCLRModel, split: str) -> tuple[Embeddings, Report]:
    """Embeddings and scores of a split, the same on every rank."""
    accelerator = session.accelerator
    embeddings = encode_rows(
        model,
        session.processor,
        session.splits[split],
        accelerator.process_index,
        accelerator.num_processes,
        session.frozen_text,
        session.arguments.data.num_workers,
        accelerator.is_main_process,
    )
    return embeddings, retrieval_report(embeddings)


def evaluate_and_keep(session: Session, step: int, best: float) -> float:
    """Score the validation split, keep the checkpoint, and return the best score so far."""
    score, report = best, None
    if "validation" in session.splits:
        embeddings, report = evaluate(session, session.model, "validation")
        scores = flat_scores(report)
        log(session, step, {f"eval/{name}": value for name, value in scores.items()})
        score = chosen_score(scores, session.arguments.optimization.best_metric)
        show_retrieval(session, embeddings, step)
    if session.folder is not None:
        kept = session.adapter or session.model
        session.folder.save_checkpoint("last", kept, session.processor)
        if score > best or "validation" not in session.splits:
            checkpoint = session.folder.save_checkpoint("best", kept, session.processor)
            session.folder.write_json("best.json", {"step": step, session.arguments.optimization.best_metric: score})
            share(session, checkpoint, step, report)
    set_training_mode(session.model)
    return max(score, best)


def share(session: Session, checkpoint: Path, step: int, report: Report | None) -> None:
    """Lay the card so far beside a kept checkpoint, so that it can be loaded and checked by itself; push both if asked to."""
    arguments, seconds = session.arguments, time.monotonic() - session.started
    split = "train" if report is None else "validation"
    run = describe_run(arguments, session.model, session.splits, split, report, seconds)
    run["steps"], run["unfinished"] = step, {"step": step, "of": arguments.optimization.max_steps}
    write_json(checkpoint / "run.json", run)
    save_run_card(checkpoint, run)
    if report is not None:
        write_json(checkpoint / "metrics.json", {"split": split, **report})
    if session.pusher is not None:
        session.pusher.push(checkpoint, f"Checkpoint of step {step}")


def chosen_score(scores: dict[str, float], name: str) -> float:
    """The score that chooses the checkpoint.

    Raises:
        ValueError: When there is none of that name.
    """
    if name not in scores:
        raise ValueError(f"`best_metric` must be one of {sorted(scores)}, got {name!r}.")
    return scores[name]


def show_retrieval(session: Session, embeddings: Embeddings, step: int) -> None:
    """The retrieval picture of some validation captions, in TensorBoard."""
    if session.folder is None:
        return
    path = session.folder.path / "validation.png"
    retrieval_grid(draw_queries(embeddings, session.splits["validation"], count=4), path)
    picture = np.asarray(Image.open(path).convert("RGB"))
    session.accelerator.get_tracker("tensorboard").log_images(
        {"validation": picture[None]}, step=step, dataformats="NHWC"
    )


def finish(session: Session, seconds: float) -> None:
    """Score the best checkpoint on the test split, once, and fill the run folder."""
    session.accelerator.wait_for_everyone()
    output_dir = Path(session.arguments.optimization.output_dir or "")
    best = load_checkpoint(output_dir / "checkpoints" / "best").to(session.accelerator.device)
    split = final_split(session.splits)
    embeddings, report = evaluate(session, best, split)
    if session.folder is None:
        return
    path = session.folder.path
    session.folder.publish("best")
    session.folder.write_json("metrics.json", {"split": split, **report})
    queries = draw_queries(embeddings, session.splits[split])
    retrieval_grid(queries, path / "retrieval.png")
    plot_curves(session.folder.history, path / "curves.png")
    plot_budgets(budget_curves(embeddings, CARD_BUDGETS), path / "budget.png")
    failures = find_failures(embeddings)
    run = describe_run(session.arguments, best, session.splits, split, report, seconds, queries, failures)
    session.folder.write_json("run.json", run)
    save_run_card(path, run)
    logger.info("Scores of the best checkpoint on the split `%s`:\n%s", split, format_table(report))
    logger.info("The run is in %s; start with its README.md.", path)
    if session.pusher is not None:
        session.pusher.push(path, "Finish the run", is_last=True)
        session.pusher.finish()


if __name__ == "__main__":
    redact_uncaught_errors()
    main(sys.argv[1:])
