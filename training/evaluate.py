"""Score a checkpoint on a split of a data set: text to instance and instance to text, as a table and as JSON.

Usage:
    python training/evaluate.py runs/shapes_cpu --dataset shapes --dataset_config small
    python training/evaluate.py org/mxmclr-text2shape --dataset path/to/folder --split validation --output scores.json
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Launched by path, this file's folder comes first, where `evaluate` would be this file instead of the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from transformers import AutoModel, AutoProcessor
from transformers.utils import logging as transformers_logging

from datasets_scripts.loading import load_multifold
from modeling_mxmclr import MXMCLRConfig
from training.data import named_splits
from training.encoding import encode_rows
from training.retrieval import Report, format_table, retrieval_report


def main(words: Sequence[str]) -> None:
    """Evaluate as a command line says."""
    arguments = parse(words)
    report = evaluate(arguments)
    sys.stdout.write(format_table(report) + "\n")
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="Run folder, or Hub id of a checkpoint of ours.")
    parser.add_argument("--dataset", help="What `training/train.py` takes; a run folder knows its own.")
    parser.add_argument("--dataset_config", help="Its configuration.")
    parser.add_argument("--split", default="test", help="`train`, `validation` or `test` (default: %(default)s).")
    parser.add_argument("--output", help="JSON file for the scores, in the form of a run's `metrics.json`.")
    parser.add_argument(
        "--num_workers", type=int, default=1, help="Processes that read images (default: %(default)s)."
    )
    parser.add_argument("--cpu", action="store_true", help="Stay on the CPU even where there is an accelerator.")
    return parser.parse_args(words)


def evaluate(arguments: argparse.Namespace) -> Report:
    """The report of a checkpoint on a split.

    Raises:
        ValueError: When the checkpoint is not one of ours, names no data set, or the data set lacks the split.
    """
    dataset, config = dataset_of(arguments)
    splits = named_splits(load_multifold(dataset, config=config))
    if arguments.split not in splits:
        raise ValueError(f"`split` must be one of {sorted(splits)}, got {arguments.split!r}.")
    transformers_logging.disable_progress_bar()
    model: Any = AutoModel.from_pretrained(arguments.checkpoint)
    if model.config.model_type != MXMCLRConfig.model_type:
        raise ValueError(
            f"{arguments.checkpoint!r} holds a {type(model).__name__}, not an MXMCLRModel; train one first."
        )
    on_gpu = torch.cuda.is_available() and not arguments.cpu
    embeddings = encode_rows(
        model.to("cuda" if on_gpu else "cpu"),
        AutoProcessor.from_pretrained(arguments.checkpoint),
        splits[arguments.split],
        num_workers=arguments.num_workers,
        show_progress=True,
    )
    return {"split": arguments.split, **retrieval_report(embeddings)}


def dataset_of(arguments: argparse.Namespace) -> tuple[str, str | None]:
    """The data set that is asked for, else the one that the run was trained on."""
    if arguments.dataset:
        return arguments.dataset, arguments.dataset_config
    run = Path(arguments.checkpoint) / "run.json"
    if not run.is_file():
        raise ValueError(f"`--dataset` is needed: {arguments.checkpoint!r} is no run folder that knows its own.")
    trained_with = json.loads(run.read_text(encoding="utf-8"))["arguments"]
    return trained_with["dataset"], arguments.dataset_config or trained_with["dataset_config"]


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else each forked loader process warns
    main(sys.argv[1:])
