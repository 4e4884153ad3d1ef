"""What is wrong between rows: their ids, fold sizes and categories."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from .findings import CAPTIONS, IMAGES, Corpus, Finding, Place, listed
from .images import splits_of
from .near import Indices

OUTSIZED_TIMES, OUTSIZED_MORE = 5, 10  # a fold that is this many times the median, and this many over it
RARE_COUNT = 3
DOMINANT_SHARE = 0.9
SHOWN_ROWS = 10


def instance_numbers(rows: Sequence[object]) -> Indices:
    """For each row the number of its instance, `(num_rows,)`: equal for equal ids."""
    numbers: dict[object, int] = {}
    keys = (getattr(row, "instance_id", "") or (place,) for place, row in enumerate(rows))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def check_ids(corpus: Corpus, dropped: set[int]) -> list[Finding]:
    """Ids that come twice, in one split or several, and those that differ in case or spaces only."""
    rows_of_id: dict[str, list[Place]] = defaultdict(list)
    spellings: dict[str, list[str]] = defaultdict(list)
    for number, row in enumerate(corpus.rows):
        if row.instance_id and number not in dropped:
            rows_of_id[row.instance_id].append(Place(number))
    for instance_id in rows_of_id:
        spellings[" ".join(instance_id.casefold().split())].append(instance_id)
    findings = [check_id(corpus, instance_id, places) for instance_id, places in rows_of_id.items() if len(places) > 1]
    for ids in spellings.values():
        if len(ids) > 1:
            places = [place for instance_id in ids for place in rows_of_id[instance_id]]
            findings.append(Finding("alike_id", f"The ids {listed(ids)} differ in case or spaces only.", places))
    return findings


def check_id(corpus: Corpus, instance_id: str, places: Sequence[Place]) -> Finding:
    """The finding of an id that several rows have; the first row of the last split is the one to keep."""
    splits = splits_of(corpus, places)
    kept = next(place for place in places if corpus.rows[place.row].split == splits[-1])
    where = f"in {' and '.join(splits)}: {listed(corpus.rows[place.row].place for place in places)}"
    kind = "leaked_id" if len(splits) > 1 else "repeated_id"
    message = f"'{instance_id}' comes {len(places)} times {where}."
    return Finding(kind, message, places, [place for place in places if place != kept])


def check_folds(corpus: Corpus, dropped: set[int]) -> list[Finding]:
    """Folds that are far larger than the median."""
    findings = []
    for fold in (IMAGES, CAPTIONS):
        sizes = {number: len(getattr(row, fold)) for number, row in enumerate(corpus.rows) if number not in dropped}
        median = float(np.median(list(sizes.values()) or [0]))
        for number, size in sizes.items():
            if size > max(OUTSIZED_TIMES * median, median + OUTSIZED_MORE):
                message = f"'{corpus.rows[number].instance_id}' has {size} {fold}; the median is {median:g}."
                findings.append(Finding("outsized_fold", message, [Place(number)]))
    return findings


def check_categories(corpus: Corpus, dropped: set[int]) -> list[Finding]:
    """Categories that are missing, rare, nearly all there is, or tested without training."""
    rows: dict[str | None, list[Place]] = defaultdict(list)
    for number, row in enumerate(corpus.rows):
        if number not in dropped:
            rows[row.category].append(Place(number))
    without, total = rows.pop(None, []), sum(map(len, rows.values()))
    if not rows:
        return []
    findings = []
    if without:
        findings.append(
            Finding("missing_category", f"{len(without):,} rows have no category, {total:,} have.", without)
        )
    is_trained = any(row.split == "train" for row in corpus.rows)
    for category, places in rows.items():
        counts = f"'{category}' has {len(places):,} of {total:,} instances"
        splits = splits_of(corpus, places)
        if len(places) < RARE_COUNT and len(rows) > 1:
            findings.append(Finding("rare_category", f"{counts}.", places))
        if len(places) > DOMINANT_SHARE * total and len(rows) > 1:
            findings.append(Finding("dominant_category", f"{counts}.", places[:SHOWN_ROWS]))
        if is_trained and "train" not in splits:
            findings.append(Finding("unseen_category", f"{counts}, in {' and '.join(splits)} only.", places))
    return findings
