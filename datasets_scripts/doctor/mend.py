"""The cleaned copy: what the findings drop is left out, what the doctor read otherwise is written so."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import pyarrow
import pyarrow.parquet
from datasets import Features

from ..schema import FEATURES
from .findings import CAPTIONS, IMAGES, Corpus, Finding, Place
from .report import where
from .rows import unstorable_columns
from .sources import FolderSource, TableSource, as_fold

ROW_GROUP = 100
DROPPED = "dropped.jsonl"


def check_target(target: Path, dataset: str) -> None:
    """Check that writing to a folder changes nothing that is there, least of all the source.

    Raises:
        ValueError: If it isn't empty, or lies within the data set.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"`fix` must be a new or empty folder, got '{target}'; choose another.")
    check_outside(target, dataset, "fix")


def check_outside(target: Path, dataset: str, flag: str) -> None:
    """Raise ValueError if a folder to write to lies within the data set."""
    source = Path(dataset)
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"`{flag}` must lie outside the data set, got '{target}' inside '{source}'; choose another.")


def write_cleaned(corpus: Corpus, findings: Sequence[Finding], target: Path) -> int:
    """Write the cleaned copy and `dropped.jsonl`, the list of what it leaves out or changes; how many entries it has."""
    target.mkdir(parents=True, exist_ok=True)
    reasons: dict[Place, Finding] = {}
    for finding in findings:
        for place in finding.drops:
            reasons.setdefault(place, finding)
    for row in range(len(corpus.rows)):
        if Place(row) not in reasons and not any(kept(corpus, row, fold, reasons) for fold in (IMAGES, CAPTIONS)):
            reasons[Place(row)] = Finding("empty_instance", "Nothing is left of it.", [Place(row)])
    rows = (row for row in range(len(corpus.rows)) if Place(row) not in reasons)
    if isinstance(corpus.source, TableSource):
        write_parquet(corpus, corpus.source, rows, reasons, target)
    elif isinstance(corpus.source, FolderSource):
        write_folder(corpus, corpus.source, rows, reasons, target)
    with (target / DROPPED).open("w", encoding="utf-8") as file:
        return write_list(corpus, findings, reasons, file)


def kept(corpus: Corpus, row: int, fold: str, reasons: dict[Place, Finding]) -> list[int]:
    """The places of a fold that the copy keeps."""
    return [place for place in range(len(getattr(corpus.rows[row], fold))) if Place(row, fold, place) not in reasons]


def write_list(corpus: Corpus, findings: Sequence[Finding], reasons: dict[Place, Finding], file: TextIO) -> int:
    """Write one line for each thing dropped or changed."""
    dropped = [("dropped", place, finding) for place, finding in sorted(reasons.items(), key=lambda item: item[0])]
    changed = [
        ("changed", place, finding)
        for finding in findings
        if finding.is_changed
        for place in finding.places
        if Place(place.row) not in reasons
    ]
    for action, place, finding in dropped + changed:
        entry = {"action": action} | where(corpus, place) | {"kind": finding.kind, "reason": finding.message}
        file.write(json.dumps(entry) + "\n")
    return len(dropped) + len(changed)


def write_folder(
    corpus: Corpus, source: FolderSource, rows: Iterable[int], reasons: dict[Place, Finding], target: Path
) -> None:
    """Write `metadata.jsonl` and the images that it lists."""
    wanted = set(rows)
    with (target / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for number, raw in enumerate(source.raw_rows()):
            if number in wanted and raw.values is not None:
                row, places = corpus.rows[number], kept(corpus, number, IMAGES, reasons)
                names = [copy_image(source, number, place, target) for place in places]
                captions = [row.captions[place] for place in kept(corpus, number, CAPTIONS, reasons)]
                cleaned = {"images": names, "captions": captions, "split": row.split}
                identity = {"instance_id": row.instance_id, "category": row.category}
                file.write(json.dumps(storable(raw.values) | identity | cleaned) + "\n")


def storable(values: Mapping[str, object]) -> dict[str, object]:
    """The columns that can be stored."""
    refused = unstorable_columns(values)
    return {column: value for column, value in values.items() if column not in refused}


def copy_image(source: FolderSource, row: int, place: int, target: Path) -> str:
    """Copy an image under its name, or under its row's number where it comes from an archive; that name."""
    image = source.images[row][place]
    suffix = Path(source.ref_of(image).name).suffix
    name = image if isinstance(image, str) else f"images/{row}-{place}{suffix}"
    path = target / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read(image) or b"")
    return name


def write_parquet(
    corpus: Corpus, source: TableSource, rows: Iterable[int], reasons: dict[Place, Finding], target: Path
) -> None:
    """Write a Parquet file for each split, images embedded."""
    wanted = set(rows)
    schema = Features(next(iter(source.features.values())) | FEATURES).arrow_schema
    writers: dict[str, pyarrow.parquet.ParquetWriter] = {}
    waiting: dict[str, list[dict[str, object]]] = defaultdict(list)
    with ExitStack() as stack:
        for number, raw in enumerate(source.raw_rows()):
            split = corpus.rows[number].split
            if number not in wanted or raw.values is None:
                continue
            if split not in writers:
                file = target / f"{split}.parquet"
                writers[split] = stack.enter_context(pyarrow.parquet.ParquetWriter(file, schema))
            waiting[split].append(cleaned_row(corpus, number, raw.values, reasons))
            if len(waiting[split]) == ROW_GROUP:
                writers[split].write_table(pyarrow.Table.from_pylist(waiting.pop(split), schema))
        for split, left in waiting.items():
            writers[split].write_table(pyarrow.Table.from_pylist(left, schema))


def cleaned_row(
    corpus: Corpus, number: int, values: Mapping[str, object], reasons: dict[Place, Finding]
) -> dict[str, object]:
    """The row of a table without what is dropped of it."""
    row, images, contents = corpus.rows[number], as_fold(values.get(IMAGES)), corpus.source.images_of(number)
    return storable(values) | {
        "instance_id": row.instance_id,
        "images": [
            {"bytes": contents[place], "path": images[place].get("path")}
            for place in kept(corpus, number, IMAGES, reasons)
        ],
        "captions": [row.captions[place] for place in kept(corpus, number, CAPTIONS, reasons)],
        "category": row.category,
    }
