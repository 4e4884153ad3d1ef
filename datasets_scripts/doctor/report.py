"""The doctor's findings as text for a terminal and as JSON for programs."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .figures import Table
from .findings import KINDS, SEVERITIES, Corpus, Finding, Place

TEXT_FINDINGS, TEXT_ROWS = 3, 12  # of each kind, and of each table
JSON_PLACES = 200


@dataclass
class Diagnosis:
    """What the doctor has to say of a data set."""

    corpus: Corpus
    findings: list[Finding]
    figures: dict[str, Table]
    notes: list[str]  # what was assumed, and what was not looked at

    @property
    def name(self) -> str:
        """What the data set is called."""
        return self.corpus.source.name

    @property
    def has_errors(self) -> bool:
        """Whether any finding is an error."""
        return any(finding.severity == "error" for finding in self.findings)

    def by_kind(self) -> dict[str, list[Finding]]:
        """The findings of each kind that has some, the worst kinds first."""
        found: dict[str, list[Finding]] = defaultdict(list)
        for finding in self.findings:
            found[finding.kind].append(finding)
        order = sorted(KINDS, key=lambda kind: SEVERITIES.index(KINDS[kind].severity))
        return {kind: found[kind] for kind in order if kind in found}

    def verdict(self) -> str:
        """How many findings there are of each severity."""
        counts = {severity: sum(finding.severity == severity for finding in self.findings) for severity in SEVERITIES}
        return ", ".join(f"{count:,} {severity}{'s' * (count != 1)}" for severity, count in counts.items())


def where(corpus: Corpus, place: Place) -> dict[str, object]:
    """A place by its row, split and id, and what stands there."""
    row = corpus.rows[place.row]
    found: dict[str, object] = {"row": row.place, "split": row.split, "instance_id": row.instance_id}
    if place.fold:
        found |= {"observation": f"{place.fold}[{place.number}]", "value": corpus.value_at(place)}
    return found


def as_json(diagnosis: Diagnosis) -> str:
    """The whole report as JSON; of findings with very many places the first are named, and all counted."""
    findings = [
        {
            "kind": finding.kind,
            "severity": finding.severity,
            "message": finding.message,
            "mend": KINDS[finding.kind].mend,
            "num_places": len(finding.places),
            "places": [where(diagnosis.corpus, place) for place in finding.places[:JSON_PLACES]],
        }
        for found in diagnosis.by_kind().values()
        for finding in found
    ]
    counts = {kind: len(found) for kind, found in diagnosis.by_kind().items()}
    report = {
        "dataset": diagnosis.name,
        "verdict": diagnosis.verdict(),
        "counts": counts,
        "figures": diagnosis.figures,
        "notes": diagnosis.notes,
        "findings": findings,
    }
    return json.dumps(report, indent=1)


def as_text(diagnosis: Diagnosis) -> str:
    """The report for a terminal: every kind, and the first findings of each."""
    lines = [f"{diagnosis.name}: {diagnosis.verdict()}", ""]
    for title, table in diagnosis.figures.items():
        lines += [*table_lines(title, table), ""]
    for kind, found in diagnosis.by_kind().items():
        lines += [*kind_lines(diagnosis.corpus, kind, found), ""]
    return "\n".join(map(printable, [*lines, *diagnosis.notes])) + "\n"


def kind_lines(corpus: Corpus, kind: str, found: Sequence[Finding]) -> Iterator[str]:
    """One kind's heading, its first findings, and what mends it."""
    yield f"{KINDS[kind].severity.upper()} {kind} ({len(found):,}): {KINDS[kind].title}"
    for finding in found[:TEXT_FINDINGS]:
        first = f"{corpus.rows[finding.places[0].row].place}: " if finding.places else ""
        yield f"  {first}{finding.message}"
    if len(found) > TEXT_FINDINGS:
        yield f"  and {len(found) - TEXT_FINDINGS:,} more"
    yield f"  -> {KINDS[kind].mend}"


def table_lines(title: str, table: Table) -> Iterator[str]:
    """A table in columns, the first of its rows."""
    headings = columns_of(table)
    cells = [[name, *(figure(row.get(heading)) for heading in headings)] for name, row in table.items()]
    shown = [[title, *headings], *cells[:TEXT_ROWS]]
    widths = [max(len(row[column]) for row in shown) for column in range(len(headings) + 1)]
    for row in shown:
        yield "  ".join(
            cell.ljust(width) if cell is row[0] else cell.rjust(width) for cell, width in zip(row, widths, strict=True)
        )
    if len(cells) > TEXT_ROWS:
        yield f"and {len(cells) - TEXT_ROWS:,} more"


def columns_of(table: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The headings of all rows, in order of appearance."""
    return list(dict.fromkeys(heading for row in table.values() for heading in row))


def figure(value: float | None) -> str:
    """A number as it is shown, nothing for none."""
    return "" if value is None else f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def printable(text: str) -> str:
    """The text without characters that a terminal would obey, or an encoder refuse."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
