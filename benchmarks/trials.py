"""One short training of a benchmark: a model of small towers by one objective on drawn folds, and its scores."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel, ResNetConfig, get_cosine_schedule_with_warmup

from benchmarks.fold_tensors import FoldTensors, crop
from benchmarks.side_by_side import forget_peak, resident_megabytes
from benchmarks.trial import Trial
from benchmarks.trial_batches import Batches
from benchmarks.trial_teachers import Teacher
from modeling_mxmclr import MXMCLRConfig, MXMCLRModel
from training.arguments import OptimizationArguments
from training.memory import BatchMemory
from training.models import set_training_mode
from training.multifold_retrieval.metrics import QueryScores
from training.optimization import build_optimizer
from training.protocol import DEFAULT_PROTOCOL, load_protocol
from training.retrieval import describe_geometry, score_search
from training.searches import Embeddings, searches

METRICS = ("rr@1", "rr@5", "ndcg@5")
ENCODED_AT_ONCE = 512


def build_trial_model(trial: Trial, text_model: PreTrainedModel) -> MXMCLRModel:
    """The model of a trial; its text tower is frozen, and shared by all trials."""
    sizes = list(trial.hidden_sizes)
    vision = ResNetConfig(embedding_size=32, hidden_sizes=sizes, depths=[1] * len(sizes), layer_type="basic")
    config = MXMCLRConfig(
        text_config=text_model.config.to_dict(),
        vision_config=vision.to_dict(),
        text_pooling="mean",
        projection_dim=trial.projection_dim,
        projection_dropout=trial.dropout,
        objective=trial.objective,
        objective_settings=dict(trial.settings),
        logit_scale_init_value=math.log(trial.logit_scale),
    )
    model = MXMCLRModel(config, text_model=text_model.requires_grad_(False))
    return model.to(memory_format=torch.channels_last)


@torch.no_grad()
def embed(model: MXMCLRModel, data: FoldTensors, image_size: int) -> Embeddings:
    """A split as the model sees it."""
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        images = torch.cat(
            [model.get_image_features(crop(part, image_size, 1, None)) for part in data.images.split(ENCODED_AT_ONCE)]
        )
    texts = model(text_tower_output=data.texts).text_embeds
    ids = data.group_ids
    names = dict(zip(ids.tolist(), data.instance_ids, strict=True))
    return Embeddings(images, ids[data.image_instance], texts, ids[data.text_instance], data.captions, names, {})


def score(model: MXMCLRModel, data: FoldTensors, image_size: int) -> tuple[dict[str, QueryScores], dict[str, float]]:
    """Every query's scores by direction, and how the embeddings lie."""
    embeddings, protocol = embed(model, data, image_size), load_protocol(DEFAULT_PROTOCOL)
    found = searches(embeddings, protocol)
    return {name: score_search(search, protocol) for name, search in found.items()}, describe_geometry(embeddings)


def means(scores: Mapping[str, QueryScores]) -> dict[str, float]:
    """The mean of each metric that is reported."""
    return {
        f"{direction}_{name}": each.values[name].mean().item()
        for direction, each in scores.items()
        for name in METRICS
    }


def soft_weight(trial: Trial, step: int) -> float | None:
    """The weight of the soft part in a step; None for that of the settings."""
    return trial.settings["soft_weight"] * step / trial.steps if trial.soft_ramp else None


def learn(loss: Tensor, optimizer: Optimizer) -> None:
    """A step of the optimiser."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad()


@dataclass
class Outcome:
    """What came of a trial."""

    validation: dict[str, float]
    curve: list[dict[str, float]]  # validation scores while it learned, with "step" and "images"
    geometry: dict[str, float]  # on the split that was scored last
    test: dict[str, float] | None
    test_scores: dict[str, QueryScores] | None
    images_per_step: float
    texts_per_step: float
    seconds_per_step: float
    peak_megabytes: float


def run_trial(
    trial: Trial, splits: Mapping[str, FoldTensors], text_model: PreTrainedModel, with_test: bool
) -> Outcome:
    """Train, and score on validation; on test once, at the end, where that is asked for."""
    torch.manual_seed(trial.seed)
    model = build_trial_model(trial, text_model)
    options = OptimizationArguments(learning_rate=trial.learning_rate, weight_decay=trial.weight_decay)
    optimizer = build_optimizer(model, options)
    scheduler = get_cosine_schedule_with_warmup(optimizer, trial.warmup_steps, trial.steps)
    batches = Batches(trial, splits["train"])
    memory = BatchMemory(trial.memory_steps or 0, int((trial.memory_from or 0) * trial.steps))
    teacher = None if trial.teacher is None else Teacher(trial.teacher, model)
    every = max(1, trial.steps // trial.evaluations)
    curve, seconds, images, texts = [], 0.0, 0, 0
    forget_peak()
    for step in range(1, trial.steps + 1):
        started = time.perf_counter()
        set_training_mode(model)
        batch = batches.draw(step)
        with torch.autocast("cpu", torch.bfloat16):
            inputs = None if teacher is None else teacher.inputs(model, batch)
            weight = soft_weight(trial, step)
            output = model(**batch, **memory.inputs(), objective_inputs=inputs, soft_weight=weight)
        memory.keep(batch, output)
        learn(output.loss, optimizer)
        scheduler.step()
        seconds += time.perf_counter() - started
        images, texts = images + len(batch["image_group_ids"]), texts + len(batch["text_group_ids"])
        if step % every == 0 or step == trial.steps:
            scores, geometry = score(model, splits["validation"], trial.image_size)
            curve.append({"step": step, "images": images, "loss": output.loss.item(), **means(scores)})
    test = test_scores = None
    if with_test:
        test_scores, geometry = score(model, splits["test"], trial.image_size)
        test = means(test_scores)
    return Outcome(
        validation=means(scores),
        curve=curve,
        geometry=geometry,
        test=test,
        test_scores=test_scores,
        images_per_step=images / trial.steps,
        texts_per_step=texts / trial.steps,
        seconds_per_step=seconds / trial.steps,
        peak_megabytes=resident_megabytes("VmHWM"),
    )
