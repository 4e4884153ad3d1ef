"""An evaluation, or the comparison of two, as one HTML page that needs nothing else and runs nothing."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from modeling_mxmclr import __version__
from training.compare import comparison_rows
from training.evaluation import Evaluation
from training.exhibits import Curator
from training.initial_embeddings import load_initial_embeddings
from training.page_tables import (
    SHOWN_CATEGORIES,
    category_rows,
    data_facts,
    geometry_rows,
    run_facts,
    score_rows,
    summary_of,
)
from training.report_sections import (
    ambiguous_captions,
    changed_instances,
    draw_plots,
    notes_of,
    random_exhibits,
    sampling_note,
    worst_exhibits,
)
from training.retrieval import Report
from training.score_tables import describe_gallery, directions_of

TEMPLATES = Path(__file__).resolve().parent / "templates"
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def report_page(evaluation: Evaluation) -> str:
    """The page of an evaluation; its size does not grow with the data."""
    report, curator = evaluation.report, Curator(evaluation)
    initial = load_initial_embeddings(evaluation.checkpoint, evaluation.embeddings.image_group_ids)
    categories, directions = category_rows(evaluation), directions_of(report)
    ambiguous, run = ambiguous_captions(evaluation, curator), run_facts(evaluation.run)
    protocol = report["protocol"]
    contents = {
        "scores": "Scores",
        "categories": "By category" if categories else "",
        "space": "How the embeddings lie",
        **directions,
        "failures": "Worst failures",
        "ambiguous": "Ambiguous captions" if ambiguous else "",
        "protocol": "Protocol",
        "data": "Data",
        "run": "Model and run" if run else "",
    }
    return render(
        "report.html",
        title=f"{evaluation.run.get('model_name', evaluation.checkpoint)}: retrieval on {report['split']}",
        contents={anchor: heading for anchor, heading in contents.items() if heading},
        summary=[*(summary_of(report, direction) for direction in directions), f"{describe_gallery(report)}."],
        warnings=report["warnings"],
        directions=directions,
        scores=score_rows(report),
        plots=draw_plots(evaluation, initial),
        has_initial=initial is not None,
        sampled=sampling_note(evaluation),
        geometry=geometry_rows(report),
        categories=categories[: 1 + SHOWN_CATEGORIES],
        categories_left=max(0, len(categories) - 1 - SHOWN_CATEGORIES),
        grids={direction: random_exhibits(evaluation, curator, direction) for direction in directions},
        failures={title: worst_exhibits(evaluation, curator, direction) for direction, title in directions.items()},
        notes=notes_of(evaluation),
        ambiguous=ambiguous,
        protocol=protocol,
        rules={"source": protocol["source"], **protocol["rules"]},
        data={"checkpoint": evaluation.checkpoint, **data_facts(evaluation)},
        run=run,
    )


def comparison_page(comparison: Report, first: Evaluation, second: Evaluation) -> str:
    """The page of a comparison, see `training.compare.compare`."""
    curator, directions = Curator(first), directions_of(comparison)
    return render(
        "comparison.html",
        title=f"{second.checkpoint} against {first.checkpoint}",
        contents={**directions, "runs": "The two runs", "data": "Data"},
        comparison=comparison,
        directions=directions,
        tables={direction: comparison_rows(comparison, direction) for direction in directions},
        changes={direction: changed_instances(comparison, first, curator, direction) for direction in directions},
        runs=[(each.checkpoint, run_facts(each.run)) for each in (first, second)],
        data=data_facts(first),
    )


def render(name: str, **values: Any) -> str:
    """A template filled in: every value is text that means nothing but itself, unless it is `Markup`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=without_controls,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["rank"] = lambda rank: f"{rank:,.1f}".removesuffix(".0")
    # Of our own making, and without a character that HTML would escape: as it is, so that its hash holds.
    style = Markup((TEMPLATES / "page.css").read_text(encoding="utf-8"))
    return environment.get_template(name).render(
        values,
        style=style,
        policy=Markup(content_policy(style)),
        signature=f"Made by mxmclr {__version__}, a reconstruction of MXM-CLR. Scores of other protocols or data can't be compared with these.",
    )


def content_policy(style: str) -> str:
    """A policy under which a page fetches nothing, runs nothing, and is dressed by this style sheet alone."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def without_controls(value: Any) -> Any:
    """Text without the characters that no HTML may hold."""
    return CONTROLS.sub(" ", value) if isinstance(value, str) and not isinstance(value, Markup) else value
