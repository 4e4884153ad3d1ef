from dataclasses import replace

import pytest
import torch

from tests.references.noisy_embeddings import NUM_INSTANCES, VIEWS, noisy_embeddings, unit_rows
from tests.references.tiny import tiny_model, tiny_processor
from training.protocol import load_protocol
from training.retrieval import retrieval_report
from training.searches import ClassEmbeddings
from training.zero_shot import category_names, class_prompts, embed_classes

ZERO_SHOT = load_protocol("zero-shot")


@pytest.fixture(scope="module")
def embeddings():
    return noisy_embeddings()


def test_class_embeddings_are_the_unit_norm_mean_over_templates():
    model, processor = tiny_model(), tiny_processor()
    templates, names = ["{}", "a {}", "a tall {}"], ["chair", "table"]
    classes = embed_classes(model, processor, names, templates)
    assert classes.names == names
    for name, embed in zip(names, classes.embeds, strict=True):
        prompts = [template.replace("{}", name) for template in templates]
        one_by_one = [model.eval().get_text_features(**tokens(processor, prompt))[0] for prompt in prompts]
        mean = torch.stack(one_by_one).mean(dim=0)
        torch.testing.assert_close(embed, (mean / mean.norm()).detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(embed_classes(model, processor, names, templates[::-1]).embeds, classes.embeds)


def tokens(processor, prompt):
    batch = processor(text=[[prompt]])
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def test_the_model_keeps_its_mode():
    model = tiny_model().train()
    embed_classes(model, tiny_processor(), ["chair"], ["{}"])
    assert model.training


def test_top_k_accuracy_is_that_of_loops(embeddings):
    names = ["chair", "table", "sofa"]
    classes = ClassEmbeddings(names, unit_rows(3, seed=9))
    scores = embeddings.image_embeds.double() @ classes.embeds.double().T
    labels = [embeddings.categories[group_id] for group_id in embeddings.image_group_ids.tolist()]
    hits = [names[int(row.argmax())] == label for row, label in zip(scores, labels, strict=True)]
    report = retrieval_report(embeddings, replace(ZERO_SHOT, hit_ks=(1, 2)), classes)
    by_view = report["image_to_class"]
    assert by_view["rr@1"] == pytest.approx(sum(hits) / len(hits))
    twos = [
        label in [names[item] for item in row.argsort(descending=True)[:2]]
        for row, label in zip(scores, labels, strict=True)
    ]
    assert by_view["rr@2"] == pytest.approx(sum(twos) / len(twos))
    chairs = [hit for hit, label in zip(hits, labels, strict=True) if label == "chair"]
    assert by_view["per_category"]["chair"]["rr@1"] == pytest.approx(sum(chairs) / len(chairs))
    assert list(by_view["per_category"]) == ["chair", "table"]
    assert by_view["chance_rr@1"] == pytest.approx(1 / 3)
    assert by_view["queries"] == NUM_INSTANCES * VIEWS
    assert report["instance_to_class"]["queries"] == NUM_INSTANCES
    assert report["warnings"] == []


def test_views_of_other_classes_are_left_out_and_counted(embeddings):
    classes = ClassEmbeddings(["chair"], unit_rows(1, seed=9))
    report = retrieval_report(embeddings, ZERO_SHOT, classes)
    assert report["image_to_class"]["queries_left_out"] == VIEWS * NUM_INSTANCES // 2
    assert report["image_to_class"]["rr@1"] == 1


def test_classes_need_no_captions(embeddings):
    silent = embeddings._replace(
        text_embeds=embeddings.text_embeds[:0], text_group_ids=embeddings.text_group_ids[:0], captions=[]
    )
    classes = ClassEmbeddings(["chair", "table"], unit_rows(2, seed=9))
    report = retrieval_report(silent, ZERO_SHOT, classes)
    assert (
        report["image_to_class"]["rr@1"] == retrieval_report(embeddings, ZERO_SHOT, classes)["image_to_class"]["rr@1"]
    )
    assert report["num_captions"] == 0
    with pytest.raises(ValueError, match=r"`text_embeds` must be .* with at least one row"):
        retrieval_report(silent)


def test_names_come_from_the_categories(embeddings):
    assert category_names(embeddings) == ["chair", "table"]
    with pytest.raises(ValueError, match="No instance has a `category`"):
        category_names(embeddings._replace(categories={}))


def test_names_may_hold_braces():
    assert class_prompts(["{}"], ["a {}"]) == [["a {}"]]


@pytest.mark.parametrize("names", [[], ["chair", "chair"], ["chair", ""]])
def test_names_that_tell_no_classes_apart_are_refused(names):
    with pytest.raises(ValueError, match="`names` must be different texts"):
        embed_classes(tiny_model(), tiny_processor(), names, ["{}"])


def test_templates_are_needed():
    with pytest.raises(ValueError, match="`templates` must hold at least one text"):
        embed_classes(tiny_model(), tiny_processor(), ["chair"], [])
