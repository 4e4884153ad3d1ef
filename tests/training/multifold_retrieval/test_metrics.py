import doctest
import json
from itertools import permutations
from math import comb, floor, log2, sin

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional import retrieval as torchmetrics

from training.multifold_retrieval import metrics, ranking
from training.multifold_retrieval.metrics import QueryScores, rank_spread, score_queries, tied_bands
from training.multifold_retrieval.ranking import PositiveBands, rank_positives

KS = (1, 2, 3, 6)
CUTOFFS = {"hit_ks": KS, "ndcg_ks": KS, "recall_ks": KS, "precision_ks": KS}


def unit_rows(num_rows: int, dim: int = 8, seed: int = 0) -> Tensor:
    rows = torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def metrics_of_one_order(relevant: list[bool]) -> dict[str, float]:
    """The metrics of a gallery in rank order, by their definitions."""
    ranks = [place + 1 for place, is_relevant in enumerate(relevant) if is_relevant]
    values = {"rank": float(ranks[0]), "mrr": 1 / ranks[0]}
    values["map"] = sum(sum(relevant[:rank]) / rank for rank in ranks) / len(ranks)
    values["r_precision"] = sum(relevant[: len(ranks)]) / len(ranks)
    for k in KS:
        values[f"rr@{k}"] = float(any(relevant[:k]))
        values[f"recall@{k}"] = sum(relevant[:k]) / len(ranks)
        values[f"precision@{k}"] = sum(relevant[:k]) / k
        gain = sum(1 / log2(rank + 1) for rank in ranks if rank <= k)
        values[f"ndcg@{k}"] = gain / sum(1 / log2(place + 2) for place in range(min(k, len(ranks))))
    return values


def mean_of_orders(orders: list[list[bool]]) -> dict[str, float]:
    results = [metrics_of_one_order(order) for order in orders]
    return {name: sum(result[name] for result in results) / len(results) for name in results[0]}


def oracle(scores: list[float], relevant: list[bool]) -> dict[str, float]:
    """Mean of the metrics over all orders of the gallery that do not contradict the scores."""
    orders = [
        order
        for order in permutations(range(len(scores)))
        if all(scores[order[i]] >= scores[order[i + 1]] for i in range(len(order) - 1))
    ]
    return mean_of_orders([[relevant[item] for item in order] for order in orders])


