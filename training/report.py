"""What a run says of itself: its plan before, its scores and pictures after, and all that the card needs."""

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from modeling_mxmclr import MXMCLRModel
from training.arguments import Arguments
from training.card import Failure, Run
from training.card_plan import plan_of
from training.data import RawRows, decode_image
from training.dataset_used import describe_dataset, names_of, sizes_of
from training.failures import worst_queries
from training.models import is_frozen
from training.neighbours import nearest_instances, sample_queries
from training.plots import GridQuery, GridResult
from training.protocol import DEFAULT_PROTOCOL, load_protocol
from training.retrieval import Report, score_search
from training.run_folder import git_revision
from training.score_tables import directions_of
from training.searches import Embeddings, searches
from training.sources import StreamSample

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "huggingface_hub", "mxmclr")


def flat_scores(report: Report) -> dict[str, float]:
    """The numbers of all directions under one level of names, such as `text_to_instance_rr@1`."""
    return {
        f"{direction}_{name}": value
        for direction in directions_of(report)
        for name, value in report[direction].items()
        if isinstance(value, int | float) and not name.startswith("chance_")  # chance is a constant of the split
    }


def relations_per_observation(image_group_ids: Tensor, text_group_ids: Tensor) -> dict[str, float]:
    """Mean positives and negatives of an image among texts and of a text among images, in one batch."""
    positives = (image_group_ids[:, None] == text_group_ids).float()
    num_images, num_texts = positives.shape
    per_image, per_text = positives.sum() / max(1, num_images), positives.sum() / max(1, num_texts)
    return {
        "positives_per_image": per_image.item(),
        "negatives_per_image": num_texts - per_image.item(),
        "positives_per_text": per_text.item(),
        "negatives_per_text": num_images - per_text.item(),
    }


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """All parameters of a module, and those that learn."""
    sizes = [(weight.numel(), weight.requires_grad) for weight in module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)


def mean_drawn(rows: RawRows, column: str, count: int | None) -> float:
    """Observations that a step draws of an average fold."""
    sizes = [min(size, count or size) for size in rows.fold_sizes(column)]
    return sum(sizes) / len(sizes)


def describe_plan(
    arguments: Arguments, splits: Mapping[str, RawRows], model: MXMCLRModel, views: int | None, captions: int | None
) -> str:
    """What a run is about to do, for people."""
    data, optimization = arguments.data, arguments.optimization
    is_streamed = isinstance(splits["train"], StreamSample)
    batch = data.instances_per_step if is_streamed else min(data.instances_per_step, len(splits["train"]))
    images, texts = mean_drawn(splits["train"], "images", views), mean_drawn(splits["train"], "captions", captions)
    seen = batch if is_streamed else min(batch + data.text_only_instances, len(splits["train"]))
    sizes = [f"{size:,} {name}" for name, size in sizes_of(splits).items()] + ["train streamed"] * is_streamed
    total, learning = count_parameters(model)
    steps = optimization.max_steps * optimization.gradient_accumulation_steps
    lines = {
        "data": f"{' + '.join(names_of(data))}: instances {', '.join(sizes)}",
        "a step": f"{batch} instances, about {batch * images:.0f} images and {seen * texts:.0f} captions"
        + (f", {seen - batch} instances by captions alone" if seen > batch else ""),
        "an image": f"about {texts:.1f} positives and {(seen - 1) * texts:.0f} negatives among the captions",
        "a caption": f"about {images:.1f} positives and {(batch - 1) * images:.0f} negatives among the images",
        "model": f"{describe_tower(model.text_model)} + {describe_tower(model.vision_model)}",
        "parameters": f"{total:,}, of which {learning:,} learn",
        "objective": f"{model.config.objective} {model.config.objective_settings or ''}".strip(),
        "steps": f"{optimization.max_steps:,}"
        + ("" if is_streamed else f", {steps * batch / len(splits['train']):.1f} epochs"),
        "run folder": optimization.output_dir,
    }
    return "\n".join(f"  {name:<11}{text}" for name, text in lines.items())


def describe_tower(tower: nn.Module) -> str:
    """A tower's class and size."""
    total, _ = count_parameters(tower)
    return f"{type(tower).__name__} {total / 1e6:.1f} M{' (frozen)' if is_frozen(tower) else ''}"


def draw_queries(embeddings: Embeddings, rows: RawRows, count: int = 8, k: int = 5, seed: int = 0) -> list[GridQuery]:
    """Some captions, drawn at random, with a view of their own instance and of the nearest ones."""
    row_of = {instance_id: row for row, instance_id in enumerate(rows.column("instance_id"))}

    def first_view(instance_id: str) -> Any:
        return decode_image(rows[row_of[instance_id]]["images"][0], instance_id)

    text_rows = sample_queries(embeddings, count, seed)
    queries = []
    for text_row, neighbours in zip(text_rows, nearest_instances(embeddings, text_rows, k), strict=True):
        own = embeddings.instance_ids[int(embeddings.text_group_ids[text_row])]
        results = [GridResult(first_view(each.instance_id), each.score, each.is_hit) for each in neighbours]
        queries.append(GridQuery(embeddings.captions[text_row], first_view(own), results))
    return queries


def find_failures(embeddings: Embeddings, count: int = 5) -> list[Failure]:
    """The captions that find their own instance last, worst first, one an instance, and what they find instead."""
    protocol = load_protocol(DEFAULT_PROTOCOL)
    search = searches(embeddings, protocol)["text_to_instance"]
    scores = score_search(search, protocol)
    ranks = scores.values["rank"]
    worst = worst_queries(ranks, scores.group_ids, count)
    rows = [int(search.queries.rows_of(int(scores.query_rows[place]))[0]) for place in worst]
    found = nearest_instances(embeddings, rows, k=1) if rows else []
    return [
        {
            "query": embeddings.captions[row],
            "instance_id": embeddings.instance_ids[int(scores.group_ids[place])],
            "rank": ranks[place].item(),
            "first": first.instance_id,
        }
        for place, row, (first,) in zip(worst, rows, found, strict=True)
    ]


def describe_run(
    arguments: Arguments,
    model: MXMCLRModel,
    splits: Mapping[str, RawRows],
    split: str,
    report: Report | None,
    seconds: float,
    queries: Sequence[GridQuery] = (),
    failures: Sequence[Failure] = (),
) -> Run:
    """All that the card says of a run, with scores of `split` where there are any, and pictures where `queries` has some."""
    run: Run = {
        **plan_of(arguments, shlex.join(["accelerate", "launch", "training/train.py", *sys.argv[1:]])),
        "parameters": count_parameters(model)[0],
        "dataset": describe_dataset(arguments.data, splits, split),
        "git_revision": git_revision(),
        "hardware": describe_hardware(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "steps": arguments.optimization.max_steps,
        "seconds": seconds,
    }
    if report is not None:
        run["metrics"] = report
    if queries:
        run["curves"], run["grid"] = "curves.png", "retrieval.png"
        run["captions"] = [query.caption for query in queries]
        run["failures"], run["budget"] = list(failures), "budget.png"
    return run


def describe_hardware() -> str:
    """The machine that trained, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {platform.machine()}, {torch.get_num_threads()} threads"
