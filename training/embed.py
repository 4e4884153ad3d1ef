"""Embed every observation of a split with a checkpoint, and keep the embeddings on disk.

Usage:
    accelerate launch training/embed.py runs/shapes_cpu --output embeddings/shapes-test
    accelerate launch training/embed.py org/mxmclr-text2shape --dataset path/to/folder --split train --output embeddings

The folder gets shards of safetensors, with the ids, captions and categories in Parquet beside them, and a manifest that
says of which model and which data they are. A run that was killed goes on where it stopped when the same command is
given again, on any number of processes.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Launched by path, this file's folder comes first, where `evaluate` would be ours instead of the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from accelerate import Accelerator
from accelerate.logging import get_logger
from transformers.utils import logging as transformers_logging

from training.checkpoints import add_source_flags, load_checkpoint, load_rows, revision_of
from training.embedding_shards import DTYPES
from training.embedding_store import EmbeddingStore, Origin, read_manifest
from training.encoding import encode_shards
from training.hardware import use_every_core

logger = get_logger(__name__)


def main(words: Sequence[str]) -> None:
    """Embed as a command line says."""
    arguments = parse(words)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger(__name__).setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()
    accelerator = start(arguments)
    embed(arguments, accelerator)
    accelerator.end_training()


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source_flags(parser)
    parser.add_argument("--output", required=True, help="Folder for the embeddings, new or with some of them.")
    parser.add_argument(
        "--instances_per_shard",
        type=int,
        default=Origin.instances_per_shard,
        help="Instances whose embeddings make a file; what a killed run has to repeat (default: %(default)s).",
    )
    parser.add_argument(
        "--dtype",
        choices=list(DTYPES),
        default=Origin.dtype,
        help="How embeddings are kept; scores are always computed in float32 (default: %(default)s).",
    )
    return parser.parse_args(words)


def start(arguments: argparse.Namespace) -> Accelerator:
    """The accelerator, with all cores in use."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else each forked loader process warns
    accelerator = Accelerator(cpu=arguments.cpu)
    use_every_core(accelerator)
    return accelerator


def embed(arguments: argparse.Namespace, accelerator: Accelerator) -> None:
    """Fill the folder with what it lacks.

    Raises:
        ValueError: When it holds embeddings of another model or of other data.
    """
    with accelerator.main_process_first():  # the others read what the first one built
        rows = load_rows(arguments)
    origin = Origin(
        revision_of(arguments.checkpoint),
        rows.fingerprint,
        arguments.split,
        len(rows),
        arguments.instances_per_shard,
        arguments.dtype,
        arguments.checkpoint,
    )
    store = EmbeddingStore(arguments.output, origin)
    if accelerator.is_main_process:
        store.open()
    accelerator.wait_for_everyone()
    numbers = store.missing(accelerator.process_index, accelerator.num_processes)
    logger.info("%d shards; this process finds %d to write.", store.num_shards, len(numbers))
    if numbers:
        model, processor = load_checkpoint(arguments.checkpoint, accelerator.device)
        shows = accelerator.is_main_process
        encode_shards(store, numbers, model, processor, rows, arguments.num_workers, shows)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        store.finish()
        manifest = read_manifest(store.folder)
        logger.info(
            "%d images and %d captions of %d instances are in %s.",
            *(manifest[f"num_{name}"] for name in ("images", "captions", "instances")),
            store.folder,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
