"""The doctor's findings as one HTML page that needs nothing else: pictures inside, every text escaped."""

import base64
import warnings
from collections.abc import Iterator, Sequence
from html import escape
from io import BytesIO

from PIL import Image

from ..pictures import white_square
from ..raw_images import IMAGE_FORMATS, MAX_PIXELS
from .figures import Table
from .findings import CAPTIONS, IMAGES, KINDS, Corpus, Finding, Place
from .report import Diagnosis, columns_of, figure, printable

SHOWN_FINDINGS, SHOWN_PLACES, SHOWN_ROWS = 12, 8, 40
THUMB_SIZE = 72
HISTOGRAMS = ("images per instance", "captions per instance", "categories")
# Nothing is fetched and no script runs, whatever a caption says.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1d2330 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem } h3 { font-size: 1rem; margin: 0 }
table { border-collapse: collapse; margin: .6rem 0 1.4rem } caption { text-align: left; font-weight: 600 }
th, td { padding: .15rem .7rem; border-bottom: 1px solid #dfe3ea; text-align: right } th:first-child { text-align: left }
td.bar { width: 14rem; text-align: left } td.bar span { display: block; height: .7rem; background: #5b7fb5 }
details { border: 1px solid #dfe3ea; border-left: .35rem solid #8a94a6; margin: .5rem 0; padding: .5rem .8rem }
details.error { border-left-color: #b3261e } details.warning { border-left-color: #c98a00 }
summary { cursor: pointer; font-weight: 600 } .mend { color: #3c6e47 } .where { color: #5c6675; font-size: .85rem }
.finding { border-top: 1px solid #eef0f4; margin-top: .6rem; padding-top: .5rem; overflow-wrap: anywhere }
.places { display: flex; flex-wrap: wrap; gap: .5rem } figure { margin: 0; width: 9.5rem; font-size: .8rem }
figure img { display: block; border: 1px solid #dfe3ea; image-rendering: auto }
"""


def as_page(diagnosis: Diagnosis) -> str:
    """The page."""
    body = [
        f"<h1>{shown(diagnosis.name)}</h1><p>{shown(diagnosis.verdict())}</p>",
        *(table_html(title, table) for title, table in diagnosis.figures.items()),
        "<h2>Findings</h2>",
        *(kind_html(diagnosis.corpus, kind, found) for kind, found in diagnosis.by_kind().items()),
        "<h2>Notes</h2>",
        *(f"<p>{shown(note)}</p>" for note in diagnosis.notes),
    ]
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    title = f"<title>{shown(diagnosis.name)}: data doctor</title>"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head>',
            head,
            title,
            f"<style>{STYLE}</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )


def shown(text: object) -> str:
    """A text as HTML that means nothing but itself."""
    return escape(printable(str(text)))


def table_html(title: str, table: Table) -> str:
    """A table, with bars where it is a histogram."""
    headings = columns_of(table)
    is_histogram = title in HISTOGRAMS
    most = max((row.get("all", 0) for row in table.values()), default=0) if is_histogram else 0
    rows = [f"<tr><th></th>{''.join(f'<th>{shown(heading)}</th>' for heading in headings)}</tr>"]
    for name, row in list(table.items())[:SHOWN_ROWS]:
        cells = "".join(f"<td>{figure(row.get(heading))}</td>" for heading in headings)
        bar = f'<td class="bar"><span style="width:{100 * row["all"] / most:.1f}%"></span></td>' if most else ""
        rows.append(f"<tr><th>{shown(name)}</th>{cells}{bar}</tr>")
    more = f"<p>and {len(table) - SHOWN_ROWS:,} more</p>" if len(table) > SHOWN_ROWS else ""
    return f"<table><caption>{shown(title)}</caption>{''.join(rows)}</table>{more}"


def kind_html(corpus: Corpus, kind: str, found: Sequence[Finding]) -> str:
    """All of one kind, folded up unless it is an error."""
    severity, title, mend = KINDS[kind]
    is_open = " open" if severity == "error" else ""
    more = f"<p>and {len(found) - SHOWN_FINDINGS:,} more, see report.json</p>" if len(found) > SHOWN_FINDINGS else ""
    return (
        f'<details class="{severity}"{is_open}><summary>{severity}: {shown(title)} ({len(found):,}, {kind})</summary>'
        f'<p class="mend">{shown(mend)}</p>'
        f"{''.join(finding_html(corpus, finding) for finding in found[:SHOWN_FINDINGS])}{more}</details>"
    )


def finding_html(corpus: Corpus, finding: Finding) -> str:
    """One finding with the first of its places."""
    places = "".join(place_html(corpus, place) for place in finding.places[:SHOWN_PLACES])
    left = len(finding.places) - SHOWN_PLACES
    more = f'<p class="where">and {left:,} more places</p>' if left > 0 else ""
    return f'<div class="finding"><p>{shown(finding.message)}</p><div class="places">{places}</div>{more}</div>'


def place_html(corpus: Corpus, place: Place) -> str:
    """A place: its picture, or the row's first one, and where it is."""
    row = corpus.rows[place.row]
    text = f"<q>{shown(corpus.value_at(place))}</q><br>" if place.fold == CAPTIONS else ""
    number = place.number if place.fold == IMAGES else 0
    pictures = "".join(picture_html(content) for content in wanted_images(corpus, place.row, number))
    name = f" {place.fold}[{place.number}]" if place.fold else ""
    return (
        f"<figure>{pictures}<figcaption>{text}<b>{shown(row.instance_id)}</b>"
        f'<br><span class="where">{shown(row.place + name)} {shown(row.split)}</span></figcaption></figure>'
    )


def wanted_images(corpus: Corpus, row: int, number: int) -> Iterator[bytes]:
    """The image of that number, if the row has one and it can be read."""
    contents = corpus.source.images_of(row)[number : number + 1] if corpus.rows[row].images else []
    yield from (content for content in contents if content is not None)


def picture_html(content: bytes) -> str:
    """The image as a small picture, or nothing if it doesn't decode."""
    try:
        with warnings.catch_warnings(), Image.open(BytesIO(content), formats=IMAGE_FORMATS) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > MAX_PIXELS:
                return ""
            small = white_square(image, THUMB_SIZE)
    except Exception:  # each format's decoder fails in its own way; the finding says so in words
        return ""
    buffer = BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
