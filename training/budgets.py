"""How few views of an instance, and how few captions of it in a query, retrieval can do with.

Usage:
    python training/budgets.py runs/shapes_cpu
    python training/budgets.py embeddings/shapes-test --views 1 2 4 8 --poolings mean max_sim --output budgets

Of a run, or of a folder that `training/embed.py` made. Prints a table and the sentences that matter, and writes
`budgets.json`, `budgets.txt` and `budgets.png`.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Launched by path, this file's folder comes first, where `evaluate` would be ours instead of the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from transformers.utils import logging as transformers_logging

from training.budget_curves import POOLINGS, BudgetSettings, budget_curves
from training.budget_plots import plot_budgets
from training.budget_tables import format_budgets
from training.checkpoints import add_source_flags, load_rows, run_embeddings_folder
from training.embedding_store import is_embedding_folder, load_embeddings
from training.encoding import stored_or_encoded
from training.hardware import choose_device
from training.searches import Embeddings


def main(words: Sequence[str]) -> None:
    """Measure budgets as a command line says."""
    arguments = parse(words)
    settings = BudgetSettings(
        tuple(arguments.views), tuple(arguments.captions), tuple(arguments.poolings), arguments.draws
    )
    output = output_of(arguments)
    report = budget_curves(embeddings_of(arguments), settings, show_progress=True)
    text = format_budgets(report) + "\n"
    sys.stdout.write(text)
    output.mkdir(parents=True, exist_ok=True)
    (output / "budgets.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (output / "budgets.txt").write_text(text, encoding="utf-8")
    plot_budgets(report, output / "budgets.png")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source_flags(parser)
    defaults = BudgetSettings()
    shown = " (default: %(default)s)."
    parser.add_argument(
        "--views", nargs="+", type=int, default=defaults.views, help="Views kept of each instance" + shown
    )
    parser.add_argument(
        "--captions", nargs="+", type=int, default=defaults.captions, help="Captions fused into a query" + shown
    )
    parser.add_argument(
        "--poolings", nargs="+", choices=POOLINGS, default=POOLINGS, help="How folds are pooled" + shown
    )
    parser.add_argument(
        "--draws", type=int, default=defaults.draws, help="Random choices of what is kept, averaged" + shown
    )
    parser.add_argument("--output", help="Folder for table, JSON and plot; `budgets` in the run folder by default.")
    return parser.parse_args(words)


def output_of(arguments: argparse.Namespace) -> Path:
    """The folder for what is written.

    Raises:
        ValueError: If none is named and the checkpoint is no folder.
    """
    if arguments.output:
        return Path(arguments.output)
    if not Path(arguments.checkpoint).is_dir():
        raise ValueError(f"`--output` is needed: {arguments.checkpoint!r} is no folder to write into.")
    return Path(arguments.checkpoint) / "budgets"


def embeddings_of(arguments: argparse.Namespace) -> Embeddings:
    """Those of a folder of embeddings, or of a checkpoint; of a run folder they are kept in its `embeddings`."""
    folder = Path(arguments.checkpoint)
    if is_embedding_folder(folder):
        return load_embeddings(folder)
    transformers_logging.disable_progress_bar()
    return stored_or_encoded(
        arguments.checkpoint,
        load_rows(arguments),
        arguments.split,
        run_embeddings_folder(arguments.checkpoint),
        arguments.num_workers,
        choose_device(arguments.cpu),
        show_progress=True,
    )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else each forked loader process warns
    main(sys.argv[1:])
