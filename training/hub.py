"""The model card of a run, filled from JSON alone, and the push of a run folder to the Hub."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult, HfApi, ModelCardData
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from training.retrieval import Report
from training.score_tables import describe_gallery, directions_of, fraction_names, table_rows

TEMPLATE = Path(__file__).resolve().parents[1] / "model_cards" / "template.md"
TAGS = ["mxmclr", "multifold", "contrastive-learning", "image-text-retrieval"]


class Towers(TypedDict):
    """What the two towers are, in words: a checkpoint, or a model type and that it started from scratch."""

    text: str
    vision: str


class DatasetUsed(TypedDict):
    """The data set of a run."""

    name: str
    fingerprint: str
    sizes: dict[str, int]  # instances by split
    split: str  # the one that `metrics` is about
    hub_id: NotRequired[str]


class Run(TypedDict):
    """All that a card says of a run, as JSON; file names are relative to the run folder."""

    model_name: str
    objective: str
    towers: Towers
    parameters: int
    dataset: DatasetUsed
    arguments: dict[str, Any]  # as resolved
    command: str
    git_revision: str
    hardware: str
    versions: dict[str, str]  # by package
    steps: int
    seconds: float  # of training
    metrics: Report
    repo_id: NotRequired[str]
    license: NotRequired[str]
    base_models: NotRequired[list[str]]  # Hub ids
    curves: NotRequired[str]
    grid: NotRequired[str]
    captions: NotRequired[list[str]]  # of the grid, from the top


def render_card(run: Run) -> str:
    """The card of a run: YAML metadata with its results, then Markdown in which free text can't act as markup.

    Raises:
        ValueError: If `run` lacks a key or has one that no card knows.
    """
    _check_keys(run, Run)
    _check_keys(run["dataset"], DatasetUsed)
    # `finalize` escapes every value that a filter below did not make safe for its place.
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_escaped)
    environment.filters |= {
        "code": code_span,
        "duration": duration,
        "link": lambda path: Markup(quote(path)),
        "literal": lambda text: Markup(json.dumps(text)),
        "shell_block": lambda text: code_block(text, "shell"),
        "yaml_block": lambda value: code_block(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), "yaml"),
    }
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        run,
        metadata=Markup(card_metadata(run).to_yaml()),
        description=describe_gallery(run["metrics"]),
        table=table_rows(run["metrics"]),
        load_from=run.get("repo_id", "path/to/this/folder"),
    )


def card_metadata(run: Run) -> ModelCardData:
    """The metadata block, with the scores of every direction as its model index."""
    dataset = run["dataset"]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        license=run.get("license"),
        tags=TAGS,
        base_model=run.get("base_models"),
        datasets=[dataset["hub_id"]] if "hub_id" in dataset else None,
        model_name=run["model_name"],
        eval_results=_eval_results(run["metrics"], dataset),
    )


def save_run_card(run_dir: Path | str, run: Run) -> Path:
    """Write the card as `README.md` of the run folder, and return its path."""
    path = Path(run_dir) / "README.md"
    path.write_text(render_card(run), encoding="utf-8")
    return path


def push_run(
    run_dir: Path | str, repo_id: str, private: bool = False, ignore_patterns: Sequence[str] | None = None
) -> str:
    """Upload a run folder to the Hub, as whoever is logged in there, and return the address of the commit.

    Raises:
        ValueError: If the folder holds no model.
    """
    if not (Path(run_dir) / "config.json").is_file():
        raise ValueError(f"`run_dir` must hold a saved model, {str(run_dir)!r} has no config.json; train first.")
    api = HfApi()
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    ignored = list(ignore_patterns) if ignore_patterns else None
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=run_dir, ignore_patterns=ignored, commit_message="Upload the run"
    )
    return commit.commit_url


def escape_markdown(text: str) -> str:
    r"""Text on one line that shows as it is, in a paragraph, a list or a table cell.

    Example:
        >>> escape_markdown("<script> | *a*")
        '&lt;script&gt; \\| \\*a\\*'
    """
    line = html.escape(" ".join(text.split()), quote=False)
    escaped = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", line)
    return re.sub(r"^(\d*)([-+.)])(?=\s|$)", r"\1\\\2", escaped)  # no list within a list


def code_span(text: str) -> Markup:
    """Text as inline code, whatever backticks it holds."""
    line = " ".join(text.split())
    fence = "`" * (_longest_run_of_backticks(line) + 1)
    return Markup(f"{fence}{line}{fence}" if fence == "`" else f"{fence} {line} {fence}")


def code_block(text: str, language: str) -> Markup:
    """Text as a fenced block, whatever fences it holds."""
    fence = "`" * max(3, _longest_run_of_backticks(text) + 1)
    return Markup(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def duration(seconds: float) -> str:
    """Seconds in the two largest units that they fill.

    Example:
        >>> duration(7.4), duration(692), duration(7384)
        ('7 s', '11 min 32 s', '2 h 3 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _escaped(value: Any) -> Any:
    return escape_markdown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _longest_run_of_backticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _eval_results(report: Report, dataset: DatasetUsed) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-text-retrieval",
            dataset_type=dataset.get("hub_id", dataset["name"]),
            dataset_name=dataset["name"],
            dataset_split=dataset["split"],
            metric_type=name,
            metric_name=f"{title} {name.upper()} ({report['protocol']['name']})",
            metric_value=round(report[direction][name], 4),
        )
        for direction, title in directions_of(report).items()
        for name in fraction_names(report)
        if name in report[direction]
    ]


def _check_keys(value: Mapping[str, Any], schema: Any) -> None:
    missing = schema.__required_keys__ - value.keys()
    unknown = value.keys() - schema.__required_keys__ - schema.__optional_keys__
    if missing or unknown:
        raise ValueError(f"`{schema.__name__}` lacks {sorted(missing)} and does not know {sorted(unknown)}.")
