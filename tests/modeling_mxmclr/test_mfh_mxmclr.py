"""The hybrid loss: the limits of its definition, and its settings. Its loops are in test_objectives_mxmclr.py."""

import pytest
import torch

from modeling_mxmclr.mfh_mxmclr import mfh
from modeling_mxmclr.softmax_objectives_mxmclr import clip, one_to_k, unicl
from modeling_mxmclr.weighted_objectives_mxmclr import soft_clip
from tests.references.observed import EQUAL_IDS, SCALE, assert_near, assert_same, draw, gradients, tangent


def test_hard_mfh_of_single_observations_is_clip():
    observed = draw(range(5), range(5))
    assert_same(mfh(observed, SCALE, soft_weight=0.0).loss, clip(observed, SCALE).loss, observed)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"hard_form": "in", "denominator": "one_positive"},
        {"score": "attentive", "normaliser": "instances"},
        {"score": "max_sim", "direction_weight": 0.7},
    ],
)
def test_hard_mfh_is_unicl(settings):
    observed = draw()
    ours, theirs = mfh(observed, SCALE, soft_weight=0.0, **settings), unicl(observed, SCALE, **settings)
    assert_same(ours.loss, theirs.loss, observed)
    assert_near(ours.components["hard_kl"], theirs.components["kl"], 1e-12)


def test_ones_divided_by_the_fold_size_is_one_to_k():
    for image_ids, text_ids, fold_size in (([0, 1, 2], [0, 0, 1, 1, 2, 2], 2), ([0, 0, 0, 1], [0, 1], 2)):
        observed = draw(image_ids, text_ids)
        ours = mfh(observed, SCALE, soft_weight=0.0, hard_form="ones").loss
        assert_same(ours, one_to_k(observed, SCALE, divide=False).loss, observed)
        assert_same(ours / fold_size, one_to_k(observed, SCALE).loss, observed)


def test_soft_mfh_of_single_observations_is_soft_clip():
    observed = draw(range(5), range(5))
    soft = {"soft_weight": 1.0, "soft_columns": "transposed", "soft_detach": False}
    for temperature, use in ((SCALE.item(), "multiply"), (1 / SCALE.item(), "divide")):
        ours = mfh(observed, SCALE, soft_temperature=temperature, **soft).loss
        theirs = soft_clip(observed, SCALE, temperature_use=use).loss
        assert_near(ours, theirs, 1e-12)
        both = gradients(ours, *observed[:2]), gradients(theirs, *observed[:2])
        for rows, one, other in zip(observed[:2], *both, strict=True):  # ours has the means of unit norm
            assert_near(tangent(one, rows), tangent(other, rows), 1e-12)


@pytest.mark.parametrize("level", ["instance", "observation"])
def test_soft_becomes_hard_as_its_temperature_falls(level):
    observed = draw(EQUAL_IDS[0], EQUAL_IDS[1], 12) if level == "observation" else draw()
    if level == "observation":  # its own fold is the nearest to every observation
        observed = observed._replace(
            image_embeds=torch.eye(12).double()[observed.image_group_ids].requires_grad_(),
            text_embeds=torch.eye(12).double()[observed.text_group_ids].requires_grad_(),
        )
    soft = mfh(observed, SCALE, soft_weight=1.0, soft_temperature=1e-6, soft_level=level).loss
    assert_same(soft, mfh(observed, SCALE, soft_weight=0.0).loss, observed)


def test_levels_agree_where_folds_hold_one_observation():
    observed = draw(range(5), range(5))
    ours, theirs = (mfh(observed, SCALE, soft_level=level) for level in ("observation", "instance"))
    assert_same(ours.loss, theirs.loss, observed)
    assert_near(ours.components["soft_kl"], theirs.components["soft_kl"], 1e-12)


def test_levels_agree_where_the_observations_of_a_fold_are_alike():
    observed = draw()
    firsts = [torch.tensor([ids.tolist().index(i) for i in ids.tolist()]) for ids in observed[2:4]]
    alike = observed._replace(
        image_embeds=observed.image_embeds[firsts[0]], text_embeds=observed.text_embeds[firsts[1]]
    )
    ours, theirs = (mfh(alike, SCALE, soft_level=level).loss for level in ("observation", "instance"))
    assert_near(ours, theirs, 1e-12)


def test_detached_targets_are_constants():
    observed = draw()
    for level in ("instance", "observation"):
        moving, fixed = (
            gradients(mfh(observed, SCALE, soft_detach=detach, soft_level=level).loss, observed.image_embeds)[0]
            for detach in (False, True)
        )
        with pytest.raises(AssertionError, match="differs"):
            assert_near(moving, fixed, 1e-6)


def test_the_soft_temperature_of_none_is_the_scale_without_gradient():
    observed, scale = draw(), SCALE.clone().requires_grad_()
    ours = mfh(observed, scale, soft_weight=1.0).loss
    theirs = mfh(observed, scale, soft_weight=1.0, soft_temperature=1 / SCALE.item()).loss
    assert_near(ours, theirs, 1e-14)
    assert_near(gradients(ours, scale)[0], gradients(theirs, scale)[0], 1e-14)


def test_the_loss_is_the_share_of_its_components():
    loss, components = mfh(draw(), SCALE, soft_weight=0.3)
    assert_near(loss, 0.7 * components["hard"] + 0.3 * components["soft"], 1e-14)
    assert components.keys() == {"hard", "hard_kl", "soft", "soft_kl"}
    assert mfh(draw(), SCALE, soft_weight=0.0, denominator="negatives").components.keys() == {"hard"}


def test_observations_can_not_be_related_where_instances_stand_for_them():
    for settings in ({"soft_columns": "transposed"}, {"score": "max_sim"}, {"score": "attentive"}):
        with pytest.raises(ValueError, match="`soft_level` 'observation' needs `soft_columns` 'own' and `score`"):
            mfh(draw(), SCALE, soft_level="observation", **settings)
