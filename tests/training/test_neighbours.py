import pytest
import torch

from tests.references.noisy_embeddings import CAPTIONS, NUM_INSTANCES, VIEWS, noisy_embeddings, select_rows
from training.neighbours import nearest_instances, sample_queries


@pytest.fixture
def embeddings():
    return noisy_embeddings()


def test_neighbours_come_nearest_first_and_hits_are_of_the_captions_instance(embeddings):
    pooled = embeddings.image_embeds.double().reshape(NUM_INSTANCES, VIEWS, -1).mean(dim=1)
    scores = embeddings.text_embeds.double() @ (pooled / pooled.norm(dim=1, keepdim=True)).T
    rows = [0, 7, 23]
    for row, neighbours in zip(rows, nearest_instances(embeddings, rows, k=NUM_INSTANCES + 3), strict=True):
        expected = scores[row].argsort(descending=True).tolist()
        assert [neighbour.instance_id for neighbour in neighbours] == [f"shape-{100 + item}" for item in expected]
        assert [neighbour.is_hit for neighbour in neighbours] == [item == row // CAPTIONS for item in expected]
        assert [neighbour.score for neighbour in neighbours] == pytest.approx(scores[row][expected].tolist(), abs=1e-6)


def test_sampled_queries_show_different_instances_of_the_gallery(embeddings):
    images = torch.arange(VIEWS, NUM_INSTANCES * VIEWS)
    without_first_images = select_rows(embeddings, images, torch.arange(NUM_INSTANCES * CAPTIONS))
    rows = sample_queries(without_first_images, count=50)
    assert sorted(row // CAPTIONS for row in rows) == list(range(1, NUM_INSTANCES))
    assert sample_queries(embeddings, 4) == sample_queries(embeddings, 4) != sample_queries(embeddings, 4, seed=1)
