"""What commands on a finished model share: their flags, the data set, the model, and which revision of it that is."""

import argparse
import hashlib
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoProcessor
from transformers.utils import cached_file

from datasets_scripts.loading import load_multifold
from modeling_mxmclr import MXMCLRConfig, MXMCLRModel, MXMCLRProcessor
from modeling_mxmclr.adapters_mxmclr import adapted_model, holds_adapter, load_adapter
from training.arguments import DataArguments
from training.data import RawRows, named_splits
from training.durable import sha256_of
from training.models import resolve_checkpoint

SOURCE_FLAGS = (
    "dataset",
    "dataset_config",
    "data_dir",
    "instance_column",
    "image_columns",
    "caption_columns",
    "num_proc",
)
# What embeddings depend on, of all the files of a checkpoint; a run folder also holds logs and pictures.
MODEL_FILES = (
    "config.json",
    "adapter_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*processor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "vocab*",
    "merges.txt",
    "*.model",
)


def add_source_flags(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Let a command line name a checkpoint, as many as `nargs` says, a split of a data set, and how to read it."""
    parser.add_argument("checkpoint", nargs=nargs, help="Run folder, or Hub id of a checkpoint of ours.")
    helps = {each.name: each.metadata["help"] for each in fields(DataArguments)}
    helps["dataset"] += " A run folder knows its own."
    for name in SOURCE_FLAGS:
        options: dict[str, Any] = {"nargs": "+"} if name.endswith("_columns") else {}
        parser.add_argument(f"--{name}", help=helps[name], type=int if name == "num_proc" else str, **options)
    parser.add_argument("--split", default="test", help="`train`, `validation` or `test` (default: %(default)s).")
    parser.add_argument(
        "--num_workers", type=int, default=1, help="Processes that read images, on each rank (default: %(default)s)."
    )
    parser.add_argument("--cpu", action="store_true", help="Stay on the CPU even where there is an accelerator.")


def data_source(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keywords by which `load_multifold` finds the data set that is asked for, else the one of the run.

    Raises:
        ValueError: When none is asked for and the checkpoint is no run folder.
    """
    given = {name: getattr(arguments, name) for name in SOURCE_FLAGS if getattr(arguments, name)}
    if "dataset" not in given:
        given = trained_source(arguments.checkpoint) | given
    return DataArguments(**given).source


def trained_source(checkpoint: str) -> dict[str, Any]:
    """The flags that name the data set which a run was trained on."""
    run = Path(checkpoint) / "run.json"
    if not run.is_file():
        raise ValueError(f"`--dataset` is needed: {checkpoint!r} is no run folder that knows its own.")
    trained_with = json.loads(run.read_text(encoding="utf-8"))["arguments"]
    return {name: trained_with[name] for name in SOURCE_FLAGS if trained_with.get(name)}


def load_rows(arguments: argparse.Namespace) -> RawRows:
    """The split that a command line asks for.

    Raises:
        ValueError: When the data set lacks it.
    """
    splits = named_splits(load_multifold(**data_source(arguments)))
    if arguments.split not in splits:
        raise ValueError(f"`split` must be one of {sorted(splits)}, got {arguments.split!r}.")
    return splits[arguments.split]


def load_checkpoint(
    name: str,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    trust_remote_code: bool | None = None,
) -> tuple[MXMCLRModel, MXMCLRProcessor]:
    """A model in eval mode, and its processor; an adapter comes on its base, once it is verified.

    Raises:
        ValueError: As `load_model`.
    """
    model = load_model(name, revision, trust_remote_code)
    options = from_hub(revision, trust_remote_code)
    return model.to(device), AutoProcessor.from_pretrained(resolve_checkpoint(name), **options)  # type: ignore[arg-type]


def load_model(
    name: str | os.PathLike[str], revision: str | None = None, trust_remote_code: bool | None = None
) -> MXMCLRModel:
    """The model of a folder or Hub id in eval mode: a whole checkpoint, or an adapter on its base once it is verified.

    Raises:
        ValueError: When the checkpoint is not one of ours, or an adapter doesn't do what it did when it was saved.
    """
    source = resolve_checkpoint(os.fspath(name))
    model: Any = (
        adapted_model(load_adapter(source, revision=revision))
        if holds_adapter(source)
        else AutoModel.from_pretrained(source, **from_hub(revision, trust_remote_code))
    )
    if model.config.model_type != MXMCLRConfig.model_type:
        raise ValueError(f"{os.fspath(name)!r} holds a {type(model).__name__}, not an MXMCLRModel; train one first.")
    return model.eval()


def from_hub(revision: str | None, trust_remote_code: bool | None) -> dict[str, Any]:
    """Keywords of `from_pretrained`, of those that were given."""
    given = {"revision": revision, "trust_remote_code": trust_remote_code}
    return {key: value for key, value in given.items() if value is not None}


def run_embeddings_folder(checkpoint: str) -> Path | None:
    """Where a run folder keeps its embeddings; None for a checkpoint that is no folder."""
    return Path(checkpoint) / "embeddings" if Path(checkpoint).is_dir() else None


def revision_of(name: str) -> str:
    """Which weights, and which processing, a name stands for: a commit of the Hub, or a hash of a folder's files.

    Raises:
        ValueError: When it is no folder, and the Hub, or without network its cache, has no such model.
    """
    folder = Path(resolve_checkpoint(name))
    if not folder.is_dir():
        try:
            return Path(str(cached_file(name, "config.json"))).parent.name  # the cache calls a snapshot by its commit
        except OSError as error:
            raise ValueError(
                f"`checkpoint` must be a run folder or a model of the Hub, got {name!r}: {error}"
            ) from error
    digest = hashlib.sha256()
    for path in sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)}):
        digest.update(f"{path.name}:{sha256_of(path)}\n".encode())
    return f"sha256:{digest.hexdigest()}"
