import os

import pytest
import safetensors.numpy
import torch

from modeling_mxmclr.folds_mxmclr import hash_instance_id, unit_norm
from training.embedding_store import EmbeddingStore, Origin, iterate_shards, load_embeddings, read_manifest
from training.searches import Embeddings

ORIGIN = Origin("sha256:1", "f00d", "test", num_instances=7, instances_per_shard=3, checkpoint="runs/a")


def embeddings_of(rows, dim=4, seed=0):
    """Seven instances have 1, 2, 3, 1, 0, 3, 1 views and 0, 1, 2, 0, 1, 2, 0 captions."""
    ids = {hash_instance_id(f"é-{row}"): f"é-{row}" for row in rows}
    images = [group_id for row, group_id in zip(rows, ids, strict=True) for _ in range(0 if row == 4 else 1 + row % 3)]
    texts = [group_id for row, group_id in zip(rows, ids, strict=True) for _ in range(row % 3)]
    generator = torch.Generator().manual_seed(seed + rows[0])
    return Embeddings(
        unit_norm(torch.randn(len(images), dim, generator=generator)),
        torch.tensor(images, dtype=torch.int64),
        unit_norm(torch.randn(len(texts), dim, generator=generator)),
        torch.tensor(texts, dtype=torch.int64),
        [f"a “chair” {place}" for place in range(len(texts))],
        ids,
        dict.fromkeys(list(ids)[:1], "chair"),
    )


def fill(folder, numbers=None, origin=ORIGIN, rank=0, num_ranks=1):
    store = EmbeddingStore(folder, origin)
    store.open()
    for number in store.missing(rank, num_ranks) if numbers is None else numbers:
        store.write(number, embeddings_of(store.instances(number)))
    return store


def finished(folder, origin=ORIGIN):
    fill(folder, origin=origin).finish()
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_equal(found, expected):
    torch.testing.assert_close(found[:4], expected[:4], rtol=0, atol=0)
    assert found[4:] == expected[4:]


def test_what_is_stored_comes_back_in_order(tmp_path):
    folder = finished(tmp_path / "a")
    parts = [embeddings_of(range(0, 3)), embeddings_of(range(3, 6)), embeddings_of(range(6, 7))]
    for found, expected in zip(iterate_shards(folder), parts, strict=True):
        assert_equal(found, expected)
    whole = load_embeddings(folder)
    torch.testing.assert_close(whole.image_embeds, torch.cat([part.image_embeds for part in parts]), rtol=0, atol=0)
    assert whole.captions == [caption for part in parts for caption in part.captions]
    assert list(whole.instance_ids.values()) == [f"é-{row}" for row in range(7)]
    assert set(whole.categories.values()) == {"chair"}


def test_the_manifest_says_what_the_embeddings_are_of(tmp_path):
    manifest = read_manifest(finished(tmp_path / "a"))
    counts = {"num_instances": 7, "num_images": 11, "num_captions": 6, "dim": 4, "dtype": "float32"}
    origin = {"revision": "sha256:1", "fingerprint": "f00d", "split": "test", "checkpoint": "runs/a"}
    assert {name: manifest[name] for name in counts | origin} == counts | origin
    assert manifest["versions"]["torch"] == torch.__version__


def test_tensors_are_mapped_from_disk_and_read_by_numpy(tmp_path):
    folder = finished(tmp_path / "a", Origin("sha256:1", "f00d", "test", num_instances=7))
    whole = load_embeddings(folder)
    path = folder / "embeddings-00000-of-00001.safetensors"
    with open("/proc/self/maps") as maps:
        spans = [line.split()[0].split("-") for line in maps if line.rstrip().endswith(path.name)]
    places = [tensor.data_ptr() for tensor in (whole.image_embeds, whole.text_embeds)]
    assert all(any(int(start, 16) <= place < int(end, 16) for start, end in spans) for place in places)
    plain = safetensors.numpy.load_file(path)
    assert plain["image_embeds"].dtype == "float32"
    assert plain["image_group_ids"].dtype == "int64"


def test_half_precision_halves_the_embeddings(tmp_path):
    origin = Origin("sha256:1", "f00d", "test", num_instances=7, dtype="float16")
    found, expected = load_embeddings(finished(tmp_path / "a", origin)), embeddings_of(range(7))
    assert found.text_embeds.dtype == torch.float16
    torch.testing.assert_close(found.image_embeds.float(), expected.image_embeds, rtol=1e-3, atol=1e-3)


