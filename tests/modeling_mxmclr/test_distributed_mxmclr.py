import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.references import rank_jobs
from tests.references.gloo_pool import GlooPool
from tests.references.observed import VARIANTS

# Rows of `tiny_batch` on each of two ranks; instance 0 has images 0-2 and texts 0-1, instance 3 images 5-6, texts 3-4.
SPLITS = {
    "by instance": {"images": [[0, 1, 2, 3], [4, 5, 6]], "texts": [[0, 1, 2], [3, 4, 5]]},
    "an instance on both ranks": {"images": [[0, 3, 4], [1, 2, 5, 6]], "texts": [[0, 2, 3], [1, 4, 5]]},
    "uneven": {"images": [[0], [1, 2, 3, 4, 5, 6]], "texts": [[0, 1, 2, 3, 4], [5]]},
    "a rank without text": {"images": [[0, 1, 2, 3], [4, 5, 6]], "texts": [[0, 1, 2, 3, 4, 5], []]},
    "a rank without images": {"images": [[], [0, 1, 2, 3, 4, 5, 6]], "texts": [[0, 1, 2, 3], [4, 5]]},
    "a rank with nothing": {"images": [[0, 1, 2, 3, 4, 5, 6], []], "texts": [[0, 1, 2, 3, 4, 5], []]},
}
# The same rows on each of three ranks.
SPLITS_OF_THREE = {
    "instances on several ranks": {"images": [[0, 3], [1, 2, 5], [4, 6]], "texts": [[5, 0], [1, 2, 3], [4]]},
    "a rank with nothing": {"images": [[0, 1, 2], [], [3, 4, 5, 6]], "texts": [[0, 3, 5], [], [1, 2, 4]]},
}
# Of models, under DDP; that every objective is the same is shown on observations below.
MODELS = {
    "mfh": {"objective": "mfh"},
    "clip": {"objective": "clip"},
    "siglip with a learned bias": {"objective": "siglip", "logit_bias_init_value": -4.0},
    "unicl with mixup": {"objective": "unicl", "objective_settings": {"terms": {"mixup": 1.0}}},
}
# Rows of `RAGGED_IDS` and of `EQUAL_IDS` on each of two ranks, and of three.
RAGGED_SHARES = [SPLITS["an instance on both ranks"], SPLITS["a rank without text"]]
RAGGED_SHARES += SPLITS_OF_THREE.values()
EQUAL_SHARES = [
    {"images": [[4, 5], [0, 1, 2, 3]], "texts": [[4, 5, 2, 3], [0, 1]]},
    {"images": [[0, 2], [1, 3, 4, 5]], "texts": [[0, 1, 2], [3, 4, 5]]},
    {"images": [[0, 2], [1, 3], [4, 5]], "texts": [[0, 1, 2], [3, 4, 5], []]},
]
GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures" / "golden_two_ranks.json").read_text())["cases"]
# Public code's own ways of two ranks whose gradient is not that of one process, by a factor or by more.
WRONG = {"clip.local_loss=False.gather_with_grad=False", "clip.local_loss=True.gather_with_grad=False"}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(scope="module")
def two_ranks():
    pool = GlooPool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def three_ranks():
    pool = GlooPool(3)
    yield pool
    pool.close()


def assert_true_gradient(dtype, fields, answers, whole=rank_jobs.whole_batch):
    """Loss and gradient of every parameter are one process's, up to the contract's tolerance."""
    loss, gradients = whole(dtype, fields)
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for rank_loss, rank_gradients in answers:
        assert rank_loss == pytest.approx(loss, abs=TOLERANCE[dtype] * max(1, abs(loss)))
        unused = rank_gradients.keys() - gradients.keys()
        assert not any(rank_gradients[name].any() for name in unused)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(
                rank_gradients[name], gradient, rtol=0, atol=TOLERANCE[dtype] * largest, err_msg=name
            )


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS.keys())
@pytest.mark.parametrize(
    ("fields", "dtype"),
    [(MODELS["mfh"], torch.float32), *((fields, torch.float64) for fields in MODELS.values())],
    ids=["mfh in float32", *MODELS],
)
def test_two_ranks_end_with_the_gradient_of_one_process(two_ranks, fields, split, dtype):
    answers = two_ranks.run(rank_jobs.ddp_step, dtype, fields, split)
    assert_true_gradient(dtype, fields, answers)


