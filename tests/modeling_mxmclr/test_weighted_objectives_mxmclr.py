"""Weighted targets and negatives: known limits; their loops are in test_objectives_mxmclr.py."""

import torch

from modeling_mxmclr.softmax_objectives_mxmclr import unicl
from modeling_mxmclr.weighted_objectives_mxmclr import cwcl, hn_nce, soft_clip
from tests.references.observed import SCALE, assert_near, assert_same, draw


def test_even_negatives_make_hn_nce_unicl_whose_positives_do_not_compete():
    observed = draw()
    ours = hn_nce(observed, SCALE, beta=0.0).loss
    theirs = 2 * unicl(observed, SCALE, denominator="one_positive").loss
    assert_same(ours, theirs, observed)


def test_harder_negatives_cost_more():
    observed = draw()
    losses = [hn_nce(observed, SCALE, beta=beta).loss for beta in (0.0, 0.25, 1.0, 4.0)]
    assert losses == sorted(losses)


def test_hn_nce_without_the_positive_is_unicl_against_negatives_alone():
    observed = draw()
    theirs = 2 * unicl(observed, SCALE, denominator="negatives").loss
    assert_near(hn_nce(observed, SCALE, alpha=0.0, beta=0.0).loss, theirs, 1e-12)
    one = draw([0, 0], [0])
    for alpha in (0.0, 1.0):
        assert_near(hn_nce(one, SCALE, alpha=alpha).loss, 0.0, 1e-14)


def test_opposite_references_make_cwcl_unicl_summed():
    """Weights are 1 within an instance and 0 between two."""
    observed = draw([0, 0, 1, 1, 1], [0, 1, 1])
    references = torch.tensor([[1.0]] * 2 + [[-1.0]] * 3, dtype=torch.float64)
    ours = cwcl(observed, SCALE, image_reference_embeds=references)
    theirs = unicl(observed, SCALE)
    assert_near(ours.loss, 2 * theirs.loss, 1e-12)
    assert_near(ours.components["kl"], 2 * theirs.components["kl"], 1e-12)


def test_references_are_constants_unless_they_are_given_otherwise():
    observed = draw()
    held = cwcl(observed, SCALE, image_reference_embeds=observed.image_embeds.detach())
    assert_same(cwcl(observed, SCALE).loss, held.loss, observed, 0.0)


def test_sharp_soft_clip_of_distinct_instances_is_unicl():
    ids = torch.tensor([0, 0, 1, 2])
    corners = torch.eye(3, dtype=torch.float64)[ids]
    observed = draw(ids.tolist(), ids.tolist())._replace(text_embeds=torch.nn.functional.pad(corners, (0, 3)))
    for columns in ("own", "transposed"):
        sharp = {"temperature_use": "divide", "soft_source": 0.0, "soft_columns": columns}
        scale = torch.tensor([60.0]).double()
        assert_near(soft_clip(observed, scale, **sharp).loss, unicl(observed, scale).loss, 1e-12)


def test_uses_of_the_temperature_agree_at_one():
    observed, one = draw(), torch.ones(1).double()
    multiplied, divided = (soft_clip(observed, one, temperature_use=use).loss for use in ("multiply", "divide"))
    assert_near(multiplied, divided, 1e-14)


def test_the_loss_is_the_share_of_its_directions():
    loss, components = soft_clip(draw(), SCALE, direction_weight=0.3)
    assert_near(loss, 0.3 * components["image_to_text"] + 0.7 * components["text_to_image"], 1e-14)
