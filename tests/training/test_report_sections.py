import pytest
import torch

from tests.references.evaluations import evaluation_of, plain_rows, rows_of
from training import report_sections
from training.compare import compare
from training.exhibits import Curator
from training.multifold_retrieval.ranking import TIE
from training.report_sections import (
    ambiguous_captions,
    best_of_sets,
    changed_instances,
    looked_at,
    notes_of,
    random_exhibits,
    recall_curve,
    sample_of,
    sampling_note,
    score_items,
    similarities,
    worst_exhibits,
)


@pytest.fixture(scope="module")
def evaluation():
    return evaluation_of(plain_rows(), noise=1.2)


@pytest.fixture(scope="module")
def curator(evaluation):
    return Curator(evaluation)


VAGUE = {"a": ["chair", "red chair"], "b": ["a red chair", "chair"], "c": ["tall red chair"], "d": ["table"]}


@pytest.mark.parametrize("direction", ["text_to_instance", "instance_to_text"])
def test_the_recall_curve_is_the_share_of_ranks_within_k(evaluation, direction):
    curve = recall_curve(evaluation.searches[direction], evaluation)
    ranks = evaluation.scores[direction].values["rank"]
    for k, recall, low, high, chance in zip(*curve, strict=True):
        assert recall == pytest.approx((ranks <= k).double().mean().item())
        assert low <= recall + TIE
        assert high >= recall - TIE
        assert 0 < chance <= 1
    assert curve.recall[-1] == 1


def test_a_captions_chance_grows_with_k(evaluation):
    curve = recall_curve(evaluation.searches["text_to_instance"], evaluation)
    assert curve.chance == pytest.approx([k / 12 for k in curve.ks])


@pytest.mark.parametrize("protocol", ["multifold/instance", "multifold/max_sim"])
@pytest.mark.parametrize("direction", ["text_to_instance", "instance_to_text"])
def test_similarities_are_split_by_relevance(protocol, direction):
    evaluation = evaluation_of(plain_rows(), protocol=protocol)
    search = evaluation.searches[direction]
    scores = score_items(search, torch.arange(len(search.queries.group_ids)))
    positive = search.queries.group_ids[:, None] == search.gallery.group_ids
    found = similarities(search)
    torch.testing.assert_close(found.positives.sort().values, scores[positive].sort().values)
    torch.testing.assert_close(found.negatives.sort().values, scores[~positive].sort().values)
    torch.testing.assert_close(found.hardest, scores.masked_fill(positive, -2).amax(dim=1))


def test_the_best_row_of_a_set_is_its_score():
    scores = torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, 5.0]])
    assert best_of_sets(scores, torch.tensor([0, 0, 1])).tolist() == [[3.0, 2.0], [0.0, 5.0]]
    assert best_of_sets(scores, None) is scores


def test_no_more_queries_are_looked_at_than_said(evaluation, monkeypatch):
    assert sampling_note(evaluation) == ""
    assert looked_at(evaluation.searches["text_to_instance"]).tolist() == list(range(18))
    monkeypatch.setattr(report_sections, "LOOKED_AT", 5)
    assert len(looked_at(evaluation.searches["text_to_instance"])) == 5
    assert sampling_note(evaluation) == " From 5 queries drawn at random."
    assert len(similarities(evaluation.searches["text_to_instance"]).hardest) == 5


def test_random_queries_are_of_different_instances(evaluation, curator):
    for direction in evaluation.searches:
        names = [each.query.name for each in random_exhibits(evaluation, curator, direction)]
        assert len(names) == len(set(names)) == report_sections.NUM_EXHIBITS


def test_the_worst_queries_come_latest_first(evaluation, curator):
    for direction, scores in evaluation.scores.items():
        ranks = [each.rank for each in worst_exhibits(evaluation, curator, direction)]
        assert ranks == sorted(ranks, reverse=True)
        assert ranks[0] == scores.values["rank"].max()
        assert min(ranks) > 1


def test_a_perfect_model_has_no_failures():
    perfect = evaluation_of(plain_rows(), noise=0.0)
    for direction in perfect.searches:
        assert worst_exhibits(perfect, Curator(perfect), direction) == []


def test_ambiguous_captions_are_found_by_text_and_by_words():
    evaluation = evaluation_of(rows_of(VAGUE))
    found = ambiguous_captions(evaluation, Curator(evaluation))
    assert (found.num_shared, found.num_captions, found.num_fitting) == (2, 6, 3)
    assert [(each.text, each.num_instances) for each in found.shared] == [("chair", 2)]
    assert [owner.name for owner in found.shared[0].owners] == ["a", "b"]
    assert [(each.query.texts, count) for each, count in found.vague] == [(["chair"], 2)]


def test_captions_that_the_protocol_drops_are_not_shown_as_queries():
    evaluation = evaluation_of(rows_of(VAGUE), identical_captions="drop_shared")
    found = ambiguous_captions(evaluation, Curator(evaluation))
    assert [(each.query.texts, count) for each, count in found.vague] == [(["red chair"], 2)]


def test_shared_captions_are_remarked_on():
    assert notes_of(evaluation_of(rows_of(VAGUE))) == {"chair": "2 instances have this very text"}


def test_the_map_shows_observations_of_the_sample(evaluation):
    sample = sample_of(evaluation)
    assert len(sample.image_embeds) == 24
    assert len(sample.text_embeds) == 18


def test_changed_instances_are_shown_with_their_queries(evaluation, curator):
    other = evaluation_of(plain_rows(), noise=1.2, seed=5, checkpoint="runs/other")
    comparison = compare(evaluation, other)
    changes = changed_instances(comparison, evaluation, curator, "text_to_instance")
    for what, listed in changes.items():
        assert [each.item.name for each in listed] == [
            change["instance_id"] for change in comparison["text_to_instance"][what]
        ]
        assert all(each.item.pictures for each in listed)
    words, before, after = changes["better"][0].queries[0]
    row = evaluation.embeddings.captions.index(words)
    assert before == evaluation.scores["text_to_instance"].values["rank"][row]
    assert after == other.scores["text_to_instance"].values["rank"][row]
