"""Cases of the golden grammar at other shapes and temperatures, against loops on inputs by the formulas of their authors.

The values of the public code itself are in `modeling_mxmclr/test_golden_cases.py`.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from modeling_mxmclr.folds_mxmclr import Observations
from tests.golden_cases import run_case
from tests.references import mfh_loops, objective_loops, term_loops, tuple_loops
from tests.references.observed import assert_near

WIDE = {"V": [6, 12, 16], "T": [6, 5, 16]}
NARROW = {"V": [3, 2, 5], "T": [3, 4, 5]}
RAGGED = {"V": [7, 5], "T": [6, 5], "P": [2, 4, 1], "Q": [1, 3, 2]}


def unit(rows) -> list[float]:
    return [x / math.sqrt(sum(y * y for y in rows)) for x in rows]


def vector(kind: str, i: int, p: int, dim: int) -> list[float]:
    def own(d):
        if kind == "V":
            return math.sin(0.37 * i + 1.13 * p * d + 0.20 * i * p)
        return math.cos(0.53 * i + 0.77 * p * d - 0.31 * i * p)

    return unit([math.sin(0.91 * i * d) + 0.6 * own(d) for d in range(1, dim + 1)])


class Folds:
    """Both modalities of a shape, `[instance][place]`."""

    def __init__(self, shapes: dict) -> None:
        self.dim = shapes["V"][-1]
        sizes = [shapes.get(name, shapes[kind][1:2] * shapes[kind][0]) for kind, name in (("V", "P"), ("T", "Q"))]
        self.images, self.texts = (
            [[vector(kind, i, p, self.dim) for p in range(1, size + 1)] for i, size in enumerate(each, start=1)]
            for kind, each in zip("VT", sizes, strict=True)
        )

    def observed(self, views: list[int] | None = None, captions: list[int] | None = None, ids=None) -> Observations:
        """The numbered views and captions of each instance, from 1; all where None; `ids` renames the instances."""
        sides, owners = [], []
        for folds, places in ((self.images, views), (self.texts, captions)):
            kept = [
                (row, ids[i] if ids else i)
                for i, fold in enumerate(folds)
                for place, row in enumerate(fold, start=1)
                if places is None or place in places
            ]
            sides.append(torch.tensor([row for row, _ in kept], dtype=torch.float64))
            owners.append(torch.tensor([owner for _, owner in kept]))
        return Observations(*sides, *owners)

    def pairs(self, rows: list[tuple]) -> Observations:
        """Rows `(instance, view, caption)`, from 0; each an instance of its own."""
        images, texts = (
            torch.tensor([folds[row[0]][row[n]] for row in rows], dtype=torch.float64)
            for n, folds in ((1, self.images), (2, self.texts))
        )
        return Observations(images, texts, torch.arange(len(rows)), torch.arange(len(rows)))

    def all_pairs(self) -> Observations:
        folds = zip(self.images, self.texts, strict=True)
        return self.pairs([(i, p, q) for i, (v, t) in enumerate(folds) for p in range(len(v)) for q in range(len(t))])

    def cyclic(self) -> Observations:
        p, q = len(self.images[0]), len(self.texts[0])
        return self.pairs([(i, r % p, r % q) for r in range(max(p, q)) for i in range(len(self.images))])


def pooled_clip(folds: Folds, scale: float) -> float:
    sides = [[unit(np.mean(fold, axis=0)) for fold in side] for side in (folds.images, folds.texts)]
    return objective_loops.paired_loops(*sides, scale)


def flat_unicl(folds: Folds, scale: float) -> float:
    observed = folds.all_pairs()
    ids = [i for i, (v, t) in enumerate(zip(folds.images, folds.texts, strict=True)) for _ in range(len(v) * len(t))]
    owners = torch.tensor(ids)
    return unicl(observed._replace(image_group_ids=owners, text_group_ids=owners), scale)


def xdecoder_hash(folds: Folds, scale: float, image_share: float) -> float:
    observed = folds.observed(captions=[1])
    ways = [unicl(observed, scale, direction_weight=share) for share in (1.0, 0.0)]
    return image_share * ways[0] + (1 - image_share) * ways[1]


def google(folds: Folds, labels: list[int]) -> float:
    """L_in, that positive and the negatives, view 1 of each row as anchor, rows being views of classes."""
    return supcon(folds.observed(ids=labels), 5.0, hard_form="in", denominator="one_positive", base_temperature=1.0)


def pmrl_inter(observed: Observations, scale: float) -> float:
    """With the signs that LAPACK has."""
    stacked = torch.stack(
        [
            torch.cat([rows[ids == i] for rows, ids in zip(observed[:2], observed[2:4], strict=True)]).T
            for i in range(6)
        ]
    )
    leading = torch.linalg.svd(stacked, full_matrices=True).U[:, :, 0]
    return torch.nn.functional.cross_entropy(scale * leading @ leading.T, torch.arange(6)).item()


def gap(folds: Folds, scale: float) -> float:
    observed = folds.observed([1], [1])
    terms = (term_loops.alignment_loops, term_loops.uniformity_loops, term_loops.cross_uniformity_loops)
    return clip(observed, scale) + sum(term(observed, scale) for term in terms)


def float64(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def tcl(folds: Folds, scale: float, distill_weight: float) -> float:
    num_views, size = len(folds.images[0]), 3
    rows = [(i, q) for i, fold in enumerate(folds.texts) for q in range(len(fold))]
    local = [
        [
            [
                unit([math.sin(0.91 * n * d) + 0.9 * math.sin(0.27 * k * d + 0.61 * n * k + phase) for d in dims])
                for k in range(1, count + 1)
            ]
            for n in range(1, len(rows) + 1)
        ]
        for count, phase in ((16, 0.0), (3, 0.5))
        for dims in [range(1, folds.dim + 1)]
    ]
    keys = [unit([math.cos(1.7 * k + 0.43 * k * d) for d in range(1, folds.dim + 1)]) for k in range(1, 2 * size + 1)]
    owners = torch.tensor([i for i, _ in rows])
    texts = float64([folds.texts[i][q] for i, q in rows])
    mask = torch.ones(len(rows), 3, dtype=torch.bool)
    mask[::2, -1] = False
    given = {
        "image_momentum_embeds": float64([folds.images[i][(q + 1) % num_views] for i, q in rows]),
        "text_momentum_embeds": texts,
        "image_queue_embeds": float64(keys[:size]),
        "text_queue_embeds": float64(keys[size:]),
        "queue_group_ids": torch.tensor([0, -100, -100]),
        "image_local_embeds": float64(local[0]),
        "text_local_embeds": float64(local[1]),
    }
    images = float64([folds.images[i][q % num_views] for i, q in rows])
    return tuple_loops.tcl_loops(
        Observations(images, texts, owners, owners), scale, distill_weight, text_local_mask=mask, **given
    )


clip, unicl, supcon, siglip = (
    mfh_loops.clip_loops,
    objective_loops.unicl_loops,
    objective_loops.supcon_loops,
    objective_loops.siglip_loops,
)
one_to_k, milnce = objective_loops.one_to_k_loops, objective_loops.milnce_loops
LABELS = [0, 1, 2, 0, 3, 1]
TAU, SHARP = {"tau": 0.2}, {"logit_scale": 25.0}

CASES: dict[str, tuple[dict, dict, Callable[[Folds], float]]] = {
    "clip.paired.s25": (WIDE, SHARP, lambda f: clip(f.observed([1], [1]), 25.0)),
    "clip.pooled.t0.2": (WIDE, {"temperature": 0.2}, lambda f: pooled_clip(f, 5.0)),
    "clip.flat_pairs.s25": (NARROW, SHARP, lambda f: clip(f.all_pairs(), 25.0)),
    "clip.cyclic_pairs.s25": (WIDE, SHARP, lambda f: clip(f.cyclic(), 25.0)),
    "siglip.flat_pairs.s25b-3": (NARROW, SHARP | {"logit_bias": -3.0}, lambda f: siglip(f.all_pairs(), 25.0, -3.0)),
    "siglip.paired_chunk2.s25b-3": (
        WIDE, SHARP | {"logit_bias": -3.0}, lambda f: siglip(f.observed([1], [1]), 25.0, -3.0)
    ),
    "siglip.mps_i1.s25b-3": (
        WIDE, SHARP | {"logit_bias": -3.0}, lambda f: siglip(f.observed([1]), 25.0, -3.0, "texts")
    ),
    "siglip.mps_t1.s25b-3": (
        WIDE, SHARP | {"logit_bias": -3.0}, lambda f: siglip(f.observed(captions=[1]), 25.0, -3.0, "images")
    ),
    "supcon.union.labels.t0.2b0.1": (
        WIDE,
        {"temperature": 0.2, "base_temperature": 0.1, "labels": LABELS},
        lambda f: supcon(f.observed(ids=LABELS), 5.0, base_temperature=0.1),
    ),
    "supcon.union.one.t0.2b0.1": (
        WIDE,
        {"temperature": 0.2, "base_temperature": 0.1, "contrast_mode": "one"},
        lambda f: supcon(f.observed(), 5.0, anchors="first", base_temperature=0.1),
    ),
    "supcon.views.all.t0.2b0.2": (
        WIDE,
        {"temperature": 0.2, "base_temperature": 0.2},
        lambda f: supcon(f.observed(), 5.0, "images"),
    ),
    "google_supcon.union_labels.INSIDE.ONE_POSITIVE.ALL_VIEWS.t0.2.scaled": (
        WIDE,
        {
            "temperature": 0.2,
            "summation": "INSIDE",
            "denominator": "ONE_POSITIVE",
            "contrast_mode": "ALL_VIEWS",
            "scale_by_temperature": True,
            "labels": LABELS,
        },
        lambda f: google(f, LABELS),
    ),
    "milnce.v1_bagT.x25": (WIDE, {"scale": 25.0}, lambda f: milnce(f.observed([1]), 25.0, "images")),
    "milnce.t1_bagV.x25": (WIDE, {"scale": 25.0}, lambda f: milnce(f.observed(captions=[1]), 25.0, "texts")),
    "unicl.xdecoder_grid.t0.005": (WIDE, {"logit_scale": 200.0}, lambda f: unicl(f.observed(), 100.0)),
    "unicl.xdecoder_hash.t0.2": (
        {"V": [6, 4, 16], "T": [6, 5, 16]},  # a power of two views, so that their float32 targets are exact
        {"logit_scale": 5.0, "w_img": 0.6, "w_txt": 0.4},
        lambda f: xdecoder_hash(f, 5.0, 0.6),
    ),
    "unicl.flat_pairs_idx.t0.2": (NARROW, {"temp": 0.2}, lambda f: flat_unicl(f, 5.0)),
    "unicl.pair_labels.t0.2": (
        WIDE, {"temp": 0.2, "labels": LABELS}, lambda f: unicl(f.observed([1], [1], LABELS), 5.0)
    ),
    "stablerep.mm_total.ls25": (
        WIDE,
        SHARP | {"temperature": 0.2, "w1": 0.5, "w2": 2.0},
        lambda f: objective_loops.stablerep_loops(f.observed(), 25.0, 0.5, 2.0, 0.2),
    ),
    "ccrk.v1_Q.t0.2": (WIDE, {"temp": 0.2, "need_divm": 0}, lambda f: one_to_k(f.observed([1]), 5.0)),
    "ccrk.t1_P.t0.2": (WIDE, {"temp": 0.2, "need_divm": 3}, lambda f: one_to_k(f.observed(None, [1]), 5.0, False) / 3),
    "ccrk.v1_Q.nodiv.t0.2": (WIDE, {"temp": 0.2, "need_divm": -1}, lambda f: one_to_k(f.observed([1]), 5.0, False)),
    "ccrk.vicreg": (WIDE, {"a": 2, "b": 3, "c": 5}, lambda f: term_loops.vicreg_loops(f.observed([1]), 1.0, 2, 3, 5)),
    "tricolo.ntxent.t1v1": (
        WIDE,
        {"temperature": 0.2, "alpha_weight": 0.1},
        lambda f: unicl(f.observed([1], [1]), 5.0, direction_weight=0.9),
    ),
    "soft_clip.flat_pairs.t0.2": (
        NARROW, {"temperature": 0.2}, lambda f: objective_loops.soft_clip_loops(f.all_pairs(), 5.0)
    ),
    "cgap.CUAXU.s25": (WIDE, SHARP, lambda f: gap(f, 25.0)),
    "cgap.uniform_cyclic_loss": (
        WIDE, {"t": 2, "alpha": 2}, lambda f: term_loops.uniform_cyclic_loops(f.observed([1], [1]), 1.0)
    ),
    "cgap.encoder2_uniformity_loss": (
        WIDE, {"t": 3, "alpha": 2}, lambda f: term_loops.uniformity_loops(f.observed([1], [1]), 1.0, "texts", 3)
    ),
    "align_uniform.align": (WIDE, {"alpha": 2}, lambda f: term_loops.alignment_loops(f.observed([1], [1]), 1.0)),
    "mv_infonce.union.t0.2": (NARROW, TAU, lambda f: tuple_loops.mv_infonce_loops(f.observed(), 5.0)),
    "mv_dhel.views.t0.2": (WIDE, TAU, lambda f: tuple_loops.mv_dhel_loops(f.observed(), 5.0, "images")),
    "mv_pvc_geometric.union.t0.2": (NARROW, TAU, lambda f: tuple_loops.pvc_loops(f.observed(), 5.0)),
    "mv_ntxent_mv.union.t0.2": (WIDE, TAU, lambda f: supcon(f.observed(), 5.0)),
    "mv_ntxent_avg.union.t0.2": (NARROW, TAU, lambda f: tuple_loops.ntxent_loops(f.observed(), 5.0, "union", "average")),
    "mv_ntxent_pwe.pair.t0.2": (WIDE, TAU, lambda f: tuple_loops.ntxent_loops(f.observed([1], [1]), 5.0)),
    "gram.t2v1v3": (
        WIDE,
        {"contra_temp": 0.2, "label_smoothing": 0.3},
        lambda f: tuple_loops.gram_loops(f.observed([1, 3], [2]), 5.0, 0.3),
    ),
    "symile.n2.v1v3t2.s5": (WIDE, {"logit_scale": 5.0}, lambda f: tuple_loops.symile_loops(f.observed([1, 3], [2]), 5.0, "all")),
    "symile.pairwise_clip.v2t1t4.s5": (
        WIDE, {"logit_scale": 5.0}, lambda f: tuple_loops.symile_loops(f.observed([2], [1, 4]), 5.0, "pairwise")
    ),
    "pmrl.intra.v1v3t2.t0.2": (
        WIDE,
        {"tau1": 0.2},
        lambda f: tuple_loops.pmrl_loops(f.observed([1, 3], [2]), 1.0, 0.2, inter_weight=0.0),
    ),
    "pmrl.intra.all.t0.2": (  # 17 observations in 16 dimensions
        WIDE, {"tau1": 0.2}, lambda f: tuple_loops.pmrl_loops(f.observed(), 1.0, 0.2, inter_weight=0.0)
    ),
    "pmrl.inter.all.t0.2": (WIDE, {"tau2": 0.2}, lambda f: pmrl_inter(f.observed(), 5.0)),
    "pmrl.inter.v1v3t2.t0.2": (WIDE, {"tau2": 0.2}, lambda f: pmrl_inter(f.observed([1, 3], [2]), 5.0)),
    "tcl.t0.2.a0.7.distill": (
        NARROW, {"temp": 0.2, "alpha": 0.7, "distill": True, "queue": 3}, lambda f: tcl(f, 5.0, 0.7)
    ),
    "tcl.t0.9.a0.7.hard": (  # their temperature ends at 0.5
        NARROW, {"temp": 0.9, "alpha": 0.7, "distill": False, "queue": 3}, lambda f: tcl(f, 2.0, 0.0)
    ),
    "stablerep.img_txt_loss.ls25": (RAGGED, SHARP, lambda f: unicl(f.observed(), 25.0)),
    "stablerep.image_loss.ls25": (
        RAGGED,
        SHARP | {"temperature": 0.2, "w1": 1, "w2": 1},
        lambda f: supcon(f.observed(), 5.0, "images"),
    ),
    "stablerep.loss.ls25": (
        RAGGED,
        SHARP | {"temperature": 0.2, "w1": 1, "w2": 1},
        lambda f: objective_loops.stablerep_loops(f.observed(), 25.0, image_temperature=0.2),
    ),
    "pml_supcon.t2i.t0.2": (RAGGED, {"temperature": 0.2}, lambda f: unicl(f.observed(), 5.0, direction_weight=0.0)),
    "pml_supcon.views.t0.2": (
        RAGGED, {"temperature": 0.2}, lambda f: supcon(f.observed(), 5.0, "images", lonely="drop")
    ),
    "pml_ntxent.union.t0.2": (
        RAGGED,
        {"temperature": 0.2},
        lambda f: supcon(f.observed(), 5.0, denominator="one_positive", normaliser="pairs", lonely="drop"),
    ),
    "supcon.union.t0.2b0.2": (
        RAGGED, {"temperature": 0.2, "base_temperature": 0.2}, lambda f: supcon(f.observed(), 5.0)
    ),
    "clip.flat_pairs.t0.2": (RAGGED, {"logit_scale": 5.0}, lambda f: clip(f.all_pairs(), 5.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_case_at_another_shape_and_temperature_is_its_definition_as_loops(name):
    shapes, hyper, expected = CASES[name]
    folds = Folds(shapes)
    assert_near(run_case({"name": f"other/{name}", "shapes": shapes, "hyper": hyper}), expected(folds), 1e-10)


@pytest.mark.parametrize("size", [(50, 3), (7, 6)])
def test_the_metric_of_another_shape_is_the_mean_deviation_of_ranks(size):
    deviations = []
    for i in range(1, size[0] + 1):
        ranks = [math.floor(10 * abs(math.sin(0.37 * i + 1.13 * j))) for j in range(1, size[1] + 1)]
        deviations.append(np.std(ranks))
    value = run_case({"name": f"mrv/{size[0]}x{size[1]}", "shapes": list(size), "hyper": {}})
    assert_near(value, np.mean(deviations), 1e-12)


def test_symiles_shuffles_are_those_that_its_code_was_given():
    folds, calls = Folds(WIDE), 0
    views = np.array([[folds.images[i][0], folds.images[i][2], folds.texts[i][1]] for i in range(6)])
    losses = []
    for anchor in range(3):
        others = [m for m in range(3) if m != anchor]
        orders = []
        for _ in others:
            orders.append([(j - 1 - calls % 5) % 6 for j in range(6)])
            calls += 1
        for i in range(6):
            tuples = [
                [views[i if i == j else order[j], m] for m, order in zip(others, orders, strict=True)]
                for j in range(6)
            ]
            scores = [5.0 * float((views[i, anchor] * one * other).sum()) for one, other in tuples]
            losses.append(objective_loops.lse(scores) - scores[i])
    case = {"name": "other/symile.n.v1v3t2.s5", "shapes": WIDE, "hyper": {"logit_scale": 5.0}}
    assert_near(run_case(case), np.mean(losses), 1e-12)


def test_what_no_objective_gives_is_left_out_with_a_reason():
    for name, hyper, reason in (
        ("sca3d.hnnce.v1t1", {}, "`hn_nce` mends it"),
        ("fdt.codes", {}, "no objective of ours is 'fdt'"),
        ("align_uniform.align", {"alpha": 4}, "has no power 4"),
    ):
        with pytest.raises(NotImplementedError, match=reason):
            run_case({"name": f"grid/{name}", "shapes": WIDE, "hyper": hyper})
