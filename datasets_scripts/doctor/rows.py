"""Reading a data set as far as it can be read: every fault of a row becomes a finding, and the reading goes on."""

import json
from collections.abc import Iterable, Mapping, Sequence

from datasets.utils import tqdm

from ..schema import FEATURES, REQUIRED_COLUMNS, SPLIT_NAMES, split_of
from .findings import CAPTIONS, IMAGES, Corpus, Finding, LooseRow, Place, RawRow, Source, listed
from .sources import as_fold, image_name, is_text

MISTAKEN_SPLITS = SPLIT_NAMES | {"training": "train", "eval": "validation", "testing": "test"}
SHOWN_FILES = 100


def read_corpus(source: Source) -> tuple[Corpus, list[Finding]]:
    """All rows of a data set, as far as they can be read, and what is wrong with each."""
    rows, findings = [], []
    for number, raw in enumerate(tqdm(source.raw_rows(), desc="rows")):
        row, found = read_row(number, raw, source)
        rows.append(row)
        findings += found
    rows, found = settle_splits(rows, dropped_rows(findings))
    unlisted = source.unlisted_files(rows)
    if unlisted:
        found.append(Finding("unlisted_file", f"{len(unlisted):,} files: {listed(unlisted, SHOWN_FILES)}."))
    if not rows:
        found.append(Finding("unreadable", f"'{source.name}' holds no row."))
    return Corpus(source, rows), findings + found


def dropped_rows(findings: Iterable[Finding]) -> set[int]:
    """The rows that the findings drop whole."""
    return {place.row for finding in findings for place in finding.drops if not place.fold}


def read_row(number: int, raw: RawRow, source: Source) -> tuple[LooseRow, list[Finding]]:
    """What can be read of a row, and what is wrong with it."""
    here = (Place(number),)
    if raw.values is None:
        return LooseRow(raw.place, "", "", [], [], None), [Finding("broken_row", raw.problem, here, here)]
    images, captions = as_fold(raw.values.get(IMAGES)), as_fold(raw.values.get(CAPTIONS))
    category, split = raw.values.get("category"), raw.split or raw.values.get("split") or ""
    instance_id = id_of(raw.values.get("instance_id"))
    row = LooseRow(
        raw.place,
        instance_id,
        str(split),
        [image_name(image, place) for place, image in enumerate(images)],
        [str(caption) if is_text(caption) else "" for caption in captions],
        str(category) if category and is_text(category) else None,
    )
    findings = column_findings(raw.values, instance_id, here) + image_findings(images, number, source)
    return row, findings + caption_findings(captions, number)


def id_of(value: object) -> str:
    """The id as text, "" if there is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return str(value) if is_text(value) and str(value).strip() else ""


def column_findings(values: Mapping[str, object], instance_id: str, here: tuple[Place]) -> list[Finding]:
    """What is wrong with the columns of a row, but for what is inside its folds."""
    findings = []
    for column in REQUIRED_COLUMNS:
        if column not in values:
            drops = here if column == "instance_id" else ()
            findings.append(Finding("missing_column", f"`{column}` is missing.", here, drops, is_changed=not drops))
    if "instance_id" in values and instance_id != values["instance_id"]:
        message = f"`instance_id` must be a non-blank string, got {values['instance_id']!r:.80}."
        findings.append(Finding("bad_id", message, here, () if instance_id else here, is_changed=bool(instance_id)))
    for column in (IMAGES, CAPTIONS):
        if column in values and not isinstance(values[column], list | tuple):
            message = f"`{column}` must be a list, got {values[column]!r:.80}."
            findings.append(Finding("wrong_type", message, here, is_changed=True))
    if values.get("category") and not is_text(values["category"]):
        message = f"`category` must be a string, got {values['category']!r:.80}; read as none."
        findings.append(Finding("wrong_type", message, here, is_changed=True))
    for column in unstorable_columns(values):
        findings.append(Finding("wrong_type", f"The column {column!r:.80} can't be stored.", here, is_changed=True))
    return findings


def unstorable_columns(values: Mapping[str, object]) -> list[str]:
    """The further columns whose name or value can't be stored and read back."""
    further = ((column, value) for column, value in values.items() if column not in FEATURES and column != "split")
    return [column for column, value in further if not is_text(column) or not is_storable(value)]


