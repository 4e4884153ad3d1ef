"""The figures of an evaluation's page: recall over k, ranks, similarities, and a map of both modalities, as SVG."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from modeling_mxmclr.folds_mxmclr import Observations
from training.multifold_retrieval.geometry import modality_gap
from training.plots import BLUE, FAINT, GREEN, GREY, ORANGE, PURPLE, dress_axes, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
LONGEST_CURVE = 1000  # the largest k that is drawn
MAP_COLOURS = {"image": BLUE, "text": ORANGE}
HISTOGRAM_BINS = 60


class RecallCurve(NamedTuple):
    """The share of queries with a hit among the first k, over k, all of one length."""

    ks: Sequence[int]
    recall: Sequence[float]
    low: Sequence[float]  # the 95 % interval
    high: Sequence[float]
    chance: Sequence[float]


class Similarities(NamedTuple):
    """Scores of query and gallery item, by what the two are to each other."""

    positives: Tensor  # (num_positives,)
    negatives: Tensor  # (num_negatives,)
    hardest: Tensor  # (num_queries,), of each query its best item that is not relevant


class FlatMap(NamedTuple):
    """Observations of both modalities in the plane of their two largest principal components."""

    image: Tensor  # (num_images, 2)
    text: Tensor  # (num_texts, 2)
    explained: tuple[float, float]  # the share of the variance along each axis
    gap: float  # distance of the two modalities' means, in all dimensions


def curve_ks(num_gallery: int) -> list[int]:
    """About twelve cut-offs for each factor of ten, from 1 to the gallery or `LONGEST_CURVE`.

    Example:
        >>> curve_ks(10)
        [1, 2, 3, 4, 5, 6, 7, 8, 10]
    """
    last = min(num_gallery, LONGEST_CURVE)
    steps = np.geomspace(1, last, num=2 + round(12 * np.log10(last)))
    return sorted({round(k) for k in steps.tolist()})


def flatten(sample: Observations) -> FlatMap:
    """Both modalities on the plane that keeps most of their variance (PCA of all observations together).

    The sign of each axis is such that images have the larger mean, so that two maps compare.
    """
    embeds = torch.cat([sample.image_embeds, sample.text_embeds]).double()
    centred = embeds - embeds.mean(dim=0)
    variances, axes = torch.linalg.eigh(centred.T @ centred)
    variances, axes = variances.flip(0).clamp(min=0), axes.flip(1)[:, :2]
    image, text = (centred @ axes).split([len(sample.image_embeds), len(sample.text_embeds)])
    signs = torch.where(image.mean(dim=0) < text.mean(dim=0), -1.0, 1.0)
    shares = (variances / variances.sum().clamp(min=1e-12)).tolist()
    gap = modality_gap(sample.image_embeds, sample.text_embeds)
    return FlatMap(image * signs, text * signs, (shares[0], shares[1]), gap)


def recall_figure(curves: Mapping[str, RecallCurve]) -> str:
    """Recall over k with its interval, and chance dotted, one colour for each named direction; a data URI."""
    figure = new_figure(6.4, 3.8)
    axes = figure.add_subplot()
    for colour, (title, curve) in zip(COLOURS, curves.items(), strict=False):
        axes.fill_between(curve.ks, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(curve.ks, curve.recall, color=colour, label=title)
        axes.plot(curve.ks, curve.chance, ":", color=colour, linewidth=1, label=f"{title}, by chance")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda fraction, _: f"{100 * fraction:g}")
    dress_axes(axes, "Queries with a hit among the first k, %")
    axes.set_xlabel("k", color=GREY)
    axes.legend(fontsize=8, frameon=False)
    return as_data_uri(figure)


def rank_figure(ranks: Mapping[str, Tensor], num_gallery: Mapping[str, int]) -> str:
    """How many queries find their first hit at which rank, in bins of equal width on a logarithmic axis."""
    figure = new_figure(3.6 * len(ranks), 3.0)
    for place, (colour, (title, values)) in enumerate(zip(COLOURS, ranks.items(), strict=False)):
        axes = figure.add_subplot(1, len(ranks), place + 1)
        axes.hist(values.numpy(), bins=rank_edges(num_gallery[title]), color=colour, edgecolor="white", linewidth=0.5)
        axes.axvline(values.median().item(), color="black", linewidth=1, linestyle="--")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        dress_axes(axes, title)
        axes.set_xlabel("rank of the first hit", color=GREY)
        axes.set_ylabel("queries" if place == 0 else "", color=GREY)
    return as_data_uri(figure)


def rank_edges(num_gallery: int) -> list[float]:
    """Edges of bins that begin with the single ranks 1 and 2, and then hold twice as many ranks each.

    Example:
        >>> rank_edges(20)
        [0.5, 1.5, 2.5, 4.5, 8.5, 16.5, 32.5]
    """
    edges, last = [0.5, 1.5, 2.5], 2
    while last < num_gallery:
        last *= 2
        edges.append(last + 0.5)
    return edges


def similarity_figure(similarities: Mapping[str, Similarities]) -> str:
    """Density of the scores of positives, of negatives and of each query's hardest negative."""
    figure = new_figure(3.6 * len(similarities), 3.0)
    for place, (title, scores) in enumerate(similarities.items()):
        axes = figure.add_subplot(1, len(similarities), place + 1)
        _draw_similarities(axes, scores)
        dress_axes(axes, title)
        axes.set_xlabel("score", color=GREY)
        axes.set_yticks([])
        if place == 0:
            axes.legend(fontsize=7.5, frameon=False)
    return as_data_uri(figure)


