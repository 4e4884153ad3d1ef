"""The terms by themselves: loops, known limits, and what they need."""

import math
from random import Random

import pytest
import torch

from modeling_mxmclr.contrast_mxmclr import both_directions, prepare
from modeling_mxmclr.folds_mxmclr import Observations
from modeling_mxmclr.softmax_objectives_mxmclr import clip, supcon, unicl
from modeling_mxmclr.terms_mxmclr import TERMS, draw_mixtures
from tests.references import term_loops
from tests.references.observed import EQUAL_IDS, SCALE, TERM_SETTINGS, assert_near, draw, frozen

CORNERS = torch.eye(4, dtype=torch.float64)


@pytest.mark.parametrize("label", TERM_SETTINGS)
@pytest.mark.parametrize("ids", [(), EQUAL_IDS])
def test_term_is_its_definition_as_loops(label, ids):
    name, settings = TERM_SETTINGS[label]
    observed = draw(*ids)
    inputs = frozen(observed) if name == "near_frozen" else {}
    expected = getattr(term_loops, f"{name}_loops")(observed, SCALE.item(), **settings, **inputs)
    assert_near(TERMS[name](observed, SCALE, **settings, **inputs), expected, 1e-12)


def same_corners() -> Observations:
    """Instances on corners of a cube; images and texts of each are the same."""
    ids = torch.tensor([0, 0, 1, 2])
    return Observations(CORNERS[ids], CORNERS[ids], ids, ids)


def test_aligned_and_orthogonal_instances_have_known_terms():
    observed = same_corners()
    for name, value in {
        "alignment": 0.0,
        "uniformity": -4.0,  # two corners are a squared distance of 2 apart
        "cross_uniformity": -4.0,
        "uniform_cyclic": 0.0,
        "cyclic_direction": 0.0,
    }.items():
        assert_near(TERMS[name](observed, SCALE), value, 1e-12)


def test_instances_alike_are_least_uniform():
    one = torch.zeros(4, dtype=torch.int64)
    observed = Observations(CORNERS[one], CORNERS[one], torch.arange(4), torch.arange(4))
    assert_near(TERMS["uniformity"](observed, SCALE), 0.0, 1e-14)
    assert_near(TERMS["cross_uniformity"](observed, SCALE), 0.0, 1e-14)


def test_a_single_instance_has_no_pairs_to_be_uniform_over():
    observed = draw([0, 0], [0, 0])
    for name in ("uniformity", "cross_uniformity", "uniform_cyclic", "cyclic_direction"):
        value = TERMS[name](observed, SCALE)
        if name != "cyclic_direction":
            assert value.item() == 0
        assert value.requires_grad


def test_pooled_single_observations_are_clip():
    observed = draw(range(4), range(4))
    for pooling in ("mean", "max", "attention"):
        assert_near(TERMS["pooled"](observed, SCALE, pooling=pooling), clip(observed, SCALE).loss, 1e-12)


def test_the_intra_modal_term_of_images_is_supcon_of_images_and_of_single_observations_nothing():
    whole = draw(*EQUAL_IDS)
    for side in ("images", "texts"):
        assert_near(TERMS["intra_modal"](whole, SCALE, sides=side), supcon(whole, SCALE, sides=side).loss, 1e-12)
    single = TERMS["intra_modal"](draw(range(4), range(4)), SCALE)
    assert single.item() == 0
    assert single.requires_grad


def test_near_frozen_is_zero_at_the_frozen_model_and_two_at_its_opposite():
    observed = draw()
    at = {"image_reference_embeds": observed.image_embeds.detach()}
    assert_near(TERMS["near_frozen"](observed, SCALE, **at), 0.0, 1e-14)
    away = {"image_reference_embeds": -observed.image_embeds.detach()}
    assert_near(TERMS["near_frozen"](observed, SCALE, **away), 2.0, 1e-14)
    with pytest.raises(ValueError, match="`near_frozen` needs `image_reference_embeds` or `text_reference_embeds`"):
        TERMS["near_frozen"](observed, SCALE)


def test_vicreg_of_aligned_spread_uncorrelated_rows_is_nothing():
    rows = 9 * torch.cat([CORNERS, -CORNERS])
    observed = Observations(rows, rows, torch.arange(8), torch.arange(8))
    assert_near(TERMS["vicreg"](observed, SCALE), 0.0, 1e-12)


def test_mixing_each_with_itself_is_unicl():
    """One instance has but itself to mix with; else the mean keeps within the losses of its parts."""
    observed = draw([0], [0])
    assert_near(TERMS["mixup"](observed, SCALE), 0.0, 1e-12)
    whole = draw(*EQUAL_IDS)
    sharp = TERMS["mixup"](whole, SCALE, concentration=1e-9, temperature=1 / SCALE.item())
    assert_near(sharp, sharp.detach(), 0.0)
    assert sharp > 0.3 * unicl(whole, SCALE).loss


def mixtures(concentration: float, seed: int = 0, count: int = 400):
    observed = draw(range(count), range(count))
    observed, scale, instances = prepare(observed, SCALE)
    way = both_directions(observed, instances, scale)[0]
    return draw_mixtures(way, concentration, Random(seed))


def test_half_of_the_rows_are_mixed_by_shares_of_the_beta_distribution():
    kept, partner = mixtures(2.0)
    mixed = kept[kept < 1]
    assert 0.4 < len(mixed) / 400 < 0.6
    assert abs(mixed.mean().item() - 0.5) < 0.05
    assert abs(mixed.var().item() - 1 / 20) < 0.02  # of Beta(2, 2)
    assert sorted(partner.tolist()) == list(range(400))
    assert (partner != torch.arange(400)).sum() > 390


def test_mixing_leaves_torchs_and_pythons_generators_alone():
    observed, state = draw(), torch.get_rng_state()
    first = TERMS["mixup"](observed, SCALE)
    assert_near(TERMS["mixup"](observed, SCALE), first, 0.0)
    assert torch.equal(torch.get_rng_state(), state)


def test_alignment_is_what_the_cosines_say():
    observed = draw(range(4), range(4))
    cosines = (observed.image_embeds * observed.text_embeds).sum(dim=1)
    assert_near(TERMS["alignment"](observed, SCALE), (2 - 2 * cosines).mean(), 1e-14)
    assert math.isfinite(TERMS["uniformity"](observed, SCALE, t=30.0).item())