@pytest.mark.parametrize("seed", range(12))
def test_metrics_are_their_mean_over_all_orders_of_the_ties(seed):
    generator = torch.Generator().manual_seed(seed)
    gallery = unit_rows(3, seed=seed)[torch.randint(3, (6,), generator=generator)]  # six items, at most three scores
    gallery_ids = torch.randint(3, (6,), generator=generator)
    queries, query_ids = unit_rows(4, seed=seed + 100), torch.tensor([0, 1, 2, 3])
    scores = score_queries(queries, gallery, query_ids, gallery_ids, **CUTOFFS)
    for place, row in enumerate(scores.query_rows.tolist()):
        exact = (queries[row].double() @ gallery.double().T).mul(1e4).round().tolist()
        expected = oracle(exact, (gallery_ids == query_ids[row]).tolist())
        assert expected.keys() == scores.values.keys()
        for name, value in scores.values.items():
            torch.testing.assert_close(value[place].item(), expected[name], rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_relevant", [1, 2, 3, 6])
def test_constant_embeddings_score_the_mean_over_all_orders(dtype, num_relevant):
    constant = unit_rows(1, dim=37).to(dtype)
    gallery_ids = torch.tensor([7] * num_relevant + [8] * (6 - num_relevant))
    scores = score_queries(constant, constant.repeat(6, 1), torch.tensor([7]), gallery_ids, **CUTOFFS)
    expected = mean_of_orders(list(permutations((gallery_ids == 7).tolist())))
    for name, value in scores.values.items():
        torch.testing.assert_close(value.item(), expected[name], rtol=0, atol=1e-12, msg=name)


def chance(num_gallery: int, num_relevant: int) -> dict[str, float]:
    """The metrics of a random order at every k, from counting."""
    ranks, share = range(1, num_gallery + 1), num_relevant / num_gallery
    first = [comb(num_gallery - rank, num_relevant - 1) / comb(num_gallery, num_relevant) for rank in ranks]
    ahead = (num_relevant - 1) / (num_gallery - 1)  # expected share of the places before a positive that are positives
    values = {
        "rank": sum(rank * probability for rank, probability in zip(ranks, first, strict=True)),
        "mrr": sum(probability / rank for rank, probability in zip(ranks, first, strict=True)),
        "map": sum((1 + (rank - 1) * ahead) / rank for rank in ranks) / num_gallery,
        "r_precision": share,
    }
    for k in ranks:
        discounts = [1 / log2(place + 2) for place in range(k)]
        values[f"rr@{k}"] = 1 - comb(num_gallery - num_relevant, k) / comb(num_gallery, k)
        values[f"recall@{k}"] = k / num_gallery
        values[f"precision@{k}"] = share
        values[f"ndcg@{k}"] = share * sum(discounts) / sum(discounts[:num_relevant])
    return values


def test_constant_embeddings_score_exactly_chance_in_every_metric_at_every_k():
    constant, num_gallery, counts = unit_rows(1, dim=37), 150, [1, 3, 5]
    gallery_ids = torch.arange(100, 100 + num_gallery)
    gallery_ids[:9] = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2])
    every_k = range(1, num_gallery + 1)
    cutoffs = {"hit_ks": every_k, "ndcg_ks": every_k, "recall_ks": every_k, "precision_ks": every_k}
    scores = score_queries(
        constant.repeat(3, 1), constant.repeat(num_gallery, 1), torch.arange(3), gallery_ids, **cutoffs
    )
    expected = [chance(num_gallery, count) for count in counts]
    assert expected[0].keys() == scores.values.keys()
    for name, value in scores.values.items():
        by_counting = torch.tensor([each[name] for each in expected], dtype=torch.float64)
        torch.testing.assert_close(value, by_counting, rtol=1e-11, atol=0, msg=name)
        torch.testing.assert_close(scores.chance[name], by_counting, rtol=1e-11, atol=0, msg=name)


def test_chance_does_not_depend_on_the_scores():
    queries, gallery, ids = unit_rows(4, seed=1), unit_rows(9, seed=2), torch.arange(9) % 4
    scores = score_queries(queries, gallery, torch.arange(4), ids, (5,), (5,)).as_dict()
    constant = unit_rows(1, seed=3)
    tied = score_queries(constant.repeat(4, 1), constant.repeat(9, 1), torch.arange(4), ids, (5,), (5,)).as_dict()
    for name in ("rr@5", "ndcg@5", "mrr", "map", "r_precision", "mean_rank", "median_rank"):
        assert scores[f"chance_{name}"] == pytest.approx(tied[name])
    assert scores["chance_rr@1"] == pytest.approx((3 + 2 + 2 + 2) / 9 / 4)


def test_order_of_the_gallery_changes_nothing():
    queries, gallery = unit_rows(40, seed=1), unit_rows(90, seed=2)
    gallery[10:20] = gallery[20:30]
    query_ids, gallery_ids = torch.arange(40) // 2, torch.arange(90) // 3
    order = torch.randperm(90, generator=torch.Generator().manual_seed(3))
    scores = score_queries(queries, gallery, query_ids, gallery_ids, **CUTOFFS)
    shuffled = score_queries(queries, gallery[order], query_ids, gallery_ids[order], **CUTOFFS)
    torch.testing.assert_close(shuffled.values, scores.values, rtol=0, atol=0)


