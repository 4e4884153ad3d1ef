"""Observations to compute losses on, and every objective and term with settings that tell its branches apart."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modeling_mxmclr.folds_mxmclr import Observations, unit_norm
from modeling_mxmclr.objectives_mxmclr import EQUAL_FOLDS, OBJECTIVES, get_objective
from modeling_mxmclr.terms_mxmclr import TERMS

SCALE = torch.tensor([7.0], dtype=torch.float64)
# Instance 2 has no text and instance 5 no image: both stand in the denominators only.
RAGGED_IDS = ([0, 0, 0, 1, 2, 3, 3], [0, 0, 1, 3, 3, 5])
EQUAL_IDS = ([0, 0, 3, 3, 1, 1], [0, 0, 1, 1, 3, 3])


def draw(image_ids=RAGGED_IDS[0], text_ids=RAGGED_IDS[1], dim: int = 6, seed: int = 0) -> Observations:
    """Unit vectors in float64 that ask for gradients."""
    generator = torch.Generator().manual_seed(seed)
    images = unit_norm(torch.randn(len(image_ids), dim, dtype=torch.float64, generator=generator))
    texts = unit_norm(torch.randn(len(text_ids), dim, dtype=torch.float64, generator=generator))
    return Observations(
        images.requires_grad_(), texts.requires_grad_(), torch.tensor(image_ids), torch.tensor(text_ids)
    )


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True, retain_graph=True)


def tangent(gradient: Tensor, rows: Tensor) -> Tensor:
    """The part of a gradient that moves unit vectors along the sphere, all that a normalised embedding can feel."""
    return gradient - (gradient * rows).sum(dim=1, keepdim=True) * rows


def assert_near(ours: Tensor | float, theirs: Tensor | float, tolerance: float) -> None:
    """Equal up to the tolerance, absolute below 1 and relative above."""
    ours, theirs = (torch.as_tensor(value, dtype=torch.float64) for value in (ours, theirs))
    error = (ours - theirs).abs() / theirs.abs().clamp(min=1)
    assert error.max() <= tolerance, f"{ours} differs from {theirs} by {error.max().item():.1e}"


def assert_same(ours: Tensor, theirs: Tensor, observed: Observations, tolerance: float = 1e-12) -> None:
    """Equal losses with equal gradients in the observations."""
    assert_near(ours, theirs, tolerance)
    for one, other in zip(gradients(ours, *observed[:2]), gradients(theirs, *observed[:2]), strict=True):
        assert_near(one, other, tolerance)


def references(observed: Observations, seed: int = 1) -> dict[str, Tensor]:
    """Embeddings of another model for the same observations."""
    images, texts = draw(observed.image_group_ids.tolist(), observed.text_group_ids.tolist(), 5, seed)[:2]
    return {"image_reference_embeds": images.detach(), "text_reference_embeds": texts.detach()}


def frozen(observed: Observations) -> dict[str, Tensor]:
    dim = observed.image_embeds.shape[1]
    images, texts = draw(observed.image_group_ids.tolist(), observed.text_group_ids.tolist(), dim, 1)[:2]
    return {"image_reference_embeds": images.detach(), "text_reference_embeds": texts.detach()}


def momentum(observed: Observations) -> dict[str, Tensor]:
    given = frozen(observed)
    return {name.replace("reference", "momentum"): rows for name, rows in given.items()}


def teacher(observed: Observations) -> dict[str, Tensor]:
    given = references(observed)
    return {name.replace("reference", "teacher"): rows for name, rows in given.items()}


def teacher_of_texts(observed: Observations) -> dict[str, Tensor]:
    return {"text_teacher_embeds": teacher(observed)["text_teacher_embeds"]}


def queue(observed: Observations) -> dict[str, Tensor]:
    dim = observed.image_embeds.shape[1]
    images, texts, ids, _ = draw([0, 9, 3, 8], [0, 9, 3, 8], dim, 2)[:4]
    queued = {"image_queue_embeds": images.detach(), "text_queue_embeds": texts.detach(), "queue_group_ids": ids}
    return momentum(observed) | queued


def local(observed: Observations) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    features = [
        unit_norm(torch.randn(len(rows), count, rows.shape[1], dtype=torch.float64, generator=generator))
        for rows, count in zip(observed[:2], (3, 2), strict=True)
    ]
    mask = torch.ones(len(features[1]), 2, dtype=torch.bool)
    mask[::2, -1] = False
    return {"image_local_embeds": features[0], "text_local_embeds": features[1], "text_local_mask": mask}


def nothing(observed: Observations) -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True)
class Variant:
    """An objective with settings, and the tensors that it takes beside the observations."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: Callable[[Observations], dict[str, Any]] = nothing
    observation_order_matters: bool = False

    @property
    def rectangular(self) -> bool:
        return self.name in EQUAL_FOLDS

    def draw(self, dim: int = 6, seed: int = 0) -> Observations:
        return draw(*(EQUAL_IDS if self.rectangular else RAGGED_IDS), dim, seed)

    def output(self, observed: Observations, scale: Tensor = SCALE, **inputs):
        return get_objective(self.name, self.settings)(observed, scale, **(inputs or self.inputs(observed)))

    def loss(self, observed: Observations, scale: Tensor = SCALE, **inputs) -> Tensor:
        return self.output(observed, scale, **inputs).loss


