import pytest
import torch

from datasets_scripts.loading import load_multifold
from modeling_mxmclr.folds_mxmclr import pool_by_instance, unit_norm
from tests.references.corpus import write_corpus
from tests.references.noisy_embeddings import noisy_embeddings
from tests.references.tiny import tiny_model, tiny_processor
from training.arguments import parse_arguments
from training.data import named_splits
from training.encoding import encode_rows
from training.models import freeze_first_layers
from training.report import describe_plan, draw_queries, find_failures, flat_scores, relations_per_observation
from training.retrieval import retrieval_report


@pytest.fixture
def splits(tmp_path):
    return named_splits(load_multifold(str(write_corpus(tmp_path / "corpus")), cache_dir=tmp_path / "cache"))


def test_failures_are_the_captions_that_find_their_own_instance_last():
    embeddings = noisy_embeddings()
    failures = find_failures(embeddings, count=3)
    instances, ids = pool_by_instance(embeddings.image_embeds, embeddings.image_group_ids)
    scores = embeddings.text_embeds @ unit_norm(instances).T
    own = scores.gather(1, torch.searchsorted(ids, embeddings.text_group_ids)[:, None])
    ranks = 1 + (scores > own).sum(dim=1)
    worst: dict[str, int] = {}
    for group_id, rank in zip(embeddings.text_group_ids.tolist(), ranks.tolist(), strict=True):
        name = embeddings.instance_ids[group_id]
        worst[name] = max(rank, worst.get(name, 0))
    assert [failure["rank"] for failure in failures] == sorted(worst.values(), reverse=True)[:3]
    for failure in failures:
        assert worst[failure["instance_id"]] == failure["rank"]
        row = embeddings.captions.index(failure["query"])
        assert failure["first"] == embeddings.instance_ids[int(ids[scores[row].argmax()])]


def test_relations_are_counted_by_instance():
    relations = relations_per_observation(torch.tensor([1, 1, 2]), torch.tensor([1, 2, 2, 3]))
    assert relations == pytest.approx(
        {
            "positives_per_image": 4 / 3,
            "negatives_per_image": 8 / 3,
            "positives_per_text": 1.0,
            "negatives_per_text": 2.0,
        }
    )
    assert relations_per_observation(torch.tensor([1]), torch.tensor([], dtype=torch.int64))["positives_per_text"] == 0


def test_the_plan_says_what_a_step_holds(splits):
    model = tiny_model("bert", "resnet")
    freeze_first_layers(model.text_model, "all")
    towers = ["--text_model=a", "--vision_model=b"]
    arguments = parse_arguments(["--dataset=corpus", "--instances_per_step=6", "--max_steps=20", *towers], "")
    plan = describe_plan(arguments, splits, model, 2, None)
    # Folds of 1, 2, 3 views and of 1, 2 captions in turn: two views drawn are 5/3 of them, all captions are 3/2.
    assert "instances 12 train, 4 validation, 4 test" in plan
    assert "6 instances, about 10 images and 9 captions" in plan
    assert "about 1.5 positives and 8 negatives among the captions" in plan
    assert "BertModel 0.0 M (frozen) + ResNetModel" in plan
    assert "20, 10.0 epochs" in plan


def test_queries_of_the_picture_show_their_own_instance_and_its_rivals(splits):
    rows = splits["train"]
    embeddings = encode_rows(tiny_model(), tiny_processor(), rows)
    queries = draw_queries(embeddings, rows, count=3, k=4)
    captions = {caption for fold in rows.column("captions") for caption in fold}
    assert len(queries) == 3
    for query in queries:
        assert query.caption in captions
        scores = [result.score for result in query.results]
        assert scores == sorted(scores, reverse=True)
        assert sum(result.is_hit for result in query.results) <= 1


def test_scores_have_one_level_of_names(splits):
    scores = flat_scores(retrieval_report(encode_rows(tiny_model(), tiny_processor(), splits["train"])))
    assert scores["text_to_instance_rr@1"] <= scores["text_to_instance_rr@5"]
    assert all(isinstance(value, int | float) for value in scores.values())
