import doctest
import json
import math

import pytest
import torch
from torch import Tensor

from training import retrieval
from training.retrieval import (
    Embeddings,
    Protocol,
    format_table,
    nearest_instances,
    retrieval_report,
    sample_queries,
    table_rows,
)

NUM_INSTANCES, VIEWS, CAPTIONS = 12, 3, 2


def unit_rows(num_rows: int, seed: int) -> Tensor:
    rows = torch.randn(num_rows, 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def perturbed(rows: Tensor, noise: float, seed: int) -> Tensor:
    return torch.nn.functional.normalize(rows + noise * unit_rows(len(rows), seed), dim=1)


@pytest.fixture
def embeddings() -> Embeddings:
    """Twelve instances of three noisy views and two noisier captions each, in two categories."""
    ids = torch.arange(100, 100 + NUM_INSTANCES)
    centres = unit_rows(NUM_INSTANCES, seed=0)
    return Embeddings(
        perturbed(centres.repeat_interleave(VIEWS, dim=0), 0.3, seed=1),
        ids.repeat_interleave(VIEWS),
        perturbed(centres.repeat_interleave(CAPTIONS, dim=0), 1.0, seed=2),
        ids.repeat_interleave(CAPTIONS),
        [f"caption {row}" for row in range(NUM_INSTANCES * CAPTIONS)],
        {group_id: f"shape-{group_id}" for group_id in ids.tolist()},
        {group_id: "chair" if group_id % 2 else "table" for group_id in ids.tolist()},
    )


def scores_by_loops(embeddings: Embeddings) -> dict[str, list[int]]:
    """Rank of the best positive of each query, from a matrix of pooled instances by captions, in float64."""
    pooled = embeddings.image_embeds.double().reshape(NUM_INSTANCES, VIEWS, -1).mean(dim=1)
    matrix = embeddings.text_embeds.double() @ (pooled / pooled.norm(dim=1, keepdim=True)).T
    from_text = [
        1 + sum(float(other) > float(row[text // CAPTIONS]) for other in row) for text, row in enumerate(matrix)
    ]
    from_instance = []
    for instance, column in enumerate(matrix.T):
        best = max(column[instance * CAPTIONS : (instance + 1) * CAPTIONS])
        from_instance.append(1 + sum(float(other) > float(best) for other in column))
    return {"text_to_instance": from_text, "instance_to_text": from_instance}


def test_report_is_that_of_loops_over_pooled_instances(embeddings):
    report = retrieval_report(embeddings)
    for direction, ranks in scores_by_loops(embeddings).items():
        scores = report[direction]
        for k in (1, 5, 10):
            assert scores[f"rr@{k}"] == pytest.approx(sum(rank <= k for rank in ranks) / len(ranks))
        assert scores["mrr"] == pytest.approx(sum(1 / rank for rank in ranks) / len(ranks))
        assert scores["mean_rank"] == pytest.approx(sum(ranks) / len(ranks))
        assert scores["queries"] == len(ranks)
    assert report["text_to_instance"]["chance_rr@1"] == pytest.approx(1 / NUM_INSTANCES)
    assert report["instance_to_text"]["chance_rr@1"] == pytest.approx(1 / NUM_INSTANCES)
    pairs = torch.tensor(scores_by_loops(embeddings)["text_to_instance"]).double().reshape(-1, CAPTIONS)
    assert report["text_to_instance"]["rank_spread"] == pytest.approx(pairs.std(dim=1, correction=0).mean().item())
    assert "rank_spread" not in report["instance_to_text"]


def test_report_is_json_and_names_its_protocol(embeddings):
    report = retrieval_report(embeddings)
    protocol = json.loads(json.dumps(report, allow_nan=False))["protocol"]
    assert protocol["name"] == "multifold/instance"
    assert {"gallery_unit", "pooling", "hit_rule", "ties", "identical_captions", "hit_ks"} <= protocol.keys()
    counts = {name: report[name] for name in ("num_instances", "num_images", "num_captions", "identical_captions")}
    assert counts == {"num_instances": 12, "num_images": 36, "num_captions": 24, "identical_captions": 0}


def test_order_of_observations_does_not_matter(embeddings):
    images = torch.randperm(NUM_INSTANCES * VIEWS, generator=torch.Generator().manual_seed(3))
    texts = torch.randperm(NUM_INSTANCES * CAPTIONS, generator=torch.Generator().manual_seed(4))
    shuffled = embeddings._replace(
        image_embeds=embeddings.image_embeds[images],
        image_group_ids=embeddings.image_group_ids[images],
        text_embeds=embeddings.text_embeds[texts],
        text_group_ids=embeddings.text_group_ids[texts],
        captions=[embeddings.captions[row] for row in texts],
    )
    expected, report = retrieval_report(embeddings), retrieval_report(shuffled)
    for direction in retrieval.DIRECTIONS:
        assert report[direction]["ci95"] == {
            name: pytest.approx(interval) for name, interval in expected[direction]["ci95"].items()
        }
        assert report[direction]["mrr"] == pytest.approx(expected[direction]["mrr"])


def test_categories_are_parts_of_the_whole(embeddings):
    scores = retrieval_report(embeddings)["text_to_instance"]
    parts = scores["per_category"]
    assert list(parts) == ["chair", "table"]
    total = sum(part["rr@1"] * part["queries"] for part in parts.values())
    assert total / scores["queries"] == pytest.approx(scores["rr@1"])
    assert retrieval_report(embeddings._replace(categories={}))["text_to_instance"]["per_category"] == {}


def test_intervals_hold_the_mean(embeddings):
    for direction in retrieval.DIRECTIONS:
        scores = retrieval_report(embeddings)[direction]
        assert scores["ci95"].keys() == {"rr@1", "rr@5", "rr@10", "ndcg@5", "mrr", "mean_rank"}
        for name, (low, high) in scores["ci95"].items():
            assert low <= scores[name] <= high


def test_one_sided_instances_are_left_out_as_queries_and_kept_as_gallery(embeddings):
    without_first_images = embeddings._replace(
        image_embeds=embeddings.image_embeds[VIEWS:], image_group_ids=embeddings.image_group_ids[VIEWS:]
    )
    report = retrieval_report(without_first_images)
    assert report["num_instances"] == NUM_INSTANCES
    assert report["text_to_instance"]["queries_left_out"] == CAPTIONS
    assert report["instance_to_text"]["queries"] == NUM_INSTANCES - 1
    without_first_captions = embeddings._replace(
        text_embeds=embeddings.text_embeds[CAPTIONS:],
        text_group_ids=embeddings.text_group_ids[CAPTIONS:],
        captions=embeddings.captions[CAPTIONS:],
    )
    report = retrieval_report(without_first_captions)
    assert report["text_to_instance"]["chance_rr@1"] == pytest.approx(1 / NUM_INSTANCES)
    assert report["instance_to_text"]["queries_left_out"] == 1


def test_captions_shared_by_instances_are_counted_within_an_instance_not(embeddings):
    captions = ["within", "within", "across", *embeddings.captions[3:-1], "across"]
    assert retrieval_report(embeddings._replace(captions=captions))["identical_captions"] == 2


def test_cutoffs_beyond_the_gallery_are_left_out(embeddings):
    report = retrieval_report(embeddings, Protocol(hit_ks=(1, 20), ndcg_ks=(5, 20), resamples=10))
    assert "rr@20" not in report["text_to_instance"]
    assert "ndcg@20" not in report["text_to_instance"]
    assert "rr@20" in report["instance_to_text"]
    assert "RR@20" in table_rows(report)[0]


def test_half_precision_embeddings_are_pooled_and_scored_in_float32(embeddings):
    half = embeddings._replace(
        image_embeds=embeddings.image_embeds.bfloat16(), text_embeds=embeddings.text_embeds.bfloat16()
    )
    back = half._replace(image_embeds=half.image_embeds.float(), text_embeds=half.text_embeds.float())
    assert retrieval_report(half) == retrieval_report(back)


def test_neighbours_come_nearest_first_and_hits_are_of_the_captions_instance(embeddings):
    ranks = scores_by_loops(embeddings)["text_to_instance"]
    rows = [0, 7, 23]
    for row, neighbours in zip(rows, nearest_instances(embeddings, rows, k=NUM_INSTANCES + 3), strict=True):
        scores = [neighbour.score for neighbour in neighbours]
        assert scores == sorted(scores, reverse=True)
        assert [neighbour.is_hit for neighbour in neighbours].index(True) == ranks[row] - 1
        assert neighbours[ranks[row] - 1].instance_id == f"shape-{100 + row // CAPTIONS}"
        assert len(neighbours) == NUM_INSTANCES


def test_sampled_queries_show_different_instances_of_the_gallery(embeddings):
    without_first_images = embeddings._replace(
        image_embeds=embeddings.image_embeds[VIEWS:], image_group_ids=embeddings.image_group_ids[VIEWS:]
    )
    rows = sample_queries(without_first_images, count=50)
    assert sorted(row // CAPTIONS for row in rows) == list(range(1, NUM_INSTANCES))
    assert sample_queries(embeddings, 4) == sample_queries(embeddings, 4) != sample_queries(embeddings, 4, seed=1)


def test_table_shows_percent_in_columns_of_one_width(embeddings):
    report = retrieval_report(embeddings)
    lines = format_table(report).splitlines()
    scores = report["text_to_instance"]
    assert lines[3].startswith("text → instance")
    assert f"{100 * scores['rr@1']:.1f}" in lines[3]
    assert math.isclose(float(lines[5].split()[-1]), 100 / NUM_INSTANCES, abs_tol=0.05)
    assert len({len(line) for line in lines[2:] if "%" not in line and "chance" not in line}) == 1


def test_captions_that_do_not_match_rows_are_an_error(embeddings):
    with pytest.raises(ValueError, match="`captions` has 3 entries for 24 `text_embeds`"):
        retrieval_report(embeddings._replace(captions=["a", "b", "c"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_embeds": torch.zeros(0, 16)}, "`image_embeds` must be .* with at least one row"),
        ({"image_embeds": 2 * unit_rows(36, seed=0)}, "`image_embeds` must have unit norm, got 2 in row 0"),
        ({"image_group_ids": torch.arange(5)}, "`image_group_ids` has shape .* for 36 embeddings"),
        ({"text_embeds": unit_rows(24, seed=0) * torch.nan}, "`text_embeds` must be finite, got NaN"),
        ({"text_group_ids": torch.arange(24)}, "No query has a relevant item in the gallery"),
    ],
)
def test_embeddings_that_do_not_fit_are_named(embeddings, changes, message):
    with pytest.raises(ValueError, match=message):
        retrieval_report(embeddings._replace(**changes))


def test_docstring_examples_hold():
    assert doctest.testmod(retrieval).failed == 0
