import doctest
import json
from itertools import permutations
from math import comb, floor, log2, sin

import pytest
import torch
from torch import Tensor

from training import metrics
from training.metrics import bootstrap_intervals, hit_at_k, rank_positives, rank_spread, reciprocal_rank, score_queries

HIT_KS, NDCG_KS = (1, 2, 3, 6), (1, 3, 6)


def unit_rows(num_rows: int, dim: int = 8, seed: int = 0) -> Tensor:
    rows = torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def metrics_of_one_order(relevant: list[bool]) -> dict[str, float]:
    """The metrics of a gallery in rank order, by their definitions."""
    first = relevant.index(True)
    values = {"rank": first + 1.0, "mrr": 1 / (first + 1)}
    for k in HIT_KS:
        values[f"rr@{k}"] = float(any(relevant[:k]))
    for k in NDCG_KS:
        gain = sum(1 / log2(place + 2) for place in range(k) if relevant[place])
        values[f"ndcg@{k}"] = gain / sum(1 / log2(place + 2) for place in range(min(k, sum(relevant))))
    return values


def oracle(scores: list[float], relevant: list[bool]) -> dict[str, float]:
    """Mean of the metrics over all orders of the gallery that do not contradict the scores."""
    orders = [
        order
        for order in permutations(range(len(scores)))
        if all(scores[order[i]] >= scores[order[i + 1]] for i in range(len(order) - 1))
    ]
    results = [metrics_of_one_order([relevant[item] for item in order]) for order in orders]
    return {name: sum(result[name] for result in results) / len(results) for name in results[0]}