@pytest.mark.parametrize("name", ["mfh", "unicl with mixup"])
def test_ranks_that_remember_end_with_the_gradient_of_one_process(two_ranks, three_ranks, name):
    for pool, splits in ((two_ranks, SPLITS), (three_ranks, SPLITS_OF_THREE)):
        for split in list(splits.values())[-2:]:
            answers = pool.run(rank_jobs.ddp_step_twice, torch.float64, MODELS[name], split)
            assert_true_gradient(torch.float64, MODELS[name], answers, rank_jobs.whole_batch_twice)


@pytest.mark.parametrize("split", SPLITS_OF_THREE.values(), ids=SPLITS_OF_THREE.keys())
@pytest.mark.parametrize("name", ["mfh", "siglip with a learned bias"])
def test_three_ranks_end_with_the_gradient_of_one_process(three_ranks, name, split):
    answers = three_ranks.run(rank_jobs.ddp_step, torch.float64, MODELS[name], split)
    assert_true_gradient(torch.float64, MODELS[name], answers)


@pytest.mark.parametrize("name", ["mfh", "siglip with a learned bias"])
def test_sharded_parameters_end_with_the_gradient_of_one_process(two_ranks, three_ranks, name):
    for pool, splits in ((two_ranks, SPLITS), (three_ranks, SPLITS_OF_THREE)):
        for split in list(splits.values())[-2:]:
            answers = pool.run(rank_jobs.fsdp_step, torch.float64, MODELS[name], split)
            assert_true_gradient(torch.float64, MODELS[name], answers)


@pytest.fixture(scope="module")
def of_all_ranks(two_ranks, three_ranks):
    """The answers of all ranks by split and type, all variants in one job each."""
    pools = {2: two_ranks, 3: three_ranks}
    answers = []
    for rectangular, splits in ((False, RAGGED_SHARES), (True, EQUAL_SHARES)):
        labels = [label for label, variant in VARIANTS.items() if variant.rectangular == rectangular]
        for shares in splits:
            pool = pools[len(shares["images"])]
            for dtype in TOLERANCE:
                found = pool.run(rank_jobs.shared_objectives, labels, dtype, shares)
                answers += [(label, dtype, shares, [each[label] for each in found]) for label in labels]
    return answers


