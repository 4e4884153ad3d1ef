"""A split of a data set through a model: the embedding of every observation, without a gradient."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor
from modeling_mxmclr.folds_mxmclr import flatten_folds, hash_instance_id
from training.data import RawRows, decode_image
from training.frozen_text import FrozenTextFeatures
from training.retrieval import Embeddings

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


@torch.no_grad()
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
    was_training = model.training
    model.eval()
    share = Subset(rows, range(rank, len(rows), num_ranks))
    loader = DataLoader(
        share,
        batch_size=INSTANCES_PER_BATCH,
        collate_fn=WholeFolds(processor, with_tokens=frozen_text is None),
        num_workers=num_workers,
    )
    parts = [
        encode_batch(model, batch, kept, frozen_text)
        for batch, kept in tqdm(loader, desc="encoding", disable=not show_progress, leave=False)
    ]
    model.train(was_training)
    return join_embeddings(gather_object(parts) if num_ranks > 1 else parts)


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
