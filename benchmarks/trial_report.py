"""The report of a plan of trials: tables for people, all figures as JSON, pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plans import Entry, Plan
from benchmarks.trial import Trial
from benchmarks.trial_plots import draw_pictures
from benchmarks.trial_results import (
    ALL_FROM,
    HEADLINE,
    RESAMPLES,
    Budgets,
    Estimate,
    Gain,
    Summary,
    baseline_of,
    scored,
    summarize,
)
from training.durable import write_durably
from training.markdown import escape_markdown, markdown_table

TIMES = " \N{MULTIPLICATION SIGN} "
SCORE_COLUMNS = {
    HEADLINE: "text → instance RR@1",
    "text_to_instance_rr@5": "RR@5",
    "text_to_instance_ndcg@5": "NDCG@5",
    "instance_to_text_rr@1": "instance → text RR@1",
    "instance_to_text_rr@5": "RR@5",
}
COST_HEADING = (
    "entry", "modality gap", "alignment", "uniformity (image / text)", "ms a step", "peak MB", "images a step",
    "texts a step",
)  # fmt: skip


def write_report(plan: Plan, results: Mapping[str, list[tuple[Entry, list[Path]]]], output: Path) -> str:
    """Write tables, figures and pictures of the results that there are.

    Args:
        plan: What is compared.
        results: By data set, entries and the files of their trials in the order of seeds.
        output: Folder for `<plan>.md`, `<plan>.json` and the pictures.

    Returns:
        The tables, and which files were written.
    """
    output.mkdir(parents=True, exist_ok=True)
    summaries = summarize(plan, results)
    text = format_report(plan, summaries)
    written = [output / f"{plan.name}.md", output / f"{plan.name}.json"]
    write_durably(written[0], text)
    write_durably(written[1], json.dumps(as_json(plan, summaries), indent=1) + "\n")
    written += draw_pictures(plan, summaries, output)
    return text + "\nWritten: " + ", ".join(str(path) for path in written) + "\n"


def as_json(plan: Plan, summaries: Mapping[str, Budgets]) -> dict[str, Any]:
    """All figures: by data set, budget and entry, best first; scores are fractions."""
    return {
        "plan": plan.name,
        "title": plan.title,
        "scored_on": split_of(plan),
        "seeds": plan.seeds,
        "baseline": plan.baseline,
        "data": {
            data: {
                budget: {each.entry.name: _entry_as_json(each) for each in entries}
                for budget, entries in budgets.items()
            }
            for data, budgets in summaries.items()
        },
    }


def format_report(plan: Plan, summaries: Mapping[str, Budgets]) -> str:
    """The tables of all data sets, as Markdown."""
    parts = [f"# {escape_markdown(plan.title)}"]
    for data, budgets in summaries.items():
        parts.append(f"## {escape_markdown(data)}")
        for budget, entries in budgets.items():
            if budget:
                parts.append(f"### {escape_markdown(budget)}")
            if found := scored(entries):
                parts += [score_table(plan, found), cost_table(found)]
            parts.append(notes(plan, entries))
    if not summaries:
        parts.append("There is no data set.")
    if any(each.gain for budgets in summaries.values() for entries in budgets.values() for each in entries):
        parts.append(explain_gains(plan))
    return "\n\n".join(parts) + "\n"


def score_table(plan: Plan, summaries: Sequence[Summary]) -> str:
    """Scores in percent, and how far each entry of a budget is from the baseline."""
    heading = ["entry", TIMES.join(("instances", "views", "captions")), *SCORE_COLUMNS.values()]
    has_baseline = baseline_of(plan, summaries) is not None
    gain_columns = {f"vs {escape_markdown(plan.baseline)}": gain_cell} if has_baseline else {}
    if has_baseline and plan.on_test:
        gain_columns["paired, 95 % interval"] = paired_cell
    rows = []
    for each in summaries:
        cells = [percent_cell(each.scores.get(name)) for name in SCORE_COLUMNS]
        gains = [cell(each.gain) for cell in gain_columns.values()]
        rows.append([escape_markdown(each.entry.name), fold_cell(each.entry.trial), *cells, *gains])
    return markdown_table([*heading, *gain_columns], rows)


def cost_table(summaries: Sequence[Summary]) -> str:
    """How the embeddings lie, and what a step costs; means over seeds."""
    rows = []
    for each in summaries:
        lie, costs = each.geometry, each.costs
        uniformities = [figure_cell(lie.get(f"uniformity_{side}"), 2) for side in ("image", "text")]
        rows.append(
            [
                escape_markdown(each.entry.name),
                figure_cell(lie.get("modality_gap"), 2),
                figure_cell(lie.get("alignment"), 2),
                " / ".join(uniformities) if any(uniformities) else "",
                f"{1000 * costs['seconds_per_step'].mean:.0f}",
                *(figure_cell(costs[name], 0) for name in ("peak_megabytes", "images_per_step", "texts_per_step")),
            ]
        )
    return markdown_table(COST_HEADING, rows)


def notes(plan: Plan, summaries: Sequence[Summary]) -> str:
    """What the tables of a budget show, on what, and what they lack."""
    sentences = []
    if found := scored(summaries):
        first, split = found[0].results[0], split_of(plan)
        sentences += [
            f"Mean ± standard error over {_seeds(plan.seeds)}, in percent, on {split}: a gallery of "
            f"{first.instances[split]:,} instances, after training on {first.instances['train']:,}.",
            f"Measured on {escape_markdown(first.machine)}.",
        ]
    if unfinished := [each for each in summaries if each.missing_seeds]:
        named = (f"{escape_markdown(each.entry.name)} ({_seeds(each.missing_seeds)})" for each in unfinished)
        sentences.append(f"Not run yet: {', '.join(named)}.")
    return " ".join(sentences)


def explain_gains(plan: Plan) -> str:
    """What the columns of differences mean."""
    text = (
        f"“vs {escape_markdown(plan.baseline)}” is the difference of the means of text → instance RR@1 in points, and "
        "how many of its standard errors that is: it tells how much seeds matter."
    )
    if plan.on_test:
        text += (
            f" “Paired” compares query by query, averaged over the seeds that both have, with instances drawn again "
            f"{RESAMPLES:,} times: it tells how much the choice of test instances matters. ★: 0 is outside of the interval."
        )
    return text


def split_of(plan: Plan) -> str:
    """The split that a plan is scored on."""
    return "test" if plan.on_test else "validation"


def fold_cell(trial: Trial) -> str:
    """What a step draws.

    Example:
        >>> fold_cell(Trial("clip", instances=128, views=99, captions=2)).split(TIMES)
        ['128', 'all', '2']
    """
    drawn = ("all" if count >= ALL_FROM else str(count) for count in (trial.views, trial.captions))
    return TIMES.join([str(trial.instances), *drawn])


def percent_cell(score: Estimate | None) -> str:
    """A score in percent with its standard error, empty for None.

    Example:
        >>> percent_cell(Estimate(0.4211, 0.0042)), percent_cell(Estimate(0.4211, None))
        ('42.1 ± 0.4', '42.1')
    """
    if score is None:
        return ""
    return f"{100 * score.mean:.1f}" + ("" if score.error is None else f" ± {100 * score.error:.1f}")


def gain_cell(gain: Gain | None) -> str:
    """A difference of means in points, and how many of its standard errors that is."""
    if gain is None:
        return ""
    difference, error = gain.of_means
    return f"{100 * difference:+.1f}" + (f" ({abs(difference) / error:.1f} SE)" if error else "")


def paired_cell(gain: Gain | None) -> str:
    """The paired difference in points with its interval, and a star where that leaves out 0."""
    if gain is None or gain.paired is None:
        return ""
    difference, low, high = (100 * value for value in gain.paired[:3])
    return f"{difference:+.1f} ({low:+.1f} to {high:+.1f})" + (" ★" if gain.is_clear else "")


def figure_cell(figure: Estimate | None, digits: int) -> str:
    """A mean, empty for None."""
    return "" if figure is None else f"{figure.mean:.{digits}f}"


def _entry_as_json(summary: Summary) -> dict[str, Any]:
    trial = summary.entry.trial.as_dict
    trial.pop("seed")
    return {
        "trial": trial,
        "seeds": [result.seed for result in summary.results],
        "missing_seeds": summary.missing_seeds,
        "instances": summary.results[0].instances if summary.results else None,
        "machine": summary.results[0].machine if summary.results else None,
        "scores": _estimates_as_json(summary.scores),
        "geometry": _estimates_as_json(summary.geometry),
        "costs": _estimates_as_json(summary.costs),
        "vs_baseline": None if summary.gain is None else _gain_as_json(summary.gain),
    }


def _estimates_as_json(figures: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {name: {"mean": each.mean, "standard_error": each.error} for name, each in figures.items()}


def _gain_as_json(gain: Gain) -> dict[str, Any]:
    paired = None if gain.paired is None else gain.paired._asdict() | {"seeds": gain.paired_seeds}
    difference, error = gain.of_means
    return {"metric": HEADLINE, "difference": difference, "standard_error": error, "paired": paired}


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"