def is_storable(value: object) -> bool:
    """Whether a further column's value can be stored, as JSON where it is no scalar."""
    if value is None or isinstance(value, bool | int | float | bytes):
        return True
    return is_text(value) if isinstance(value, str) else is_text(json.dumps(value, ensure_ascii=False, default=str))


def image_findings(images: Sequence[object], row: int, source: Source) -> list[Finding]:
    """What is wrong with the images as the row names them."""
    problems = ((Place(row, IMAGES, number), source.image_problem(image)) for number, image in enumerate(images))
    return [Finding(*problem, (place,), (place,)) for place, problem in problems if problem]


def caption_findings(captions: Sequence[object], row: int) -> list[Finding]:
    """Captions that are no text, or have nothing in them."""
    findings = []
    for number, caption in enumerate(captions):
        here = (Place(row, CAPTIONS, number),)
        if not is_text(caption):
            findings.append(Finding("bad_caption", f"A caption must be text, got {caption!r:.80}.", here, here))
        elif not str(caption).strip():
            findings.append(Finding("blank_caption", f"Caption {number} is blank.", here, here))
    return findings


def settle_splits(rows: Sequence[LooseRow], dropped: set[int]) -> tuple[list[LooseRow], list[Finding]]:
    """The rows with the split that each is read into, and a finding for each that names none of the three."""
    settled, findings = [], []
    is_named = any(row.split for row in rows)
    for number, row in enumerate(rows):
        split, problem = settle_split(row, is_named)
        if problem and number not in dropped:
            here, kind = (Place(number),), "unknown_split" if row.split else "missing_split"
            findings.append(Finding(kind, problem, here, () if split else here, is_changed=bool(split)))
        settled.append(row._replace(split=split or row.split))
    return settled, findings


def settle_split(row: LooseRow, is_named: bool) -> tuple[str, str]:
    """The split to read a row into, "" if it can't be told, and what is wrong with the one it names."""
    if row.split in SPLIT_NAMES:
        return SPLIT_NAMES[row.split], ""
    if not row.split:
        split = split_of(row.instance_id)
        return split, f"There is no split, while other rows name one; read as {split}." if is_named else ""
    split = MISTAKEN_SPLITS.get(row.split.strip().lower(), "")
    return split, f"The split {row.split!r:.80} " + (f"was read as {split}." if split else "isn't one of the three.")


def empty_row_findings(corpus: Corpus, findings: Sequence[Finding], dropped: set[int]) -> list[Finding]:
    """Instances with nothing, or nothing usable, on one side or on both."""
    lost = {place for finding in findings for place in finding.drops if place.fold}
    found = []
    for number, row in enumerate(corpus.rows):
        empty = (
            [] if number in dropped else [fold for fold in (IMAGES, CAPTIONS) if not has_left(row, number, fold, lost)]
        )
        here = (Place(number),)
        if len(empty) == 2:
            found.append(
                Finding("empty_instance", f"'{row.instance_id}' has no image and no caption to use.", here, here)
            )
        elif empty:
            size = len(getattr(row, empty[0]))
            why = f"none of its {size} {empty[0]} can be used" if size else f"it has no {empty[0]}"
            found.append(Finding(f"no_{empty[0]}", f"'{row.instance_id}': {why}.", here))
    return found


def has_left(row: LooseRow, number: int, fold: str, lost: set[Place]) -> bool:
    """Whether a row has an observation that no finding drops."""
    return any(Place(number, fold, place) not in lost for place in range(len(getattr(row, fold))))
