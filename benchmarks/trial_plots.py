"""Pictures of a plan of trials. Matplotlib is imported when one is drawn."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from benchmarks.plans import Plan
from benchmarks.trial_results import ALL_FROM, HEADLINE, Budgets, Estimate, Summary, baseline_of, curve_points, scored
from training.plots import BLUE, FAINT, GREEN, GREY, ORANGE, PURPLE, dress_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# With those of `training/plots.py`, Okabe and Ito's.
SKY, AMBER = "#56B4E9", "#E69F00"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER)
MARKERS = ("o", "s", "^", "D", "v", "P")
DIRECTIONS = {HEADLINE: ("text → instance", "-"), "instance_to_text_rr@1": ("instance → text", "--")}
X_LABELS = {
    "instances": "instances of a step",
    "views": "views of each instance in a step",
    "captions": "captions of each instance in a step",
}
STYLES = ("-", "--", ":")
WIDTH, NARROW = 9.6, 6.4  # inches of two panels and of one; text reads well at the width of a README
LEGEND_LETTERS = 13  # of the legend's size, in an inch
DPI = 150
NUM_BEST = 5  # entries beside the baseline whose learning curves are drawn
LOG_FROM = 4  # the ratio of the largest to the smallest value from which the axis is logarithmic
BAR_ROOM = 0.8  # of the distance between entries

Panels = Mapping[str, Budgets]
Draw = Callable[["Axes", Budgets], None]


def draw_pictures(plan: Plan, summaries: Panels, output: Path) -> list[Path]:
    """Draw what a plan's results allow as PNGs, and return which; none where there is no result."""
    panels = {data: with_results(budgets) for data, budgets in summaries.items()}
    panels = {data: budgets for data, budgets in panels.items() if budgets}
    if not panels:
        return []
    main = bars_figure(plan, panels) if plan.x is None else lines_figure(plan.x, panels)
    figures = {"bars" if plan.x is None else plan.x: main, "images": images_figure(plan, panels)}
    paths = [output / f"{plan.name}-{kind}.png" for kind in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, dpi=DPI)
    return paths


def with_results(budgets: Budgets) -> Budgets:
    """The entries that have results, and the budgets that have such."""
    kept = {budget: scored(summaries) for budget, summaries in budgets.items()}
    return {budget: summaries for budget, summaries in kept.items() if summaries}


def bars_figure(plan: Plan, panels: Panels) -> "Figure":
    """RR@1 of each entry as a bar with its standard error, its seeds as dots; budgets side by side."""
    looks = dict(zip(_budgets_of(panels), cycle(COLOURS), strict=False))
    rows = max(sum(map(len, budgets.values())) + 0.6 * len(names_by_mean(budgets)) for budgets in panels.values())

    def draw(axes: "Axes", budgets: Budgets) -> None:
        names = names_by_mean(budgets)
        for number, (budget, summaries) in enumerate(budgets.items()):
            shift = BAR_ROOM * ((number + 0.5) / len(budgets) - 0.5)
            for each in summaries:
                _draw_bar(axes, names.index(each.entry.name) + shift, BAR_ROOM / len(budgets), each, looks[budget])
            if baseline := baseline_of(plan, summaries):
                axes.axvline(100 * baseline.scores[HEADLINE].mean, color=looks[budget], linestyle=":", linewidth=1.1)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, 1.13 * _largest(budgets))
        axes.set_xlabel("text → instance RR@1, %")

    figure = _figure_of_panels(panels, 1.0 + 0.19 * rows, draw, grid="x")
    keys = [(_key(marker="s", linestyle="", color=look), name) for name, look in looks.items() if name]
    keys.append((_key(linestyle=":", color=BLUE if len(looks) == 1 else GREY), f"baseline: {plan.baseline}"))
    keys.append((_key(marker="o", linestyle="", color="white", markeredgecolor="black", markersize=4), "one seed"))
    keys.append((_key(color="black", linewidth=1), "± standard error"))
    return _with_legend(figure, keys)


