"""The picture of view and caption budgets. Matplotlib is imported when it is drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.budget_tables import is_even, share_cell
from training.plots import BLUE, GREEN, GREY, ORANGE, dress_axes, new_figure, save_figure
from training.retrieval import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {"mean": (BLUE, "-", "o"), "max_sim": (ORANGE, "--", "s"), "attention": (GREEN, ":", "^")}
LABELS = {"views": "views kept of each instance", "captions": "captions fused into a query"}
BAR_DISTANCE = 0.07  # between the bars of two poolings, in steps of the budget


def plot_budgets(report: Report, path: Path | str) -> None:
    """Draw RR@1 over the budgets of views and of captions, a curve a pooling with its 95 % intervals, as a PNG.

    Under each budget stands what it keeps of the RR@1 with all observations, for the first pooling.

    Args:
        report: What `budget_curves` gives.
        path: Where the PNG goes.
    """
    figure = new_figure(9.6, 4.0)
    grid = figure.subplots(1, 2, sharey=True)
    for axes, (kind, label) in zip(grid, LABELS.items(), strict=True):
        _draw_panel(axes, report[kind])
        dress_axes(axes, f"RR@1 by {label}, %")
        axes.tick_params(labelleft=True)
    grid[0].set_ylim(bottom=0)
    grid[0].legend(fontsize=8, frameon=False, loc="lower right")
    save_figure(figure, path)


def _draw_panel(axes: "Axes", part: Report) -> None:
    """The curves of one kind of budget, at equal distances: the usual budgets double."""
    for number, (pooling, points) in enumerate(part["curves"].items()):
        color, style, marker = STYLES[pooling]
        places = np.arange(len(points)) + BAR_DISTANCE * (number - (len(part["curves"]) - 1) / 2)
        values = np.array([point["rr@1"] for point in points])
        ends = np.array([point["ci95"]["rr@1"] for point in points]).T
        # A mean may lie a rounding error outside its interval where nothing varies.
        spans = np.maximum(0, [values - ends[0], ends[1] - values])
        axes.errorbar(
            places, 100 * values, 100 * spans, color=color, linestyle=style, marker=marker, label=pooling,
            linewidth=1.6, markersize=4.5, elinewidth=0.8, capsize=2.5,
        )  # fmt: skip
    first, points = next(iter(part["curves"].items()))
    largest = str(part["largest_fold"]) if is_even(part) else f"up to {part['largest_fold']}"
    kept = [*(str(point["kept"]) for point in points[:-1]), f"all ({largest})"]
    axes.set_xticks(
        range(len(points)), [f"{each}\n{share_cell(point)}" for each, point in zip(kept, points, strict=True)]
    )
    axes.set_xlim(-0.4, len(points) - 0.6)
    axes.set_xlabel(f"kept, and its share of the RR@1 with all ({first})", color=GREY, fontsize=9)
