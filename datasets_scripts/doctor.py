"""What is wrong with a data set: python -m datasets_scripts.doctor DATASET --output report --fix cleaned."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from datasets import Dataset

from .doctor_captions import compare_captions, examine_captions
from .doctor_checks import check_categories, check_folds, check_ids, instance_numbers
from .doctor_figures import Tokenizer, check_lengths, describe
from .doctor_findings import Corpus, Finding, Source
from .doctor_images import Limits, compare_images, examine_images
from .doctor_mend import DROPPED, check_outside, check_target, write_cleaned
from .doctor_negatives import FORMULA, count_false_negatives
from .doctor_page import as_page
from .doctor_report import Diagnosis, as_json, as_text
from .doctor_rows import dropped_rows, empty_row_findings, read_corpus
from .doctor_sources import FolderSource, TableSource
from .loading import BUILDERS, Multifold, load_multifold, parts_of
from .loading import found as find_elsewhere
from .multifold_folder import is_multifold_folder
from .raw_images import check_max_pixels
from .schema import REQUIRED_COLUMNS, RowError

BATCH_SIZE = 64
DEFAULT_LIMITS = Limits()
NO_TOKENIZER = "Captions were not measured in tokens: name the text tower's `--tokenizer`."


def diagnose(
    source: Source,
    *,
    tokenizer: Tokenizer | None = None,
    max_text_length: int | None = None,
    batch_size: int = BATCH_SIZE,
    limits: Limits = DEFAULT_LIMITS,
) -> Diagnosis:
    """All that is wrong with a data set, and its figures.

    Args:
        source: The data set, from `open_source`.
        tokenizer: A transformers tokenizer, to measure captions by.
        max_text_length: The most tokens; the tokenizer's own limit by default.
        batch_size: Instances of a batch, for the false negatives in it.
        limits: What an image may measure.
    """
    try:
        corpus, findings = read_corpus(source)
    except RowError as error:
        return unreadable(source.name, error)
    diagnosis = Diagnosis(corpus, findings, {}, [FORMULA])
    examine(diagnosis, limits, tokenizer, max_text_length, batch_size)
    return diagnosis


def unreadable(dataset: str, error: RowError) -> Diagnosis:
    """The diagnosis of a data set that doesn't open."""
    return Diagnosis(Corpus(TableSource(dataset, {}), []), [Finding("unreadable", str(error))], {}, [])


def open_source(dataset: str, config: str | None = None, settings: Mapping[str, Any] | None = None) -> Source:
    """What `load_multifold` takes, and also what it would refuse for its rows.

    Raises:
        RowError: If its files can't be read at all.
        ValueError: If there is no such data set.
    """
    if dataset in BUILDERS or settings:
        return TableSource(dataset, as_splits(load_multifold(dataset, config=config, **(settings or {}))))
    if is_multifold_folder(Path(dataset)):
        if config is not None:
            raise ValueError(f"`config` must be left out for the folder '{dataset}', got {config!r}.")
        return FolderSource(Path(dataset))
    splits = as_splits(find_elsewhere(dataset, config))
    for split, table in splits.items():
        missing = [column for column in REQUIRED_COLUMNS if column not in table.column_names]
        if missing:
            raise RowError(
                f"'{dataset}' {split} lacks the columns {missing}, it has {table.column_names}; rename them, or name "
                "yours in `--settings` as `instance_column`, `image_columns` and `caption_columns`."
            )
    return TableSource(dataset, splits)


def as_splits(loaded: Multifold) -> dict[str, Dataset]:
    """The tables of what was loaded, not streamed, by split."""
    return cast("dict[str, Dataset]", parts_of(loaded))


def examine(
    diagnosis: Diagnosis, limits: Limits, tokenizer: Tokenizer | None, max_text_length: int | None, batch_size: int
) -> None:
    """Look at everything that was read, and write down what is found."""
    corpus, findings = diagnosis.corpus, diagnosis.findings
    findings += check_ids(corpus, dropped_rows(findings))
    unreadable = dropped_rows(finding for finding in findings if finding.kind not in ("repeated_id", "leaked_id"))
    instances = instance_numbers(corpus.rows)
    facts, found = examine_images(corpus, findings, limits)
    findings += found
    captions, found = examine_captions(corpus, findings, instances)
    findings += found
    findings += empty_row_findings(corpus, findings, unreadable)
    findings += check_folds(corpus, unreadable) + check_categories(corpus, unreadable)
    images_alike, found = compare_images(corpus, facts, instances)
    findings += found
    captions_alike, found = compare_captions(corpus, captions)
    findings += found
    diagnosis.figures = describe(corpus, facts, captions, unreadable)
    if tokenizer is None:
        diagnosis.notes.append(NO_TOKENIZER)
    else:
        diagnosis.figures["sizes"]["tokens of captions"], found = check_lengths(
            corpus, captions, tokenizer, max_text_length
        )
        findings += found
    alike = {"images": images_alike, "captions": captions_alike}
    diagnosis.figures["false negatives"], found = count_false_negatives(corpus, alike, instances, batch_size)
    findings += found


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