def map_figure(maps: Mapping[str, FlatMap]) -> str:
    """Images and texts as points of a plane, a panel for each named model, the means of both joined by a line."""
    figure = new_figure(3.8 * len(maps), 3.7)
    for place, (title, flat) in enumerate(maps.items()):
        axes = figure.add_subplot(1, len(maps), place + 1)
        _draw_map(axes, flat)
        dress_axes(axes, f"{title}: gap {flat.gap:.2f}")
        axes.set_xlabel(f"{100 * flat.explained[0]:.0f} % of the variance", color=GREY, fontsize=8)
        axes.set_ylabel(f"{100 * flat.explained[1]:.0f} %", color=GREY, fontsize=8)
        axes.set_aspect("equal", adjustable="datalim")
        if place == 0:
            axes.legend(fontsize=8, frameon=False, markerscale=2)
    return as_data_uri(figure)


def as_data_uri(figure: "Figure") -> str:
    """A figure as an SVG that a page can hold as an image."""
    buffer = io.BytesIO()
    save_figure(figure, buffer, format="svg")
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _draw_similarities(axes: "Axes", scores: Similarities) -> None:
    looks: dict[str, dict[str, Any]] = {
        "positives": {"color": GREEN, "alpha": 0.5},
        "negatives": {"color": GREY, "alpha": 0.5},
        "hardest negatives": {"color": ORANGE, "histtype": "step"},
    }
    drawn = {label: values.numpy() for label, values in zip(looks, scores, strict=True) if values.numel()}
    low, high = min(values.min() for values in drawn.values()), max(values.max() for values in drawn.values())
    edges = np.linspace(low - 1e-3, high + 1e-3, HISTOGRAM_BINS + 1).tolist()
    for label, values in drawn.items():
        axes.hist(values, bins=edges, density=True, label=label, **looks[label])


def _draw_map(axes: "Axes", flat: FlatMap) -> None:
    points = {"image": flat.image, "text": flat.text}
    for modality, rows in points.items():
        x, y = rows.T.numpy()
        # As pixels within the drawing: thousands of points as shapes would be megabytes.
        look: dict[str, Any] = {"s": 4, "alpha": 0.35, "linewidths": 0, "rasterized": True}
        axes.scatter(x, y, color=MAP_COLOURS[modality], label=f"{modality}s", **look)
    x, y = torch.stack([rows.mean(dim=0) for rows in points.values()]).T.numpy()
    axes.plot(x, y, color="black", linewidth=1.2, zorder=3)
    axes.scatter(x, y, s=60, c=list(MAP_COLOURS.values()), edgecolors="black", zorder=4)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
