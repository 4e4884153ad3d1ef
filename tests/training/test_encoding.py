from functools import partial

import pytest
import torch

from datasets_scripts.loading import load_multifold
from modeling_mxmclr.folds_mxmclr import hash_instance_id
from tests.references.corpus import write_corpus
from tests.references.tiny import tiny_model, tiny_processor
from training.data import RawRows, caption_owners, named_splits
from training.embedding_store import EmbeddingStore, Origin
from training.encoding import encode_each, encode_rows, join_embeddings, stored_or_encoded
from training.frozen_text import FrozenTextFeatures, batch_by_length


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


def test_each_caption_is_encoded_once_and_short_ones_are_not_padded(rows):
    model, processor = tiny_model(), tiny_processor()
    owners = {"red": "a", "a tall green chair with legs": "b"} | {f"{word} table": "c" for word in ("red", "blue")}
    batches = list(batch_by_length(processor, sorted(owners)))
    assert batches == [["red", "blue table", "red table", "a tall green chair with legs"]]
    seen = []
    model.text_model.register_forward_pre_hook(
        lambda _, arguments, tokens: seen.append(tokens["input_ids"]), with_kwargs=True
    )
    shared = RawRows(rows.rows.with_format(None).map(lambda row: {"captions": [*row["captions"], "red"]}))
    encode_rows(model, processor, shared)
    assert sum(map(len, seen)) == len(caption_owners([shared])) < sum(shared.fold_sizes("captions"))


@pytest.mark.parametrize(("limit", "sizes"), [("BATCH_CAPTIONS", [2, 2, 1]), ("BATCH_TOKENS", [1, 1, 1, 1, 1])])
def test_batches_of_captions_are_bounded(limit, sizes, monkeypatch):
    monkeypatch.setattr(f"training.frozen_text.{limit}", 2)
    captions = ["red", "blue", "a chair", "green", "tall red table"]
    batches = list(batch_by_length(tiny_processor(), captions))
    assert list(map(len, batches)) == sizes
    assert sorted(caption for batch in batches for caption in batch) == sorted(captions)
    assert list(batch_by_length(tiny_processor(), [])) == []


def test_many_short_captions_are_kept_from_a_long_one():
    captions = [*["red"] * 60, "a tall green chair with legs"]
    assert [len(batch) for batch in batch_by_length(tiny_processor(), captions)] == [60, 1]


def test_rows_without_captions_have_embeddings_of_images_alone(rows):
    bare = RawRows(rows.rows.with_format(None).map(lambda row: {"captions": []}))
    embeddings = encode_rows(tiny_model(), tiny_processor(), bare)
    assert embeddings.text_embeds.shape == (0, 16)
    assert len(embeddings.image_embeds) == sum(rows.fold_sizes("images"))


def test_a_caption_without_tokens_is_named_with_its_instance():
    with pytest.raises(ValueError, match="' ' of instance 'mug' has none"):
        FrozenTextFeatures.encode(tiny_model(), tiny_processor(), {"red": "a", " ": "mug"})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoding") / "run"
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return str(folder)


def test_embeddings_are_made_once_and_then_read(rows, checkpoint, tmp_path, monkeypatch):
    plain = stored_or_encoded(checkpoint, rows, "train")
    first = stored_or_encoded(checkpoint, rows, "train", tmp_path / "kept")
    monkeypatch.setattr("training.encoding.load_checkpoint", None)
    second = stored_or_encoded(checkpoint, rows, "train", tmp_path / "kept")
    for found in (first, second):
        torch.testing.assert_close(found[:4], plain[:4], rtol=0, atol=0)
        assert found[4:] == plain[4:]


def test_other_weights_and_other_rows_are_kept_apart(rows, checkpoint, tmp_path):
    first = stored_or_encoded(checkpoint, rows, "train", tmp_path / "kept")
    tiny_model(seed=1).save_pretrained(tmp_path / "run")
    tiny_processor().save_pretrained(tmp_path / "run")
    other = stored_or_encoded(str(tmp_path / "run"), rows, "train", tmp_path / "kept")
    fewer = stored_or_encoded(checkpoint, RawRows(rows.rows.select(range(3))), "train", tmp_path / "kept")
    assert not torch.equal(other.text_embeds, first.text_embeds)
    assert len(fewer.instance_ids) == 3
    assert len(list((tmp_path / "kept").iterdir())) == 3


def test_a_stopped_encoding_goes_on(rows, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("training.encoding.Origin", partial(Origin, instances_per_shard=5))
    plain = EmbeddingStore.write

    def stops(store, number, embeddings):
        if number == 2:
            raise KeyboardInterrupt
        plain(store, number, embeddings)

    monkeypatch.setattr(EmbeddingStore, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        stored_or_encoded(checkpoint, rows, "train", tmp_path / "kept")
    (folder,) = (tmp_path / "kept").iterdir()
    first = folder / "embeddings-00000-of-00003.safetensors"
    written = first.stat().st_mtime_ns
    monkeypatch.setattr(EmbeddingStore, "write", plain)
    assert len(stored_or_encoded(checkpoint, rows, "train", tmp_path / "kept").instance_ids) == 12
    assert first.stat().st_mtime_ns == written


def test_the_model_is_as_it_was_where_encoding_stops_early(rows):
    model = tiny_model().train()
    parts = encode_each(model, tiny_processor(), rows, [[[0]], [[1]]])
    assert len(next(parts).instance_ids) == 1
    assert not model.training
    parts.close()
    assert model.training
