import pytest
import torch
from torch import Tensor

from modeling_mxmclr import contrast_mxmclr, tiles_mxmclr
from modeling_mxmclr.blockwise_mxmclr import BlockwiseDirection
from modeling_mxmclr.contrast_mxmclr import Direction, both_directions, prepare, within
from modeling_mxmclr.folds_mxmclr import Observations
from modeling_mxmclr.mfh_mxmclr import find_centres, relate_instances
from modeling_mxmclr.objectives_mxmclr import get_objective
from modeling_mxmclr.queries_mxmclr import QUERY_WEIGHTS, all_queries
from tests.references.observed import SCALE, VARIANTS, Variant, draw

# Who answers for each image and each text of `RAGGED_IDS` and of `EQUAL_IDS`: one, two or three.
RAGGED_OWNERS = {
    "one": ([0] * 7, [0] * 6),
    "two, by instance": ([0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]),
    "two, folds torn apart": ([0, 1, 1, 0, 0, 1, 1], [0, 1, 0, 0, 1, 1]),
    "two, one of them with texts alone": ([1] * 7, [0, 0, 0, 1, 0, 1]),
    "three": ([0, 1, 1, 0, 2, 2, 2], [1, 2, 1, 1, 2, 0]),
    "three, one of them with nothing": ([0, 2, 2, 0, 2, 2, 0], [2, 0, 0, 2, 2, 0]),
}
EQUAL_OWNERS = {
    "one": ([0] * 6, [0] * 6),
    "two": ([0, 1, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]),
    "three": ([0, 1, 0, 2, 2, 2], [1, 1, 2, 0, 2, 0]),
}


@pytest.fixture(params=["matrix", "tiles"])
def kind(request, monkeypatch):
    """Logits as one matrix, or tile by tile."""
    if request.param == "tiles":
        monkeypatch.setattr(contrast_mxmclr, "MATRIX_LOGITS", -1)
        monkeypatch.setattr(tiles_mxmclr, "TILE", 3)


def asked_of(observed: Observations, owners: tuple[list[int], list[int]], owner: int) -> Observations:
    """The observations, asked for those of one owner."""
    of_images, of_texts = (torch.tensor(each) == owner for each in owners)
    return observed._replace(image_queries=of_images, text_queries=of_texts)


def outcome(variant: Variant, observed: Observations, asked: list[Observations]) -> dict[str, Tensor]:
    """Sums over the askers of loss and components, and the gradients of the summed loss."""
    learned = {"scale": SCALE.clone().requires_grad_()}
    inputs = variant.inputs(observed)
    if "bias" in inputs:
        learned["bias"] = inputs["bias"] = torch.as_tensor(inputs["bias"], dtype=SCALE.dtype).clone().requires_grad_()
    objective = get_objective(variant.name, variant.settings)
    outputs = [objective(each, learned["scale"], **inputs) for each in asked]
    assert all(output.components.keys() == outputs[0].components.keys() for output in outputs)
    loss = torch.stack([output.loss for output in outputs]).sum()
    assert all(output.loss.requires_grad for output in outputs)
    leaves = {"images": observed.image_embeds, "texts": observed.text_embeds} | learned
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    components = {
        name: torch.stack([output.components[name] for output in outputs]).sum() for name in outputs[0].components
    }
    return {"loss": loss.detach(), **components, **dict(zip(leaves, gradients, strict=True))}


@pytest.mark.parametrize("label", VARIANTS)
def test_shares_add_up_to_the_whole_with_its_gradient(label, kind):
    variant = VARIANTS[label]
    observed = variant.draw()
    expected = outcome(variant, observed, [observed])
    for owners in (EQUAL_OWNERS if variant.rectangular else RAGGED_OWNERS).values():
        askers = [asked_of(observed, owners, owner) for owner in range(max(map(max, owners)) + 1)]
        found = outcome(variant, observed, askers)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_each_asker_gives_its_own_queries_loss_over_the_count_of_all():
    observed = draw()
    logits = SCALE * observed.image_embeds @ observed.text_embeds.T
    positives = observed.image_group_ids[:, None] == observed.text_group_ids
    each = [
        sum(row.logsumexp(0) - row[place] for place in own.nonzero()) / own.sum()
        for row, own in zip(logits, positives, strict=True)
        if own.any()
    ]
    owners = ([0, 0, 1, 1, 1, 0, 1], [0] * 6)  # of these images 4 has no text, so that six count
    for owner, own in ((0, (0, 1, 4)), (1, (2, 3, 5))):
        output = get_objective("unicl", {"direction_weight": 1.0})(asked_of(observed, owners, owner), SCALE)
        expected = sum(each[place] for place in own) / 6
        torch.testing.assert_close(output.loss, expected.squeeze())
        torch.testing.assert_close(output.components["image_to_text"], expected.squeeze())


