"""Volumes and products: known limits and bounds; their loops are in test_objectives_mxmclr.py."""

import math

import pytest
import torch
import torch.nn.functional as F

from modeling_mxmclr.folds_mxmclr import unit_norm
from modeling_mxmclr.tuple_objectives_mxmclr import all_products, gram, smoothed_entropy, symile, volumes
from tests.references.observed import EQUAL_IDS, SCALE, assert_near, draw


def test_the_volume_of_two_vectors_is_the_sine_of_their_angle():
    rows = draw(range(4), range(5))
    ours = volumes(rows.image_embeds, rows.text_embeds[:, None])
    assert_near(ours, (1 - (rows.image_embeds @ rows.text_embeds.T) ** 2).sqrt(), 1e-12)


def test_orthogonal_vectors_span_one_and_repeated_ones_nothing():
    corners = torch.eye(4, dtype=torch.float64)
    assert_near(volumes(corners[:1], corners[None, 1:]), 1.0, 1e-14)
    assert volumes(corners[:1], corners[None, [1, 1, 2]]).item() == 0
    assert volumes(corners[:1], corners[None, [0, 1, 2]]).item() == 0


def test_flat_tuples_have_no_gradient_rather_than_an_infinite_one():
    rows = draw(*EQUAL_IDS)
    repeated = rows._replace(text_embeds=rows.image_embeds)
    for gradient in torch.autograd.grad(gram(repeated, SCALE).loss, rows.image_embeds):
        assert gradient.isfinite().all()


def test_the_volume_does_not_know_signs_nor_the_order_of_the_tuple():
    rows = draw(range(3), range(3))
    tuples = rows.text_embeds.view(1, 3, -1)
    expected = volumes(rows.image_embeds, tuples)
    assert_near(volumes(-rows.image_embeds, tuples[:, [2, 0, 1]]), expected, 1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_the_entropy_of_smoothed_targets_is_the_least_cross_entropy(smoothing):
    masses = torch.full((5,), smoothing / 5, dtype=torch.float64)
    masses[2] += 1 - smoothing
    least = F.cross_entropy(masses.clamp(min=1e-300).log()[None], torch.tensor([2]), label_smoothing=smoothing)
    assert_near(smoothed_entropy(smoothing, 5), least, 1e-12)


def test_gram_reports_its_loss_less_the_entropy_of_smoothing():
    loss, components = gram(draw(*EQUAL_IDS), SCALE)
    assert_near(components["kl"], loss - smoothed_entropy(0.1, 3), 1e-14)
    loss, components = gram(draw(*EQUAL_IDS), SCALE, label_smoothing=0.0)
    assert_near(components["kl"], loss, 1e-14)


def test_symile_does_not_know_joint_signs_of_two_modalities():
    observed = draw([0, 0, 1, 1, 2, 2], range(3))
    turned = observed._replace(
        image_embeds=observed.image_embeds * torch.tensor([1.0, -1.0] * 3)[:, None], text_embeds=-observed.text_embeds
    )
    ours, theirs = (symile(each, SCALE, negatives="all").loss for each in (turned, observed))
    assert_near(ours, theirs, 1e-12)


def test_symile_of_one_instance_has_nothing_to_tell_apart():
    for negatives in ("all", "shuffled", "pairwise"):
        assert_near(symile(draw([0, 0], [0]), SCALE, negatives=negatives).loss, 0.0, 1e-14)


def test_symile_of_flat_scores_is_the_log_of_its_candidates():
    observed, flat = draw([0, 0, 1, 1, 2, 2], range(3)), torch.zeros(1).double()
    assert_near(symile(observed, flat).loss, math.log(3), 1e-12)
    assert_near(symile(observed, flat, negatives="all").loss, math.log(9), 1e-12)
    assert_near(symile(observed, flat, negatives="pairwise").loss, 3 * math.log(3), 1e-12)


def test_shuffling_draws_alike_for_one_batch_and_leaves_torch_alone():
    observed = draw(*EQUAL_IDS)
    state = torch.get_rng_state()
    assert_near(symile(observed, SCALE).loss, symile(observed, SCALE).loss, 0.0)
    assert torch.equal(torch.get_rng_state(), state)


def test_too_many_combinations_are_refused():
    rows = unit_norm(torch.ones(300, 8))
    with pytest.raises(
        ValueError, match=r"would score 300\^4 combinations of 4 observations; draw fewer, or use 'shuf"
    ):
        all_products(rows, [rows] * 4)
