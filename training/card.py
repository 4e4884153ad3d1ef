"""The model card of a run, filled from its JSON alone: metadata that the Hub reads, then Markdown."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict
from urllib.parse import quote

import yaml
from huggingface_hub import ModelCardData
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from training.card_results import RESULTS_FOLDER, eval_results, protocol_hash, results_yaml
from training.dataset_used import DatasetUsed
from training.markdown import code_block, code_span, duration, escape_markdown
from training.redaction import redacted
from training.retrieval import Report
from training.score_tables import describe_gallery, table_rows

TEMPLATE = Path(__file__).resolve().parents[1] / "model_cards" / "template.md"
TAGS = ["mxmclr", "multifold", "contrastive-learning", "image-text-retrieval"]
PICTURES = ("curves", "grid", "budget")  # keys whose value is a file beside the card


class Towers(TypedDict):
    """What the two towers are, in words: a checkpoint, or a model type and that it started from scratch."""

    text: str
    vision: str


class Unfinished(TypedDict):
    """How far a run has come whose card is not the last one."""

    step: int
    of: int


class Failure(TypedDict):
    """A query that found its own instance late."""

    query: str  # a caption
    instance_id: str
    rank: float  # of its own instance, from 1
    first: str  # the instance that came first


class Plan(TypedDict):
    """What a card can say before anyone has run it, as JSON; file names are relative to the run folder."""

    model_name: str
    objective: str
    towers: Towers
    dataset: DatasetUsed
    arguments: dict[str, Any]  # as resolved, or as a recipe has them
    command: str
    repo_id: NotRequired[str]
    license: NotRequired[str]
    base_models: NotRequired[list[str]]  # Hub ids
    is_adapter: NotRequired[bool]


class Run(Plan):
    """All that a card says of a run."""

    parameters: int
    git_revision: str
    hardware: str
    versions: dict[str, str]  # by package
    steps: int
    seconds: float  # of training
    metrics: NotRequired[Report]  # absent while there is no split to validate on
    unfinished: NotRequired[Unfinished]
    curves: NotRequired[str]
    grid: NotRequired[str]
    captions: NotRequired[list[str]]  # of the grid, from the top
    failures: NotRequired[list[Failure]]
    budget: NotRequired[str]  # the curve of scores over views and captions


def render_card(run: Plan | Run) -> str:
    """The card of a run, or of one that nobody has made yet, in which free text can't act as markup.

    Raises:
        ValueError: If `run` lacks a key or has one that no card knows.
    """
    was_run = run.keys() & (Run.__required_keys__ - Plan.__required_keys__)
    _check_keys(run, Run if was_run else Plan)
    _check_keys(run["dataset"], DatasetUsed)
    facts: dict[str, Any] = redacted(run)
    # `finalize` escapes every value that a filter below did not make safe for its place.
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_escaped, keep_trailing_newline=True
    )
    environment.filters |= {
        "code": code_span,
        "duration": duration,
        "link": lambda path: Markup(quote(path)),
        "literal": lambda text: Markup(json.dumps(text)),
        "shell_block": lambda text: code_block(text, "shell"),
        "yaml_block": lambda value: code_block(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), "yaml"),
    }
    report, load_from = facts.get("metrics"), facts.get("repo_id", "path/to/this/folder")
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        facts,
        metadata=Markup(card_metadata(facts).to_yaml()),
        description=describe_gallery(report) if report else "",
        table=table_rows(report) if report else [],
        protocol_hash=protocol_hash(report) if report else "",
        load_from=load_from,
        verify_command=shlex.join(["python", "training/verify.py", load_from]),
    )


def card_metadata(run: Mapping[str, Any]) -> ModelCardData:
    """The metadata block, with the scores of both directions as its model index."""
    dataset = run["dataset"]
    results = eval_results(run["metrics"], dataset, seed_of(run)) if "metrics" in run else None
    return ModelCardData(
        library_name="peft" if run.get("is_adapter") else "transformers",
        pipeline_tag="zero-shot-image-classification",
        license=run.get("license"),
        tags=TAGS,
        base_model=run.get("base_models"),
        datasets=[dataset["hub_id"]] if "hub_id" in dataset else None,
        model_name=run["model_name"],
        eval_results=results,
    )


def save_run_card(run_dir: Path | str, run: Run) -> Path:
    """Write the card as `README.md` of a folder, with its results in the Hub's own form beside it, and return its path."""
    path = Path(run_dir) / "README.md"
    path.write_text(render_card(run), encoding="utf-8")
    if "metrics" in run and "hub_id" in run["dataset"]:
        results = path.parent / RESULTS_FOLDER / f"{run['dataset']['hub_id'].replace('/', '--')}.yaml"
        results.parent.mkdir(exist_ok=True)
        results.write_text(results_yaml(run["metrics"], run["dataset"], seed_of(run)), encoding="utf-8")
    return path


def seed_of(run: Mapping[str, Any]) -> int | None:
    """The seed of a run's weights, order and draws."""
    return run["arguments"].get("seed")


def without_missing_pictures(run: Plan, folder: Path) -> Plan:
    """A run for a card in a folder that may not have its pictures."""
    missing = {key for key in PICTURES if not (folder / str(run.get(key, ""))).is_file()}
    missing |= {"captions"} if "grid" in missing else set()
    return {key: value for key, value in run.items() if key not in missing}  # type: ignore[return-value]


def _escaped(value: Any) -> Any:
    return escape_markdown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _check_keys(value: Mapping[str, Any], schema: Any) -> None:
    missing = schema.__required_keys__ - value.keys()
    unknown = value.keys() - schema.__required_keys__ - schema.__optional_keys__
    if missing or unknown:
        raise ValueError(f"`{schema.__name__}` lacks {sorted(missing)} and does not know {sorted(unknown)}.")
