import io
import os

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image

from datasets_scripts.loading import load_multifold
from modeling_mxmclr.folds_mxmclr import hash_instance_id
from tests.references.corpus import write_corpus
from tests.references.tiny import picture, tiny_processor
from training.augmentation import Augmentation
from training.data import (
    EpochRows,
    FoldCollator,
    RawRows,
    decode_image,
    draw,
    fold_count,
    loader_processes,
    named_splits,
)
from training.frozen_text import FrozenTextFeatures
from training.mixtures import TextOnly


def encoded(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return {"bytes": buffer.getvalue(), "path": "view.png"}


ROWS = [
    {"instance_id": "a", "images": [encoded(picture(n)) for n in range(5)], "captions": ["red", "blue", "green"]},
    {"instance_id": "b", "images": [encoded(picture(9))], "captions": []},
    {"instance_id": "c", "images": [], "captions": ["tall chair", "a table"]},
]


def with_epoch(epoch):
    return [row | {"epoch": epoch} for row in ROWS]


def test_a_step_sees_as_many_observations_as_asked_for_and_no_more_than_there_are():
    batch = FoldCollator(tiny_processor(), 2, None)(with_epoch(0))
    a, b, c = map(hash_instance_id, "abc")
    assert batch["image_group_ids"].tolist() == [a, a, b]
    assert batch["text_group_ids"].tolist() == [a, a, a, c, c]
    assert batch["pixel_values"].shape == (3, 3, 32, 32)
    assert len(batch["input_ids"]) == len(batch["attention_mask"]) == 5


def test_a_rank_that_gets_no_instance_gets_an_empty_batch():
    batch = FoldCollator(tiny_processor(), 2, 2)([])
    assert {name: len(rows) for name, rows in batch.items()} == dict.fromkeys(batch, 0)
    assert batch["pixel_values"].shape == (0, 3, 32, 32)


def test_draws_depend_on_seed_epoch_and_instance_alone():
    def drawn(seed, epoch, rows=slice(None)):
        return FoldCollator(tiny_processor(), 2, 1, seed=seed)(with_epoch(epoch)[rows])["pixel_values"]

    torch.testing.assert_close(drawn(0, 0), drawn(0, 0))
    torch.testing.assert_close(drawn(0, 0)[:2], drawn(0, 0, slice(1)))
    others = [drawn(0, epoch) for epoch in range(1, 6)] + [drawn(seed, 0) for seed in range(1, 6)]
    assert any(not torch.equal(drawn(0, 0), other) for other in others[:5])
    assert any(not torch.equal(drawn(0, 0), other) for other in others[5:])


def test_rows_of_other_loaders_are_drawn_by_torchs_generator():
    collator = FoldCollator(tiny_processor(), 1, 1)
    torch.manual_seed(0)
    first, second = (collator(ROWS)["pixel_values"] for _ in range(2))
    torch.manual_seed(0)
    torch.testing.assert_close(collator(ROWS)["pixel_values"], first)
    assert any(not torch.equal(first, collator(ROWS)["pixel_values"]) for _ in range(6)) or not torch.equal(
        first, second
    )


def test_every_observation_is_drawn_in_the_long_run_and_none_twice_in_a_step():
    seen = [draw(range(5), 2, np.random.default_rng(seed)) for seed in range(200)]
    assert all(len(set(pair)) == 2 for pair in seen)
    counts = np.bincount([place for pair in seen for place in pair], minlength=5)
    assert counts.min() > 50
    assert sorted(draw(range(5), None, np.random.default_rng(0))) == list(range(5))


def test_frozen_features_stand_for_the_drawn_captions():
    captions = ["red", "blue", "green", "tall chair", "a table"]
    frozen = FrozenTextFeatures(captions, torch.arange(5.0)[:, None])
    tokens = FoldCollator(tiny_processor(), 1, 2)(with_epoch(3))
    batch = FoldCollator(tiny_processor(), 1, 2, frozen_text=frozen)(with_epoch(3))
    vocabulary = tiny_processor().tokenizer
    texts = vocabulary.decode(tokens["input_ids"], skip_special_tokens=True)
    assert batch["text_tower_output"][:, 0].tolist() == [captions.index(text) for text in texts]
    assert batch["text_group_ids"].tolist() == tokens["text_group_ids"].tolist()
    assert "input_ids" not in batch


def test_rows_carry_their_epoch():
    rows = EpochRows(RawRows(Dataset.from_dict({"instance_id": ["a", "b"]})))
    assert rows[1, 5] == {"instance_id": "b", "epoch": 5}


def test_a_row_that_is_seen_by_its_captions_has_no_images(tmp_path):
    loaded = load_multifold(str(write_corpus(tmp_path / "corpus")), cache_dir=tmp_path / "cache")
    rows = EpochRows(RawRows(loaded["train"]))
    plain, seen = rows[4, 2], rows[TextOnly(4, 2)]
    assert seen == {"instance_id": plain["instance_id"], "captions": plain["captions"], "images": [], "epoch": 2}
    batch = FoldCollator(tiny_processor(), 2, 2)([rows[3, 0], seen])
    ids = [hash_instance_id(rows[row, 0]["instance_id"]) for row in (3, 4)]
    assert set(batch["image_group_ids"].tolist()) == {ids[0]}
    assert set(batch["text_group_ids"].tolist()) == set(ids)


def test_splits_have_our_names_and_images_stay_encoded(tmp_path):
    loaded = load_multifold(str(write_corpus(tmp_path / "corpus")), cache_dir=tmp_path / "cache")
    loaded = DatasetDict({"train": loaded["train"], "val": loaded["validation"]})
    splits = named_splits(loaded)
    assert sorted(splits) == ["train", "validation"]
    assert set(splits["train"][0]["images"][0]) == {"bytes", "path"}
    assert splits["train"].fold_sizes("images") == [len(row["images"]) for row in loaded["train"]]
    assert splits["train"].column("captions") == loaded["train"]["captions"][:]
    with pytest.raises(ValueError, match=r"must have a split `train`, got \['val'\]"):
        named_splits(DatasetDict({"val": loaded["val"]}))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"bytes": b"GIF89a", "path": "a.gif"}, "Instance 'x' has an image a.gif that can't be read"),
        ({"bytes": None, "path": "/nowhere/b.png"}, "image /nowhere/b.png that can't be read"),
        ({"bytes": encoded(picture())["bytes"][:200], "path": "c.png"}, "image c.png that can't be read"),
        (None, "Instance 'x' has an image  that can't be read"),
        (Image.new("1", (2**14, 2**13)), "16384 x 8192 is more than"),
    ],
)
def test_unreadable_images_name_instance_and_file(value, message):
    with pytest.raises(ValueError, match=message):
        decode_image(value, "x")


