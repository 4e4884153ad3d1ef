from itertools import pairwise

import numpy as np
import pytest

from training.mixtures import InstanceBatches, TextOnly, draw_counts

SIZES, WEIGHTS = [10, 4, 6], [5.0, 1.0, 2.0]


def mixture(num_batches=40, batch_size=4, **options):
    return InstanceBatches(SIZES, WEIGHTS, batch_size, num_batches, seed=3, **options)


def part_of(row):
    return int(np.searchsorted(np.cumsum(SIZES), row, side="right"))


def counted(weights, total, place):
    """Points one apart, each in the interval of the data set that it falls on."""
    ends = np.cumsum(weights) / np.sum(weights) * total
    parts = [next(part for part, end in enumerate(ends) if place + number < end) for number in range(total)]
    return [parts.count(part) for part in range(len(weights))]


def test_counts_are_those_of_points_at_equal_distance():
    generator = np.random.default_rng(0)
    for _ in range(200):
        weights = generator.uniform(0.1, 3, size=generator.integers(1, 5))
        total, place = int(generator.integers(1, 20)), float(generator.random())
        assert draw_counts(weights, total, place).tolist() == counted(weights, total, place)


def test_whole_shares_are_drawn_exactly_and_others_on_average():
    places = np.linspace(0, 1, 1000, endpoint=False)
    assert (draw_counts([0.1, 0.7, 0.2], 10, places) == [1, 7, 2]).all()
    counts = draw_counts([1, 2, 4], 5, places)
    assert (counts.sum(axis=1) == 5).all()
    np.testing.assert_allclose(counts.mean(axis=0), np.array([1, 2, 4]) / 7 * 5, atol=2e-3)


def test_epochs_of_one_data_set_are_orders_of_it_cut_into_batches():
    expected = []
    for epoch in range(3):
        order = np.random.default_rng([5, epoch]).permutation(10).tolist()
        expected += [[(row, epoch) for row in order[start : start + 4]] for start in (0, 4)]
    assert list(InstanceBatches([10], [2.5], 4, 6, seed=5)) == expected
    assert sorted(next(iter(InstanceBatches([3], [1.0], 8, 2, seed=0)))) == [(0, 0), (1, 0), (2, 0)]


def test_every_data_set_has_its_share_of_the_instances():
    drawn = [part_of(row) for batch in mixture(num_batches=400) for row, _ in batch]
    shares = np.bincount(drawn) / len(drawn)
    np.testing.assert_allclose(shares, np.array(WEIGHTS) / 8, atol=0.02)
    assert all(len(batch) == 4 for batch in mixture())


def test_no_instance_comes_twice_in_an_epoch_of_its_data_set():
    drawn = [index for batch in mixture(num_batches=200) for index in batch]
    assert len(set(drawn)) == len(drawn)
    for part in range(3):
        epochs = [epoch for row, epoch in drawn if part_of(row) == part]
        assert all(later - former in (0, 1) for former, later in pairwise(epochs))
        assert max(epochs) > 3


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_together_draw_each_batch_of_one_rank(num_ranks):
    shares = [list(mixture(rank=rank, num_ranks=num_ranks)) for rank in range(num_ranks)]
    for batch, *parts in zip(mixture(), *shares, strict=True):
        assert sorted(batch) == sorted(index for part in parts for index in part)


def test_batches_can_begin_anywhere():
    whole, rest = list(mixture()), mixture()
    for first in range(41):
        rest.first = first
        assert len(rest) == 40 - first
        assert list(rest) == whole[first:]


def test_a_data_set_smaller_than_its_share_gives_all_that_it_has():
    batches = list(InstanceBatches([50, 2], [1, 1], 10, 5, seed=0))
    assert all(sorted(row for row, _ in batch if row >= 50) == [50, 51] for batch in batches)
    assert all(len(batch) == 7 for batch in batches)


def test_instances_seen_by_their_captions_are_not_of_the_batch_and_are_the_same_on_any_number_of_ranks():
    whole = list(mixture(text_only=5))
    for number, batch in enumerate(whole):
        others = [index for index in batch if isinstance(index, TextOnly)]
        assert batch[:4] == list(mixture())[number]
        assert len({row for row, _ in batch}) == len(batch) == 9
        assert {epoch for _, epoch in others} == {number}
    assert {part_of(row) for batch in whole for row, _ in batch[4:]} == {0, 1, 2}
    shares = zip(*(mixture(text_only=5, rank=rank, num_ranks=2) for rank in range(2)), strict=True)
    for batch, (first, second) in zip(whole, shares, strict=True):
        assert sorted(first + second) == sorted(batch)
        assert sum(isinstance(index, TextOnly) for index in first) == 3


def test_at_most_all_others_are_seen_by_their_captions():
    assert all(sorted(row for row, _ in batch) == list(range(20)) for batch in mixture(text_only=99))
