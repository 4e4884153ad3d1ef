"""Merge an adapter into its base: a checkpoint that loads without peft and gives the same embeddings.

Usage:
    python training/merge.py runs/lora --output runs/lora-merged
    python training/merge.py org/mxmclr-emoji-lora --output runs/merged --base path/to/base
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# Launched by path, this file's folder comes first, where `evaluate` would be ours instead of the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from transformers import AutoProcessor
from transformers.utils import logging as transformers_logging

from modeling_mxmclr import MXMCLRModel
from modeling_mxmclr.adapters_mxmclr import fetch_adapter, load_adapter
from modeling_mxmclr.probe_mxmclr import Probe, largest_differences, probe_outputs

MERGED_TOLERANCE = 1e-4


def main(words: Sequence[str]) -> None:
    """Merge as a command line says."""
    arguments = parse(words)
    transformers_logging.disable_progress_bar()
    largest = merge(arguments.adapter, arguments.base, Path(arguments.output))
    sys.stdout.write(
        f"Merged into {arguments.output}; its embeddings differ from the adapter's by {largest:.1e} at most.\n"
    )


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", help="Run folder of an adapter, or its Hub id.")
    parser.add_argument(
        "--output", required=True, help="Folder for the checkpoint; one that is empty, or not there yet."
    )
    parser.add_argument("--base", help="Folder or Hub id of the base; by default what the adapter's config names.")
    return parser.parse_args(words)


def merge(adapter: str, base: str | None, output: Path) -> float:
    """Write the merged checkpoint, and return the largest difference of its embeddings on the adapter's probe.

    Raises:
        ValueError: When the output folder holds something, or the adapter or the result can't be verified.
    """
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"`--output` must be an empty folder, {str(output)!r} holds files; name another one.")
    load_adapter(adapter, base).merge_and_unload(safe_merge=True).save_pretrained(output)
    AutoProcessor.from_pretrained(adapter).save_pretrained(output)
    return check_merged(MXMCLRModel.from_pretrained(output), Probe.load(fetch_adapter(adapter)))


def check_merged(model: MXMCLRModel, probe: Probe) -> float:
    """The largest difference between a merged model's results and the adapter's.

    Raises:
        ValueError: When it is more than what products rounded in another order explain.
    """
    largest = max(largest_differences(probe, probe_outputs(model, probe.inputs)).values())
    if largest > MERGED_TOLERANCE:
        raise ValueError(
            f"The merged model's embeddings differ from the adapter's by up to {largest:.1e}, allowed are "
            f"{MERGED_TOLERANCE:.0e}; use the adapter unmerged."
        )
    return largest


if __name__ == "__main__":
    main(sys.argv[1:])
