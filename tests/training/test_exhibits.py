import pytest
import torch

from tests.references.evaluations import evaluation_of, plain_rows, rows_of
from training.exhibits import LONGEST_TEXT, Curator, rows_of_items, shortened, spread_out, top_items
from training.protocol import load_protocol
from training.searches import searches
from training.zero_shot import ClassEmbeddings


@pytest.fixture(scope="module")
def evaluation():
    return evaluation_of(plain_rows())


@pytest.mark.parametrize("protocol", ["multifold/instance", "multifold/observation", "multifold/max_sim"])
def test_exhibits_show_what_the_whole_matrix_ranks_first(protocol):
    evaluation = evaluation_of(plain_rows(), protocol=protocol)
    curator = Curator(evaluation)
    for direction, search in evaluation.searches.items():
        scores = [
            [
                max(
                    float(search.queries.embeds[q] @ search.gallery.embeds[g])
                    for q in rows_of_item(search.queries, query)
                    for g in rows_of_item(search.gallery, item)
                )
                for item in range(len(search.gallery.group_ids))
            ]
            for query in range(3)
        ]
        for query, exhibit in enumerate(curator.exhibits(direction, [0, 1, 2], k=4)):
            assert [answer.score for answer in exhibit.answers] == pytest.approx(
                sorted(scores[query], reverse=True)[:4], abs=1e-5
            )
            owner = evaluation.embeddings.instance_ids[int(search.query_instances[query])]
            assert [answer.is_hit for answer in exhibit.answers] == [
                answer.item.name == owner for answer in exhibit.answers
            ]
            assert {item.name for item in exhibit.relevant} == {owner}
            assert exhibit.query.name == owner


def rows_of_item(side, item: int) -> list[int]:
    return [item] if side.sets is None else (side.sets == item).nonzero()[:, 0].tolist()


def test_exhibits_have_the_rank_that_was_scored(evaluation):
    scores = evaluation.scores["text_to_instance"]
    items = scores.query_rows[[3, 0]].tolist()
    exhibits = Curator(evaluation).exhibits("text_to_instance", items, k=99)
    assert [each.rank for each in exhibits] == scores.values["rank"][[3, 0]].tolist()
    hits = [[answer.is_hit for answer in each.answers].index(True) + 1 for each in exhibits]
    assert hits == [each.rank for each in exhibits]


def test_captions_show_words_and_instances_show_pictures(evaluation):
    curator = Curator(evaluation)
    from_text, from_instance = (
        curator.exhibits(direction, [0], k=2)[0] for direction in ("text_to_instance", "instance_to_text")
    )
    assert from_text.query.texts == [evaluation.embeddings.captions[0]]
    assert from_text.query.pictures == []
    assert from_text.category == "shape"
    assert len(from_text.answers[0].item.pictures) == 1
    assert len(from_instance.query.pictures) == 2
    assert from_instance.answers[0].item.texts


def test_fused_captions_are_shown_together():
    evaluation = evaluation_of(rows_of({"a": ["one", "two"], "b": ["three"]}), captions_per_query=None)
    texts = {tuple(each.query.texts) for each in Curator(evaluation).exhibits("text_to_instance", [0, 1], k=1)}
    assert texts == {("one", "two"), ("three",)}


def test_classes_show_their_names():
    rows = plain_rows(4)
    evaluation = evaluation_of(rows)
    classes = ClassEmbeddings(["shape", "other"], torch.eye(16)[:2])
    found = searches(evaluation.embeddings, load_protocol("zero-shot"), classes)
    curator = Curator(evaluation)
    curator.class_names = classes.names
    assert curator.item(found["instance_to_class"].gallery, 1).texts == ["other"]


def test_a_gallery_smaller_than_k_is_shown_whole(evaluation):
    search = evaluation.searches["text_to_instance"]
    assert top_items(search, [0], 99).rows.shape == (1, 12)


def test_rows_of_chosen_items_are_numbered_anew():
    evaluation = evaluation_of(plain_rows(4), protocol="multifold/max_sim")
    side = evaluation.searches["instance_to_text"].queries
    embeds, sets = rows_of_items(side, [2, 0])
    torch.testing.assert_close(embeds, side.embeds[[4, 5, 0, 1]])
    assert sets.tolist() == [0, 0, 1, 1]


def test_views_are_spread_over_the_fold():
    assert spread_out([5, 6], 4) == [5, 6]
    assert spread_out(range(100), 3) == [0, 33, 66]
    assert spread_out([1, 2], 0) == []


def test_long_texts_are_cut():
    assert shortened("x" * 9999) == "x" * LONGEST_TEXT + "…"
    assert shortened("short") == "short"
