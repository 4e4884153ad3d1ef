import pytest
import torch
from safetensors.torch import save_file

from modeling_mxmclr.folds_mxmclr import hash_instance_id
from tests.references.evaluations import embeddings_of, plain_rows, rows_of
from tests.references.tiny import tiny_model, tiny_processor
from training import initial_embeddings
from training.encoding import encode_rows
from training.initial_embeddings import (
    FILE,
    encode_sample,
    load_initial_embeddings,
    sample_group_ids,
    save_initial_embeddings,
)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_a_sample_holds_what_the_model_makes_of_its_rows(model, tmp_path):
    rows = plain_rows(5)
    sample = encode_sample(model, tiny_processor(), rows)
    whole = encode_rows(model, tiny_processor(), rows)
    torch.testing.assert_close(sample.image_embeds, whole.image_embeds)
    torch.testing.assert_close(sample.text_embeds, whole.text_embeds)
    save_initial_embeddings(sample, tmp_path)
    loaded = load_initial_embeddings(tmp_path, whole.image_group_ids)
    assert torch.equal(loaded.text_group_ids, whole.text_group_ids)
    assert torch.equal(loaded.image_group_ids, whole.image_group_ids)
    torch.testing.assert_close(loaded.image_embeds, whole.image_embeds, atol=1e-3, rtol=0)


def test_a_sample_is_of_bounded_size_and_the_same_for_embeddings(model, monkeypatch):
    monkeypatch.setattr(initial_embeddings, "SAMPLE_SIZE", 3)
    rows = plain_rows(8)
    sample = encode_sample(model, tiny_processor(), rows)
    whole = embeddings_of(rows, noise=0.5)
    chosen = sample_group_ids(whole.image_group_ids, whole.text_group_ids)
    assert set(sample.image_group_ids.tolist()) == set(chosen.tolist())
    assert len(chosen) == 3


def test_one_sided_instances_are_in_no_sample(model):
    rows = rows_of({"both": ["a red chair"], "silent": []})
    assert set(encode_sample(model, tiny_processor(), rows).image_group_ids.tolist()) == {hash_instance_id("both")}
    assert encode_sample(model, tiny_processor(), rows_of({"silent": []})) is None


def test_without_a_sample_there_is_no_file(tmp_path):
    save_initial_embeddings(None, tmp_path)
    assert load_initial_embeddings(tmp_path, torch.tensor([1])) is None


def test_a_sample_of_other_instances_is_not_taken(model, tmp_path):
    save_initial_embeddings(encode_sample(model, tiny_processor(), plain_rows(3)), tmp_path)
    assert load_initial_embeddings(tmp_path, torch.tensor([1, 2, 3])) is None


def test_another_file_of_that_name_is_an_error(tmp_path):
    save_file({"weights": torch.ones(2)}, tmp_path / FILE)
    with pytest.raises(ValueError, match=r"must hold \['image_embeds'.*got \['weights'\]; delete it"):
        load_initial_embeddings(tmp_path, torch.tensor([1]))