def as_jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return {"bytes": buffer.getvalue(), "path": "view.jpg"}


@pytest.mark.parametrize(
    ("smallest", "size"),
    [(None, (640, 480)), ((640, 480), (640, 480)), ((200, 200), (320, 240)), ((60, 40), (80, 60)), ((4, 4), (80, 60))],
)
def test_a_large_jpeg_is_reduced_while_it_is_decoded_but_never_below_what_is_needed(smallest, size):
    image = picture(size=8).resize((640, 480), Image.Resampling.BICUBIC)
    decoded = decode_image(as_jpeg(image), "x", smallest)
    assert decoded.size == size
    assert decoded.mode == "RGB"
    apart = np.asarray(decoded.resize((32, 24))).astype(int) - np.asarray(image.resize((32, 24)))
    assert abs(apart).mean() < 2


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_reduced_jpegs_of_other_modes_are_rgb_too(mode):
    image = Image.new("RGB", (64, 64), (200, 40, 90)).convert(mode)
    reduced, whole = (decode_image(as_jpeg(image), "x", smallest) for smallest in ((8, 8), None))
    assert reduced.size == (8, 8)
    apart = np.asarray(reduced).astype(int) - np.asarray(whole.resize((8, 8)))
    assert abs(apart).max() <= 3


def test_other_formats_are_decoded_whole():
    assert decode_image(encoded(picture(size=64)), "x", (8, 8)).size == (64, 64)


def test_the_collator_reduces_what_its_augmentation_can_spare():
    row = {"instance_id": "a", "images": [as_jpeg(picture(size=8).resize((640, 640)))], "captions": ["red"]}
    seen = []

    def augment(image, generator):
        seen.append(image.size)
        return image

    for smallest in (None, Augmentation((32, 32), crop_scale=0.25).smallest_source):
        FoldCollator(tiny_processor(), augment=augment, smallest_source=smallest)([row | {"epoch": 0}])
    assert seen == [(640, 640), (160, 160)]


def worker_id(_):
    return torch.utils.data.get_worker_info().id, os.getpid()


def test_the_processes_of_a_loader_live_as_long_as_it_does():
    loader = torch.utils.data.DataLoader(range(4), collate_fn=worker_id, **loader_processes(2, 3))
    assert loader.prefetch_factor == 3
    first, second = set(loader), set(loader)
    assert first == second
    assert len(first) == 2
    assert loader_processes(0, 3) == {"num_workers": 0}


def test_counts_are_numbers_or_all():
    assert fold_count("all") is None
    assert fold_count("3") == 3
