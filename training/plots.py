"""Pictures of a run: its curves, and what some captions retrieved. Matplotlib is imported when one is drawn."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people of any colour vision tell apart.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
GREY, FAINT = "#767676", "#C8C8C8"
CELL_PIXELS = 192
RECALL_TITLE = "Recall on validation, %"
SMOOTHED_FROM = 40  # points from which a running mean is drawn over them

HistoryEntry = Mapping[str, float]  # {"step": 10, "train/loss": 1.5, ...}


class GridResult(NamedTuple):
    """One retrieved instance."""

    image: Image.Image  # one of its views, RGB
    score: float
    is_hit: bool


class GridQuery(NamedTuple):
    """A caption, a view of its own instance, and what it retrieved, nearest first."""

    caption: str
    image: Image.Image  # RGB
    results: Sequence[GridResult]


class Curve(NamedTuple):
    """How one key of the history is drawn."""

    key: str
    label: str
    color: str
    style: str = "-"
    is_noisy: bool = False  # drawn faintly, under its running mean


LOSS_CURVES = (
    Curve("train/loss", "loss", BLUE, is_noisy=True),
    Curve("train/hard", "hard", ORANGE, "--", is_noisy=True),
    Curve("train/soft", "soft", PURPLE, ":", is_noisy=True),
    Curve("eval/loss", "validation", GREEN, "-."),
)
RECALL_CURVES = tuple(
    Curve(f"eval/{direction}_rr@{k}", f"{label} RR@{k}", color, style)
    for direction, label, color in (
        ("text_to_instance", "text → inst.", BLUE),
        ("instance_to_text", "inst. → text", ORANGE),
    )
    for k, style in ((1, "-"), (5, "--"), (10, ":"))
)
PANELS: dict[str, tuple[Curve, ...]] = {
    "Loss": LOSS_CURVES,
    RECALL_TITLE: RECALL_CURVES,
    "Logit scale": (Curve("train/scale", "scale", BLUE),),
    "Gradient norm": (Curve("train/grad_norm", "gradient norm", BLUE, is_noisy=True),),
    "Learning rate": (Curve("train/lr", "learning rate", BLUE),),
    "Images per second": (Curve("train/images_per_second", "images per second", BLUE, is_noisy=True),),
}


def plot_curves(history: Sequence[HistoryEntry], path: Path | str) -> None:
    """Draw the panels that `history` has values for, over steps, as a PNG.

    Args:
        history: Entries as they were logged, `{"step": 10, "train/loss": 1.5}`, in any order; each holds some of the
            keys in `PANELS`, others are passed over.
        path: Where the PNG goes.

    Raises:
        ValueError: If no entry holds a key that is drawn.
    """
    panels = {title: _points(history, curves) for title, curves in PANELS.items()}
    panels = {title: points for title, points in panels.items() if points}
    last_step = max((entry["step"] for entry in history), default=0)
    if not panels:
        raise ValueError(f"`history` has {len(history)} entries and no curve to draw; log 'train/loss' with a 'step'.")
    num_columns = min(3, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    figure = new_figure(4.4 * num_columns, 3.0 * num_rows)
    for place, (title, points) in enumerate(panels.items()):
        axes = figure.add_subplot(num_rows, num_columns, place + 1)
        _draw_panel(axes, title, points)
        axes.set_xlim(0, 1.02 * last_step or 1)
        if place + num_columns >= len(panels):
            axes.set_xlabel("step", color=GREY)
    save_figure(figure, path)


def retrieval_grid(queries: Sequence[GridQuery], path: Path | str) -> None:
    """Draw queries down and their nearest instances across as a PNG, hits in a thick green frame.

    The first column holds the caption, the second a view of its own instance, apart from what was retrieved.

    Raises:
        ValueError: If there is no query, or no query has a result.
    """
    num_results = max((len(query.results) for query in queries), default=0)
    if num_results == 0:
        raise ValueError(f"`queries` must hold a query with at least one result, got {len(queries)} without.")
    figure = new_figure(1.25 * num_results + 4.4, 1.45 * len(queries) + 0.45)
    widths = [2.0, 1.0, 0.12] + [1.0] * num_results
    grid = figure.add_gridspec(len(queries), len(widths), width_ratios=widths)
    for row, query in enumerate(queries):
        _draw_caption(figure.add_subplot(grid[row, 0]), query.caption)
        shown = [figure.add_subplot(grid[row, column]) for column in (1, *range(3, 3 + len(query.results)))]
        _draw_image(shown[0], query.image, "", is_hit=None)
        for axes, result in zip(shown[1:], query.results, strict=True):
            _draw_image(axes, result.image, f"{result.score:.2f}", result.is_hit)
        if row == 0:
            for axes, title in zip(shown, ["its instance", *_ordinals(len(query.results))], strict=True):
                axes.set_title(title, fontsize=9, color=GREY)
    save_figure(figure, path)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of that size in inches."""
    from matplotlib.figure import Figure

    # No pyplot: it would choose a window system and keep every figure alive.
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def dress_axes(axes: "Axes", title: str) -> None:
    """The look that all plots share: a title on the left, no box, faint horizontal lines."""
    axes.set_title(title, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY, labelsize=8)