IN_ORDER = {"observation_order_matters": True}

OBJECTIVE_VARIANTS: dict[str, Variant] = {
    name: Variant(name, observation_order_matters=name in ("clip", "gram", "symile", "mv_dhel", "ntxent"))
    for name in OBJECTIVES
} | {
    "mfh hard": Variant("mfh", {"soft_weight": 0.0}),
    "mfh soft": Variant("mfh", {"soft_weight": 1.0, "soft_temperature": 0.3}),
    "mfh of images": Variant("mfh", {"soft_source": 1.0, "soft_temperature": 0.2}),
    "mfh of texts": Variant("mfh", {"soft_source": 0.0, "soft_weight": 0.3}),
    "mfh transposed": Variant("mfh", {"soft_columns": "transposed", "soft_weight": 0.9}),
    "mfh moving targets": Variant("mfh", {"soft_detach": False, "soft_temperature": 0.3}),
    "mfh moving transposed": Variant(
        "mfh", {"soft_detach": False, "soft_temperature": 0.3, "soft_columns": "transposed"}
    ),
    "mfh observations": Variant("mfh", {"soft_level": "observation", "soft_temperature": 0.3, "soft_source": 0.7}),
    "mfh moving observations": Variant(
        "mfh", {"soft_level": "observation", "soft_temperature": 0.3, "soft_detach": False}
    ),
    "mfh in": Variant("mfh", {"hard_form": "in", "normaliser": "pairs"}),
    "mfh ones": Variant("mfh", {"hard_form": "ones", "normaliser": "instances"}),
    "mfh inverse": Variant("mfh", {"hard_form": "inverse", "direction_weight": 0.1}),
    "mfh masked": Variant("mfh", {"denominator": "one_positive", "direction_weight": 1.0}),
    "mfh negatives": Variant("mfh", {"denominator": "negatives", "direction_weight": 0.0}),
    "mfh max_sim": Variant("mfh", {"score": "max_sim", "soft_temperature": 0.3}),
    "mfh attentive": Variant("mfh", {"score": "attentive", "soft_columns": "transposed"}),
    "mfh of a teacher": Variant("mfh", {"soft_temperature": 0.3}, teacher),
    "mfh of a teacher's texts": Variant("mfh", {"soft_temperature": 0.3, "soft_level": "observation"}, teacher_of_texts),
    "unicl in": Variant("unicl", {"hard_form": "in", "denominator": "one_positive"}),
    "unicl pairs": Variant("unicl", {"normaliser": "pairs", "direction_weight": 0.7}),
    "unicl negatives": Variant("unicl", {"denominator": "negatives", "hard_form": "in"}),
    "unicl max_sim": Variant("unicl", {"score": "max_sim", "normaliser": "pairs"}),
    "unicl attentive": Variant("unicl", {"score": "attentive", "normaliser": "instances"}),
    "one_to_k undivided": Variant("one_to_k", {"divide": False}),
    "one_to_k max_sim": Variant("one_to_k", {"score": "max_sim", "normaliser": "instances"}),
    "supcon in": Variant("supcon", {"hard_form": "in", "lonely": "drop"}),
    "supcon ones": Variant("supcon", {"hard_form": "ones", "base_temperature": 0.07}),
    "supcon images": Variant("supcon", {"sides": "images", "normaliser": "instances"}),
    "supcon texts": Variant("supcon", {"sides": "texts", "normaliser": "pairs"}),
    "supcon cross": Variant("supcon", {"sides": "cross", "denominator": "one_positive"}),
    "supcon pairs": Variant("supcon", {"normaliser": "pairs", "lonely": "drop", "denominator": "one_positive"}),
    "supcon negatives": Variant("supcon", {"denominator": "negatives"}),
    "supcon firsts": Variant("supcon", {"anchors": "first"}, **IN_ORDER),
    "stablerep weighed": Variant(
        "stablerep", {"image_weight": 0.3, "cross_weight": 2.0, "image_temperature": 0.5}
    ),
    "milnce of images": Variant("milnce", {"anchors": "images"}),
    "milnce of texts": Variant("milnce", {"anchors": "texts"}),
    "soft_clip own": Variant("soft_clip", {"soft_columns": "own", "temperature_use": "divide", "soft_source": 0.2}),
    "soft_clip detached": Variant("soft_clip", {"soft_detach": True, "normaliser": "instances"}),
    "soft_clip one way": Variant("soft_clip", {"direction_weight": 1.0, "normaliser": "pairs"}),
    "cwcl raw": Variant("cwcl", {"text_weights": "raw"}, lambda observed: image_references(observed)),
    "cwcl of references": Variant("cwcl", {}, lambda observed: image_references(observed)),
    "hn_nce harder": Variant("hn_nce", {"alpha": 0.5, "beta": 1.0}),
    "hn_nce even": Variant("hn_nce", {"beta": 0.0}),
    "hn_nce without positives": Variant("hn_nce", {"alpha": 0.0}),
    "siglip texts": Variant("siglip", {"normaliser": "texts"}, lambda _: {"bias": torch.tensor([-2.0]).double()}),
    "siglip pairs": Variant("siglip", {"normaliser": "pairs"}, lambda _: {"bias": -2.71}),
    "mv_infonce images": Variant("mv_infonce", {"sides": "images"}),
    "mv_dhel texts": Variant("mv_dhel", {"sides": "texts"}, **IN_ORDER),
    "pvc arithmetic": Variant("pvc", {"mean": "arithmetic"}),
    "pvc public": Variant("pvc", {"mean": "public_arithmetic"}, **IN_ORDER),
    "ntxent average": Variant("ntxent", {"pairing": "average"}, **IN_ORDER),
    "gram unsmoothed": Variant("gram", {"label_smoothing": 0.0}, **IN_ORDER),
    "symile all": Variant("symile", {"negatives": "all"}, **IN_ORDER),
    "symile pairwise": Variant("symile", {"negatives": "pairwise"}, **IN_ORDER),
    "pmrl weighed": Variant("pmrl", {"intra_temperature": 0.5, "intra_weight": 0.3, "inter_weight": 2.0}),
    "tcl momentum": Variant("tcl", {}, momentum),
    "tcl queue": Variant("tcl", {"distill_weight": 0.0}, queue),
    "tcl local": Variant("tcl", {}, local),
    "tcl whole": Variant("tcl", {"distill_weight": 0.7}, lambda observed: queue(observed) | local(observed)),
}  # fmt: skip


