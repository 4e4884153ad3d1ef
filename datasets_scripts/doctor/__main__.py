"""What is wrong with a data set: python -m datasets_scripts.doctor DATASET --output report --fix cleaned."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from ..raw_images import check_max_pixels
from ..schema import RowError
from .diagnosis import BATCH_SIZE, DEFAULT_LIMITS, diagnose, open_source, unreadable
from .figures import Tokenizer
from .images import Limits
from .mend import DROPPED, check_outside, check_target, write_cleaned
from .page import as_page
from .report import Diagnosis, as_json, as_text


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a checkpoint on the Hub or in a folder.

    Raises:
        ValueError: If there is none.
    """
    from transformers import AutoTokenizer  # takes seconds, and most runs do without

    try:
        return cast("Tokenizer", AutoTokenizer.from_pretrained(name))
    except (OSError, ValueError) as error:
        raise ValueError(f"`tokenizer` must be a checkpoint with one, got {name!r} ({error}).") from error


def write_reports(diagnosis: Diagnosis, folder: Path) -> None:
    """Write `report.txt`, `report.json` and `report.html`."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, write in {"txt": as_text, "json": as_json, "html": as_page}.items():
        (folder / f"report.{suffix}").write_text(write(diagnosis), encoding="utf-8")


def parse_arguments(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The flags of the command line, and the parser for refusing their values."""
    parser = argparse.ArgumentParser(prog="python -m datasets_scripts.doctor", description=main.__doc__)
    parser.add_argument("dataset", help="What `load_multifold` takes: shapes, a folder, an id on the Hub.")
    parser.add_argument("--config", help="Configuration of the data set.")
    parser.add_argument("--settings", type=json.loads, default={}, help="Settings of the builder, as a JSON object.")
    parser.add_argument("--output", type=Path, help="Folder for report.txt, report.json and report.html.")
    parser.add_argument("--tokenizer", help="Checkpoint whose tokenizer captions are measured by.")
    parser.add_argument(
        "--max_text_length", type=int, help="Most tokens of a caption; the tokenizer's own limit by default."
    )
    parser.add_argument("--batch_size", type=int, default=BATCH_SIZE, help="Instances of a batch.")
    parser.add_argument(
        "--min_side", type=int, default=DEFAULT_LIMITS.min_side, help="Pixels under which an image is tiny."
    )
    parser.add_argument(
        "--max_pixels", type=int, default=DEFAULT_LIMITS.max_pixels, help="Pixels above which an image is huge."
    )
    parser.add_argument(
        "--fix", type=Path, help="New folder for a cleaned copy; the data set itself is never changed."
    )
    return parser, parser.parse_args(arguments)


def check_flags(chosen: argparse.Namespace) -> Limits:
    """What an image may measure, once all flags have been checked.

    Raises:
        ValueError: If one can't be used.
    """
    for name in ("batch_size", "min_side", "max_text_length"):
        value = getattr(chosen, name)
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if not isinstance(chosen.settings, dict):
        raise ValueError(f"`settings` must be a JSON object, got {chosen.settings!r}.")
    check_max_pixels(chosen.max_pixels)
    if chosen.fix is not None:
        check_target(chosen.fix, chosen.dataset)
    if chosen.output is not None:
        check_outside(chosen.output, chosen.dataset, "output")
    return Limits(chosen.min_side, chosen.max_pixels)


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine a data set, report on it, and say whether it has errors: 1 if so, else 0."""
    parser, chosen = parse_arguments(arguments)
    try:
        limits = check_flags(chosen)
        tokenizer = load_tokenizer(chosen.tokenizer) if chosen.tokenizer else None
        source = open_source(chosen.dataset, chosen.config, chosen.settings)
    except RowError as error:
        diagnosis = unreadable(chosen.dataset, error)
    except ValueError as error:
        parser.error(str(error))
    else:
        diagnosis = diagnose(
            source,
            tokenizer=tokenizer,
            max_text_length=chosen.max_text_length,
            batch_size=chosen.batch_size,
            limits=limits,
        )
    if chosen.fix is not None and diagnosis.corpus.rows:
        count = write_cleaned(diagnosis.corpus, diagnosis.findings, chosen.fix)
        diagnosis.notes.append(f"{count:,} things were dropped or changed in '{chosen.fix}', see its {DROPPED}.")
    elif chosen.fix is not None:
        diagnosis.notes.append("There is no cleaned copy, since no row could be read.")
    if chosen.output is not None:
        write_reports(diagnosis, chosen.output)
    sys.stdout.write(as_text(diagnosis))
    return int(diagnosis.has_errors)


if __name__ == "__main__":
    sys.exit(main())