def save_figure(figure: "Figure", target: Path | str | IO[bytes], format: str | None = None) -> None:
    """Write a figure, in the format of the path's suffix unless told another; the same figure gives the same bytes."""
    from matplotlib import rc_context

    with warnings.catch_warnings():
        # A caption may hold characters that the font lacks; they become boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        with rc_context({"svg.hashsalt": "mxmclr"}):
            figure.savefig(target, dpi=115, format=format, metadata={"Date": None} if format == "svg" else None)


def _points(history: Sequence[HistoryEntry], curves: Sequence[Curve]) -> dict[Curve, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of those curves that the history has, in order of steps."""
    points = {}
    for curve in curves:
        pairs = sorted((entry["step"], entry[curve.key]) for entry in history if curve.key in entry)
        if pairs:
            steps, values = np.array(pairs, dtype=np.float64).T
            points[curve] = steps, values
    return points


def _draw_panel(axes: "Axes", title: str, points: Mapping[Curve, tuple[np.ndarray, np.ndarray]]) -> None:
    for curve, (steps, values) in points.items():
        if curve.is_noisy and len(values) >= SMOOTHED_FROM:
            axes.plot(steps, values, color=curve.color, alpha=0.25, linewidth=0.8)
            values = _running_mean(values)
        marker = "o" if len(values) < 30 else None
        axes.plot(steps, values, curve.style, color=curve.color, label=curve.label, marker=marker, markersize=3)
    if title == RECALL_TITLE:
        # From 0, with room for the legend above the curves.
        axes.set_ylim(0, 1.5 * max(np.nanmax(values, initial=0.01) for _, values in points.values()))
        axes.yaxis.set_major_formatter(lambda fraction, _: f"{100 * fraction:g}" if fraction <= 1 else "")
    dress_axes(axes, title)
    if len(points) > 1:
        axes.legend(fontsize=7.5, frameon=False, ncols=2 if len(points) > 4 else 1)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Centred mean over about a twentieth of the points, narrower at the ends; gaps of NaN are skipped."""
    half = max(1, len(values) // 40)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return np.array(
        [window[np.isfinite(window)].mean() if np.isfinite(window).any() else np.nan for window in windows]
    )


def _draw_caption(axes: "Axes", caption: str) -> None:
    axes.set_axis_off()
    text = fill(" ".join(caption.split()), width=27, max_lines=6, placeholder=" …")
    # A dollar sign in a caption is no formula.
    axes.text(0, 0.5, text, va="center", fontsize=10, parse_math=False, transform=axes.transAxes)


def _draw_image(axes: "Axes", image: Image.Image, label: str, is_hit: bool | None) -> None:
    """An image in its frame: thick and green for a hit, thin and grey for a miss, none for None."""
    square = ImageOps.pad(image, (CELL_PIXELS, CELL_PIXELS), color="white")
    axes.imshow(np.asarray(square))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(color=GREEN if is_hit else FAINT, linewidth=3.5 if is_hit else 0.8, visible=is_hit is not None)
    axes.set_xlabel(
        f"✓ {label}" if is_hit else label,
        fontsize=8,
        labelpad=3,
        color=GREEN if is_hit else GREY,
        fontweight="bold" if is_hit else "normal",
    )


def _ordinals(count: int) -> list[str]:
    return [f"{place}." for place in range(1, count + 1)]
