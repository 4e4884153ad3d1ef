import pytest
import torch

from modeling_mxmclr import MXMCLRModel
from tests.references.gloo_pool import GlooPool
from tests.references.sharding_jobs import evaluate_uneven_shares, save_sharded, steps_around_evaluation
from tests.references.tiny import tiny_batch, tiny_model
from training.sharding import whole_copy, whole_weights


@pytest.fixture(scope="module")
def pool():
    pool = GlooPool(2)
    yield pool
    pool.close()


def test_ranks_evaluate_as_often_as_they_like_and_the_main_one_gets_every_weight(pool):
    plain = tiny_model()
    expected = plain.get_image_features(tiny_batch()["pixel_values"]).detach()
    answers = pool.run(evaluate_uneven_shares)
    for features, _, num_shards, name in answers:
        torch.testing.assert_close(torch.tensor(features), expected)
        assert num_shards > 4
        assert name == "MXMCLRModel"
    state = {name: torch.tensor(rows) for name, rows in answers[0][1].items()}
    torch.testing.assert_close(state, dict(plain.state_dict()), rtol=0, atol=0)


def test_a_checkpoint_of_a_split_model_is_whole_and_plain(pool, tmp_path):
    pool.run(save_sharded, str(tmp_path / "saved"))
    loaded = MXMCLRModel.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(loaded.state_dict(), tiny_model().state_dict(), rtol=0, atol=0)
    assert (tmp_path / "saved" / "modeling_mxmclr.py").is_file()


def test_an_evaluation_between_steps_changes_no_step(pool):
    first, second = pool.run(steps_around_evaluation)
    plain = tiny_model()
    expected = []
    for _ in range(2):
        loss = plain(**tiny_batch()).loss
        loss.backward()
        with torch.no_grad():
            for weight in plain.parameters():
                if weight.grad is not None:
                    weight -= 0.1 * weight.grad
        plain.zero_grad()
        expected.append(loss.item())
    assert first == pytest.approx(expected, rel=1e-5)
    assert second == pytest.approx(expected, rel=1e-5)
    assert expected[1] != pytest.approx(expected[0], rel=1e-3)


def test_a_model_that_is_not_split_stays_itself():
    model = tiny_model()
    with whole_weights(model):
        assert whole_copy(model) is model
