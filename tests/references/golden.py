"""Golden values of the peers' public losses, and the float64 inputs that they were computed on, by formula."""

import json
from pathlib import Path

import torch
from torch import Tensor

from modeling_mxmclr.folds_mxmclr import Observations

CASES = {case["name"]: case for case in json.loads((Path(__file__).parent / "golden_cases.json").read_text())}
RAGGED_VIEWS, RAGGED_CAPTIONS = [3, 1, 2, 3], [2, 1, 2, 1]


def golden_folds(num_instances: int, num_observations: int, dim: int, kind: str) -> Tensor:
    """Unit vectors `(num_instances, num_observations, dim)` of the formula for `image` or `text`, 1-based indices."""
    i, p, d = torch.meshgrid(
        *(torch.arange(1, size + 1, dtype=torch.float64) for size in (num_instances, num_observations, dim)),
        indexing="ij",
    )
    if kind == "image":
        own = torch.sin(0.37 * i + 1.13 * p * d + 0.20 * i * p)
    else:
        own = torch.cos(0.53 * i + 0.77 * p * d - 0.31 * i * p)
    rows = torch.sin(0.91 * i * d) + 0.6 * own
    return rows / rows.norm(dim=-1, keepdim=True)


def ragged(folds: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """The first `sizes[i]` rows of each fold, flat, and the instance of each."""
    rows = torch.cat([fold[:size] for fold, size in zip(folds, sizes, strict=True)])
    return rows, torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def golden_observations(name: str) -> Observations:
    """The observations that a case was computed on, which ask for gradients."""
    shapes = CASES[name]["shapes"]
    if name.startswith("ragged/"):
        views, captions = RAGGED_VIEWS, RAGGED_CAPTIONS
    else:
        views, captions = ([shapes[side][1]] * shapes[side][0] for side in ("V", "T"))
    images, image_ids = ragged(golden_folds(len(views), max(views), 8, "image"), views)
    texts, text_ids = ragged(golden_folds(len(captions), max(captions), 8, "text"), captions)
    return Observations(images.requires_grad_(), texts.requires_grad_(), image_ids, text_ids)


def golden_gradients(name: str) -> list[Tensor]:
    """The gradient of a case in each observation, images and texts, flat."""
    gradients = CASES[name]["gradients"]
    return [torch.tensor(gradients[side], dtype=torch.float64).reshape(-1, 8) for side in ("V", "T")]


def tangent(gradient: Tensor, rows: Tensor) -> Tensor:
    """The part of a gradient that moves unit vectors along the sphere, all that a normalised embedding can feel."""
    return gradient - (gradient * rows).sum(dim=1, keepdim=True) * rows
