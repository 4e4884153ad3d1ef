"""Check a model card: measure the checkpoint again, and say of every figure that the card states whether it holds.

Usage:
    python training/verify.py runs/shapes_cpu
    python training/verify.py org/mxmclr-text2shape --dataset path/to/text2shape --revision v1

The card names the data set, which is fetched or built; `--dataset` names another copy of it. A figure "holds exactly"
within 0.001 of the stated one, and "holds" where each of the two lies in the 95 % interval of the other. Exit code: 0 where all figures hold, 1 where
one does not, 2 where it can't be told: no such card, no such data, other rules, or other data than the card was made with.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Launched by path, this file's folder comes first, where `evaluate` would be ours instead of the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from transformers.utils import logging as transformers_logging

from datasets_scripts.loading import load_multifold
from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor
from training.card_results import Figure, Statement, figures_of, protocol_hash, stated_by
from training.checkpoints import load_checkpoint
from training.data import RawRows, named_splits
from training.dataset_used import content_hash
from training.encoding import encode_rows
from training.hardware import choose_device
from training.protocol import load_protocol, protocol_names
from training.redaction import redact, redact_uncaught_errors
from training.retrieval import Report, retrieval_report

EXACT = 1e-3  # the same weights on another machine differ by a tie or two
HOLDS, FAILS, UNKNOWN = 0, 1, 2  # exit codes
CONCLUSIONS = {
    HOLDS: "The card holds.",
    FAILS: "The card does not hold.",
    UNKNOWN: "It can't be told: the figures do not hold on this data, but it is not the data that the card was made with.",
}


class Check(NamedTuple):
    """A stated figure, what it is now, and whether it holds."""

    stated: Figure
    now: float | None
    verdict: str


def main(words: Sequence[str]) -> int:
    """Verify as a command line says, and return the exit code."""
    arguments = parse(words)
    try:
        statement = read_statement(arguments.model, arguments.revision)
        rows = load_rows(statement, arguments)
        transformers_logging.disable_progress_bar()
        device = choose_device(arguments.cpu)
        model, processor = load_checkpoint(arguments.model, device, arguments.revision, arguments.trust_remote_code)
        report = measure(model, processor, rows, statement.protocol, arguments.num_workers)
        if protocol_hash(report) != statement.protocol_hash:
            raise ValueError(
                f"The card's scores are by protocol {statement.protocol} ({statement.protocol_hash}), this version of the "
                f"code has {report['protocol']['name']} ({protocol_hash(report)}); check out the card's git revision."
            )
    except (ValueError, OSError) as error:
        sys.stderr.write(redact(f"It can't be told whether the card holds: {error}\n"))
        return UNKNOWN
    is_same_data = content_hash(rows) == statement.dataset.get("content")
    checks = [check(figure, report) for figure in statement.figures]
    code = conclude(checks, is_same_data)
    sys.stdout.write(
        f"{describe_data(statement, rows, is_same_data)}\n\n{format_checks(checks)}\n\n{CONCLUSIONS[code]}\n"
    )
    return code


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Folder or Hub id of a checkpoint with one of our cards.")
    parser.add_argument("--revision", help="Branch, tag or commit on the Hub.")
    parser.add_argument("--dataset", help="A copy of the data set, where the one that the card names can't be found.")
    parser.add_argument("--dataset_config", help="Its configuration.")
    parser.add_argument("--data_dir", help="Folder with its raw files, for builders such as `text2shape`.")
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="Run code from the checkpoint's repository; never needed for a checkpoint of ours.",
    )
    parser.add_argument(
        "--num_workers", type=int, default=1, help="Processes that read images (default: %(default)s)."
    )
    parser.add_argument("--cpu", action="store_true", help="Stay on the CPU even where there is an accelerator.")
    return parser.parse_args(words)


def read_statement(model: str, revision: str | None) -> Statement:
    """What the card of a checkpoint claims.

    Raises:
        ValueError: When there is no card, or it states nothing that could be checked.
    """
    path = Path(model) / "README.md"
    try:
        if not Path(model).is_dir():
            path = Path(hf_hub_download(model, "README.md", revision=revision))
        statement = stated_by(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, EntryNotFoundError) as error:
        raise ValueError(f"{model!r} has no card, README.md; push a run with one, or name another.") from error
    except HfHubHTTPError as error:
        raise ValueError(f"{model!r} can't be read: {error}") from error
    if statement is None:
        raise ValueError(f"The card of {model!r} states no figure in its metadata; evaluate the model first.")
    return statement


def load_rows(statement: Statement, arguments: argparse.Namespace) -> RawRows:
    """The split that the card's figures are about, of the data set that it or the command line names.

    Raises:
        ValueError: When there is none.
    """
    asked = {"dataset": arguments.dataset, "config": arguments.dataset_config, "data_dir": arguments.data_dir}
    given = {name: value for name, value in asked.items() if value}
    source = given if arguments.dataset else {**statement.dataset.get("source", {}), **given}
    if "dataset" not in source:
        raise ValueError("The card names no data set; pass `--dataset`.")
    splits = named_splits(load_multifold(**source))
    if statement.split not in splits:
        raise ValueError(
            f"The data set has the splits {sorted(splits)}, the card's figures are on {statement.split!r}."
        )
    return splits[statement.split]


def measure(
    model: MXMCLRModel, processor: MXMCLRProcessor, rows: RawRows, protocol: str, num_workers: int = 0
) -> Report:
    """The report of a model on some rows: the one place here that knows how scores are made.

    Raises:
        ValueError: For a protocol that this version doesn't have.
    """
    if protocol not in protocol_names():  # a card names a protocol of ours, never a path
        raise ValueError(f"The protocol {protocol!r} is not known here, only {protocol_names()}.")
    embeddings = encode_rows(model, processor, rows, num_workers=num_workers, show_progress=True)
    return retrieval_report(embeddings, load_protocol(protocol))


def check(stated: Figure, report: Report) -> Check:
    """Whether a stated figure holds in a report."""
    now = {figure.name: figure for figure in figures_of(report)}.get(stated.name)
    if now is None:
        return Check(stated, None, "is not measured")
    if abs(now.value - stated.value) <= EXACT:
        return Check(stated, now.value, "holds exactly")
    # Both ways, so that a card gains nothing by an interval that is too wide or not its own.
    agree = is_inside(now.value, stated.interval) and is_inside(stated.value, now.interval)
    return Check(stated, now.value, "holds" if agree else "does not hold")


def is_inside(value: float, interval: tuple[float, float] | None) -> bool:
    """Whether there is an interval that holds the value."""
    return interval is not None and interval[0] <= value <= interval[1]


def conclude(checks: Sequence[Check], is_same_data: bool) -> int:
    """The exit code: other data can't refute a card, though it may confirm one."""
    if all(each.verdict.startswith("holds") for each in checks):
        return HOLDS
    return FAILS if is_same_data else UNKNOWN


def describe_data(statement: Statement, rows: RawRows, is_same_data: bool) -> str:
    """What was measured on, and whether it is what the card was made with."""
    stated: Mapping[str, Any] = statement.dataset
    head = f"{len(rows):,} instances of the split `{statement.split}`"
    if is_same_data:
        return f"{head}: the same data as the card's ({stated['content']})."
    return f"{head}: NOT the card's data: it states {stated.get('content')}, this is {content_hash(rows)}."


def format_checks(checks: Sequence[Check]) -> str:
    """The checks as a table for a terminal."""
    table = [("figure", "stated", "95 % interval", "now", "verdict")]
    for stated, now, verdict in checks:
        interval = "" if stated.interval is None else f"{stated.interval[0]:.4f} to {stated.interval[1]:.4f}"
        table.append((stated.name, f"{stated.value:.4f}", interval, "" if now is None else f"{now:.4f}", verdict))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else each forked loader process warns
    redact_uncaught_errors()
    sys.exit(main(sys.argv[1:]))
