"""PMRL: its gradient where observations repeat, its signs and its limits; loops are in test_objectives_mxmclr.py."""

import math

import pytest
import torch

from modeling_mxmclr.folds_mxmclr import Observations
from modeling_mxmclr.pmrl_mxmclr import LeadingVector, pmrl
from tests.references.observed import SCALE, assert_near, draw


def test_the_leading_vector_is_that_of_the_singular_value_decomposition_on_the_side_of_its_rows():
    rows = draw(range(12), [0]).image_embeds.view(4, 3, 6)
    ours = LeadingVector.apply(rows)
    theirs = torch.linalg.svd(rows.detach())[2][:, 0]
    theirs = theirs * (theirs * rows.sum(dim=1)).sum(dim=1, keepdim=True).sign()
    assert_near(ours, theirs.detach(), 1e-10)


def test_the_leading_vector_has_the_gradient_of_differences_also_where_rows_repeat():
    rows = draw(range(6), [0]).image_embeds.detach().view(2, 3, 6)
    for given in (rows, torch.cat([rows, rows[:, :1]], dim=1)):
        assert torch.autograd.gradcheck(LeadingVector.apply, (given.clone().requires_grad_(),))


def test_turning_an_instance_around_turns_its_leading_vector():
    rows = draw(range(6), [0]).image_embeds.view(2, 3, 6)
    assert_near(LeadingVector.apply(-rows), -LeadingVector.apply(rows), 1e-12)


def test_observations_alike_leave_the_intra_part_to_the_norm():
    """One singular value is the root of the fold size, the others are 0."""
    rows = torch.eye(6, dtype=torch.float64)[[0, 0, 1, 1]]
    ids = torch.tensor([0, 0, 1, 1])
    output = pmrl(Observations(rows, rows, ids, ids), SCALE, intra_temperature=0.5)
    assert_near(output.components["intra"], math.log(1 + 3 * math.exp(-4)), 1e-12)
    assert_near(output.components["inter"], math.log(1 + math.exp(-SCALE.item())), 1e-12)


def test_weights_leave_one_part_alone():
    observed = draw()
    output = pmrl(observed, SCALE)
    assert_near(pmrl(observed, SCALE, inter_weight=0.0).loss, output.components["intra"], 1e-14)
    assert_near(pmrl(observed, SCALE, intra_weight=0.0).loss, output.components["inter"], 1e-14)


def test_more_observations_than_dimensions_are_refused():
    with pytest.raises(ValueError, match="got 7 observations in 6 dimensions; draw fewer"):
        pmrl(draw([0] * 5, [0, 0]), SCALE)