@pytest.mark.parametrize("name", ["mfh", "siglip", "supcon"])
def test_who_is_asked_for_nothing_gives_nothing_and_is_still_attached(name, kind):
    observed = draw()
    output = get_objective(name)(asked_of(observed, ([0] * 7, [0] * 6), 1), SCALE)
    assert output.loss.item() == 0
    assert not any(part.any() for part in output.components.values())
    images, texts = torch.autograd.grad(output.loss, observed[:2])
    assert not images.any()
    assert not texts.any()


def test_no_pair_at_all_warns_every_asker():
    observed = draw([0, 1], [2, 3, 3])
    for owner in (0, 1):
        with pytest.warns(UserWarning, match="both an image and a text"):
            assert get_objective("mfh")(asked_of(observed, ([0, 1], [1, 1, 0]), owner), SCALE).loss == 0


def test_work_falls_with_the_queries_that_are_asked_for(kind):
    """Each of four askers meets a quarter of the rows of both directions, and of the relations between instances."""
    ids = list(range(24)) * 2
    observed = draw(ids, ids)
    owners = ([place % 24 // 6 for place in range(48)],) * 2
    prepared, scale, instances = prepare(asked_of(observed, owners, 2), SCALE)
    sides = [*both_directions(prepared, instances, scale)]
    sides.append(within(prepared.image_embeds, instances.image_index, scale, prepared.image_queries))
    for way in sides:
        rows = way.tiles.sides[0] if isinstance(way, BlockwiseDirection) else way.logits
        assert len(rows) == 12
        assert len(way.key_instance) == 48
        assert len(way.log_sums()) == len(way.query_instance) == 12
        assert len(way.queries.instance) == 48
        assert isinstance(way, Direction) or not len(way.tiles.reduced().of_keys)
    centres = find_centres(prepared, instances)
    relation, place = relate_instances(centres, 1.0, 0.5).of(sides[0].query_instance)
    assert len(relation.rows) == 6
    assert relation.rows[place].equal(relate_instances(centres, 1.0, 0.5).rows[sides[0].query_instance])


def test_an_image_is_scored_with_the_views_of_its_instance_that_others_answer_for():
    """Scored as one set, views torn apart are answered for by who is asked for the first of them."""
    observed = draw()
    owners = ([0, 1, 1, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1])
    prepared, scale, instances = prepare(observed, SCALE)
    whole = both_directions(prepared, instances, scale, "max_sim")[0]
    for owner, own in ((0, [0, 1]), (1, [2])):
        asked = both_directions(asked_of(prepared, owners, owner), instances, scale, "max_sim")[0]
        assert asked.queries.answered.tolist() == own
        torch.testing.assert_close(asked.logits, whole.logits[own])


def test_queries_keep_what_they_count_for_when_others_are_left_out():
    instance, num_positives = torch.tensor([3, 3, 5, 7, 7]), torch.tensor([2, 2, 0, 1, 1])
    queries = all_queries(instance, num_positives, torch.tensor([False, True, True, False, True]))
    kept = queries.only(num_positives > 0)
    assert kept.instance.tolist() == [3, 3, 7, 7]
    assert kept.answered.tolist() == [1, 3]
    assert not kept.answers_all
    assert all_queries(instance, num_positives).answers_all
    weights = {name: kept.weights(name, torch.float64).tolist() for name in QUERY_WEIGHTS}
    assert weights == {"observations": [1] * 4, "instances": [0.5] * 4, "pairs": [2, 2, 1, 1]}
