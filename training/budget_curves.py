"""Recall against the views kept of an instance, and against the captions fused into a query, for several poolings."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.multifold_retrieval.bootstrap import bootstrap_intervals, paired_bootstrap
from training.multifold_retrieval.metrics import hit_at_k, reciprocal_rank
from training.multifold_retrieval.ranking import rank_positives
from training.retrieval import Report, check_embeddings, count_observations
from training.searches import Embeddings, Side, caption_side, image_side, places_in_folds

POOLINGS = ("mean", "max_sim", "attention")
KINDS = ("views", "captions")
HIT_KS = (1, 5)


@dataclass(frozen=True)
class BudgetSettings:
    """What is kept, how a fold is pooled, and how often all of it is drawn.

    A budget beyond the largest fold says nothing and is left out; all observations are always a budget.
    """

    views: tuple[int, ...] = (1, 2, 4, 8, 12)
    captions: tuple[int, ...] = (1, 2, 3, 5)
    poolings: tuple[str, ...] = POOLINGS
    draws: int = 5  # random choices of what is kept, over which each query's metrics are averaged
    resamples: int = 1000  # of the instances, for the intervals
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what comes from a command line."""
        counts = {kind: min(getattr(self, kind), default=1) for kind in KINDS}
        counts |= {"draws": self.draws, "resamples": self.resamples}
        for name, smallest in counts.items():
            if smallest < 1:
                raise ValueError(f"`{name}` must be at least 1, got {smallest}.")
        if not self.poolings or not set(self.poolings) <= set(POOLINGS):
            raise ValueError(f"`poolings` must be some of {list(POOLINGS)}, got {list(self.poolings)}.")


class Scores(NamedTuple):
    """The metrics of every query whose instance is in the gallery."""

    values: dict[str, Tensor]  # "rr@1", "rr@5", "mrr": (num_queries,) float64 each
    group_ids: Tensor  # (num_queries,) int64


ScoreKept: TypeAlias = Callable[[Embeddings, Tensor, str], Scores]  # with some rows of one modality, and a pooling


def budget_curves(
    embeddings: Embeddings, settings: BudgetSettings | None = None, show_progress: bool = False
) -> Report:
    """Text to instance under budgets, ready for JSON: `views`, `captions`, `settings` and the number of observations.

    `views`: every caption searches the instances, of which up to so many random views are kept. `captions`: of every
    instance up to so many random captions are fused into one query, which searches the instances with all their views.
    A fold that is smaller than a budget keeps what it has. Both sides are pooled alike: `mean` and `attention` as in
    `MXMCLRModel.get_instance_features`; with `max_sim` a caption scores by its best view, several by their mean.

    Each of the two holds `curves`, by pooling a list of points by rising budget, and `poolings`, what each pooling
    gains over the first one with all observations. A point holds "kept", the budget; "mean_kept", what it leaves of an
    average fold; "rr@1", "rr@5" and "mrr"; "ci95", their intervals over instances; "of_all", the shares that they are
    of the scores with all observations (None where those are 0); and "gain_of_all", what all observations add.

    Args:
        embeddings: All observations of a split.
        settings: The budgets and poolings.
        show_progress: Whether to show a bar.

    Raises:
        ValueError: If the parts of `embeddings` don't fit, or no caption has its instance in the gallery.
    """
    settings = settings or BudgetSettings()
    check_embeddings(embeddings)
    curves = {
        "views": _curves(embeddings, embeddings.image_group_ids, settings.views, score_views, settings, show_progress),
        "captions": _curves(
            embeddings, embeddings.text_group_ids, settings.captions, score_captions, settings, show_progress
        ),
    }
    return {"settings": asdict(settings), **count_observations(embeddings), **curves}


def score_views(embeddings: Embeddings, kept: Tensor, pooling: str) -> Scores:
    """Every caption against the instances, of which the rows `kept` of the images are left."""
    left = embeddings._replace(
        image_embeds=embeddings.image_embeds[kept], image_group_ids=embeddings.image_group_ids[kept]
    )
    captions = caption_side(embeddings, torch.arange(len(embeddings.text_embeds)), 1)
    return _score(captions, image_side(left, pooling))


def score_captions(embeddings: Embeddings, kept: Tensor, pooling: str) -> Scores:
    """The rows `kept` of the texts, one query an instance, against the instances with all of their views."""
    # A fold is a fold, whatever it shows.
    as_images = embeddings._replace(
        image_embeds=embeddings.text_embeds[kept], image_group_ids=embeddings.text_group_ids[kept]
    )
    return _score(image_side(as_images, pooling), image_side(embeddings, pooling))


