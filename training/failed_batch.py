"""A batch whose loss is no number: kept on disk, and its instances named."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from modeling_mxmclr.folds_mxmclr import hash_instance_id

NAMED = 8  # instances in a message; all are in the file


def save_failed_batch(
    path: Path, batch: Mapping[str, Tensor], instance_ids: Iterable[str], about: Mapping[str, str]
) -> dict[int, str]:
    """Write a batch as safetensors, with its instances in the metadata, and return their names by group id.

    Args:
        path: The file.
        batch: The flat batch.
        instance_ids: The ids to look its instances up in; one that isn't among them goes by its group id.
        about: Further metadata.
    """
    group_ids = torch.cat([batch["image_group_ids"], batch["text_group_ids"]]).unique().tolist()
    known = {hash_instance_id(name): name for name in instance_ids}
    names = {group_id: known.get(group_id, f"group id {group_id}") for group_id in group_ids}
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {name: each.detach().cpu() for name, each in batch.items()}
    tensors = {name: each.clone(memory_format=torch.contiguous_format) for name, each in rows.items()}
    save_file(tensors, path, metadata={**about, "instance_ids": json.dumps(sorted(names.values()))})
    return names


def describe_failure(
    subject: str,
    value: float,
    step: int,
    batch: Mapping[str, Tensor],
    embeds: Mapping[str, Tensor],
    names: Mapping[int, str],
    path: Path,
) -> str:
    """What a user needs to know of a step that has gone wrong.

    Args:
        subject: What is no number, `loss` or `gradient`.
        value: What it is on this rank.
        step: The step.
        batch: The flat batch of this rank.
        embeds: What the model made of it, `image` and `text`, each `(num_observations, dim)`.
        names: The instances by group id.
        path: The file with the batch.
    """
    here = f"{value:g}" if not torch.tensor(value).isfinite() else f"{value:g} here but none on another rank"
    suspects = find_suspects(batch, embeds)
    blamed = "".join(
        f" `{what}` of {quoted(sorted({names[each] for each in group_ids}))} hold values that are no numbers."
        for what, group_ids in suspects.items()
    )
    return (
        f"`{subject}` must be a finite number, got {here} at step {step}, in a batch of the instances "
        f"{quoted(sorted(names.values()))}.{blamed} The batch is {str(path)!r}: "
        "`model(**safetensors.torch.load_file(path))` repeats it, and its metadata has all `instance_ids`. Lower "
        "`learning_rate`, raise `warmup_steps`, or use `mixed_precision: bf16` in place of fp16. Kept checkpoints are "
        "of earlier steps."
    )


def find_suspects(batch: Mapping[str, Tensor], embeds: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Group ids of the observations whose inputs, or else whose embeddings, are not all finite."""
    group_ids = {"image": batch["image_group_ids"], "text": batch["text_group_ids"]}
    inputs = {"pixel_values": "image", "text_tower_output": "text"}
    found = {name: broken_rows(batch[name], group_ids[side]) for name, side in inputs.items() if name in batch}
    if not any(found.values()):
        found = {f"{side}_embeds": broken_rows(rows, group_ids[side]) for side, rows in embeds.items()}
    return {name: rows for name, rows in found.items() if rows}


def broken_rows(rows: Tensor, group_ids: Tensor) -> list[int]:
    """The group ids of the rows that are not all finite."""
    return group_ids[~rows.cpu().flatten(1).isfinite().all(dim=1)].tolist()


def quoted(names: Sequence[str]) -> str:
    """Some names as a list, cut where it gets long."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{list(names[:NAMED])}{more}"
