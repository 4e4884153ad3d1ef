import pytest
import torch

from datasets_scripts.loading import load_multifold
from modeling_mxmclr.folds_mxmclr import hash_instance_id
from tests.references.corpus import write_corpus
from tests.references.tiny import tiny_model, tiny_processor
from training.data import RawRows, caption_owners, named_splits
from training.encoding import encode_rows, join_embeddings
from training.frozen_text import FrozenTextFeatures


@pytest.fixture
def rows(tmp_path):
    loaded = load_multifold(str(write_corpus(tmp_path / "corpus")), cache_dir=tmp_path / "cache")
    return named_splits(loaded)["train"]


def test_every_observation_is_encoded_in_order_as_the_model_does_alone(rows):
    model, processor = tiny_model().train(), tiny_processor()
    embeddings = encode_rows(model, processor, rows)
    assert model.training
    model.eval()
    batch = processor(text=rows.column("captions"), instance_ids=rows.column("instance_id"))
    ids = batch.pop("text_group_ids")
    torch.testing.assert_close(embeddings.text_embeds, model.get_text_features(**batch), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(embeddings.text_group_ids, ids)
    assert embeddings.captions == [caption for fold in rows.column("captions") for caption in fold]
    assert len(embeddings.image_embeds) == sum(rows.fold_sizes("images"))
    assert embeddings.instance_ids == {hash_instance_id(name): name for name in rows.column("instance_id")}
    assert set(embeddings.categories.values()) == {"small", "large"}


def test_shares_of_ranks_join_to_the_whole(rows):
    model, processor = tiny_model(), tiny_processor()
    whole = encode_rows(model, processor, rows)
    halves = [RawRows(rows.rows.select(range(rank, len(rows), 2))) for rank in range(2)]
    joined = join_embeddings([encode_rows(model, processor, half) for half in halves])
    order, other = (embeddings.text_group_ids.sort(stable=True).indices for embeddings in (whole, joined))
    torch.testing.assert_close(joined.text_embeds[other], whole.text_embeds[order], rtol=1e-5, atol=1e-5)
    assert joined.instance_ids == whole.instance_ids


def test_frozen_features_give_the_embeddings_of_the_tower(rows):
    model, processor = tiny_model(), tiny_processor()
    frozen = FrozenTextFeatures.encode(model, processor, caption_owners([rows]))
    assert set(frozen.rows) == {caption for fold in rows.column("captions") for caption in fold}
    plain, cached = encode_rows(model, processor, rows), encode_rows(model, processor, rows, frozen_text=frozen)
    torch.testing.assert_close(cached.text_embeds, plain.text_embeds, rtol=1e-5, atol=1e-5)


def test_a_caption_without_tokens_is_named_with_its_instance():
    with pytest.raises(ValueError, match="' ' of instance 'mug' has none"):
        FrozenTextFeatures.encode(tiny_model(), tiny_processor(), {"red": "a", " ": "mug"})