def draw_places(group_ids: Tensor, seed: int, draw: int) -> Tensor:
    """The place of each observation in a random order of its fold, from 0, `(num_observations,)` int64.

    So the observations with a place below a budget are a random choice, and part of that of any larger budget.
    """
    order = torch.from_numpy(np.random.default_rng([seed, draw]).permutation(len(group_ids)))
    return torch.empty_like(order).index_copy(0, order, places_in_folds(group_ids[order]))


def _score(queries: Side, gallery: Side) -> Scores:
    bands = rank_positives(
        queries.embeds,
        gallery.embeds,
        queries.group_ids,
        gallery.group_ids,
        depth=1,
        query_sets=queries.sets,
        gallery_sets=gallery.sets,
        query_reduce="mean",
    )
    values = {f"rr@{k}": hit_at_k(bands, k) for k in HIT_KS if k <= len(gallery.group_ids)}
    return Scores(values | {"mrr": reciprocal_rank(bands)}, queries.group_ids[bands.query_rows])


def _curves(
    embeddings: Embeddings,
    group_ids: Tensor,
    budgets: tuple[int, ...],
    score: ScoreKept,
    settings: BudgetSettings,
    show_progress: bool,
) -> Report:
    """The curves of all poolings under the budgets of one modality, whose group ids these are."""
    fold_sizes = group_ids.unique(return_counts=True)[1]
    largest = int(fold_sizes.max())
    chosen = sorted({budget for budget in budgets if budget < largest} | {largest})
    draws = [draw_places(group_ids, settings.seed, draw) for draw in range(settings.draws)]
    scores: dict[str, list[Scores]] = {pooling: [] for pooling in settings.poolings}
    with tqdm(total=len(chosen) * len(scores), desc="budgets", disable=not show_progress, leave=False) as bar:
        for pooling in settings.poolings:
            for budget in chosen:
                used = draws if budget < largest else draws[:1]  # all draws keep the same where all is kept
                kept = [(places < budget).nonzero()[:, 0] for places in used]
                scores[pooling].append(_mean([score(embeddings, rows, pooling) for rows in kept]))
                bar.update()
    sizes = {"smallest_fold": int(fold_sizes.min()), "largest_fold": largest}
    points = [{"kept": n, "mean_kept": fold_sizes.clamp(max=n).double().mean().item()} for n in chosen]
    return sizes | _describe_curves(points, scores, settings)


def _describe_curves(points: list[Report], scores: dict[str, list[Scores]], settings: BudgetSettings) -> Report:
    """The points of each pooling's curve, and the poolings against the first one."""
    first, *others = settings.poolings
    return {
        "queries": len(scores[first][-1].group_ids),
        "curves": {
            pooling: [point | _describe(each, curve[-1], settings) for point, each in zip(points, curve, strict=True)]
            for pooling, curve in scores.items()
        },
        "poolings": {pooling: _gains(scores[first][-1], scores[pooling][-1], settings) for pooling in others},
    }


def _mean(draws: list[Scores]) -> Scores:
    """Each query's mean over draws; all draws have the same queries."""
    values = {name: torch.stack([draw.values[name] for draw in draws]).mean(dim=0) for name in draws[0].values}
    return Scores(values, draws[0].group_ids)


def _describe(scores: Scores, whole: Scores, settings: BudgetSettings) -> Report:
    """One point of a curve."""
    means = {name: value.mean().item() for name, value in scores.values.items()}
    best = {name: value.mean().item() for name, value in whole.values.items()}
    intervals = bootstrap_intervals(scores.values, scores.group_ids, settings.resamples, settings.seed)
    return means | {
        "ci95": {name: list(interval) for name, interval in intervals.items()},
        "of_all": {name: means[name] / best[name] if best[name] else None for name in means},
        "gain_of_all": _gains(scores, whole, settings),
    }


def _gains(before: Scores, after: Scores, settings: BudgetSettings) -> Report:
    """What each metric gains, with its interval over instances, drawn for both together."""
    gains = paired_bootstrap(before.values, after.values, before.group_ids, settings.resamples, settings.seed)
    return {name: {"difference": gain.difference, "ci95": [gain.low, gain.high]} for name, gain in gains.items()}
