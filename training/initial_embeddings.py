"""What an untrained model makes of some instances, kept in the run folder: the "before" of a report's map."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor
from modeling_mxmclr.folds_mxmclr import Observations, hash_instance_id
from training.data import RawRows
from training.encoding import encode_rows
from training.frozen_text import FrozenTextFeatures

FILE = "initial_embeddings.safetensors"
FIELDS = ("image_embeds", "text_embeds", "image_group_ids", "text_group_ids")
SAMPLE_SIZE = 256


def encode_sample(
    model: MXMCLRModel,
    processor: MXMCLRProcessor,
    rows: RawRows,
    frozen_text: FrozenTextFeatures | None = None,
    num_workers: int = 0,
) -> Observations | None:
    """The observations of up to `SAMPLE_SIZE` instances that have both modalities; None where none has."""
    group_ids = torch.tensor([hash_instance_id(instance_id) for instance_id in rows.column("instance_id")])
    with_images, with_captions = (torch.tensor(rows.fold_sizes(name)) > 0 for name in ("images", "captions"))
    chosen = sample_group_ids(group_ids[with_images], group_ids[with_captions])
    if len(chosen) == 0:
        return None
    sample = RawRows(rows.rows.select(torch.isin(group_ids, chosen).nonzero()[:, 0].tolist()))
    encoded = encode_rows(model, processor, sample, frozen_text=frozen_text, num_workers=num_workers)
    return Observations(encoded.image_embeds, encoded.text_embeds, encoded.image_group_ids, encoded.text_group_ids)


def sample_group_ids(image_group_ids: Tensor, text_group_ids: Tensor) -> Tensor:
    """The instances of a sample: up to `SAMPLE_SIZE` that have both modalities, the same in every run of a data set.

    Group ids are hashes, so that the smallest are a sample at random.
    """
    return image_group_ids[torch.isin(image_group_ids, text_group_ids)].unique()[:SAMPLE_SIZE]


def save_initial_embeddings(sample: Observations | None, run_dir: Path | str) -> None:
    """Write a sample, if there is one, to a run folder, in half precision: it is for looking at."""
    if sample is None:
        return
    tensors = {name: getattr(sample, name).contiguous() for name in FIELDS}
    halves = {name: rows.half() if rows.is_floating_point() else rows for name, rows in tensors.items()}
    save_file(halves, Path(run_dir) / FILE)


def load_initial_embeddings(run_dir: Path | str, group_ids: Tensor) -> Observations | None:
    """The sample of a run folder; None where it has none, or one of other instances than these.

    Raises:
        ValueError: If the file is not such a sample.
    """
    path = Path(run_dir) / FILE
    if not path.is_file():
        return None
    tensors = load_file(path)
    if tensors.keys() != set(FIELDS):
        raise ValueError(f"{str(path)!r} must hold {list(FIELDS)}, got {sorted(tensors)}; delete it.")
    sample = Observations(**tensors)
    if not torch.isin(sample.image_group_ids, group_ids).all():
        return None
    return sample._replace(image_embeds=sample.image_embeds.float(), text_embeds=sample.text_embeds.float())
