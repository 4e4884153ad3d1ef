"""Score a checkpoint on a split of a data set under a named protocol: a table, JSON, and a page with pictures.

Usage:
    python training/evaluate.py runs/shapes_cpu
    python training/evaluate.py runs/shapes_cpu --html report.html --output scores.json
    python training/evaluate.py org/mxmclr-text2shape --dataset path/to/folder --split validation --output results/
    python training/evaluate.py runs/shapes_cpu --protocol multifold/max_sim
    python training/evaluate.py --compare runs/emoji-0 runs/emoji-1 --html difference.html

Numbers of different protocols can't be compared; each result carries its protocol's name and hash. With `--compare`,
the second checkpoint is set against the first on the same queries: the difference of each metric with its interval, and
the instances that changed most. Embeddings are kept in the run folder and used again while weights and data are the same.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Launched by path, this file's folder comes first, where `evaluate` would be this file instead of the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from transformers.utils import logging as transformers_logging

from training.checkpoints import add_source_flags
from training.compare import compare, format_comparison
from training.evaluation import evaluate_checkpoint
from training.html_report import comparison_page, report_page
from training.protocol import DEFAULT_PROTOCOL, Protocol, load_protocol, protocol_names
from training.redaction import redact_uncaught_errors
from training.retrieval import Report
from training.score_tables import format_table


def main(words: Sequence[str]) -> None:
    """Evaluate, or compare, as a command line says."""
    arguments = parse(words)
    transformers_logging.disable_progress_bar()
    protocol = load_protocol(arguments.protocol)
    if arguments.compare:
        compare_two(arguments, protocol)
    else:
        evaluate_one(arguments, protocol)


def evaluate_one(arguments: argparse.Namespace, protocol: Protocol) -> None:
    """Print, and write where asked for, the scores of a checkpoint."""
    evaluation = evaluate_checkpoint(arguments, protocol)
    sys.stdout.write(format_table(evaluation.report) + "\n")
    if arguments.output:
        write_json(arguments.output, evaluation.report)
    if arguments.html:
        write_text(arguments.html, report_page(evaluation))


def compare_two(arguments: argparse.Namespace, protocol: Protocol) -> None:
    """Print, and write where asked for, how two checkpoints differ."""
    first, second = (
        evaluate_checkpoint(argparse.Namespace(**vars(arguments) | {"checkpoint": checkpoint}), protocol)
        for checkpoint in arguments.compare
    )
    comparison = compare(first, second)
    sys.stdout.write(format_comparison(comparison) + "\n")
    if arguments.output:
        write_json(arguments.output, comparison)
    if arguments.html:
        write_text(arguments.html, comparison_page(comparison, first, second))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line; `--output` as a folder becomes the files in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=protocols_in_words(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_source_flags(parser, nargs="?")
    parser.add_argument(
        "--compare", nargs=2, metavar=("RUN_A", "RUN_B"), help="Two checkpoints to compare, instead of one to score."
    )
    parser.add_argument(
        "--protocol",
        default=DEFAULT_PROTOCOL,
        help="A name below, or a YAML file of your own with the same keys (default: %(default)s).",
    )
    parser.add_argument(
        "--output", help="A JSON file for the scores, or a folder that gets `scores.json` and `report.html`."
    )
    parser.add_argument("--html", help="File for a page that needs nothing else: scores, plots, examples, failures.")
    parser.add_argument(
        "--embeddings", help="Folder in which embeddings are kept (default: `embeddings` of a local run folder)."
    )
    arguments = parser.parse_args(words)
    if bool(arguments.checkpoint) == bool(arguments.compare):
        parser.error("name one checkpoint, or two with --compare")
    if arguments.output and not arguments.output.endswith(".json"):
        arguments.html = arguments.html or str(Path(arguments.output) / "report.html")
        arguments.output = str(Path(arguments.output) / "scores.json")
    return arguments


def protocols_in_words() -> str:
    """The protocols that come with the code, a line each."""
    lines = [f"  {name:<24}{load_protocol(name).description}" for name in protocol_names()]
    return "\n".join(["protocols:", *lines])


def write_json(path: str, report: Report) -> None:
    """Write a result for programs, in the form of a run's `metrics.json`."""
    write_text(path, json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def write_text(path: str, text: str) -> None:
    """Write a file, and the folders that it needs."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    redact_uncaught_errors()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else each forked loader process warns
    main(sys.argv[1:])
