"""From a data set to all that is wrong with it, and its figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from datasets import Dataset

from ..loading import BUILDERS, Multifold, load_multifold, parts_of
from ..loading import found as find_elsewhere
from ..multifold_folder import is_multifold_folder
from ..schema import REQUIRED_COLUMNS, RowError
from .captions import compare_captions, examine_captions
from .checks import check_categories, check_folds, check_ids, instance_numbers
from .figures import Tokenizer, check_lengths, describe
from .findings import Corpus, Finding, Source
from .images import Limits, compare_images, examine_images
from .negatives import FORMULA, count_false_negatives
from .report import Diagnosis
from .rows import dropped_rows, empty_row_findings, read_corpus
from .sources import FolderSource, TableSource

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
