from dataclasses import replace

import pytest
import torch

from tests.references.noisy_embeddings import CAPTIONS, FIRST_ID, NUM_INSTANCES, VIEWS, noisy_embeddings, shuffled
from training.protocol import load_protocol
from training.searches import ClassEmbeddings, kept_captions, places_in_folds, searches

INSTANCE = load_protocol("multifold/instance")


@pytest.fixture
def embeddings():
    return noisy_embeddings()


def test_sides_name_the_observations_that_each_item_shows(embeddings):
    mixed = shuffled(embeddings)
    for name in ("multifold/instance", "multifold/observation", "multifold/max_sim"):
        for search in searches(mixed, replace(load_protocol(name), captions_per_query=None)).values():
            for side in (search.queries, search.gallery):
                owners = mixed.image_group_ids if side.unit in ("image", "instance") else mixed.text_group_ids
                assert sorted(side.rows.tolist()) == list(range(len(owners)))
                for item, group_id in enumerate(side.group_ids.tolist()):
                    assert set(owners[side.rows_of(item)].tolist()) == {group_id}


def test_max_sim_keeps_every_view_in_the_set_of_its_instance(embeddings):
    mixed = shuffled(embeddings)
    gallery = searches(mixed, load_protocol("multifold/max_sim"))["text_to_instance"].gallery
    assert gallery.sets.tolist() == sorted(gallery.sets.tolist())
    assert len(gallery.embeds) == NUM_INSTANCES * VIEWS
    torch.testing.assert_close(gallery.embeds, mixed.image_embeds[gallery.rows])
    assert gallery.group_ids[gallery.sets].tolist() == mixed.image_group_ids[gallery.rows].tolist()


@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
def test_poolings_are_those_of_the_model_as_loops(embeddings, pooling):
    gallery = searches(embeddings, replace(INSTANCE, pooling=pooling))["text_to_instance"].gallery
    for item in range(NUM_INSTANCES):
        views = embeddings.image_embeds[item * VIEWS : (item + 1) * VIEWS].double()
        mean = views.mean(dim=0)
        weights = (views @ (mean / mean.norm())).softmax(dim=0)
        pooled = {"mean": mean, "max": views.max(dim=0).values, "attention": weights @ views}[pooling]
        torch.testing.assert_close(gallery.embeds[item].double(), pooled / pooled.norm(), atol=1e-6, rtol=0)


def test_captions_fuse_into_the_unit_norm_mean_of_consecutive_ones(embeddings):
    wide = embeddings._replace(text_group_ids=torch.tensor([101] * 5 + [103] * 19))
    queries = searches(wide, replace(INSTANCE, captions_per_query=3))["text_to_instance"].queries
    assert queries.group_ids.tolist() == [101] * 2 + [103] * 7
    assert [queries.rows_of(item) for item in (0, 1, 2, 8)] == [[0, 1, 2], [3, 4], [5, 6, 7], [23]]
    mean = wide.text_embeds[3:5].mean(dim=0)
    torch.testing.assert_close(queries.embeds[1], mean / mean.norm())


def test_fused_queries_search_but_single_captions_are_searched(embeddings):
    found = searches(embeddings, replace(INSTANCE, captions_per_query=None))
    assert len(found["text_to_instance"].queries.group_ids) == NUM_INSTANCES
    assert len(found["instance_to_text"].gallery.group_ids) == NUM_INSTANCES * CAPTIONS


def test_directions_come_in_the_order_of_the_protocol(embeddings):
    assert list(searches(embeddings, replace(INSTANCE, directions=("instance_to_text",)))) == ["instance_to_text"]


def test_places_count_within_each_fold_whatever_lies_between():
    group_ids = torch.tensor([5, 3, 5, 5, 3, 9])
    seen: dict[int, int] = {}
    expected = []
    for group_id in group_ids.tolist():
        expected.append(seen.get(group_id, 0))
        seen[group_id] = expected[-1] + 1
    assert places_in_folds(group_ids).tolist() == expected
    assert places_in_folds(group_ids[:0]).tolist() == []


def test_duplicates_are_dropped_before_captions_are_counted(embeddings):
    ids = torch.tensor([101] * 12 + [103] * 12)
    captions = ["a", "a", "b", "c", *"defghijk", "a", "m", "m", "n", *"opqrstuv"]
    doubled = embeddings._replace(captions=captions, text_group_ids=ids)

    def texts(**changes):
        return [captions[row] for row in kept_captions(doubled, replace(INSTANCE, **changes))]

    assert texts() == captions
    assert texts(identical_captions="drop_repeats", captions_per_instance=3) == ["a", "b", "c", "a", "m", "n"]
    assert texts(identical_captions="drop_shared", captions_per_instance=3) == ["b", "c", "d", "m", "n", "o"]
    assert texts(captions_per_instance=3) == ["a", "a", "b", "a", "m", "m"]


def test_captions_that_are_all_shared_leave_nothing_to_search(embeddings):
    same = embeddings._replace(captions=["a chair"] * len(embeddings.captions))
    with pytest.raises(ValueError, match="`identical_captions: drop_shared` leaves no caption"):
        searches(same, replace(INSTANCE, identical_captions="drop_shared"))


def test_class_searches_relate_views_and_instances_to_their_category(embeddings):
    classes = ClassEmbeddings(["table", "chair"], torch.eye(16)[:2])
    found = searches(embeddings._replace(categories={101: "chair", 102: "sofa"}), load_protocol("zero-shot"), classes)
    of_instance = found["instance_to_class"]
    assert of_instance.query_instances.tolist() == list(range(FIRST_ID, FIRST_ID + NUM_INSTANCES))
    assert of_instance.queries.group_ids.tolist() == [-1, 1] + [-1] * 10
    assert found["image_to_class"].queries.group_ids.tolist()[:6] == [-1] * 3 + [1] * 3
    assert of_instance.gallery.group_ids.tolist() == [0, 1]


def test_class_searches_need_classes(embeddings):
    with pytest.raises(ValueError, match="`classes` is needed for 'zero-shot'"):
        searches(embeddings, load_protocol("zero-shot"))
