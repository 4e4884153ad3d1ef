"""The golden cases of the peers' public code: from a case's name, shapes and hyper-parameters to our call.

`run_case(case)` takes a dict with `name`, `shapes` and `hyper`, and needs nothing else, so that a case of the same
grammar at another shape or temperature runs as well: `set/family.variant...`, where the family is a key of `FAMILIES`.
The values lie in `fixtures/golden_cases.json`.
"""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from modeling_mxmclr.folds_mxmclr import Observations
from modeling_mxmclr.objectives_mxmclr import compute_objective
from modeling_mxmclr.terms_mxmclr import TERMS
from tests.references.golden_inputs import (
    PAIRINGS,
    Inputs,
    Rows,
    case_inputs,
    chosen,
    firsts,
    flat_pairs,
    formula,
    lapack_signs,
    observation,
    shortened,
    with_labels,
)
from training.multifold_retrieval.metrics import rank_spread

CASES: dict[str, dict[str, Any]] = {
    case["name"]: case for case in json.loads((Path(__file__).parent / "fixtures" / "golden_cases.json").read_text())
}


def run_case(case: dict[str, Any]) -> Tensor:
    """Our value of a case, `()`, attached to its inputs; NotImplementedError for a case that is left out."""
    return evaluate(case)[0]


def evaluate(case: dict[str, Any]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Our value of a case, and the leaves that it was computed from: all images and all texts, flat."""
    input_set, _, name = case["name"].partition("/")
    if input_set == "mrv":
        return mean_rank_spread(*case["shapes"]), ()
    family, _, variant = name.partition(".")
    inputs = case_inputs(case)
    if family not in FAMILIES:
        raise NotImplementedError(LEFT_OUT.get(family, f"no objective of ours is {family!r}"))
    loss = FAMILIES[family](variant.split("."), inputs, case["hyper"])
    return loss, inputs.leaves


# Families that nobody should reproduce, and why; the value that is right instead is tested elsewhere.
LEFT_OUT: dict[str, str] = {
    "sca3d": "SCA3D divides the weights of image-to-text by the sums of other rows; `hn_nce` mends it",
}


def mean_rank_spread(num_instances: int, num_languages: int) -> Tensor:
    """The metric of 1-to-K's code on ranks by its formula."""
    i, j = (torch.arange(1, size + 1, dtype=torch.float64) for size in (num_instances, num_languages))
    ranks = (10 * (0.37 * i[:, None] + 1.13 * j).sin().abs()).floor()
    ids = torch.arange(num_instances).repeat_interleave(num_languages)
    return torch.tensor(rank_spread(ranks.flatten(), ids), dtype=torch.float64)


def compute(name: str, images: Rows, texts: Rows, scale: float, **settings: Any) -> Tensor:
    """Our loss on these rows."""
    scales = torch.tensor([scale], dtype=torch.float64)
    return compute_objective(name, images.embeds, texts.embeds, images.ids, texts.ids, scale=scales, **settings).loss


def scale_of(hyper: dict[str, Any]) -> float:
    """The scale of a case, however it states its temperature."""
    for name in ("logit_scale", "scale"):
        if name in hyper:
            return hyper[name]
    return 1 / next(hyper[name] for name in ("temperature", "temp", "tau", "contra_temp") if name in hyper)


def labelled(sides: tuple[Rows, Rows], hyper: dict[str, Any]) -> tuple[Rows, Rows]:
    """Both sides, with the case's classes in the place of instances where it has any."""
    labels = hyper.get("labels")
    return (with_labels(sides[0], labels), with_labels(sides[1], labels)) if labels else sides


def clip_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    return compute("clip", *PAIRINGS[variant[0]](inputs), scale_of(hyper))


def siglip_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    bias, feeding = hyper["logit_bias"], variant[0].partition("_chunk")[0]  # chunks are the same sum
    if feeding == "mps_i1":
        images, texts, normaliser = observation(inputs.images, 1), inputs.texts, "texts"
    elif feeding == "mps_t1":
        images, texts, normaliser = inputs.images, observation(inputs.texts, 1), "images"
    else:
        (images, texts), normaliser = PAIRINGS[feeding](inputs), "images"
    return compute("siglip", images, texts, scale_of(hyper), bias=bias, normaliser=normaliser)


def supcon_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    images, texts = labelled(firsts(inputs) if variant[0] == "pair" else inputs[:2], hyper)
    return compute(
        "supcon",
        images,
        texts,
        scale_of(hyper),
        sides="images" if variant[0] == "views" else "union",
        anchors="first" if hyper.get("contrast_mode") == "one" else "all",
        base_temperature=hyper["base_temperature"],
    )


def google_supcon_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    images, texts = labelled(inputs[:2], hyper)
    return compute(
        "supcon",
        images,
        texts,
        scale_of(hyper),
        hard_form={"OUTSIDE": "out", "INSIDE": "in"}[hyper["summation"]],
        denominator={"ALL": "all", "ONE_POSITIVE": "one_positive", "ONLY_NEGATIVES": "negatives"}[
            hyper["denominator"]
        ],
        anchors={"ALL_VIEWS": "all", "ONE_VIEW": "first"}[hyper["contrast_mode"]],
        base_temperature=1.0 if hyper["scale_by_temperature"] else None,
    )


def pml_supcon_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    if variant[0] in ("i2t", "t2i"):
        return compute("unicl", *inputs[:2], scale_of(hyper), direction_weight=float(variant[0] == "i2t"))
    sides = {"views": "images", "union": "union"}[variant[0]]
    return compute("supcon", *inputs[:2], scale_of(hyper), sides=sides, lonely="drop")


def pml_ntxent_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    pairs = {"denominator": "one_positive", "normaliser": "pairs", "lonely": "drop"}
    return compute("supcon", *inputs[:2], scale_of(hyper), **pairs)


def milnce_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    images, texts = inputs[:2]
    if variant[0] in ("v1_bagT", "pair"):
        images = observation(images, 1)
    if variant[0] in ("t1_bagV", "pair"):
        texts = observation(texts, 1)
    return compute("milnce", images, texts, scale_of(hyper), anchors="texts" if variant[0] == "t1_bagV" else "images")


def unicl_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    images, texts = inputs[:2]
    if variant[0].startswith("xdecoder"):  # their scale ends at 100
        hyper = hyper | {"logit_scale": min(scale_of(hyper), 100.0)}
    if variant[0] == "flat_pairs_idx":
        images, texts = flat_pairs(inputs)
    elif variant[0] == "pair_labels":
        images, texts = (with_labels(rows, hyper["labels"]) for rows in firsts(inputs))
    elif variant[0] == "xdecoder_hash":  # texts are told apart by their content, and each stands once
        texts = observation(texts, 1)
        ways = [compute("unicl", images, texts, scale_of(hyper), direction_weight=share) for share in (1.0, 0.0)]
        fold = len(images.ids) // len(texts.ids)
        rounded = fold * torch.tensor(1 / fold, dtype=torch.float32).item()  # their targets are float32
        return hyper["w_img"] * ways[0] + hyper["w_txt"] * rounded * ways[1]
    return compute("unicl", images, texts, scale_of(hyper))


def stablerep_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    if variant[0] in ("mm_imgtxt", "img_txt_loss", "imgtxt"):
        return compute("unicl", *inputs[:2], scale_of(hyper))
    return compute(
        "stablerep",
        *inputs[:2],
        scale_of(hyper),
        image_weight=float(hyper["w1"]),
        cross_weight=0.0 if variant[0] == "image_loss" else float(hyper["w2"]),
        image_temperature=hyper["temperature"],
    )


def ccrk_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    if variant[0] == "vicreg":
        a, b, c = (float(hyper[name]) for name in "abc")
        return term(
            observation(inputs.images, 1), inputs.texts, "vicreg", {"invariance": a, "variance": b, "covariance": c}
        )
    images, texts = inputs[:2]
    if variant[0] == "v1_Q":
        images = observation(images, 1)
    else:
        texts = observation(texts, 1)
    divisor = hyper["need_divm"]  # 0 is the fold size, and a negative one 1
    return compute("one_to_k", images, texts, scale_of(hyper), divide=divisor == 0) / max(divisor, 1)


def tricolo_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    images, texts = firsts(inputs)
    return compute("unicl", images, texts, scale_of(hyper), direction_weight=1 - hyper["alpha_weight"])


def multiview_case(name: str, **settings: Any) -> Callable[[list[str], Inputs, dict[str, Any]], Tensor]:
    """A case of an objective over stacked views."""

    def run(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
        images, texts = firsts(inputs) if variant[0] == "pair" else inputs[:2]
        sides = "images" if variant[0] == "views" else "union"
        return compute(name, images, texts, scale_of(hyper), sides=sides, **settings)

    return run


def public_arithmetic_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    """Their log of the batch size is a float32."""
    loss = multiview_case("pvc", mean="public_arithmetic")(variant, inputs, hyper)
    count = len(inputs.images.ids.unique())
    return loss + math.log(count) - torch.tensor(float(count), dtype=torch.float32).log().item()


def gram_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    return compute("gram", *chosen(variant[0], inputs), scale_of(hyper), label_smoothing=hyper["label_smoothing"])


def symile_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    calls = itertools.count()

    def rolled(size: int, **_: Any) -> Tensor:  # the shuffles that their code was given, in the order of its calls
        return torch.arange(size).roll(1 + next(calls) % max(1, size - 1))

    negatives = {"n2": "all", "n": "shuffled", "pairwise_clip": "pairwise"}[variant[0]]
    with mock.patch("torch.randperm", rolled):
        return compute("symile", *chosen(variant[1], inputs), scale_of(hyper), negatives=negatives)


def pmrl_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    images, texts = shortened(*chosen(variant[1], inputs))
    if variant[0] == "intra":
        return compute("pmrl", images, texts, 1.0, intra_temperature=hyper["tau1"], inter_weight=0.0)
    # Their leading vector has LAPACK's sign, ours that of its observations: an instance turned around turns ours.
    turned = lapack_signs(images, texts)
    images, texts = (rows._replace(embeds=turned[rows.ids][:, None] * rows.embeds) for rows in (images, texts))
    return compute("pmrl", images, texts, 1 / hyper["tau2"], intra_weight=0.0)


def soft_clip_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    return compute("soft_clip", *PAIRINGS[variant[0]](inputs), scale_of(hyper))


def cwcl_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    images, texts = firsts(inputs)
    references = formula(len(images.ids), 1, images.embeds.shape[1], third, 0.6)[:, 0]
    weights = {"text_weights": "raw"} if variant[0] == "bi" else {}
    loss = compute("cwcl", images, texts, scale_of(hyper), image_reference_embeds=references, **weights)
    # Their weights are float32, and 1e-8 is added to norms and sums: what that makes of them is added here.
    logits = scale_of(hyper) * images.embeds @ texts.embeds.T
    ours, theirs = row_weights(references, 0.0, torch.float64), row_weights(references, 1e-8, torch.float32)
    loss = loss - ((theirs - ours) * logits.log_softmax(dim=1)).sum() / len(logits)
    if variant[0] == "bi":
        cosines = texts.embeds @ texts.embeds.T / 2
        loss = loss - ((cosines / (1 + 1e-8) ** 2 - cosines) * logits.T.log_softmax(dim=1)).sum() / len(logits)
    return loss


def third(i: Tensor, p: Tensor, d: Tensor) -> Tensor:
    return torch.sin(0.71 * i - 0.59 * d * d)


def row_weights(references: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """Continuous weights in a precision, float64."""
    references = references / (references.norm(dim=1, keepdim=True) + epsilon)
    weights = (references @ references.T).to(dtype) / 2 + 0.5
    return (weights / (weights.sum(dim=1, keepdim=True) + epsilon)).double()


GAP_TERMS: dict[str, tuple[str, dict[str, Any]]] = {
    "encoder1_uniformity_loss": ("uniformity", {"sides": "images"}),
    "encoder2_uniformity_loss": ("uniformity", {"sides": "texts"}),
    "uniformity_loss": ("uniformity", {}),
    "cross_encoder_uniform_loss": ("cross_uniformity", {}),
    "alignment_loss": ("alignment", {}),
    "uniform_cyclic_loss": ("uniform_cyclic", {}),
    "cyclic_direction_loss": ("cyclic_direction", {}),
}


def gap_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    if variant[0] in GAP_TERMS:
        name, settings = GAP_TERMS[variant[0]]
        if "t" in hyper and "uniform" in name and name != "uniform_cyclic":
            settings = settings | {"t": float(hyper["t"])}
        return term(*firsts(inputs), name, check_exponent(settings, hyper))
    terms = {"alignment": 1.0, "uniformity": 1.0} | ({"cross_uniformity": 1.0} if variant[0] == "CUAXU" else {})
    return compute("clip", *firsts(inputs), scale_of(hyper), terms=terms)


def align_uniform_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    if variant[0] == "align":
        return term(*firsts(inputs), "alignment", check_exponent({}, hyper))
    views = inputs.images._replace(ids=torch.arange(len(inputs.images.ids)))
    return term(views, inputs.texts, "uniformity", {"sides": "images", "t": float(hyper["t"])})


def check_exponent(settings: dict[str, Any], hyper: dict[str, Any]) -> dict[str, Any]:
    """The settings, unless the case raises distances to another power than 2, as no public loss does."""
    if hyper.get("alpha", 2) != 2:
        raise NotImplementedError(f"`alignment` squares distances, and has no power {hyper['alpha']}")
    return settings


def term(images: Rows, texts: Rows, name: str, settings: dict[str, Any]) -> Tensor:
    """A term by itself."""
    return TERMS[name](Observations(images.embeds, texts.embeds, images.ids, texts.ids), torch.ones(1), **settings)


def tcl_case(variant: list[str], inputs: Inputs, hyper: dict[str, Any]) -> Tensor:
    images, texts = inputs.images, inputs.texts
    num_views = int(images.places.max()) + 1
    count, dim = texts.embeds.shape
    # Row (i, q) is caption q with view q % P; the momentum image is the next view, the momentum text the same.
    rows, momentum = (
        images.where(
            images.ids.new_tensor(
                [
                    int(((images.ids == i) & (images.places == (q + shift) % num_views)).nonzero())
                    for i, q in zip(texts.ids.tolist(), texts.places.tolist(), strict=True)
                ]
            )
        )
        for shift in (0, 1)
    )
    patches = formula(count, 16, dim, lambda n, p, d: torch.sin(0.27 * p * d + 0.61 * n * p), 0.9)
    tokens = formula(count, 3, dim, lambda n, p, d: torch.sin(0.27 * p * d + 0.61 * n * p + 0.5), 0.9)
    mask = torch.ones(count, 3, dtype=torch.bool)
    mask[::2, -1] = False
    k, d = torch.meshgrid(*(torch.arange(1, n + 1).double() for n in (2 * hyper["queue"], dim)), indexing="ij")
    image_queue, text_queue = torch.nn.functional.normalize(torch.cos(1.7 * k + 0.43 * k * d), dim=1).chunk(2)
    return compute(
        "tcl",
        rows,
        texts,
        1 / min(max(hyper["temp"], 0.001), 0.5),  # as their forward clamps it
        distill_weight=hyper["alpha"] if hyper["distill"] else 0.0,
        image_momentum_embeds=momentum.embeds.detach(),
        text_momentum_embeds=texts.embeds.detach(),
        image_queue_embeds=image_queue,
        text_queue_embeds=text_queue,
        queue_group_ids=torch.tensor([0] + [-100] * (hyper["queue"] - 1)),
        image_local_embeds=patches,
        text_local_embeds=tokens,
        text_local_mask=mask,
    )


FAMILIES: dict[str, Callable[[list[str], Inputs, dict[str, Any]], Tensor]] = {
    "align_uniform": align_uniform_case,
    "ccrk": ccrk_case,
    "cgap": gap_case,
    "clip": clip_case,
    "cwcl": cwcl_case,
    "google_supcon": google_supcon_case,
    "milnce": milnce_case,
    "gram": gram_case,
    "mv_dhel": multiview_case("mv_dhel"),
    "mv_infonce": multiview_case("mv_infonce"),
    "mv_ntxent_avg": multiview_case("ntxent", pairing="average"),
    "mv_ntxent_mv": multiview_case("supcon"),
    "mv_ntxent_pwe": multiview_case("ntxent", pairing="pairwise"),
    "mv_pvc_arithmetic": public_arithmetic_case,
    "mv_pvc_geometric": multiview_case("pvc"),
    "pmrl": pmrl_case,
    "symile": symile_case,
    "pml_ntxent": pml_ntxent_case,
    "pml_supcon": pml_supcon_case,
    "siglip": siglip_case,
    "soft_clip": soft_clip_case,
    "stablerep": stablerep_case,
    "supcon": supcon_case,
    "tcl": tcl_case,
    "tricolo": tricolo_case,
    "unicl": unicl_case,
}
