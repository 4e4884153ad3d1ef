"""Show that a recipe's gradient is the same however it is taken: on several ranks, in tiles, in micro-batches, accumulated.

Usage:
    python training/exactness.py training/configs/shapes_cpu.yaml
    python training/exactness.py training/configs/shapes_cpu.yaml --instances 24 --ranks 2 4 --objective siglip
    python training/exactness.py training/configs/shapes_cpu.yaml --float32

It builds the recipe's model and draws batches of its data, as a training run does; any flag of `training/train.py` can
follow. The measure is one process that takes each batch whole and holds the matrix of logits. Every other way must
give the same loss, and the same gradient of every parameter, up to rounding: 1e-10 of the largest entry of the whole
gradient in float64, 1e-5 in float32. Ranks are processes on this machine, under DDP. Dropout is off, but for the line
that replays it, whose measure are the same micro-batches with all graphs held. Batch norms keep their statistics
throughout: over what they normalise would depend on the split. Ends with 1 if any line fails.
"""

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

# Launched by path, this file's folder comes first, where `evaluate` would be ours instead of the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from accelerate.utils import set_seed
from datasets.utils import logging as datasets_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from datasets_scripts.loading import load_multifold
from modeling_mxmclr import MXMCLRModel
from training.arguments import Arguments, parse_arguments
from training.batches import build_collator
from training.data import EpochRows, RawRows, fold_count, named_splits
from training.frozen_text import FrozenTextFeatures
from training.gradient_cases import Case, Difference, build_cases, compare
from training.lora import attach_adapter
from training.mixtures import InstanceBatches
from training.models import build_model, is_frozen

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def main(words: Sequence[str]) -> int:
    """Compare as a command line says, and return 0 where all is exact."""
    chosen, arguments = parse(words)
    dtype = torch.float32 if chosen.float32 else torch.float64
    model, batches = prepare(arguments, chosen.instances, chosen.batches, dtype)
    sys.stdout.write(describe(arguments, batches, dtype) + "\n")
    failed = 0
    for case, difference in compare(build_cases(chosen.ranks, chosen.micro_batch, chosen.tile), model, batches):
        exact = max(difference.loss, difference.gradient) <= TOLERANCE[dtype]
        failed += not exact
        sys.stdout.write(line_of(case, difference, exact) + "\n")
        sys.stdout.flush()
    verdict = f"{failed} ways are NOT exact." if failed else "All are exact."
    sys.stdout.write(f"{verdict} Allowed are {TOLERANCE[dtype]:.0e}.\n")
    return int(failed > 0)


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, Arguments]:
    """What to compare, and the arguments of the run."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s RECIPE.yaml [--instances N] [...]",
        allow_abbrev=False,
    )
    parser.add_argument("--instances", type=int, default=12, help="Instances of a batch (default: %(default)s).")
    parser.add_argument("--batches", type=int, default=2, help="Batches (default: %(default)s).")
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 3], help="World sizes beside 1 (default: 2 3).")
    parser.add_argument(
        "--micro_batch",
        type=int,
        default=5,
        help="Images of a micro-batch; texts are two more (default: %(default)s).",
    )
    parser.add_argument("--tile", type=int, default=7, help="Side of the tiles of logits (default: %(default)s).")
    parser.add_argument("--float32", action="store_true", help="Compare in float32 instead of float64.")
    chosen, rest = parser.parse_known_args(words)
    return chosen, parse_arguments(rest, __doc__ or "")


def prepare(
    arguments: Arguments, instances: int, count: int, dtype: torch.dtype
) -> tuple[MXMCLRModel, list[dict[str, Tensor]]]:
    """The model that a run would start from, and batches of its training split, on the CPU; seeds torch."""
    set_seed(arguments.optimization.seed)
    transformers_logging.set_verbosity_error()
    datasets_logging.disable_progress_bar()
    data = arguments.data
    rows = named_splits(load_multifold(**data.source))["train"]
    captions = (caption for fold in rows.column("captions") for caption in fold)
    model, processor = build_model(arguments.model, captions)
    if arguments.lora.lora_rank:
        attach_adapter(model, processor, arguments.lora)
    if arguments.optimization.gradient_checkpointing:
        model.activation_checkpointing_enable()
    drawn = draw_rows(rows, instances, count, arguments.optimization.seed, min(instances, data.text_only_instances))
    frozen_text = None
    if is_frozen(model.text_model):
        owners = {caption: row["instance_id"] for batch in drawn for row in batch for caption in row["captions"]}
        frozen_text = FrozenTextFeatures.encode(model, processor, owners)
    views, captions_drawn = fold_count(data.views_per_instance), fold_count(data.captions_per_instance)
    collate = build_collator(arguments, processor, frozen_text, views, captions_drawn)
    model.double() if dtype == torch.float64 else model.float()
    return model, [in_dtype(collate(batch), dtype) for batch in drawn]


def draw_rows(rows: RawRows, instances: int, count: int, seed: int, text_only: int) -> list[list[dict]]:
    """The rows of a run's first batches, had they so many instances, and so many that captions alone are seen of."""
    order, read = InstanceBatches([len(rows)], [1.0], instances, count, seed, text_only=text_only), EpochRows(rows)
    return [[read[index] for index in batch] for batch in order]


def in_dtype(batch: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """A batch with its real numbers in a type."""
    return {name: rows.to(dtype) if rows.is_floating_point() else rows for name, rows in batch.items()}


def describe(arguments: Arguments, batches: Sequence[dict[str, Tensor]], dtype: torch.dtype) -> str:
    """What is compared, in two lines."""
    images, texts = ([len(batch[f"{kind}_group_ids"]) for batch in batches] for kind in ("image", "text"))
    return (
        f"{arguments.recipe or 'No recipe'}, objective {arguments.model.objective}, {str(dtype).partition('.')[2]}, "
        f"{len(batches)} batches of {images} images and {texts} texts\n"
        f"{platform.platform()}, {platform.processor() or platform.machine()}, torch {torch.__version__}"
    )


def line_of(case: Case, difference: Difference, exact: bool) -> str:
    """A case and its verdict."""
    return (
        f"{'exact' if exact else 'FAILS':<6} {case.name:<48} loss {difference.loss:.1e}   "
        f"gradient {difference.gradient:.1e} ({difference.parameter})"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
