"""SigLIP and its form for several positives; its loops are in test_objectives_mxmclr.py."""

import math

import torch

from modeling_mxmclr.siglip_mxmclr import siglip
from tests.references.observed import RAGGED_IDS, SCALE, assert_near, draw, gradients


def test_normalisers_differ_by_the_counts():
    observed = draw()
    total = siglip(observed, SCALE).loss * len(RAGGED_IDS[0])
    assert_near(siglip(observed, SCALE, normaliser="texts").loss, total / len(RAGGED_IDS[1]), 1e-12)
    num_pairs = sum(i == j for i in RAGGED_IDS[0] for j in RAGGED_IDS[1])
    assert_near(siglip(observed, SCALE, normaliser="pairs").loss, total / num_pairs, 1e-12)


def test_normalisers_agree_where_folds_hold_one_observation():
    observed = draw(range(4), range(4))
    losses = [siglip(observed, SCALE, normaliser=each).loss for each in ("images", "texts", "pairs")]
    assert_near(torch.stack(losses), losses[0].expand(3), 1e-14)


def test_flat_logits_cost_log_2_a_pair():
    observed = draw(range(4), range(4))
    assert_near(siglip(observed, torch.zeros(1).double(), bias=0.0).loss, 4 * math.log(2), 1e-14)


def test_a_learned_bias_has_the_gradient_of_its_differences():
    observed, bias = draw(), torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
    (ours,) = gradients(siglip(observed, SCALE, bias=bias).loss, bias)
    above, below = (siglip(observed, SCALE, bias=-2.0 + step).loss for step in (1e-6, -1e-6))
    assert_near(ours, (above - below) / 2e-6, 1e-7)


def test_a_bias_of_another_type_leaves_the_loss_in_its_own():
    observed = draw()
    for dtype in (torch.float16, torch.float32, torch.float64):
        bias = torch.tensor([-2.0], dtype=dtype)
        assert_near(siglip(observed, SCALE, bias=bias).loss, siglip(observed, SCALE, bias=-2.0).loss, 1e-14)
        assert siglip(observed, SCALE, bias=bias).loss.dtype == torch.float64


def test_the_loss_is_its_components():
    loss, components = siglip(draw(), SCALE)
    assert_near(loss, components["positive"] + components["negative"], 1e-12)
