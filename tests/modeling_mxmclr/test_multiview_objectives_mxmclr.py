"""How the multi-view objectives are related; their loops are in test_objectives_mxmclr.py."""

import math

import torch

from modeling_mxmclr.multiview_objectives_mxmclr import mv_dhel, mv_infonce, ntxent, pvc
from modeling_mxmclr.softmax_objectives_mxmclr import supcon
from tests.references.observed import EQUAL_IDS, SCALE, assert_near, assert_same, draw, gradients

PAIRS = (range(4), range(4))


def test_two_views_make_ntxent_pvc_and_supcon_one():
    observed = draw(*PAIRS)
    expected = supcon(observed, SCALE).loss
    for loss in (
        ntxent(observed, SCALE).loss,
        ntxent(observed, SCALE, pairing="average").loss,
        pvc(observed, SCALE).loss,
        pvc(observed, SCALE, mean="arithmetic").loss,
    ):
        assert_same(loss, expected, observed)


def test_pvc_is_supcon_whose_positives_do_not_compete():
    observed = draw(*EQUAL_IDS)
    assert_same(pvc(observed, SCALE).loss, supcon(observed, SCALE, denominator="one_positive").loss, observed)
    arithmetic = supcon(observed, SCALE, denominator="one_positive", hard_form="inverse").loss
    assert_same(pvc(observed, SCALE, mean="arithmetic").loss, arithmetic, observed)


def test_the_arithmetic_mean_is_never_below_the_geometric():
    observed = draw(*EQUAL_IDS)
    assert pvc(observed, SCALE, mean="arithmetic").loss > pvc(observed, SCALE).loss


def test_what_public_code_makes_of_the_arithmetic_mean_is_off_by_two_logs_for_two_views():
    observed = draw(*PAIRS)
    expected = pvc(observed, SCALE).loss - math.log(4)  # one loss a view: nothing to average
    assert_near(pvc(observed, SCALE, mean="public_arithmetic").loss, expected, 1e-12)


def test_mv_infonce_of_one_instance_is_zero_and_mv_dhel_its_alignment():
    observed = draw([0, 0], [0])
    assert_near(mv_infonce(observed, SCALE).loss, 0.0, 1e-14)
    output = mv_dhel(observed, SCALE)
    assert_near(output.loss, output.components["alignment"], 0.0)


def test_mv_dhel_is_its_components():
    loss, components = mv_dhel(draw(*EQUAL_IDS), SCALE)
    assert_near(loss, components["alignment"] + components["uniformity"], 1e-14)


def test_sides_leave_the_other_modality_alone():
    observed = draw(*EQUAL_IDS)
    for objective in (mv_infonce, mv_dhel, pvc, ntxent):
        images, texts = gradients(objective(observed, SCALE, sides="images").loss, *observed[:2])
        assert images.any()
        assert not texts.any()
        moved = observed._replace(image_embeds=torch.roll(observed.image_embeds, 1, 0))
        ours, theirs = (objective(each, SCALE, sides="texts").loss for each in (moved, observed))
        assert_near(ours, theirs, 0.0)
