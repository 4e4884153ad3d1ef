"""One shard of stored embeddings: safetensors with the tensors, and Parquet beside it with a row per instance."""

import io
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from safetensors.torch import load_file, save

from training.searches import Embeddings

TENSORS = ("image_embeds", "image_group_ids", "text_embeds", "text_group_ids")
DTYPES = {"float32": torch.float32, "float16": torch.float16}
ROWS = pyarrow.schema(
    {
        "instance_id": pyarrow.string(),
        "group_id": pyarrow.int64(),
        "category": pyarrow.string(),
        "num_images": pyarrow.int64(),
        "captions": pyarrow.list_(pyarrow.string()),
    }
)


def shard_files(embeddings: Embeddings, dtype: str) -> tuple[bytes, bytes]:
    """The safetensors file and the Parquet file of some instances.

    Args:
        embeddings: Their embeddings, texts in the order of `instance_ids`.
        dtype: In which the embeddings are kept, a key of `DTYPES`.
    """
    tensors = {name: getattr(embeddings, name).contiguous() for name in TENSORS}
    tensors |= {name: rows.to(DTYPES[dtype]) for name, rows in tensors.items() if name.endswith("embeds")}
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(instance_rows(embeddings), buffer)
    return save(tensors), buffer.getvalue()


def read_shard(tensors: Path, rows: Path) -> Embeddings:
    """What `shard_files` was given, the tensors mapped from disk."""
    table = pyarrow.parquet.read_table(rows, schema=ROWS).to_pydict()
    categories = zip(table["group_id"], table["category"], strict=True)
    return Embeddings(
        **load_file(tensors),
        captions=[caption for fold in table["captions"] for caption in fold],
        instance_ids=dict(zip(table["group_id"], table["instance_id"], strict=True)),
        categories={group_id: category for group_id, category in categories if category is not None},
    )


def instance_rows(embeddings: Embeddings) -> pyarrow.Table:
    """The table of the instances, in order.

    Raises:
        ValueError: If the texts are in another order, which a row per instance can't keep.
    """
    captions: dict[int, list[str]] = {group_id: [] for group_id in embeddings.instance_ids}
    group_ids = embeddings.text_group_ids.tolist()
    for group_id, caption in zip(group_ids, embeddings.captions, strict=True):
        captions[group_id].append(caption)
    if [group_id for group_id, fold in captions.items() for _ in fold] != group_ids:
        raise ValueError("`text_group_ids` must follow the order of `instance_ids`; sort the texts by instance.")
    num_images = dict.fromkeys(captions, 0)
    for group_id in embeddings.image_group_ids.tolist():
        num_images[group_id] += 1
    columns = {
        "instance_id": list(embeddings.instance_ids.values()),
        "group_id": list(captions),
        "category": [embeddings.categories.get(group_id) for group_id in captions],
        "num_images": list(num_images.values()),
        "captions": list(captions.values()),
    }
    return pyarrow.table(columns, schema=ROWS)
