"""Evaluations of made-up embeddings over real rows, so that pages have pictures and words to show."""

import io
from dataclasses import replace

import torch
from datasets import Dataset
from PIL import Image
from torch.nn.functional import normalize

from datasets_scripts import FEATURES
from modeling_mxmclr.folds_mxmclr import hash_instance_id
from training.data import RawRows
from training.evaluation import Evaluation, score_embeddings
from training.protocol import load_protocol
from training.searches import Embeddings

DIM = 16
COLOURS = ["red", "green", "blue", "white", "black", "yellow", "purple", "orange"]


def png(colour: str, size: int = 8) -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def rows_of(captions: dict[str, list[str]], views: int = 2, category: str | None = "shape") -> RawRows:
    """Rows of those instances with their captions; an instance's views all have its colour."""
    rows = [
        {
            "instance_id": instance_id,
            "images": [png(COLOURS[number % len(COLOURS)])] * views,
            "captions": fold,
            "category": category,
        }
        for number, (instance_id, fold) in enumerate(captions.items())
    ]
    return RawRows(Dataset.from_list(rows, features=FEATURES))


def embeddings_of(rows: RawRows, noise: float, seed: int = 0) -> Embeddings:
    """Observations about random centres of their instances, the further off the more noise."""
    generator = torch.Generator().manual_seed(seed)
    ids = [hash_instance_id(instance_id) for instance_id in rows.column("instance_id")]
    group_ids = torch.tensor(ids)
    centres = normalize(torch.randn(len(rows), DIM, generator=torch.Generator().manual_seed(99)))

    def observed(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        index = torch.arange(len(rows)).repeat_interleave(torch.tensor(rows.fold_sizes(name)))
        shifts = normalize(torch.randn(len(index), DIM, generator=generator))
        return normalize(centres[index] + noise * shifts), group_ids[index]

    images, texts = observed("images"), observed("captions")
    captions = [caption for fold in rows.column("captions") for caption in fold]
    names = rows.column("instance_id")
    categories = {i: category for i, category in zip(ids, rows.column("category"), strict=True) if category}
    return Embeddings(*images, *texts, captions, dict(zip(ids, names, strict=True)), categories)


def evaluation_of(
    rows: RawRows,
    noise: float = 0.8,
    seed: int = 0,
    protocol: str = "multifold/instance",
    checkpoint: str = "runs/one",
    **changes,
) -> Evaluation:
    """An evaluation of such embeddings on the split `test`; `changes` are settings of the protocol."""
    chosen = replace(load_protocol(protocol), resamples=50, **changes)
    return score_embeddings(checkpoint, "things", "test", rows, embeddings_of(rows, noise, seed), chosen)


def plain_rows(count: int = 12) -> RawRows:
    """Instances of two views and of one or two captions each."""
    return rows_of({f"thing-{n}": [f"thing number {n}", f"{COLOURS[n % 8]} {n}"][: 1 + n % 2] for n in range(count)})
