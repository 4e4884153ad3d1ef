"""The softmax core: set-to-set scores, denominators, floors; and numerics of every objective that stands on it."""

import math

import pytest
import torch

from modeling_mxmclr.contrast_mxmclr import SET_SCORES, attended_views, best_view, shared_seed
from modeling_mxmclr.folds_mxmclr import Observations
from modeling_mxmclr.objectives_mxmclr import get_objective
from tests.references.observed import EQUAL_IDS, RAGGED_IDS, SCALE, VARIANTS, Variant, assert_near, draw, gradients

every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())

# Batches that break careless code; `True` where every instance has as many views and captions.
HARD_BATCHES: dict[str, tuple[bool, tuple[list[int], list[int]]]] = {
    "usual": (False, RAGGED_IDS),
    "equal folds": (True, EQUAL_IDS),
    "one instance": (True, ([0, 0], [0, 0])),
    "folds of one": (False, ([0, 1, 2], [0, 1, 2])),
    "a fold of one and folds of none": (False, ([0, 1, 1, 2], [0, 3])),
    "whole rows of positives": (False, ([4, 4, 4], [4])),
}


def in_dtype(observed: Observations, dtype: torch.dtype) -> Observations:
    images, texts = (rows.detach().to(dtype).requires_grad_() for rows in observed[:2])
    return observed._replace(image_embeds=images, text_embeds=texts)


def duplicated(observed: Observations) -> Observations:
    """All observations of an instance and modality are its first, and two instances look alike."""
    sides = []
    for rows, ids in (
        (observed.image_embeds, observed.image_group_ids),
        (observed.text_embeds, observed.text_group_ids),
    ):
        first = torch.stack([(ids == i % 3).nonzero()[0, 0] if (ids == i % 3).any() else torch.tensor(0) for i in ids])
        sides.append(rows.detach()[first].requires_grad_())
    return observed._replace(image_embeds=sides[0], text_embeds=sides[1])


def batches_of(variant: Variant) -> dict[str, Observations]:
    batches = {name: draw(*ids) for name, (equal, ids) in HARD_BATCHES.items() if equal or not variant.rectangular}
    batches["duplicates"] = duplicated(variant.draw())
    one = draw(*HARD_BATCHES["one instance"][1])
    batches["all alike"] = one._replace(
        image_embeds=one.image_embeds.detach()[[0, 0]].requires_grad_(),
        text_embeds=one.image_embeds.detach()[[0, 0]].requires_grad_(),
    )
    return batches


@every_variant
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [100.0, 1000.0])
def test_loss_and_gradients_are_finite(variant, scale, dtype):
    """At scale 100 and temperature 0.001, in float32 and from half precision, whatever the folds."""
    for name, batch in batches_of(variant).items():
        observed, sharp = in_dtype(batch, dtype), torch.tensor([scale], requires_grad=True)
        output = variant.output(observed, sharp)
        assert output.loss.dtype == torch.float32, name
        assert output.loss.isfinite(), name
        assert all(part.isfinite() for part in output.components.values()), (name, output.components)
        for gradient in gradients(output.loss, *observed[:2], sharp):
            assert gradient.isfinite().all(), name


@every_variant
def test_float64_stays(variant):
    observed = variant.draw()
    output = variant.output(observed, SCALE)
    assert output.loss.dtype == torch.float64
    assert {part.dtype for part in output.components.values()} <= {torch.float64}


@every_variant
def test_half_precision_is_computed_in_float32(variant):
    rounded = in_dtype(variant.draw(), torch.bfloat16)
    ours = variant.loss(rounded, SCALE.float())
    assert_near(ours.detach(), variant.loss(in_dtype(rounded, torch.float32), SCALE.float()).detach(), 0.0)


def test_max_sim_and_attentive_of_single_views_are_the_observations():
    logits, ids = draw(range(5)).image_embeds[:4], torch.tensor([2, 0, 1, 4])
    for score in SET_SCORES.values():
        assert_near(score(logits, ids, 5)[ids], logits, 1e-15)
    for score in SET_SCORES:
        observed = draw([3, 1, 2], RAGGED_IDS[1])
        plain, scored = (
            get_objective("unicl", {"score": each})(observed, SCALE).loss for each in ("observations", score)
        )
        assert_near(scored, plain, 1e-14)


def test_attentive_becomes_max_sim_as_the_scale_grows():
    logits, ids = draw().image_embeds, torch.tensor(RAGGED_IDS[0])
    sharp = attended_views(1e4 * logits, ids, 4) / 1e4
    assert_near(sharp, best_view(1e4 * logits, ids, 4) / 1e4, 1e-12)
    assert (attended_views(logits, ids, 4) < best_view(logits, ids, 4))[[0, 3]].all()