@pytest.mark.parametrize("label", VARIANTS)
def test_every_objective_is_on_several_ranks_what_it_is_in_one_process(of_all_ranks, label):
    expected = {dtype: rank_jobs.whole_objective(label, dtype) for dtype in TOLERANCE}
    of_this = [answer for answer in of_all_ranks if answer[0] == label]
    assert {len(answers) for *_, answers in of_this} == {2, 3}
    for _, dtype, shares, answers in of_this:
        values, gradients = expected[dtype]
        tolerance = TOLERANCE[dtype] * max(np.abs(gradient).max() for gradient in gradients.values())
        for rank, (rank_values, rank_gradients) in enumerate(answers):
            assert rank_values == {
                name: pytest.approx(value, abs=TOLERANCE[dtype] * max(1, abs(value))) for name, value in values.items()
            }
            for side in ("images", "texts"):
                # A wrapper averages over the ranks: rows have one rank's gradient each, times their number.
                ours = rank_gradients[side] / len(answers)
                np.testing.assert_allclose(ours, gradients[side][shares[side][rank]], rtol=0, atol=tolerance)
            for name in gradients.keys() - {"images", "texts"}:
                np.testing.assert_allclose(rank_gradients[name], gradients[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_two_ranks_give_the_values_of_public_code_where_it_is_right(two_ranks, case):
    name, ways = case["name"].split(".", 1)
    answers = two_ranks.run(rank_jobs.golden_two_ranks, name, case["logit_scale"], case["logit_bias"])
    theirs = case["ranks"]
    mean = sum(each["loss"] for each in theirs) / 2
    of_scale = sum(each["grad_scale"] for each in theirs) / 2
    for (own, loss, images, texts, scale), rank in zip(answers, theirs, strict=True):
        assert loss == pytest.approx(mean, abs=1e-10)
        assert scale == pytest.approx(of_scale, abs=1e-10)
        if "local_loss=False" not in ways:  # the ranks' own losses are ours
            assert own == pytest.approx(rank["loss"], abs=1e-10)
        same = [
            np.allclose(ours, rank[side], rtol=0, atol=1e-10) for side, ours in (("grad_V", images), ("grad_T", texts))
        ]
        assert same == [case["name"] not in WRONG] * 2


@pytest.mark.parametrize("objective", ["mfh", "siglip", "supcon"])
def test_two_ranks_end_with_that_gradient_by_tiles_too(two_ranks, objective):
    fields = {"objective": objective}
    for split in SPLITS.values():
        answers = two_ranks.run(rank_jobs.ddp_step_by_tiles, torch.float64, fields, split)
        assert_true_gradient(torch.float64, fields, answers)


def test_towers_with_parameters_that_nobody_uses_do_not_stall(two_ranks):
    fields = {"vision": "dinov2", "text": "clip_text_model", "text_pooling": "mean", "vision_pooling": "mean"}
    answers = two_ranks.run(rank_jobs.ddp_step, torch.float64, fields, SPLITS["uneven"], 3)
    assert_true_gradient(torch.float64, fields, answers)


def test_one_rank_may_evaluate_alone(two_ranks):
    loss, nothing = two_ranks.run(rank_jobs.lone_evaluation)
    assert loss == pytest.approx(rank_jobs.whole_batch(torch.float32, {})[0])
    assert nothing is None


def test_evaluation_gathers_where_it_is_told_to(two_ranks):
    losses = two_ranks.run(rank_jobs.gather_in_evaluation, SPLITS["uneven"])
    assert losses == pytest.approx([rank_jobs.whole_batch(torch.float32, {})[0]] * 2, abs=1e-5)


def test_ragged_rows_come_in_rank_order_and_get_the_sum_of_all_ranks_gradients(two_ranks):
    for sizes in ([3, 1], [0, 2], [2, 2], [0, 0]):
        answers = two_ranks.run(rank_jobs.gather_rows, sizes)
        for rank, (gathered, own, gradient) in enumerate(answers):
            np.testing.assert_array_equal(gathered[:, 0], np.repeat([0.0, 1.0], sizes))
            np.testing.assert_array_equal(own, np.repeat([0, 1], sizes) == rank)
            np.testing.assert_array_equal(gradient, np.full((sizes[rank], 2), 1.0 + 2.0))


def test_shares_are_summed_and_each_gets_the_gradient_times_the_ranks(two_ranks, three_ranks):
    assert two_ranks.run(rank_jobs.share_a_sum) == [(3.0, 4.0, 2.0)] * 2
    assert three_ranks.run(rank_jobs.share_a_sum) == [(6.0, 6.0, 3.0)] * 3


def test_a_clamp_judges_the_whole_gradient_and_not_a_ranks_part(two_ranks):
    """Where a step would raise the scale further, no gradient passes; where it lowers it, all of it does."""
    assert two_ranks.run(rank_jobs.learned_beyond_its_limit, [-1.0, 3.0]) == [2.0, 2.0]
    assert two_ranks.run(rank_jobs.learned_beyond_its_limit, [1.0, -3.0]) == [0.0, 0.0]


def test_numbered_ids_are_refused_on_several_ranks_by_all_of_them(two_ranks):
    for message in two_ranks.run(rank_jobs.numbered_ids):
        assert "pass `instance_ids=` to the processor" in message
