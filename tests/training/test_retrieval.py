import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.references.noisy_embeddings import (
    CAPTIONS,
    NUM_INSTANCES,
    VIEWS,
    noisy_embeddings,
    select_rows,
    shuffled,
    unit_rows,
)
from training.protocol import load_protocol, protocol_names
from training.retrieval import gallery_hash, retrieval_report, score_search
from training.searches import ClassEmbeddings, Embeddings, searches

INSTANCE = load_protocol("multifold/instance")
RETRIEVAL = [name for name in protocol_names() if name != "zero-shot"]
EVERY_IMAGE, EVERY_TEXT = torch.arange(NUM_INSTANCES * VIEWS), torch.arange(NUM_INSTANCES * CAPTIONS)
BOTH = ("text_to_instance", "instance_to_text")


@pytest.fixture
def embeddings():
    return noisy_embeddings()


def cosines(queries, gallery):
    """In float64, of unit vectors."""
    return (queries.double() @ gallery.double().T).tolist()


def pooled(embeddings):
    means = embeddings.image_embeds.double().reshape(NUM_INSTANCES, VIEWS, -1).mean(dim=1)
    return means / means.norm(dim=1, keepdim=True)


def best_rank(scores, relevant):
    best = max(scores[item] for item in relevant)
    return 1 + sum(score > best for score in scores)


def captions_of(instance):
    return range(instance * CAPTIONS, (instance + 1) * CAPTIONS)


def views_of(instance):
    return range(instance * VIEWS, (instance + 1) * VIEWS)