def lines_figure(x: str, panels: Panels) -> "Figure":
    """RR@1 of both directions against a field of `Trial`, with standard errors; a colour for each budget."""
    looks = dict(zip(_budgets_of(panels), cycle(zip(COLOURS, MARKERS, strict=True)), strict=False))

    def draw(axes: "Axes", budgets: Budgets) -> None:
        values = {getattr(each.entry.trial, x) for summaries in budgets.values() for each in summaries}
        places, is_log = places_of(values, has_all=x in ("views", "captions"))
        for budget, summaries in budgets.items():
            ordered = sorted(summaries, key=lambda each: places[getattr(each.entry.trial, x)])
            at = [places[getattr(each.entry.trial, x)] for each in ordered]
            colour, marker = looks[budget]
            for metric, (_, style) in DIRECTIONS.items():
                _draw_line(axes, at, [each.scores[metric] for each in ordered], colour, marker, style)
        if is_log:
            axes.set_xscale("log", base=2)
        labels = ["all" if place != value else f"{value:g}" for value, place in places.items()]
        axes.set_xticks(list(places.values()), labels)
        axes.set_xticks([], minor=True)
        axes.set_xlabel(X_LABELS.get(x, x.replace("_", " ")))
        axes.set_ylabel("RR@1, %")

    figure = _figure_of_panels(panels, 3.9, draw)
    keys = [(_key(color=colour, marker=marker), name) for name, (colour, marker) in looks.items() if name]
    keys += [(_key(color=GREY, linestyle=style), title) for title, style in DIRECTIONS.values()]
    return _with_legend(figure, keys)


def images_figure(plan: Plan, panels: Panels) -> "Figure":
    """Learning curves on validation over images encoded, of the baselines and the best others."""
    looks = curve_looks(plan, panels)

    def draw(axes: "Axes", budgets: Budgets) -> None:
        for each in chosen_for_curves(plan, budgets):
            _draw_curve(axes, each, *looks[title_of(each)])
        axes.set_xlim(left=0)
        axes.set_xlabel("images encoded in training, thousands")
        axes.set_ylabel("text → instance RR@1 on validation, %")

    figure = _figure_of_panels(panels, 4.4, draw)
    keys = [(_key(color=colour, linestyle=style), title) for title, (colour, style) in looks.items()]
    return _with_legend(figure, keys)


def chosen_for_curves(plan: Plan, budgets: Budgets) -> list[Summary]:
    """The baseline of each budget, and the best others of all budgets."""
    baselines = [baseline for part in budgets.values() if (baseline := baseline_of(plan, part))]
    others = [each for part in budgets.values() for each in part if each.entry.name != plan.baseline]
    return [*baselines, *sorted(others, key=lambda each: each.rank_key, reverse=True)[:NUM_BEST]]


def curve_looks(plan: Plan, panels: Panels) -> dict[str, tuple[str, str]]:
    """Colour and line style of each curve, the same in all panels; baselines are black."""
    drawn = [each for budgets in panels.values() for each in chosen_for_curves(plan, budgets)]
    baselines = dict.fromkeys(title_of(each) for each in drawn if each.entry.name == plan.baseline)
    others = dict.fromkeys(title_of(each) for each in drawn if each.entry.name != plan.baseline)
    colours = cycle((colour, style) for style in STYLES for colour in COLOURS)
    blacks = cycle(("black", style) for style in STYLES)
    return dict(zip(baselines, blacks, strict=False)) | dict(zip(others, colours, strict=False))


def names_by_mean(budgets: Budgets) -> list[str]:
    """The names of entries by the mean of their scores over budgets, best first."""
    keys: dict[str, list[float]] = {}
    for summaries in budgets.values():
        for each in summaries:
            keys.setdefault(each.entry.name, []).append(each.rank_key)
    return sorted(keys, key=lambda name: sum(keys[name]) / len(keys[name]), reverse=True)


def places_of(values: Collection[float], has_all: bool) -> tuple[dict[float, float], bool]:
    """Where each value stands on the axis, ascending, and whether that is logarithmic.

    "All", a number that is larger than any fold, stands a step to the right of the largest other value.

    Example:
        >>> places_of({1, 2, 8, 999}, has_all=True)
        ({1: 1, 2: 2, 8: 8, 999: 16}, True)
        >>> places_of({64, 128}, has_all=False)
        ({64: 64, 128: 128}, False)
    """
    numbers = sorted(value for value in values if not has_all or value < ALL_FROM)
    is_log = len(numbers) > 0 and numbers[0] > 0 and numbers[-1] >= LOG_FROM * numbers[0]
    last = numbers[-1] if numbers else 0
    beyond = 2 * last if is_log else last + 1
    return {value: value if value in numbers else beyond for value in sorted(values)}, is_log