@pytest.mark.parametrize("seed", range(12))
def test_metrics_are_their_mean_over_all_orders_of_the_ties(seed):
    generator = torch.Generator().manual_seed(seed)
    gallery = unit_rows(3, seed=seed)[torch.randint(3, (6,), generator=generator)]  # six items, at most three scores
    gallery_ids = torch.randint(3, (6,), generator=generator)
    queries, query_ids = unit_rows(4, seed=seed + 100), torch.tensor([0, 1, 2, 3])
    scores = score_queries(queries, gallery, query_ids, gallery_ids, HIT_KS, NDCG_KS)
    for place, row in enumerate(scores.query_rows.tolist()):
        exact = (queries[row].double() @ gallery.double().T).mul(1e4).round().tolist()
        expected = oracle(exact, (gallery_ids == query_ids[row]).tolist())
        for name, value in scores.values.items():
            torch.testing.assert_close(value[place].item(), expected[name], rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_constant_embeddings_score_exactly_chance(dtype):
    constant = unit_rows(1, dim=37)
    num_gallery, counts = 300, torch.tensor([1, 3, 5])
    gallery_ids = torch.arange(100, 100 + num_gallery)
    gallery_ids[:9] = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2])
    scores = score_queries(
        constant.repeat(3, 1).to(dtype), constant.repeat(num_gallery, 1).to(dtype), torch.arange(3), gallery_ids
    )
    chance = [1 - comb(num_gallery - m, 5) / comb(num_gallery, 5) for m in counts.tolist()]
    discounts = torch.tensor([1 / log2(place + 2) for place in range(5)]).double()
    ideal = discounts.cumsum(dim=0)[counts - 1]
    expected_mrr = [
        sum(comb(num_gallery - rank, m - 1) / comb(num_gallery, m) / rank for rank in range(1, num_gallery + 1))
        for m in counts.tolist()
    ]
    torch.testing.assert_close(scores.values["rr@5"], torch.tensor(chance, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(scores.values["ndcg@5"], counts / num_gallery * discounts.sum() / ideal)
    torch.testing.assert_close(
        scores.values["mrr"], torch.tensor(expected_mrr, dtype=torch.float64), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(scores.values["rank"], (num_gallery + 1) / (counts.double() + 1))
    torch.testing.assert_close(scores.values["rr@1"], scores.chance_at_1)


def test_order_and_size_of_blocks_change_nothing():
    queries, gallery = unit_rows(40, seed=1), unit_rows(90, seed=2)
    gallery[10:20] = gallery[20:30]
    query_ids, gallery_ids = torch.arange(40) // 2, torch.arange(90) // 3
    whole = rank_positives(queries, gallery, query_ids, gallery_ids)
    blocks = rank_positives(queries, gallery, query_ids, gallery_ids, query_block=7, gallery_block=11)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(3))
    shuffled = rank_positives(queries, gallery[order], query_ids, gallery_ids[order])
    for part, other, permuted in zip(whole, blocks, shuffled, strict=True):
        torch.testing.assert_close(other, part)
        torch.testing.assert_close(permuted, part)


def at_scores(*scores: float) -> Tensor:
    """Unit vectors, float64, whose product with (1, 0) is the score."""
    first = torch.tensor(scores, dtype=torch.float64)
    return torch.stack([first, (1 - first.square()).sqrt()], dim=1)


def test_bands_of_near_ties_do_not_overlap_and_ndcg_stays_within_one():
    # Neighbours are within the tolerance, the ends are not: the first two form a band, the third one its own.
    gallery = at_scores(0.5 + 1.6e-6, 0.5 + 0.8e-6, 0.5)
    bands = rank_positives(at_scores(1.0), gallery, torch.tensor([7]), torch.tensor([7, 7, 7]))
    assert bands.ahead.tolist() == [[0, 0, 2]]
    assert bands.positives.tolist() == [[2, 0, 1]]
    torch.testing.assert_close(metrics.ndcg_at_k(bands, 2), torch.ones(1).double())


def test_a_rival_between_two_positives_belongs_to_the_better_ones_band():
    gallery = at_scores(0.5 + 1.6e-6, 0.5 + 0.8e-6, 0.5, 0.5 - 1e-4)
    bands = rank_positives(at_scores(1.0), gallery, torch.tensor([7]), torch.tensor([7, 8, 7, 9]))
    assert bands.ahead.tolist() == [[0, 2]]
    assert bands.rivals.tolist() == [[1, 0]]
    assert bands.positives.tolist() == [[1, 1]]


def test_scores_within_the_tolerance_are_ties_and_others_are_not():
    gallery = at_scores(0.5 + 4e-6, 0.5 + 0.5e-6, 0.5, 0.5 - 0.5e-6, 0.5 - 4e-6)
    bands = rank_positives(at_scores(1.0), gallery, torch.tensor([2]), torch.arange(5))
    assert [bands.ahead.item(), bands.rivals.item(), bands.positives.item()] == [1, 2, 1]


def test_ranks_equal_those_of_a_float64_matrix_without_ties():
    queries, gallery = unit_rows(60, dim=64, seed=4), unit_rows(500, dim=64, seed=5)
    ids = torch.arange(60)
    scores = queries.double() @ gallery.double().T
    expected = (scores > scores[ids, ids][:, None]).sum(dim=1) + 1
    ranks = score_queries(queries, gallery, ids, torch.arange(500)).values["rank"]
    torch.testing.assert_close(ranks, expected.double())


def test_scores_are_float32_under_autocast():
    queries, gallery = unit_rows(20, seed=6), unit_rows(400, seed=7)
    expected = score_queries(queries, gallery, torch.arange(20), torch.arange(400)).values["rank"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ranks = score_queries(queries, gallery, torch.arange(20), torch.arange(400)).values["rank"]
    torch.testing.assert_close(ranks, expected)


def test_depth_beyond_k_does_not_change_ndcg():
    queries, gallery = unit_rows(10, seed=8), unit_rows(40, seed=9).repeat(2, 1)
    bands = [
        rank_positives(queries, gallery, torch.arange(10) % 4, torch.arange(80) % 4, depth=depth) for depth in (3, 20)
    ]
    torch.testing.assert_close(metrics.ndcg_at_k(bands[0], 3), metrics.ndcg_at_k(bands[1], 3))
    with pytest.raises(ValueError, match=r"NDCG@5 needs `depth` of at least 5, got bands of 3"):
        metrics.ndcg_at_k(bands[0], 5)


def test_a_wide_band_is_summed_in_steps_without_loss():
    one = torch.ones(1, 1, dtype=torch.int64)
    bands = metrics.PositiveBands(4 * one, 1000 * one, one, one[0], 0 * one[0])
    expected = sum(1 / rank for rank in range(5, 1006)) / 1001
    torch.testing.assert_close(reciprocal_rank(bands).item(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(hit_at_k(bands, 10).item(), 6 / 1001, rtol=1e-12, atol=0)


def test_queries_without_a_relevant_item_are_left_out_and_counted():
    queries, gallery = unit_rows(3, seed=10), unit_rows(12, seed=11)
    gallery_ids = torch.arange(12)
    scores = score_queries(queries, gallery, torch.tensor([2, 99, 5]), gallery_ids)
    alone = score_queries(queries[[0, 2]], gallery, torch.tensor([2, 5]), gallery_ids)
    assert scores.query_rows.tolist() == [0, 2]
    assert scores.as_dict() == alone.as_dict() | {"queries_left_out": 1}


def test_selected_scores_are_those_of_the_selected_queries():
    queries, gallery = unit_rows(6, seed=12), unit_rows(12, seed=13)
    scores = score_queries(queries, gallery, torch.arange(6), torch.arange(12))
    kept = torch.tensor([True, False, True, True, False, False])
    alone = score_queries(queries[kept], gallery, torch.arange(6)[kept], torch.arange(12))
    assert scores.select(kept).as_dict() == alone.as_dict()
    assert json.loads(json.dumps(alone.as_dict())) == alone.as_dict()


def test_rank_spread_is_the_published_value_of_1_to_k():
    # The golden case `mrv/2000x4`: its formula and its value, which that repository's code gave.
    ranks = [[floor(10 * abs(sin(0.37 * (i + 1) + 1.13 * (j + 1)))) for j in range(4)] for i in range(2000)]
    spread = rank_spread(torch.tensor(ranks).flatten(), torch.arange(2000).repeat_interleave(4))
    torch.testing.assert_close(spread, 2.845228619907, rtol=0, atol=1e-10)


def test_bootstrap_resamples_instances_with_all_their_queries():
    values = unit_rows(50, dim=1, seed=14)[:, 0]
    ids = torch.arange(50)
    once = bootstrap_intervals({"rr@1": values}, ids)["rr@1"]
    four_times = bootstrap_intervals({"rr@1": values.repeat(4)}, ids.repeat(4))["rr@1"]
    torch.testing.assert_close(torch.tensor(four_times), torch.tensor(once))
    low, high = once
    assert low < values.mean().item() < high


def test_bootstrap_interval_has_the_width_of_the_normal_one():
    values = torch.randn(400, generator=torch.Generator().manual_seed(15)).double()
    low, high = bootstrap_intervals({"x": values}, torch.arange(400), resamples=4000)["x"]
    assert (high - low) / 2 == pytest.approx(1.96 * values.std().item() / 400**0.5, rel=0.1)


def test_bootstrap_depends_on_its_seed_alone():
    values, ids = {"x": torch.arange(30).double()}, torch.arange(30) // 2
    assert bootstrap_intervals(values, ids) == bootstrap_intervals(values, ids)
    assert bootstrap_intervals(values, ids) != bootstrap_intervals(values, ids, seed=1)


def test_bootstrap_weighs_uneven_instances_by_their_queries():
    # With both instances drawn twice or once each, the mean is 0, 1 or 3 / 4: sums over sums, not a mean of means.
    low, high = bootstrap_intervals({"x": torch.tensor([1.0, 1.0, 1.0, 0.0])}, torch.tensor([7, 7, 7, 8]))["x"]
    assert (low, high) == (0.0, 1.0)
    middle = bootstrap_intervals({"x": torch.tensor([1.0, 1.0, 1.0, 0.0])}, torch.tensor([7, 7, 7, 8]), level=1e-9)[
        "x"
    ]
    assert middle == pytest.approx((0.75, 0.75))


IDS = torch.arange(12)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hit_ks": (1, 20)}, ValueError, "k must be from 1 to the 12 items of the gallery, got 20"),
        ({"ndcg_ks": (0,)}, ValueError, "k must be from 1 to the 12 items of the gallery, got 0"),
        ({"gallery_embeds": torch.ones(12, 3) / 3**0.5}, ValueError, "must have one dimension, got 8 and 3"),
        ({"gallery_group_ids": IDS[:5]}, ValueError, "`gallery_group_ids` has shape (5,) for 12 embeddings"),
        ({"query_group_ids": IDS.float()}, TypeError, "`query_group_ids` must be int64, got torch.float32"),
        ({"query_group_ids": IDS + 99}, ValueError, "No query has a relevant item in the gallery"),
        ({"query_embeds": unit_rows(12) * 3}, ValueError, "`query_embeds` must have unit norm, got 3 in row 0"),
        (
            {"query_embeds": unit_rows(12) / 0},
            ValueError,
            "`query_embeds` must be finite, got NaN or infinity in row 0",
        ),
        ({"query_embeds": unit_rows(12)[0]}, ValueError, "`query_embeds` must be (rows, dim)"),
        ({"query_embeds": IDS[:, None]}, TypeError, "`query_embeds` must be of a float type, got torch.int64"),
    ],
)
def test_bad_input_names_the_culprit(changes, error, message):
    arguments = {"query_embeds": unit_rows(12), "gallery_embeds": unit_rows(12)}
    arguments |= {"query_group_ids": IDS, "gallery_group_ids": IDS} | changes
    with pytest.raises(error) as raised:
        score_queries(**arguments)
    assert message in str(raised.value)


def test_an_empty_gallery_is_an_error():
    with pytest.raises(ValueError, match=r"`gallery_embeds` must be .* with at least one row"):
        rank_positives(unit_rows(3), torch.zeros(0, 8), IDS[:3], IDS[:0])


def test_nan_is_named_by_its_row():
    gallery = unit_rows(12)
    gallery[7, 3] = torch.nan
    with pytest.raises(ValueError, match="`gallery_embeds` must be finite, got NaN or infinity in row 7"):
        score_queries(unit_rows(12), gallery, IDS, IDS)


def test_docstring_examples_hold():
    assert doctest.testmod(metrics).failed == 0
