import pytest
import torch
from torch import Tensor

from training.multifold_retrieval.bootstrap import bootstrap_intervals, paired_bootstrap


def normal(num_rows: int, seed: int) -> Tensor:
    return torch.randn(num_rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_instances_are_drawn_with_all_their_queries():
    values, ids = normal(50, seed=14), torch.arange(50)
    once = bootstrap_intervals({"rr@1": values}, ids)["rr@1"]
    four_times = bootstrap_intervals({"rr@1": values.repeat(4)}, ids.repeat(4))["rr@1"]
    torch.testing.assert_close(torch.tensor(four_times), torch.tensor(once))
    low, high = once
    assert low < values.mean().item() < high


def test_interval_has_the_width_of_the_normal_one():
    values = normal(400, seed=15)
    low, high = bootstrap_intervals({"x": values}, torch.arange(400), resamples=4000)["x"]
    assert (high - low) / 2 == pytest.approx(1.96 * values.std().item() / 400**0.5, rel=0.1)


def test_interval_depends_on_its_seed_alone():
    values, ids = {"x": torch.arange(30).double()}, torch.arange(30) // 2
    assert bootstrap_intervals(values, ids) == bootstrap_intervals(values, ids)
    assert bootstrap_intervals(values, ids) != bootstrap_intervals(values, ids, seed=1)


def test_uneven_instances_weigh_as_their_queries():
    # With both instances drawn twice or once each, the mean is 0, 1 or 3 / 4: sums over sums, not a mean of means.
    values, ids = {"x": torch.tensor([1.0, 1.0, 1.0, 0.0])}, torch.tensor([7, 7, 7, 8])
    assert bootstrap_intervals(values, ids)["x"] == (0.0, 1.0)
    assert bootstrap_intervals(values, ids, level=1e-9)["x"] == pytest.approx((0.75, 0.75))


def covers(interval: tuple[float, float], truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


def test_intervals_hold_the_truth_about_95_times_in_a_hundred():
    # 60 instances of four queries, alike within an instance; the true mean is 0.
    generator, ids, runs = torch.Generator().manual_seed(16), torch.arange(60).repeat_interleave(4), 300
    by_instance = by_query = 0
    for _ in range(runs):
        of_instance, of_query = torch.randn(60, generator=generator), torch.randn(240, generator=generator)
        values = {"x": of_instance.repeat_interleave(4) + 0.5 * of_query}
        by_instance += covers(bootstrap_intervals(values, ids, resamples=300)["x"], 0)
        by_query += covers(bootstrap_intervals(values, torch.arange(240), resamples=300)["x"], 0)
    assert 0.91 * runs < by_instance < 0.98 * runs
    assert by_query < 0.8 * runs


def test_paired_intervals_hold_the_true_gain_about_95_times_in_a_hundred():
    generator, ids, runs, covered = torch.Generator().manual_seed(17), torch.arange(60).repeat_interleave(2), 300, 0
    for _ in range(runs):
        hardness = torch.randn(60, generator=generator).repeat_interleave(2)
        run_a, run_b = hardness + 0.3 * torch.randn(2, 120, generator=generator)
        gain = paired_bootstrap({"x": run_a}, {"x": run_b + 0.25}, ids, resamples=300)["x"]
        covered += covers((gain.low, gain.high), 0.25)
    assert 0.91 * runs < covered < 0.98 * runs


def test_paired_interval_is_that_of_the_differences():
    run_a, run_b, ids = normal(40, seed=1), normal(40, seed=2), torch.arange(40) // 2
    gain = paired_bootstrap({"x": run_a}, {"x": run_b}, ids, seed=5)["x"]
    assert (gain.low, gain.high) == bootstrap_intervals({"x": run_b - run_a}, ids, seed=5)["x"]
    assert gain.difference == pytest.approx((run_b - run_a).mean().item())


def test_what_is_hard_for_both_runs_cancels_out():
    hardness, ids = normal(100, seed=3), torch.arange(100)
    run_a, run_b = hardness, hardness + 0.1 * normal(100, seed=4)
    low, high = bootstrap_intervals({"x": run_a}, ids)["x"]
    gain = paired_bootstrap({"x": run_a}, {"x": run_b}, ids)["x"]
    assert gain.high - gain.low < (high - low) / 5


def test_p_value_is_the_share_of_resamples_on_the_other_side_of_zero_twice():
    zeros, ids = torch.zeros(3), torch.tensor([7, 8, 9])
    # Instance 7 loses 4, both others gain 1: a resample gains where it lacks 7, in 8 of 27; no resample is at 0.
    gain = paired_bootstrap({"x": zeros}, {"x": torch.tensor([-4.0, 1.0, 1.0])}, ids, resamples=20_000)["x"]
    assert gain.p_value == pytest.approx(2 * 8 / 27, abs=0.02)


def test_p_value_of_equal_runs_is_one_and_of_a_sure_gain_the_smallest():
    values, ids = {"x": normal(20, seed=6)}, torch.arange(20)
    assert paired_bootstrap(values, values, ids)["x"] == (0.0, 0.0, 0.0, 1.0)
    gain = paired_bootstrap(values, {"x": values["x"] + 1}, ids, resamples=999)["x"]
    assert gain.p_value == pytest.approx(2 / 1000)


def test_swapping_the_runs_turns_the_sign():
    run_a, run_b, ids = {"x": normal(30, seed=7)}, {"x": normal(30, seed=8)}, torch.arange(30) // 3
    gain, loss = paired_bootstrap(run_a, run_b, ids)["x"], paired_bootstrap(run_b, run_a, ids)["x"]
    assert loss == pytest.approx((-gain.difference, -gain.high, -gain.low, gain.p_value))


VALUES, IDS = {"rr@1": torch.zeros(4)}, torch.arange(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_intervals(VALUES, IDS[:3]), r"'rr@1' has shape \(4,\) for 3 `group_ids`"),
        (lambda: bootstrap_intervals({}, IDS[:0]), "`group_ids` must have at least one entry"),
        (lambda: bootstrap_intervals(VALUES, IDS, resamples=0), "`resamples` must be at least 1, got 0"),
        (lambda: bootstrap_intervals(VALUES, IDS, level=95), "`level` must be between 0 and 1, got 95"),
        (lambda: paired_bootstrap(VALUES, {"mrr": torch.zeros(4)}, IDS), "must hold the same metrics, got"),
        (lambda: paired_bootstrap(VALUES, {"rr@1": torch.zeros(5)}, IDS), r"'rr@1' has shape \(5,\) for 4"),
    ],
)
def test_bad_input_names_the_culprit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
