"""A split of a data set through a model: the embedding of every observation, without a gradient."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor
from modeling_mxmclr.folds_mxmclr import flatten_folds, hash_instance_id
from training.checkpoints import load_checkpoint, revision_of
from training.data import RawRows, decode_image
from training.embedding_store import EmbeddingStore, Origin, load_embeddings
from training.frozen_text import FrozenTextFeatures
from training.searches import Embeddings

INSTANCES_PER_BATCH = 16


class WholeFolds:
    """Rows to a flat batch of all their observations, in order; without tokens where a frozen tower needs none."""

    def __init__(self, processor: MXMCLRProcessor, with_tokens: bool = True) -> None:
        self.processor, self.with_tokens = processor, with_tokens

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Tensor], list[Mapping[str, Any]]]:
        """The batch, and the rows without their images."""
        ids = [row["instance_id"] for row in rows]
        images = [[decode_image(value, row["instance_id"]) for value in row["images"]] for row in rows]
        captions = [row["captions"] for row in rows]
        batch = dict(self.processor(images=images, text=captions if self.with_tokens else None, instance_ids=ids))
        batch["text_group_ids"] = flatten_folds(captions, [hash_instance_id(each) for each in ids])[1]
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
    batches = split_into_batches(range(rank, len(rows), num_ranks))
    parts = list(encode_batches(model, processor, rows, batches, frozen_text, num_workers, show_progress))
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
    batches = [batch for shard in shards for batch in shard]
    parts = encode_batches(model, processor, rows, batches, None, num_workers, show_progress)
    for number, shard in zip(numbers, shards, strict=True):
        store.write(number, join_embeddings(list(islice(parts, len(shard)))))


def split_into_batches(instances: range) -> list[list[int]]:
    """Rows in the portions that a model takes at once."""
    starts = range(0, len(instances), INSTANCES_PER_BATCH)
    return [list(instances[start : start + INSTANCES_PER_BATCH]) for start in starts]


def encode_batches(
    model: MXMCLRModel,
    processor: MXMCLRProcessor,
    rows: RawRows,
    batches: list[list[int]],
    frozen_text: FrozenTextFeatures | None = None,
    num_workers: int = 0,
    show_progress: bool = False,
) -> Iterator[Embeddings]:
    """The embeddings of each batch of rows, in order, with the model in eval mode."""
    loader: DataLoader = DataLoader(
        rows,
        batch_sampler=batches,
        collate_fn=WholeFolds(processor, with_tokens=frozen_text is None),
        num_workers=num_workers,
    )
    was_training = model.training
    model.eval()
    bar = tqdm(total=sum(map(len, batches)), desc="encoding", unit="row", disable=not show_progress, leave=False)
    try:
        for batch, kept in loader:
            bar.update(len(kept))
            yield encode_batch(model, batch, kept, frozen_text)
    finally:  # also where nobody asks for more
        bar.close()
        model.train(was_training)


@torch.no_grad()
def encode_batch(
    model: MXMCLRModel,
    batch: dict[str, Tensor],
    rows: Sequence[Mapping[str, Any]],
    frozen_text: FrozenTextFeatures | None,
) -> Embeddings:
    """The embeddings of one batch, on the CPU."""
    captions = [caption for row in rows for caption in row["captions"]]
    inputs = {name: value for name, value in batch.items() if not name.endswith("group_ids")}
    if frozen_text is not None:
        inputs["text_tower_output"] = frozen_text(captions)
    output = model(
        **{name: value.to(model.device) for name, value in inputs.items()}, return_loss=False, output_logits=False
    )
    group_ids = {row["instance_id"]: hash_instance_id(row["instance_id"]) for row in rows}
    return Embeddings(
        output.image_embeds.float().cpu(),
        batch["image_group_ids"],
        output.text_embeds.float().cpu(),
        batch["text_group_ids"],
        captions,
        {group_id: instance_id for instance_id, group_id in group_ids.items()},
        {group_ids[row["instance_id"]]: row["category"] for row in rows if row.get("category")},
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
