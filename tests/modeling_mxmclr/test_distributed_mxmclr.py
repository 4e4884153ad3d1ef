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
# Of models, under DDP; that every objective is the same on two ranks is shown on observations below.
MODELS = {
    "mfh": {"objective": "mfh"},
    "clip": {"objective": "clip"},
    "siglip with a learned bias": {"objective": "siglip", "logit_bias_init_value": -4.0},
    "unicl with mixup": {"objective": "unicl", "objective_settings": {"terms": {"mixup": 1.0}}},
}
# Rows of `RAGGED_IDS` and of `EQUAL_IDS` on each of two ranks.
RAGGED_SHARES = {
    "by instance": SPLITS["by instance"],
    "an instance on both ranks": SPLITS["an instance on both ranks"],
    "uneven": SPLITS["uneven"],
}
EQUAL_SHARES = {
    "one instance and two": {"images": [[0, 1], [2, 3, 4, 5]], "texts": [[0, 1], [2, 3, 4, 5]]},
    "the last instance first": {"images": [[4, 5], [0, 1, 2, 3]], "texts": [[4, 5, 2, 3], [0, 1]]},
    "a fold on both ranks": {"images": [[0, 2], [1, 3, 4, 5]], "texts": [[0, 1, 2], [3, 4, 5]]},
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(scope="module")
def two_ranks():
    pool = GlooPool(2)
    yield pool
    pool.close()


def assert_true_gradient(dtype, fields, answers):
    """Loss and gradient of every parameter are one process's, up to the contract's tolerance."""
    loss, gradients = rank_jobs.whole_batch(dtype, fields)
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


@pytest.fixture(scope="module")
def of_two_ranks(two_ranks):
    """The answers of both ranks by split and variant; all variants in one job a split."""
    answers = {}
    for rectangular, splits in ((False, RAGGED_SHARES), (True, EQUAL_SHARES)):
        labels = [label for label, variant in VARIANTS.items() if variant.rectangular == rectangular]
        for split, shares in splits.items():
            answers[rectangular, split] = shares, two_ranks.run(rank_jobs.shared_objectives, labels, shares)
    return answers


@pytest.mark.parametrize("label", VARIANTS)
def test_every_objective_is_on_two_ranks_what_it_is_in_one_process(of_two_ranks, label):
    loss, gradients = rank_jobs.whole_objective(label)
    of_this = [
        answer for (rectangular, _), answer in of_two_ranks.items() if rectangular == VARIANTS[label].rectangular
    ]
    assert len(of_this) == 3
    for shares, answers in of_this:
        for rank, (rank_loss, rank_gradients) in enumerate(answer[label] for answer in answers):
            assert rank_loss == pytest.approx(loss, abs=1e-10 * max(1, abs(loss)))
            largest = max(np.abs(gradient).max() for gradient in gradients.values())
            for name, gradient in gradients.items():
                # A wrapper averages over the ranks: rows have one rank's gradient each, times two.
                ours = rank_gradients[name] / 2 if name in shares else rank_gradients[name]
                theirs = gradient[shares[name][rank]] if name in shares else gradient
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10 * largest, err_msg=name)


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


def test_ragged_rows_come_in_rank_order_with_gradient_times_the_ranks(two_ranks):
    for sizes in ([3, 1], [0, 2], [2, 2]):
        answers = two_ranks.run(rank_jobs.gather_rows, sizes)
        for size, (gathered, gradient) in zip(sizes, answers, strict=True):
            np.testing.assert_array_equal(gathered[:, 0], np.repeat([0.0, 1.0], sizes))
            np.testing.assert_array_equal(gradient, np.full((size, 2), 2.0))


def test_numbered_ids_are_refused_on_several_ranks_by_all_of_them(two_ranks):
    for message in two_ranks.run(rank_jobs.numbered_ids):
        assert "pass `instance_ids=` to the processor" in message
