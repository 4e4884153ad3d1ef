"""Observations of earlier steps: keys without gradient, which count in no mean."""

import pytest
import torch

from modeling_mxmclr import contrast_mxmclr
from modeling_mxmclr.folds_mxmclr import Observations
from modeling_mxmclr.objectives_mxmclr import get_objective
from modeling_mxmclr.terms_mxmclr import TERMS
from tests.references.observed import SCALE, assert_near, draw
from tests.references.tiny import tiny_batch, tiny_model

# Half of each side is of this step, half is remembered; every row has a positive, and some of the other half.
IMAGE_IDS, TEXT_IDS = [5, 5, 6, 7, 5, 8, 8, 9], [5, 6, 6, 7, 8, 9, 9, 6]
SETTINGS = [
    ("unicl", {}),
    ("unicl", {"hard_form": "in", "denominator": "one_positive", "direction_weight": 0.7}),
    ("mfh", {}),
    ("mfh", {"soft_columns": "transposed"}),
    ("mfh", {"soft_level": "observation", "soft_temperature": 0.3}),
    ("mfh", {"soft_weight": 0.0, "denominator": "negatives"}),
]


def split() -> tuple[Observations, Observations, Observations]:
    """All, those of this step, and those that are remembered."""
    everything = draw(IMAGE_IDS, TEXT_IDS)
    step, past = (Observations(*(rows[part] for rows in everything[:4])) for part in (slice(4), slice(4, None)))
    return everything, step, past


@pytest.fixture(params=["matrix", "tiles"])
def logits(request, monkeypatch):
    if request.param == "tiles":
        monkeypatch.setattr(contrast_mxmclr, "MATRIX_LOGITS", 0)


@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=str)
def test_the_loss_is_the_mean_over_the_queries_of_this_step(name, settings, logits):
    everything, step, past = split()
    objective, asked = get_objective(name, settings), torch.arange(8) < 4
    share = objective(everything._replace(image_queries=asked, text_queries=asked), SCALE)
    output = objective(step.remembering(past), SCALE)
    assert_near(output.loss, 2 * share.loss, 1e-12)
    for part, value in share.components.items():
        assert_near(output.components[part], 2 * value, 1e-12)


@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=str)
def test_ranks_that_answer_for_some_of_this_steps_queries_add_up(name, settings, logits):
    _, step, past = split()
    objective, first = get_objective(name, settings), torch.tensor([True, False, False, True])
    whole = objective(step.remembering(past), SCALE).loss
    shares = [
        objective(step._replace(image_queries=mine, text_queries=mine).remembering(past), SCALE).loss
        for mine in (first, ~first)
    ]
    assert_near(sum(shares), whole, 1e-12)


def test_nothing_that_is_remembered_changes_nothing():
    _, step, past = split()
    nothing = Observations(*(rows[:0] for rows in past[:4]))
    for name, settings in SETTINGS:
        objective = get_objective(name, settings)
        assert_near(objective(step.remembering(nothing), SCALE).loss, objective(step, SCALE).loss, 1e-12)


def test_what_is_remembered_gets_no_gradient_and_its_own_instances_are_positives():
    _, step, past = split()
    objective = get_objective("unicl", {})
    loss = objective(step.remembering(past), SCALE).loss
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        torch.autograd.grad(loss, past.image_embeds)
    # Row 4, a view of instance 5, comes nearer to its text.
    nearer = past.image_embeds.detach().clone()
    nearer[0] = step.text_embeds[0].detach()
    assert objective(step.remembering(past._replace(image_embeds=nearer)), SCALE).loss < loss


@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=str)
def test_a_side_whose_observations_have_no_positive_counts_nothing(name, settings):
    step, past = draw([1, 2], [3]), draw([4], [1, 4])  # the first image finds a text that is remembered
    loss = get_objective(name, settings)(step.remembering(past), SCALE).loss
    assert loss.isfinite()
    assert torch.autograd.grad(loss, step.image_embeds)[0][0].any()


def test_a_step_without_any_positive_is_a_loss_of_0_and_a_warning():
    with pytest.warns(UserWarning, match="No instance of this batch has both"):
        loss = get_objective("mfh", {})(draw([1], [2]).remembering(draw([4], [4])), SCALE).loss
    assert loss.item() == 0
    assert loss.requires_grad


def test_terms_see_this_step_alone():
    _, step, past = split()
    objective = get_objective("unicl", {"terms": {"uniformity": 0.5}})
    plain = get_objective("unicl", {})(step.remembering(past), SCALE).loss
    assert_near(objective(step.remembering(past), SCALE).loss, plain + 0.5 * TERMS["uniformity"](step, SCALE), 1e-12)


def test_of_this_step_undoes_remembering():
    _, step, past = split()
    undone = step.remembering(past).of_this_step()
    for one, other in zip(undone[:4], step[:4], strict=True):
        assert torch.equal(one, other)
    assert undone[4:] == step[4:]


def test_the_model_takes_a_memory_where_its_objective_can():
    batch = tiny_batch()
    model = tiny_model("bert", "resnet", objective="mfh").eval()
    first = model(**batch)
    memory = Observations(first.image_embeds, first.text_embeds, batch["image_group_ids"], batch["text_group_ids"])
    assert model(**batch, memory=memory).loss > first.loss
    other = tiny_model("bert", "resnet", objective="siglip").eval()
    with pytest.raises(ValueError, match=r"A memory needs one of the objectives \['mfh', 'unicl'\].*got 'siglip'"):
        other(**batch, memory=memory)
    scored = tiny_model("bert", "resnet", objective="mfh", objective_settings={"score": "max_sim"}).eval()
    with pytest.raises(ValueError, match=r"with `score` 'observations', got 'mfh' with \{'score': 'max_sim'\}"):
        scored(**batch, memory=memory)
    with pytest.raises(ValueError, match=r"`memory` can't be had with \['text_teacher_embeds'\]"):
        model(**batch, memory=memory, objective_inputs={"text_teacher_embeds": first.text_embeds.detach()})
