"""How the softmax objectives of the field are related; their loops are in test_objectives_mxmclr.py."""

import math

import pytest
import torch

from modeling_mxmclr.contrast_mxmclr import prepare
from modeling_mxmclr.folds_mxmclr import Observations
from modeling_mxmclr.softmax_objectives_mxmclr import clip, milnce, one_to_k, stablerep, supcon, unicl
from tests.references.observed import EQUAL_IDS, RAGGED_IDS, SCALE, assert_near, assert_same, draw


def test_clip_on_all_pairs_is_unicl_and_the_log_of_the_fold_sizes():
    observed = draw([0, 0, 0, 1, 1, 1], [0, 0, 1, 1])
    image, text = (observed.image_group_ids[:, None] == observed.text_group_ids).nonzero(as_tuple=True)
    rows = torch.arange(len(image))
    pairs = Observations(observed.image_embeds[image], observed.text_embeds[text], rows, rows)
    expected = unicl(observed, SCALE).loss + (math.log(3) + math.log(2)) / 2
    assert_same(clip(pairs, SCALE).loss, expected, observed)


def test_unicl_is_the_cross_part_of_stablerep_and_the_cross_modal_supcon():
    observed = draw()
    expected = unicl(observed, SCALE).loss
    assert_same(stablerep(observed, SCALE, image_weight=0.0).loss, expected, observed)
    assert_same(supcon(observed, SCALE, sides="cross").loss, expected, observed)


def test_objectives_of_several_positives_are_clip_where_there_is_one():
    observed = draw(range(5), range(5))
    expected = clip(observed, SCALE).loss
    for objective in (unicl, one_to_k):
        assert_same(objective(observed, SCALE).loss, expected, observed)
    assert_same(unicl(observed, SCALE, hard_form="in", denominator="one_positive").loss, expected, observed)


def test_one_caption_each_makes_one_to_k_clip_on_them():
    observed = draw([0, 1, 2], [0, 1, 2])
    assert_same(one_to_k(observed, SCALE).loss, clip(observed, SCALE).loss, observed)


def test_one_to_k_weighs_text_to_image_by_the_share_of_its_fold():
    observed = draw([0, 1, 2], [0, 0, 1, 1, 2, 2])
    ways = [unicl(observed, SCALE, direction_weight=share).loss for share in (1.0, 0.0)]
    assert_same(one_to_k(observed, SCALE).loss, ways[0] / 2 + ways[1] / 4, observed)


def test_inner_mean_is_never_above_outer_mean_and_the_mean_of_inverses_never_below():
    observed = draw()
    for objective in (unicl, supcon):
        inner, outer, inverse = (objective(observed, SCALE, hard_form=form).loss for form in ("in", "out", "inverse"))
        assert inner < outer < inverse


@pytest.mark.parametrize("ids", [RAGGED_IDS, EQUAL_IDS])
def test_repeating_every_text_adds_the_log_of_the_repeats_to_image_to_text_alone(ids):
    observed = draw(*ids)
    repeated = observed._replace(
        text_embeds=observed.text_embeds.repeat(3, 1), text_group_ids=observed.text_group_ids.repeat(3)
    )
    for share, added in ((1.0, math.log(3)), (0.0, 0.0)):
        once, thrice = (unicl(each, SCALE, direction_weight=share) for each in (observed, repeated))
        assert_same(thrice.loss, once.loss + added, observed)
        assert_near(thrice.components["kl"], once.components["kl"], 1e-12)


def test_repeating_every_text_leaves_max_sim_and_attentive_of_views_as_they_are_but_for_the_log():
    observed = draw()
    repeated = observed._replace(
        image_embeds=observed.image_embeds.repeat(2, 1), image_group_ids=observed.image_group_ids.repeat(2)
    )
    for score in ("max_sim", "attentive"):
        once, twice = (unicl(each, SCALE, score=score).loss for each in (observed, repeated))
        assert_same(twice, once, observed)


def test_milnce_is_at_least_log_2_and_reaches_it():
    assert milnce(draw(), SCALE).loss > math.log(2)
    corners = torch.eye(3, dtype=torch.float64)
    ids = torch.tensor([0, 0, 1, 2, 2])
    loss = milnce(Observations(corners[ids], corners[[0, 1, 1, 2]], ids, torch.tensor([0, 1, 1, 2])), SCALE * 9).loss
    assert_near(loss, math.log(2), 1e-12)


def test_milnce_of_both_anchors_is_their_mean():
    observed = draw()
    parts = milnce(observed, SCALE).components
    for side, name in (("images", "image_to_text"), ("texts", "text_to_image")):
        assert_near(milnce(observed, SCALE, anchors=side).loss, parts[name], 1e-14)
    assert_near(milnce(observed, SCALE).loss, sum(parts.values()) / 2, 1e-14)


def test_a_lonely_anchor_counts_as_zero_or_not_at_all():
    observed = draw()  # images 3 and 4 of seven are the only ones of their instance
    zero, dropped = (supcon(observed, SCALE, sides="images", lonely=lonely) for lonely in ("zero", "drop"))
    assert_same(zero.loss, 5 / 7 * dropped.loss, observed)
    assert_near(zero.components["kl"], 5 / 7 * dropped.components["kl"], 1e-14)
    by_instance = {"sides": "images", "normaliser": "instances"}
    zero, dropped = (supcon(observed, SCALE, lonely=lonely, **by_instance) for lonely in ("zero", "drop"))
    assert_same(zero.loss, 2 / 4 * dropped.loss, observed)
    by_pair = {"sides": "images", "normaliser": "pairs"}
    zero, dropped = (supcon(observed, SCALE, lonely=lonely, **by_pair) for lonely in ("zero", "drop"))
    assert_same(zero.loss, dropped.loss, observed)


def test_supcon_of_lonely_observations_is_zero_and_attached():
    observed = draw(range(3), range(3))
    loss = supcon(observed, SCALE, sides="images").loss
    assert loss.item() == 0
    assert loss.requires_grad


def test_the_base_temperature_divides_by_the_scale():
    observed = draw()
    plain, based = supcon(observed, SCALE), supcon(observed, SCALE, base_temperature=0.07)
    assert_near(based.loss, plain.loss / SCALE.item() / 0.07, 1e-14)
    assert_near(based.components["kl"], plain.components["kl"] / SCALE.item() / 0.07, 1e-14)


def test_images_alone_are_supcons_images_in_stablerep():
    observed = draw()
    ours = stablerep(observed, SCALE, cross_weight=0.0, image_temperature=0.2).loss
    assert_same(ours, supcon(observed, torch.tensor(5.0).double(), sides="images").loss, observed)


def test_preparing_keeps_float64_and_lifts_half_types():
    for dtype, computed in ((torch.float64, torch.float64), (torch.float16, torch.float32)):
        rows = torch.eye(2, dtype=dtype)
        observed, scale, _ = prepare(Observations(rows, rows, torch.arange(2), torch.arange(2)), torch.ones(1))
        assert {scale.dtype, observed.image_embeds.dtype, observed.text_embeds.dtype} == {computed}