def test_attentive_of_equal_scores_is_their_mean():
    logits, ids = torch.zeros(7, 3).double() + torch.arange(3), torch.tensor(RAGGED_IDS[0])
    assert_near(attended_views(logits, ids, 4), torch.arange(3).double().expand(4, 3), 1e-14)


def test_masking_other_positives_never_raises_the_loss_and_dropping_the_own_lowers_it():
    observed = draw()
    losses = [
        get_objective("unicl", {"denominator": denominator})(observed, SCALE).loss
        for denominator in ("all", "one_positive", "negatives")
    ]
    assert losses[0] > losses[1] > losses[2]


def test_denominators_agree_where_folds_hold_one_observation():
    observed = draw(range(4), range(4))
    whole, masked = (
        get_objective("unicl", {"denominator": each})(observed, SCALE).loss for each in ("all", "one_positive")
    )
    assert_near(masked, whole, 1e-14)


KL_OBJECTIVES = {
    "clip": {},
    "unicl": {},
    "one_to_k": {},
    "stablerep": {"image_temperature": 0.01},
    "tcl": {},
    "mfh": {"soft_weight": 0.0},
    "supcon": {"sides": "cross"},
} | {f"unicl {form}": {"hard_form": form} for form in ("in", "ones", "inverse")}


def perfect(image_folds: list[int], text_folds: list[int]) -> Observations:
    """All observations of an instance alike, and instances as far apart as can be."""
    corners = torch.eye(len(image_folds), dtype=torch.float64)
    ids = [torch.arange(len(folds)).repeat_interleave(torch.tensor(folds)) for folds in (image_folds, text_folds)]
    return Observations(corners[ids[0]], corners[ids[1]], *ids)


@pytest.mark.parametrize("label", KL_OBJECTIVES)
def test_kl_vanishes_in_the_perfect_limit_whatever_the_fold_sizes(label):
    objective = get_objective(label.split()[0], KL_OBJECTIVES[label])
    name = "hard_kl" if label == "mfh" else "kl"
    raw = []
    for image_folds, text_folds in (([1, 1, 1], [1, 1, 1]), ([3, 2, 4], [2, 2, 5]), ([12] * 3, [5] * 3)):
        output = objective(perfect(image_folds, text_folds), torch.tensor(60.0).double())
        assert_near(output.components[name], 0.0, 1e-10)
        raw.append(output.loss.item())
    assert label == "clip" or (raw == sorted(raw) and raw[0] < 1e-10 < raw[1])


@pytest.mark.parametrize("label", ["mfh", "mfh transposed", "mfh observations", "soft_clip", "cwcl", "soft_clip own"])
def test_soft_kl_is_never_negative_and_vanishes_where_the_targets_are_met(label):
    variant = VARIANTS[label]
    name = "soft_kl" if variant.name == "mfh" else "kl"
    for seed in range(4):
        assert variant.output(variant.draw(seed=seed)).components[name] >= -1e-12
    # One instance is all there is to predict, and its observations are alike.
    alike = torch.ones(5, 1, dtype=torch.float64)
    one = Observations(alike[:3], alike[:2], torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    settings, inputs = variant.settings, variant.inputs(one)
    output = get_objective(variant.name, settings)(one, SCALE, **inputs)
    assert_near(output.components[name], 0.0, 1e-14)
    assert variant.name == "cwcl" or output.loss > 0.5


@every_variant
def test_kl_is_never_more_than_the_loss_of_a_cross_entropy(variant):
    output = variant.output(variant.draw())
    for name, loss in (
        ("kl", output.loss),
        ("hard_kl", output.components.get("hard")),
        ("soft_kl", output.components.get("soft")),
    ):
        if name in output.components and "terms" not in variant.settings:
            assert -1e-12 <= output.components[name] <= loss + 1e-12


def test_repeating_observations_leaves_kl_and_raises_the_loss_by_the_log():
    observed = draw(*EQUAL_IDS)
    repeated = Observations(*(rows.repeat(3, *[1] * (rows.ndim - 1)) for rows in observed[:4]))
    once, thrice = (get_objective("unicl")(each, SCALE) for each in (observed, repeated))
    assert_near(thrice.loss - once.loss, math.log(3), 1e-12)
    assert_near(thrice.components["kl"], once.components["kl"], 1e-12)


def test_the_seed_of_draws_is_of_the_content_and_not_of_its_order_or_last_bits():
    observed = draw()
    order = torch.tensor([5, 2, 0, 6, 1, 4, 3])
    turned = observed._replace(
        image_embeds=observed.image_embeds[order] + 1e-9, image_group_ids=observed.image_group_ids[order] + 5
    )
    assert shared_seed(turned) == shared_seed(observed) != shared_seed(draw(seed=1))