def test_any_number_of_ranks_gives_the_same_bytes(tmp_path):
    one = finished(tmp_path / "one")
    fill(tmp_path / "two", rank=1, num_ranks=2)
    fill(tmp_path / "two", rank=0, num_ranks=2).finish()
    fill(tmp_path / "mixed", [2])
    fill(tmp_path / "mixed", rank=0, num_ranks=2)
    finished(tmp_path / "mixed")
    assert contents(one) == contents(tmp_path / "two") == contents(tmp_path / "mixed")


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_death_at_any_write_costs_no_more_than_a_shard(tmp_path, monkeypatch, call):
    expected, at = contents(finished(tmp_path / "whole")), 0
    owner, name = (os, "fsync") if call == "fsync" else (type(tmp_path), "replace")
    plain = getattr(owner, name)
    while True:
        folder, calls = tmp_path / f"dies-at-{at}", iter(range(at))

        def dying(*arguments, calls=calls):
            if next(calls, None) is None:
                raise Killed
            return plain(*arguments)

        monkeypatch.setattr(owner, name, dying)
        try:
            fill(folder).finish()
            return monkeypatch.undo()
        except Killed:
            monkeypatch.setattr(owner, name, plain)
        if (folder / "manifest.json").exists():
            written = len(list(folder.glob("receipt-*.json")))
            done = read_manifest(folder)["complete"]
            assert len(EmbeddingStore(folder, ORIGIN).missing()) == (0 if done else 3 - written)
        assert contents(finished(folder)) == expected
        at += 1


@pytest.mark.parametrize("name", ["embeddings-00001-of-00003.safetensors", "instances-00001-of-00003.parquet"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_shard_is_found_and_made_again(tmp_path, name, damage):
    folder = finished(tmp_path / "a")
    expected, path = contents(folder), folder / name
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[:-1])
    if damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        with pytest.raises(ValueError, match=f"{name}` is missing or was cut, {len(content)} bytes"):
            load_embeddings(folder)
    assert EmbeddingStore(folder, ORIGIN).missing() == [1]
    assert contents(finished(folder)) == expected


def test_an_unfinished_folder_is_not_loaded(tmp_path):
    store = fill(tmp_path / "a", [0, 2])
    with pytest.raises(ValueError, match="is not finished; repeat the command"):
        load_embeddings(store.folder)
    with pytest.raises(ValueError, match="lacks 1 shards"):
        store.finish()
    (store.folder / "receipt-00000-of-00003.json").write_text('{"num_ins')
    assert store.missing() == [0, 1]


@pytest.mark.parametrize(
    "other",
    [
        {"revision": "sha256:2"},
        {"fingerprint": "beef"},
        {"split": "train"},
        {"instances_per_shard": 4},
        {"dtype": "float16"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_origin_is_refused_with_what_differs(tmp_path, other):
    folder = finished(tmp_path / "a")
    fields = {**ORIGIN.identity, **other}
    ((name, value),) = other.items()
    message = f"{name} {ORIGIN.identity[name]!r} there and {value!r} now. Name another folder, or delete this one"
    with pytest.raises(ValueError, match=message):
        EmbeddingStore(folder, Origin(**fields)).open()
    assert Origin(**fields).digest != ORIGIN.digest


def test_a_moved_checkpoint_is_the_same_origin(tmp_path):
    moved = Origin(**ORIGIN.identity, checkpoint="elsewhere/b")
    assert (moved, moved.digest) == (ORIGIN, ORIGIN.digest)
    assert fill(finished(tmp_path / "a"), origin=moved).missing() == []


def test_a_place_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be a folder, got a file"):
        EmbeddingStore(tmp_path / "file", ORIGIN).open()
    with pytest.raises(ValueError, match=r"must be empty or hold embeddings, got 'file' without manifest\.json"):
        EmbeddingStore(tmp_path, ORIGIN).open()
    with pytest.raises(ValueError, match="holds no embeddings"):
        load_embeddings(tmp_path)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [('{"format', "can't be read"), ('{"format": 1}', "must be of the format .* got 1"), ("[]", "got \\[\\]")],
)
def test_a_foreign_manifest_is_refused(tmp_path, manifest, message):
    (tmp_path / "manifest.json").write_text(manifest)
    for use in (load_embeddings, lambda folder: EmbeddingStore(folder, ORIGIN).open()):
        with pytest.raises(ValueError, match=message):
            use(tmp_path)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"dtype": "int8"}, r"`dtype` must be one of \['float16', 'float32'\], got 'int8'"),
        ({"instances_per_shard": 0}, "`instances_per_shard` must be at least 1, got 0"),
        ({"num_instances": 0}, "'test' has no rows"),
    ],
)
def test_a_bad_layout_is_refused(field, message):
    with pytest.raises(ValueError, match=message):
        Origin(**{**ORIGIN.identity, **field})


def test_texts_in_another_order_are_refused(tmp_path):
    embeddings = embeddings_of(range(7))
    store = fill(tmp_path / "a", [])
    shuffled = embeddings._replace(text_group_ids=embeddings.text_group_ids.flip(0))
    with pytest.raises(ValueError, match="`text_group_ids` must follow the order of `instance_ids`"):
        store.write(0, shuffled)
