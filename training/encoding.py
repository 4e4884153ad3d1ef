"""A split of a data set through a model: the embedding of every observation, without a gradient."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor
from modeling_mxmclr.folds_mxmclr import flatten_folds, hash_instance_id
from training.checkpoints import load_checkpoint, revision_of
from training.data import RawRows, Row, decode_image
from training.embedding_store import EmbeddingStore, Origin, load_embeddings
from training.frozen_text import FrozenTextFeatures
from training.searches import Embeddings

INSTANCES_PER_BATCH = 16


class WholeFolds:
    """Rows to the flat batch of all their images, in order."""

    def __init__(self, processor: MXMCLRProcessor) -> None:
        self.processor = processor

    def __call__(self, rows: Sequence[Row]) -> tuple[dict[str, Tensor], list[Row]]:
        """The batch, and the rows without their images."""
        images = [[decode_image(value, row["instance_id"]) for value in row["images"]] for row in rows]
        batch = dict(self.processor(images=images, instance_ids=[row["instance_id"] for row in rows]))
        return batch, [{name: row[name] for name in row if name != "images"} for row in rows]


def encode_rows(
    model: MXMCLRModel,
    processor: MXMCLRProcessor,
    rows: RawRows,
    rank: int = 0,
    num_ranks: int = 1,
    frozen_text: FrozenTextFeatures | None = None,
    num_workers: int = 0,
    show_progress: bool = False,
) -> Embeddings:
    """The embeddings of every observation of some rows; several ranks encode a share each and all get the whole."""
    share, size = range(rank, len(rows), num_ranks), Origin.instances_per_shard
    shards = [split_into_batches(share[start : start + size]) for start in range(0, len(share), size)]
    parts = list(encode_each(model, processor, rows, shards, frozen_text, num_workers, show_progress))
    return join_embeddings(gather_object(parts) if num_ranks > 1 else parts)


def stored_or_encoded(
    checkpoint: str,
    rows: RawRows,
    split: str,
    folder: Path | None = None,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    show_progress: bool = False,
) -> Embeddings:
    """The embeddings of a split, from disk where the same model has embedded the same rows before.

    Args:
        checkpoint: Run folder, or Hub id.
        rows: The split.
        split: Its name.
        folder: Where embeddings are kept, each model's and each split's in a folder of their own; None keeps nothing.
        num_workers: Processes that read images.
        device: Where the model runs.
        show_progress: Whether to show a bar.
    """
    if folder is None:
        model, processor = load_checkpoint(checkpoint, device)
        return encode_rows(model, processor, rows, num_workers=num_workers, show_progress=show_progress)
    origin = Origin(revision_of(checkpoint), rows.fingerprint, split, len(rows), checkpoint=checkpoint)
    store = EmbeddingStore(folder / f"{split}-{origin.digest}", origin)
    store.open()
    if numbers := store.missing():
        model, processor = load_checkpoint(checkpoint, device)
        encode_shards(store, numbers, model, processor, rows, num_workers, show_progress)
        store.finish()
    return load_embeddings(store.folder)


def encode_shards(
    store: EmbeddingStore,
    numbers: Sequence[int],
    model: MXMCLRModel,
    processor: MXMCLRProcessor,
    rows: RawRows,
    num_workers: int = 0,
    show_progress: bool = False,
) -> None:
    """Write some shards of a store; the batches of a shard, and so its bytes, are the same whoever writes it."""
    shards = [split_into_batches(store.instances(number)) for number in numbers]
    parts = encode_each(model, processor, rows, shards, None, num_workers, show_progress)
    for number, embeddings in zip(numbers, parts, strict=True):
        store.write(number, embeddings)


def split_into_batches(instances: range) -> list[list[int]]:
    """Rows in the portions that a model takes at once."""
    starts = range(0, len(instances), INSTANCES_PER_BATCH)
    return [list(instances[start : start + INSTANCES_PER_BATCH]) for start in starts]


def encode_each(
    model: MXMCLRModel,
    processor: MXMCLRProcessor,
    rows: RawRows,
    shards: Sequence[list[list[int]]],
    frozen_text: FrozenTextFeatures | None = None,
    num_workers: int = 0,
    show_progress: bool = False,
) -> Iterator[Embeddings]:
    """The embeddings of each shard, given as batches of rows, in order, with the model in eval mode.

    Images pass the model batch by batch. The captions of a shard pass it together, each once, ordered by length.
    """
    loader: DataLoader = DataLoader(
        rows,
        batch_sampler=[batch for shard in shards for batch in shard],
        collate_fn=WholeFolds(processor),
        num_workers=num_workers,
    )
    was_training = model.training
    model.eval()
    total = sum(len(batch) for shard in shards for batch in shard)
    bar = tqdm(total=total, desc="encoding", unit="row", disable=not show_progress, leave=False)
    try:
        batches = iter(loader)
        for shard in shards:
            image_embeds, image_group_ids, kept = [], [], []
            for images, without_images in islice(batches, len(shard)):
                image_embeds.append(embed_images(model, images["pixel_values"]))
                image_group_ids.append(images["image_group_ids"])
                kept += without_images
                bar.update(len(without_images))
            yield Embeddings(
                torch.cat(image_embeds),
                torch.cat(image_group_ids),
                *encode_captions(model, processor, kept, frozen_text),
            )
    finally:  # also where nobody asks for more
        bar.close()
        model.train(was_training)


@torch.no_grad()
def embed_images(model: MXMCLRModel, pixel_values: Tensor) -> Tensor:
    """The embeddings of a batch of images, on the CPU."""
    return model.get_image_features(pixel_values.to(model.device)).float().cpu()


class CaptionEmbeddings(NamedTuple):
    """What `Embeddings` holds beside images."""

    text_embeds: Tensor
    text_group_ids: Tensor
    captions: list[str]
    instance_ids: dict[int, str]
    categories: dict[int, str]


@torch.no_grad()
def encode_captions(
    model: MXMCLRModel, processor: MXMCLRProcessor, rows: Sequence[Row], frozen_text: FrozenTextFeatures | None = None
) -> CaptionEmbeddings:
    """The embeddings of all captions of some rows, on the CPU, each different one encoded once."""
    owners = {caption: row["instance_id"] for row in rows for caption in row["captions"]}
    features = frozen_text or FrozenTextFeatures.encode(model, processor, owners)
    output = model(text_tower_output=features(list(owners)).to(model.device), return_loss=False)
    places = {caption: place for place, caption in enumerate(owners)}
    group_ids = [hash_instance_id(row["instance_id"]) for row in rows]
    captions, text_group_ids = flatten_folds([row["captions"] for row in rows], group_ids)
    return CaptionEmbeddings(
        output.text_embeds.float().cpu()[torch.tensor([places[caption] for caption in captions], dtype=torch.int64)],
        text_group_ids,
        captions,
        {group_id: row["instance_id"] for group_id, row in zip(group_ids, rows, strict=True)},
        {group_id: row["category"] for group_id, row in zip(group_ids, rows, strict=True) if row.get("category")},
    )


def join_embeddings(parts: Sequence[Embeddings]) -> Embeddings:
    """The observations of all parts as one."""
    captions = [caption for part in parts for caption in part.captions]
    instance_ids = {group_id: name for part in parts for group_id, name in part.instance_ids.items()}
    categories = {group_id: name for part in parts for group_id, name in part.categories.items()}
    return Embeddings(
        torch.cat([part.image_embeds for part in parts]),
        torch.cat([part.image_group_ids for part in parts]),
        torch.cat([part.text_embeds for part in parts]),
        torch.cat([part.text_group_ids for part in parts]),
        captions,
        instance_ids,
        categories,
    )