def image_references(observed: Observations) -> dict[str, Tensor]:
    return {"image_reference_embeds": references(observed)["image_reference_embeds"]}


TERM_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in TERMS} | {
    "uniformity of images": ("uniformity", {"sides": "images", "t": 3.0}),
    "uniformity of texts": ("uniformity", {"sides": "texts"}),
    "cross_uniformity at 0.5": ("cross_uniformity", {"t": 0.5}),
    "intra_modal of images": ("intra_modal", {"sides": "images", "temperature": 0.5}),
    "intra_modal of texts": ("intra_modal", {"sides": "texts"}),
    "vicreg weighed": ("vicreg", {"invariance": 1.0, "variance": 2.0, "covariance": 3.0}),
    "pooled mean": ("pooled", {"pooling": "mean"}),
    "pooled max": ("pooled", {"pooling": "max"}),
    "mixup of halves": ("mixup", {"concentration": 20.0, "temperature": 0.5}),
}
TERM_VARIANTS: dict[str, Variant] = {
    f"term {label}": Variant(
        "unicl", {"terms": {name: {"weight": 0.3, **settings}}}, frozen if name == "near_frozen" else nothing
    )
    for label, (name, settings) in TERM_SETTINGS.items()
}
VARIANTS = OBJECTIVE_VARIANTS | TERM_VARIANTS
