import json

import numpy as np
import pytest
import torch

from modeling_mxmclr.folds_mxmclr import unit_norm
from training.budget_curves import BudgetSettings, budget_curves, draw_places
from training.retrieval import retrieval_report
from training.searches import Embeddings

QUICK = BudgetSettings(views=(1, 2), captions=(1, 2), draws=2, resamples=20)


def observed(view_folds, caption_folds, dim=6, noise=0.8, seed=0):
    """Unit vectors around a centre an instance, in a random order of the rows; ids are neither dense nor ascending."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(view_folds), dim, generator=generator)
    ids = torch.randperm(10 * len(view_folds), generator=generator)[: len(view_folds)] + 2**40
    sides = []
    for folds in (view_folds, caption_folds):
        rows = torch.arange(len(folds)).repeat_interleave(torch.tensor(folds))
        rows = rows[torch.randperm(len(rows), generator=generator)]
        spread = torch.randn(len(rows), dim, generator=generator)
        sides += [unit_norm(centres[rows] + noise * dim**0.5 * spread / spread.norm(dim=1, keepdim=True)), ids[rows]]
    names = {int(group_id): f"chair-{place}" for place, group_id in enumerate(ids)}
    return Embeddings(*sides, [f"caption {row}" for row in range(len(sides[3]))], names, {})


RAGGED = observed([3, 1, 4, 2, 0, 3, 2], [2, 3, 1, 4, 2, 0, 2])


def pooled(rows, pooling):
    if pooling == "attention":
        mean = rows.mean(axis=0)
        weights = np.exp(rows @ (mean / np.linalg.norm(mean)))
        rows = rows * weights[:, None]
    total = rows.sum(axis=0)
    return total / np.linalg.norm(total)


def score(query, fold, pooling):
    """A query of several captions against the views of an instance."""
    if pooling != "max_sim":
        return pooled(query, pooling) @ pooled(fold, pooling)
    return np.mean([max(caption @ view for view in fold) for caption in query])


def looped(queries, gallery, pooling):
    """RR@1, RR@5 and MRR of `(group id, captions)` against `{group id: views}`, without ties."""
    values = []
    for group_id, captions in queries:
        if group_id in gallery:
            scores = {other: score(captions, fold, pooling) for other, fold in gallery.items()}
            rank = 1 + sum(value > scores[group_id] for value in scores.values())
            values.append((rank == 1, rank <= 5, 1 / rank))
    return np.mean(values, axis=0)


def folds_of(embeds, group_ids, places, budget):
    """By group id, the rows with a place below the budget."""
    kept = {}
    for row in range(len(embeds)):
        if places[row] < budget:
            kept.setdefault(int(group_ids[row]), []).append(embeds[row].double().numpy())
    return {group_id: np.array(rows) for group_id, rows in kept.items()}


@pytest.mark.parametrize("pooling", ["mean", "max_sim", "attention"])
def test_curves_are_the_definition_as_loops(pooling):
    images, image_ids, texts, text_ids, *_ = RAGGED
    report = budget_curves(RAGGED, BudgetSettings((1, 2, 3), (1, 3), (pooling,), draws=2, resamples=20, seed=5))
    captions = [(int(each), text[None].double().numpy()) for each, text in zip(text_ids, texts, strict=True)]
    for point in report["views"]["curves"][pooling]:
        draws = [
            looped(captions, folds_of(images, image_ids, draw_places(image_ids, 5, draw), point["kept"]), pooling)
            for draw in (0, 1)
        ]
        np.testing.assert_allclose([point[name] for name in ("rr@1", "rr@5", "mrr")], np.mean(draws, axis=0))
    gallery = folds_of(images, image_ids, torch.zeros(len(images)), 1)
    for point in report["captions"]["curves"][pooling]:
        draws = [
            looped(folds_of(texts, text_ids, draw_places(text_ids, 5, draw), point["kept"]).items(), gallery, pooling)
            for draw in (0, 1)
        ]
        np.testing.assert_allclose([point[name] for name in ("rr@1", "rr@5", "mrr")], np.mean(draws, axis=0))


def test_budgets_are_cut_at_the_largest_fold_and_end_with_all():
    report = budget_curves(RAGGED, BudgetSettings((8, 2, 12), (1, 4), draws=1, resamples=5))
    assert [point["kept"] for point in report["views"]["curves"]["mean"]] == [2, 4]
    assert [point["kept"] for point in report["captions"]["curves"]["mean"]] == [1, 4]
    assert (report["views"]["smallest_fold"], report["views"]["largest_fold"]) == (1, 4)
    assert [point["mean_kept"] for point in report["views"]["curves"]["mean"]] == [11 / 6, 15 / 6]


def test_all_views_give_the_score_of_the_protocol():
    expected = retrieval_report(RAGGED)["text_to_instance"]
    point = budget_curves(RAGGED, QUICK)["views"]["curves"]["mean"][-1]
    assert point["rr@1"] == pytest.approx(expected["rr@1"])
    assert point["mrr"] == pytest.approx(expected["mrr"])
    assert point["of_all"] == {"rr@1": 1, "rr@5": 1, "mrr": 1}
    assert point["gain_of_all"]["mrr"] == {"difference": 0, "ci95": [0, 0]}


def test_poolings_agree_where_folds_hold_one_observation():
    report = budget_curves(observed([1] * 9, [1] * 9), QUICK)
    for kind in ("views", "captions"):
        assert (
            report[kind]["curves"]["mean"] == report[kind]["curves"]["max_sim"] == report[kind]["curves"]["attention"]
        )
        assert all(gains["rr@1"]["difference"] == 0 for gains in report[kind]["poolings"].values())


@pytest.mark.parametrize("pooling", ["mean", "max_sim", "attention"])
def test_more_observations_help_where_their_noise_is_independent(pooling):
    embeddings = observed([8] * 150, [5] * 150, dim=24, noise=1.6)
    report = budget_curves(embeddings, BudgetSettings((1, 2, 4), (1, 2, 3), (pooling,), draws=3, resamples=200))
    for kind in ("views", "captions"):
        *fewer, whole = report[kind]["curves"][pooling]
        recall = [point["rr@1"] for point in (*fewer, whole)]
        assert recall == sorted(recall)
        assert recall[-1] > 1.2 * recall[0]
        for point in fewer:
            low, high = point["ci95"]["rr@1"]
            assert low < point["rr@1"] < high
            assert point["of_all"]["rr@1"] == pytest.approx(point["rr@1"] / whole["rr@1"])
            assert point["gain_of_all"]["rr@1"]["difference"] == pytest.approx(whole["rr@1"] - point["rr@1"])


def test_the_order_of_observations_does_not_matter_where_all_are_kept():
    shuffled = RAGGED._replace(
        image_embeds=RAGGED.image_embeds.flip(0), image_group_ids=RAGGED.image_group_ids.flip(0),
        text_embeds=RAGGED.text_embeds.flip(0), text_group_ids=RAGGED.text_group_ids.flip(0),
    )  # fmt: skip
    found, expected = (budget_curves(each, QUICK) for each in (shuffled, RAGGED))
    for kind in ("views", "captions"):
        for pooling, curve in expected[kind]["curves"].items():
            assert found[kind]["curves"][pooling][-1]["mrr"] == pytest.approx(curve[-1]["mrr"])


def test_the_same_seed_gives_the_same_report_and_json_keeps_it():
    report = budget_curves(RAGGED, QUICK)
    assert json.dumps(budget_curves(RAGGED, QUICK)) == json.dumps(report)
    other = budget_curves(RAGGED, BudgetSettings((1, 2), (1, 2), draws=3, resamples=20, seed=7))
    assert other["views"]["curves"]["mean"][0] != report["views"]["curves"]["mean"][0]


def test_a_draw_keeps_what_a_fold_has_and_more_of_the_same():
    group_ids = torch.tensor([7, 8, 7, 9, 7, 8])
    for seed in range(10):
        places = draw_places(group_ids, seed, 0)
        for group_id, size in ((7, 3), (8, 2), (9, 1)):
            assert sorted(places[group_ids == group_id].tolist()) == list(range(size))


def test_every_observation_of_a_fold_is_as_likely_to_be_kept():
    group_ids = torch.tensor([7, 8, 7, 7, 8, 7])
    first = torch.stack([draw_places(group_ids, seed, 0) == 0 for seed in range(2000)]).double().mean(dim=0)
    expected = torch.where(group_ids == 7, 1 / 4, 1 / 2).double()
    torch.testing.assert_close(first, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": (0, 2)}, "`views` must be at least 1, got 0"),
        ({"captions": (-1,)}, "`captions` must be at least 1, got -1"),
        ({"poolings": ("max",)}, r"`poolings` must be some of \['mean', 'max_sim', 'attention'\], got \['max'\]"),
        ({"poolings": ()}, r"`poolings` must be some of .*, got \[\]"),
        ({"draws": 0}, "`draws` must be at least 1, got 0"),
        ({"resamples": 0}, "`resamples` must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BudgetSettings(**settings)


def test_embeddings_without_a_pair_are_refused():
    apart = RAGGED._replace(text_group_ids=RAGGED.text_group_ids + 1000)
    with pytest.raises(ValueError, match="No query has a relevant item"):
        budget_curves(apart, QUICK)
    with pytest.raises(ValueError, match="`image_embeds` must be finite"):
        budget_curves(RAGGED._replace(image_embeds=RAGGED.image_embeds * torch.nan), QUICK)