def random_problem(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Thirty queries of ten instances, and a gallery of each instance one to eight times; no two scores tie."""
    generator = torch.Generator().manual_seed(seed)
    gallery_ids = torch.cat([torch.arange(10), torch.randint(14, (50,), generator=generator)])
    return unit_rows(30, 32, seed), unit_rows(60, 32, seed + 1), torch.arange(30) % 10, gallery_ids


@pytest.mark.parametrize("seed", [1, 2, 6])  # no two of their scores within the tolerance
def test_metrics_are_those_of_torchmetrics_without_ties(seed):
    queries, gallery, query_ids, gallery_ids = random_problem(seed)
    matrix = queries.double() @ gallery.double().T
    assert matrix.sort(dim=1).values.diff().min() > 2 * ranking.TIE
    cutoffs = dict.fromkeys(CUTOFFS, (1, 5, 10, 60))
    values = score_queries(queries, gallery, query_ids, gallery_ids, **cutoffs).values
    at_k = {
        "rr": torchmetrics.retrieval_hit_rate,
        "recall": torchmetrics.retrieval_recall,
        "precision": torchmetrics.retrieval_precision,
        "ndcg": torchmetrics.retrieval_normalized_dcg,
    }
    whole = {
        "mrr": torchmetrics.retrieval_reciprocal_rank,
        "map": torchmetrics.retrieval_average_precision,
        "r_precision": torchmetrics.retrieval_r_precision,
    }
    for row, scores in enumerate(matrix + 2):  # torchmetrics counts no item of a score of 0 or less as relevant
        relevant = gallery_ids == query_ids[row]
        expected = {name: metric(scores, relevant) for name, metric in whole.items()}
        expected |= {
            f"{name}@{k}": metric(scores, relevant, top_k=k) for name, metric in at_k.items() for k in (1, 5, 10, 60)
        }
        assert values.keys() == {*expected, "rank"}
        for name, value in expected.items():
            assert values[name][row].item() == pytest.approx(value.item(), abs=1e-6), name


def tricolo_scores(matrix: np.ndarray, query_ids: list[int], gallery_ids: list[int], k: int) -> dict[str, float]:
    """RR@k and NDCG@k as Text2Shape and TriCoLo define them: ideal of min(relevant, k) ones, gain 2^rel - 1."""
    hits, gains = [], []
    for scores, query_id in zip(matrix, query_ids, strict=True):
        nearest = [gallery_ids[item] for item in np.argsort(-scores)[:k]]
        relevance = [int(item == query_id) for item in nearest]
        ideal = [1] * min(gallery_ids.count(query_id), k)
        dcg = sum((2**each - 1) / log2(place + 2) for place, each in enumerate(relevance))
        hits.append(sum(relevance) > 0)
        gains.append(dcg / sum((2**each - 1) / log2(place + 2) for place, each in enumerate(ideal)))
    return {f"rr@{k}": sum(hits) / len(hits), f"ndcg@{k}": sum(gains) / len(gains)}


@pytest.mark.parametrize("k", [1, 5])
def test_rr_and_ndcg_are_those_of_tricolo(k):
    queries, gallery, query_ids, gallery_ids = random_problem(seed=20)
    expected = tricolo_scores((queries @ gallery.T).numpy(), query_ids.tolist(), gallery_ids.tolist(), k)
    scores = score_queries(queries, gallery, query_ids, gallery_ids, (k,), (k,)).as_dict()
    assert {name: scores[name] for name in expected} == pytest.approx(expected)


def karpathy_scores(matrix: np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
    """Image → text and text → image, of `(num_images, 5 * num_images)` scores, as DeepVSE and its heirs count them."""
    from_image, from_text = [], []
    for image, scores in enumerate(matrix):
        order = np.argsort(-scores)
        from_image.append(min(int(np.where(order == 5 * image + caption)[0][0]) for caption in range(5)))
    for text, scores in enumerate(matrix.T):
        from_text.append(int(np.where(np.argsort(-scores) == text // 5)[0][0]))
    results = []
    for ranks in (from_image, from_text):
        recalls = {f"rr@{k}": sum(rank < k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
        results.append(recalls | {"median_rank": floor(np.median(ranks)) + 1})
    return results[0], results[1]


def test_recall_with_five_captions_is_that_of_karpathy():
    images, ids = unit_rows(25, 32, seed=21), torch.arange(25)
    texts = torch.nn.functional.normalize(images.repeat_interleave(5, dim=0) + 2 * unit_rows(125, 32, seed=22), dim=1)
    from_image, from_text = karpathy_scores((images @ texts.T).numpy())
    text_ids = ids.repeat_interleave(5)
    assert 0 < from_text["rr@1"] < 1
    ours = score_queries(images, texts, ids, text_ids).as_dict()
    assert {name: ours[name] for name in from_image} == pytest.approx(from_image)
    ours = score_queries(texts, images, text_ids, ids).as_dict()
    assert {name: ours[name] for name in from_text} == pytest.approx(from_text)


def test_ranks_equal_those_of_a_float64_matrix_without_ties():
    queries, gallery = unit_rows(60, dim=64, seed=4), unit_rows(500, dim=64, seed=5)
    ids = torch.arange(60)
    scores = queries.double() @ gallery.double().T
    expected = (scores > scores[ids, ids][:, None]).sum(dim=1) + 1
    ranks = score_queries(queries, gallery, ids, torch.arange(500)).values["rank"]
    torch.testing.assert_close(ranks, expected.double())


def test_depth_beyond_k_does_not_change_ndcg():
    queries, gallery = unit_rows(10, seed=8), unit_rows(40, seed=9).repeat(2, 1)
    bands = [
        rank_positives(queries, gallery, torch.arange(10) % 4, torch.arange(80) % 4, depth=depth) for depth in (3, 20)
    ]
    torch.testing.assert_close(metrics.ndcg_at_k(bands[0], 3), metrics.ndcg_at_k(bands[1], 3))


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda bands: metrics.ndcg_at_k(bands, 5), "NDCG@5 needs `depth` of at least 5, got bands of 3"),
        (lambda bands: metrics.recall_at_k(bands, 5), "recall@5 needs `depth` of at least 5, got bands of 3"),
        (lambda bands: metrics.precision_at_k(bands, 9), "precision@9 needs `depth` of at least 9, got bands of 3"),
        (metrics.r_precision, "R-precision needs `depth` of at least 10, got bands of 3"),
        (metrics.average_precision, "Average precision needs `depth` of at least 10, got bands of 3"),
    ],
)
def test_bands_of_too_few_positives_are_an_error(metric, message):
    bands = rank_positives(unit_rows(5), unit_rows(40, seed=1), torch.arange(5) % 4, torch.arange(40) % 4, depth=3)
    with pytest.raises(ValueError, match=message):
        metric(bands)


def test_a_wide_band_is_summed_without_loss():
    one = torch.ones(1, 1, dtype=torch.int64)
    bands = PositiveBands(4 * one, 1000 * one, one, one[0], 0 * one[0])
    expected = sum(1 / rank for rank in range(5, 1006)) / 1001
    torch.testing.assert_close(metrics.reciprocal_rank(bands).item(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(metrics.average_precision(bands).item(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(metrics.hit_at_k(bands, 10).item(), 6 / 1001, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("ahead", "rivals", "positives"),
    [(0, 3000, 2), (999, 1, 2), (1000, 1, 2), (10**6, 0, 2), (10**6, 5, 4), (10**6, 9000, 30), (7, 500, 500)],
)
def test_bands_anywhere_in_a_large_gallery_keep_their_digits(ahead, rivals, positives):
    size, one = rivals + positives, torch.ones(1, 1, dtype=torch.int64)
    bands = PositiveBands(ahead * one, rivals * one, positives * one, positives * one[0], 0 * one[0])
    precisions = [(1 + i * (positives - 1) / (size - 1)) / (ahead + 1 + i) for i in range(size)]
    torch.testing.assert_close(metrics.average_precision(bands).item(), sum(precisions) / size, rtol=1e-8, atol=0)
    reached, expected = 1.0, 0.0
    for i in range(rivals + 1):
        expected += reached * positives / (size - i) / (ahead + 1 + i)
        reached *= (rivals - i) / (size - i)
    torch.testing.assert_close(metrics.reciprocal_rank(bands).item(), expected, rtol=1e-12, atol=0)


def test_a_gallery_of_a_million_ties_scores_chance():
    bands = tied_bands(torch.tensor([1, 2]), num_gallery=10**6)
    harmonic = sum(1 / rank for rank in range(1, 10**6 + 1))
    expected = [harmonic / 1e6, ((1e6 - 1 - 1) * harmonic + 1e6) / (1e6 - 1) / 1e6]
    torch.testing.assert_close(metrics.average_precision(bands), torch.tensor(expected).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(metrics.reciprocal_rank(bands)[0].item(), harmonic / 1e6, rtol=1e-12, atol=0)
    torch.testing.assert_close(metrics.expected_rank(bands), torch.tensor([1e6 + 1, (1e6 + 1) / 1.5]).double() / 2)


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


def test_scores_of_a_perfect_order_are_exactly_one():
    eye, ids = torch.eye(12), torch.arange(12) // 2
    queries = (eye[::2] + eye[1::2]) / 2**0.5
    scores = score_queries(queries, eye, torch.arange(6), ids, (1,), (5,), (2,), (2,)).as_dict()
    assert {scores[name] for name in ("rr@1", "ndcg@5", "recall@2", "precision@2", "mrr", "map", "r_precision")} == {1}


def test_rank_spread_is_the_published_value_of_1_to_k():
    # The golden case `mrv/2000x4`: its formula and its value, which that repository's code gave.
    ranks = [[floor(10 * abs(sin(0.37 * (i + 1) + 1.13 * (j + 1)))) for j in range(4)] for i in range(2000)]
    spread = rank_spread(torch.tensor(ranks).flatten(), torch.arange(2000).repeat_interleave(4))
    torch.testing.assert_close(spread, 2.845228619907, rtol=0, atol=1e-10)


IDS = torch.arange(12)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hit_ks": (1, 20)}, ValueError, "k of `hit_ks` must be from 1 to the 12 items of the gallery, got 20"),
        ({"ndcg_ks": (0,)}, ValueError, "k of `ndcg_ks` must be from 1 to the 12 items of the gallery, got 0"),
        ({"recall_ks": (13,)}, ValueError, "k of `recall_ks` must be from 1 to the 12 items of the gallery, got 13"),
        ({"precision_ks": (-1,)}, ValueError, "k of `precision_ks` must be from 1 to the 12 items"),
        ({"gallery_embeds": torch.ones(12, 3) / 3**0.5}, ValueError, "must have one dimension, got 8 and 3"),
        ({"gallery_group_ids": IDS[:5]}, ValueError, "`gallery_group_ids` has shape (5,) for 12 embeddings"),
        ({"query_group_ids": IDS.float()}, TypeError, "`query_group_ids` must be int64, got torch.float32"),
        ({"query_group_ids": IDS + 99}, ValueError, "No query has a relevant item in the gallery"),
        ({"query_embeds": unit_rows(12) * 3}, ValueError, "`query_embeds` must have unit norm, got 3 in row 0"),
    ],
)
def test_bad_input_names_the_culprit(changes, error, message):
    arguments = {"query_embeds": unit_rows(12), "gallery_embeds": unit_rows(12)}
    arguments |= {"query_group_ids": IDS, "gallery_group_ids": IDS} | changes
    with pytest.raises(error) as raised:
        score_queries(**arguments)
    assert message in str(raised.value)


def test_bands_and_queries_make_the_same_scores():
    queries, gallery, query_ids, gallery_ids = random_problem(seed=30)
    whole = score_queries(queries, gallery, query_ids, gallery_ids, **CUTOFFS)
    bands = rank_positives(queries, gallery, query_ids, gallery_ids, depth=None)
    scores = metrics.score_bands(bands, query_ids, len(gallery), **CUTOFFS)
    assert isinstance(scores, QueryScores)
    assert scores.as_dict() == whole.as_dict()


def test_docstring_examples_hold():
    assert doctest.testmod(metrics).failed == 0