def title_of(summary: Summary) -> str:
    """An entry's name, with its budget where that has one."""
    entry = summary.entry
    return f"{entry.name} ({entry.budget})" if entry.budget else entry.name


def _budgets_of(panels: Panels) -> list[str]:
    return list(dict.fromkeys(budget for budgets in panels.values() for budget in budgets))


def _figure_of_panels(panels: Panels, height: float, draw: Draw, grid: Literal["x", "y"] = "y") -> "Figure":
    """A figure with a panel for each data set, in one or two columns, each of that height in inches."""
    num_columns = min(2, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    figure = new_figure(WIDTH if num_columns == 2 else NARROW, height * num_rows)
    for place, (data, budgets) in enumerate(panels.items()):
        axes = figure.add_subplot(num_rows, num_columns, place + 1)
        draw(axes, budgets)
        dress_axes(axes, data)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set(color=GREY, fontsize=9)
        if grid == "x":
            axes.grid(visible=False, axis="y")
            axes.grid(axis="x", color=FAINT, linewidth=0.6)
    return figure


def _with_legend(figure: "Figure", keys: Sequence[tuple["Artist", str]]) -> "Figure":
    """The figure with a legend below all panels, where it hides nothing."""
    handles, labels = zip(*keys, strict=True)
    num_columns = max(1, min(len(keys), int(figure.get_figwidth() * LEGEND_LETTERS / (6 + max(map(len, labels))))))
    figure.legend(handles, labels, loc="outside lower center", ncols=num_columns, fontsize=8, frameon=False)
    return figure


def _key(**look: Any) -> "Artist":
    from matplotlib.lines import Line2D

    return Line2D([], [], **look)


def _draw_bar(axes: "Axes", place: float, thickness: float, summary: Summary, colour: str) -> None:
    score = summary.scores[HEADLINE]
    error = 100 * (score.error or 0)
    seeds = [100 * result.scores[HEADLINE] for result in summary.results]
    axes.barh(place, 100 * score.mean, 0.9 * thickness, color=colour, alpha=0.75)
    axes.errorbar(100 * score.mean, place, xerr=error or None, color="black", elinewidth=1, capsize=2)
    look: dict[str, Any] = {"s": 9, "color": "white", "edgecolors": "black", "linewidths": 0.6, "zorder": 3}
    axes.scatter(seeds, [place] * len(seeds), **look)
    axes.annotate(
        f"{100 * score.mean:.1f}",
        (max(*seeds, 100 * score.mean + error), place),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        bbox={"color": "white", "pad": 0.5},
    )


def _draw_line(
    axes: "Axes", at: Sequence[float], scores: Sequence[Estimate], colour: str, marker: str, style: str
) -> None:
    means = 100 * np.array([score.mean for score in scores])
    errors = 100 * np.array([score.error or 0 for score in scores])
    axes.errorbar(
        at, means, errors, color=colour, linestyle=style, marker=marker,
        linewidth=1.6, markersize=4.5, elinewidth=0.9, capsize=2.5,
    )  # fmt: skip


def _draw_curve(axes: "Axes", summary: Summary, colour: str, style: str) -> None:
    points = curve_points(summary.results)
    images = np.array([point.images for point in points]) / 1000
    means = 100 * np.array([point.score.mean for point in points])
    errors = 100 * np.array([point.score.error or 0 for point in points])
    axes.fill_between(images, means - errors, means + errors, color=colour, alpha=0.16, linewidth=0)
    axes.plot(images, means, style, color=colour, linewidth=1.6, marker="o", markersize=2.5)


def _largest(budgets: Budgets) -> float:
    """The largest score of a seed in percent, for the end of an axis."""
    results = [result for part in budgets.values() for each in part for result in each.results]
    return max([100 * result.scores[HEADLINE] for result in results if result.scores[HEADLINE] > 0], default=1.0)