def ranks_by_loops(embeddings, protocol):
    """Rank of the best positive of each query by direction, from whole matrices and one query at a time."""
    if protocol == "multifold/observation":
        matrix = cosines(embeddings.text_embeds, embeddings.image_embeds)
        columns = list(zip(*matrix, strict=True))
        return {
            "text_to_instance": [best_rank(row, views_of(text // CAPTIONS)) for text, row in enumerate(matrix)],
            "instance_to_text": [best_rank(column, captions_of(i // VIEWS)) for i, column in enumerate(columns)],
        }
    if protocol == "multifold/max_sim":
        views = cosines(embeddings.text_embeds, embeddings.image_embeds)
        matrix = [[max(row[view] for view in views_of(item)) for item in range(NUM_INSTANCES)] for row in views]
    else:
        matrix = cosines(embeddings.text_embeds, pooled(embeddings))
    columns = list(zip(*matrix, strict=True))
    return {
        "text_to_instance": [best_rank(row, [text // CAPTIONS]) for text, row in enumerate(matrix)],
        "instance_to_text": [best_rank(column, captions_of(i)) for i, column in enumerate(columns)],
    }


@pytest.mark.parametrize("name", ["multifold/instance", "multifold/observation", "multifold/max_sim"])
def test_report_is_that_of_loops(embeddings, name):
    report = retrieval_report(embeddings, load_protocol(name))
    for direction, ranks in ranks_by_loops(embeddings, name).items():
        scores = report[direction]
        for k in (1, 5, 10):
            assert scores[f"rr@{k}"] == pytest.approx(sum(rank <= k for rank in ranks) / len(ranks))
        assert scores["mrr"] == pytest.approx(sum(1 / rank for rank in ranks) / len(ranks))
        assert scores["mean_rank"] == pytest.approx(sum(ranks) / len(ranks))
        assert scores["queries"] == len(ranks)


def test_rank_spread_is_the_deviation_within_an_instance_where_observations_search(embeddings):
    report = retrieval_report(embeddings)
    pairs = torch.tensor(ranks_by_loops(embeddings, "multifold/instance")["text_to_instance"]).double()
    spread = pairs.reshape(-1, CAPTIONS).std(dim=1, correction=0).mean().item()
    assert report["text_to_instance"]["rank_spread"] == pytest.approx(spread)
    assert "rank_spread" not in report["instance_to_text"]
    assert "rank_spread" in retrieval_report(embeddings, load_protocol("multifold/observation"))["instance_to_text"]
    fused = retrieval_report(embeddings, replace(INSTANCE, captions_per_query=None))
    assert "rank_spread" not in fused["text_to_instance"]


def tricolo_by_loops(embeddings):
    """RR@1, RR@5, NDCG@5 and MRR of every caption, sorted by score as the authors do."""
    sums = dict.fromkeys(("rr@1", "rr@5", "ndcg@5", "mrr"), 0.0)
    for text, scores in enumerate(cosines(embeddings.text_embeds, pooled(embeddings))):
        order = sorted(range(NUM_INSTANCES), key=lambda item: -scores[item])
        relevant = [int(item == text // CAPTIONS) for item in order]
        gains = [(2**rel - 1) / torch.tensor(place + 2.0).log2().item() for place, rel in enumerate(relevant[:5])]
        ideal = sum((2**1 - 1) / torch.tensor(place + 2.0).log2().item() for place in range(min(sum(relevant), 5)))
        sums["rr@1"] += any(relevant[:1])
        sums["rr@5"] += any(relevant[:5])
        sums["ndcg@5"] += sum(gains) / ideal
        sums["mrr"] += 1 / (relevant.index(1) + 1)
    return {name: total / len(embeddings.captions) for name, total in sums.items()}


def test_tricolo_is_the_published_definition(embeddings):
    report = retrieval_report(embeddings, load_protocol("text2shape/tricolo"))
    expected = tricolo_by_loops(embeddings)
    assert 0.1 < expected["rr@1"] < expected["ndcg@5"] < expected["rr@5"] < 1
    assert {name: report["text_to_instance"][name] for name in expected} == pytest.approx(expected)
    assert "instance_to_text" not in report


def test_parts2words_counts_every_caption_of_a_shape_in_its_ndcg(embeddings):
    scores = list(zip(*cosines(embeddings.text_embeds, pooled(embeddings)), strict=True))
    total = 0.0
    for instance, row in enumerate(scores):
        order = sorted(range(len(row)), key=lambda text: -row[text])
        discounts = [1 / torch.tensor(place + 2.0).log2().item() for place in range(5)]
        gained = sum(discounts[place] for place in range(5) if order[place] in captions_of(instance))
        total += gained / sum(discounts[: min(CAPTIONS, 5)])
    report = retrieval_report(embeddings, load_protocol("text2shape/parts2words"))
    assert report["instance_to_text"]["ndcg@5"] == pytest.approx(total / NUM_INSTANCES)


def photos(num_captions=6):
    """Eight photos, one view and six captions each, of which Karpathy's protocol takes the first five."""
    ids = torch.arange(8)
    images = unit_rows(8, seed=5)
    texts = torch.nn.functional.normalize(
        images.repeat_interleave(num_captions, dim=0) + 1.3 * unit_rows(8 * num_captions, 6), dim=1
    )
    captions = [f"caption {row}" for row in range(8 * num_captions)]
    return Embeddings(images, ids, texts, ids.repeat_interleave(num_captions), captions, {}, {})


def test_karpathy_is_the_published_definition_on_the_first_five_captions():
    embeddings, five = photos(), [6 * image + caption for image in range(8) for caption in range(5)]
    images, texts = embeddings.image_embeds.double(), embeddings.text_embeds[five].double()
    to_text, to_image = [], []
    for image in range(8):
        order = (images[image] @ texts.T).argsort(descending=True).tolist()
        to_text.append(min(order.index(caption) for caption in range(5 * image, 5 * image + 5)))
        for caption in range(5 * image, 5 * image + 5):
            to_image.append((texts[caption] @ images.T).argsort(descending=True).tolist().index(image))
    report = retrieval_report(embeddings, replace(load_protocol("flickr30k/karpathy-1k"), hit_ks=(1, 5)))
    for direction, ranks in (("instance_to_text", to_text), ("text_to_instance", to_image)):
        for k in (1, 5):
            expected = sum(rank < k for rank in ranks) / len(ranks)
            assert report[direction][f"rr@{k}"] == pytest.approx(expected)
        assert report[direction]["mean_rank"] == pytest.approx(sum(ranks) / len(ranks) + 1)
    assert report["num_captions"] == 48
    assert report["num_captions_used"] == 40


def test_a_worked_example_by_protocol():
    # Instance 7 has views straight ahead and to the side, so that its mean is at 45 degrees; 8 has one at 53 degrees. The
    # caption of 7 is straight ahead: 0.71 and 0.6 pooled, 1 and 0.6 by best view. That of 8 is to the side: 0.71 and 0.8
    # pooled, where 8 is first; but the side view of 7 scores 1, so that 8 is second wherever views count alone.
    views = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    worked = Embeddings(
        views, torch.tensor([7, 7, 8]), texts, torch.tensor([7, 8]), ["a front", "a side"], {7: "a", 8: "b"}, {}
    )
    ranks = {}
    for name in ("multifold/instance", "multifold/observation", "multifold/max_sim"):
        protocol = load_protocol(name)
        ranks[name] = score_search(searches(worked, protocol)["text_to_instance"], protocol).values["rank"]
    assert {name: rank.tolist() for name, rank in ranks.items()} == {
        "multifold/instance": [1, 1],
        "multifold/observation": [1, 2],
        "multifold/max_sim": [1, 2],
    }


@pytest.mark.parametrize("name", protocol_names())
def test_order_of_observations_and_gallery_does_not_matter(embeddings, name):
    protocol = replace(load_protocol(name), captions_per_instance=None)  # the first five are a matter of order
    classes = ClassEmbeddings(["chair", "table"], unit_rows(2, seed=9))
    expected, report = (retrieval_report(each, protocol, classes) for each in (embeddings, shuffled(embeddings)))
    for direction in protocol.directions:
        numbers = {name: value for name, value in expected[direction].items() if isinstance(value, int | float)}
        assert {name: report[direction][name] for name in numbers} == pytest.approx(numbers)
        for metric, interval in expected[direction]["ci95"].items():
            assert report[direction]["ci95"][metric] == pytest.approx(interval)
    assert report["gallery_hash"] == expected["gallery_hash"]


@pytest.mark.parametrize("name", RETRIEVAL)
def test_one_view_and_one_caption_an_instance_make_all_protocols_one(embeddings, name):
    single = select_rows(embeddings, EVERY_IMAGE[::VIEWS], EVERY_TEXT[::CAPTIONS])
    protocol = load_protocol(name)
    reference = retrieval_report(single)
    report = retrieval_report(single, protocol)
    for direction in protocol.directions:
        shared = [
            metric for metric in ("rr@1", "rr@5", "ndcg@5", "mrr", "mean_rank", "map") if metric in report[direction]
        ]
        assert {metric: report[direction][metric] for metric in shared} == pytest.approx(
            {metric: reference[direction][metric] for metric in shared}
        )


@pytest.mark.parametrize("name", RETRIEVAL)
def test_a_collapsed_model_scores_chance(embeddings, name):
    collapsed = embeddings._replace(
        image_embeds=torch.eye(16)[:1].expand(len(EVERY_IMAGE), 16),
        text_embeds=torch.eye(16)[:1].expand(len(EVERY_TEXT), 16),
    )
    report = retrieval_report(collapsed, load_protocol(name))
    for direction in load_protocol(name).directions:
        scores = report[direction]
        chances = {metric: scores[metric.removeprefix("chance_")] for metric in scores if metric.startswith("chance_")}
        assert chances == pytest.approx({metric: scores[metric] for metric in chances})
        assert scores["rr@1"] == pytest.approx(1 / NUM_INSTANCES)


def test_fused_captions_are_the_mean_of_their_scores(embeddings):
    matrix = torch.tensor(cosines(embeddings.text_embeds, pooled(embeddings)))
    ranks = [
        best_rank(matrix[instance * CAPTIONS : (instance + 1) * CAPTIONS].mean(dim=0).tolist(), [instance])
        for instance in range(NUM_INSTANCES)
    ]
    report = retrieval_report(embeddings, replace(INSTANCE, captions_per_query=None))
    assert report["text_to_instance"]["mean_rank"] == pytest.approx(sum(ranks) / NUM_INSTANCES)
    assert report["text_to_instance"]["queries"] == NUM_INSTANCES


def test_report_is_json_and_names_its_protocol(embeddings):
    report = json.loads(json.dumps(retrieval_report(embeddings), allow_nan=False))
    assert (report["protocol"]["name"], report["protocol"]["hash"]) == ("multifold/instance", INSTANCE.hash)
    counts = {name: report[name] for name in ("num_instances", "num_images", "num_captions", "identical_captions")}
    assert counts == {"num_instances": 12, "num_images": 36, "num_captions": 24, "identical_captions": 0}
    assert report["warnings"] == []
    assert {"modality_gap", "alignment", "uniformity_image", "hubness_text_to_instance"} <= report["geometry"].keys()


def test_the_page_defines_every_number(embeddings):
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    report = retrieval_report(embeddings)
    names = {re.sub(r"@\d+", "@k", name) for name in [*report["text_to_instance"], *report["geometry"]]}
    assert {"rr@k", "recall@k", "precision@k", "ndcg@k", "map", "rank_spread", "modality_gap"} <= names
    undefined = [name for name in names if not name.startswith("chance_") and f"`{name}`" not in page]
    assert undefined == []


def test_recall_is_the_share_where_rr_is_any_hit(embeddings):
    scores = retrieval_report(embeddings)["instance_to_text"]
    assert scores["recall@5"] < scores["rr@5"]
    assert scores["precision@5"] == pytest.approx(scores["recall@5"] * CAPTIONS / 5)
    assert {"map", "r_precision", "recall@10"} <= scores.keys()


def test_categories_are_parts_of_the_whole(embeddings):
    scores = retrieval_report(embeddings)["text_to_instance"]
    parts = scores["per_category"]
    assert list(parts) == ["chair", "table"]
    total = sum(part["rr@1"] * part["queries"] for part in parts.values())
    assert total / scores["queries"] == pytest.approx(scores["rr@1"])
    assert retrieval_report(embeddings._replace(categories={}))["text_to_instance"]["per_category"] == {}


def test_intervals_hold_the_mean(embeddings):
    report = retrieval_report(embeddings)
    for direction in BOTH:
        scores = report[direction]
        assert {"rr@1", "recall@5", "precision@5", "ndcg@5", "mrr", "map", "mean_rank"} <= scores["ci95"].keys()
        for name, (low, high) in scores["ci95"].items():
            assert low <= scores[name] <= high


@pytest.mark.parametrize("name", ["multifold/instance", "multifold/observation", "multifold/max_sim"])
def test_one_sided_instances_are_left_out_as_queries_and_kept_as_gallery(embeddings, name):
    views = VIEWS if name == "multifold/observation" else 1
    report = retrieval_report(select_rows(embeddings, EVERY_IMAGE[VIEWS:], EVERY_TEXT), load_protocol(name))
    assert report["num_instances"] == NUM_INSTANCES
    assert report["text_to_instance"]["queries_left_out"] == CAPTIONS
    assert report["instance_to_text"]["queries"] == (NUM_INSTANCES - 1) * views
    report = retrieval_report(select_rows(embeddings, EVERY_IMAGE, EVERY_TEXT[CAPTIONS:]), load_protocol(name))
    assert report["text_to_instance"]["chance_rr@1"] == pytest.approx(1 / NUM_INSTANCES)
    assert report["instance_to_text"]["queries_left_out"] == views


def test_captions_shared_by_instances_are_counted_within_an_instance_not(embeddings):
    captions = ["within", "within", "across", *embeddings.captions[3:-1], "across"]
    assert retrieval_report(embeddings._replace(captions=captions))["identical_captions"] == 2


def test_duplicates_leave_the_queries_and_the_gallery(embeddings):
    captions = ["within", "within", "across", *embeddings.captions[3:-1], "across"]
    doubled = embeddings._replace(captions=captions)
    for rule, dropped in (("keep", []), ("drop_repeats", [1]), ("drop_shared", [1, 2, 23])):
        report = retrieval_report(doubled, replace(INSTANCE, identical_captions=rule))
        rest = [row for row in EVERY_TEXT.tolist() if row not in dropped]
        expected = retrieval_report(select_rows(doubled, EVERY_IMAGE, torch.tensor(rest)))
        assert report["num_captions_used"] == len(rest)
        assert [report[direction] for direction in BOTH] == [expected[direction] for direction in BOTH]


def test_cutoffs_beyond_the_gallery_are_left_out_and_said(embeddings):
    report = retrieval_report(embeddings, replace(INSTANCE, hit_ks=(1, 20), ndcg_ks=(5, 20), resamples=10))
    assert "rr@20" not in report["text_to_instance"]
    assert "ndcg@20" not in report["text_to_instance"]
    assert "rr@20" in report["instance_to_text"]
    assert report["warnings"] == ["Cut-offs [20] of text_to_instance are left out: its gallery has 12 items."]


def test_another_test_set_than_the_protocols_is_said(embeddings):
    protocol = load_protocol("text2shape/tricolo")
    assert retrieval_report(embeddings, protocol)["warnings"] == [
        "This is no split of 'text2shape/tricolo', which has validation (1,486 instances, 7,424 captions) and test "
        "(1,492 instances), but 12 instances, 36 images, 24 captions."
    ]
    fitting = replace(protocol, expected_sizes={"test": {"num_instances": 12}, "validation": {"num_instances": 5}})
    assert retrieval_report(embeddings, fitting)["warnings"] == []


def test_the_gallery_is_known_by_instances_views_captions_and_classes(embeddings):
    known = gallery_hash(embeddings)
    assert gallery_hash(embeddings._replace(image_embeds=unit_rows(36, seed=8))) == known
    assert gallery_hash(select_rows(embeddings, EVERY_IMAGE[1:], EVERY_TEXT)) != known
    assert gallery_hash(embeddings._replace(captions=[*embeddings.captions[1:], "other"])) != known
    assert gallery_hash(embeddings._replace(image_group_ids=embeddings.image_group_ids + 1)) != known
    assert gallery_hash(embeddings, ClassEmbeddings(["chair"], torch.eye(16)[:1])) != known


def test_half_precision_embeddings_are_pooled_and_scored_in_float32(embeddings):
    half = embeddings._replace(
        image_embeds=embeddings.image_embeds.bfloat16(), text_embeds=embeddings.text_embeds.bfloat16()
    )
    back = half._replace(image_embeds=half.image_embeds.float(), text_embeds=half.text_embeds.float())
    for name in RETRIEVAL:
        ours, theirs = (retrieval_report(each, load_protocol(name)) for each in (half, back))
        for direction in load_protocol(name).directions:
            assert ours[direction] == theirs[direction]


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
