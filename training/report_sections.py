"""What an evaluation's page shows, chosen and worked out: curves, similarities, examples, failures, ambiguous captions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from modeling_mxmclr.folds_mxmclr import Observations
from training.evaluation import Evaluation
from training.exhibits import Curator, Exhibit, Item, rows_of_items, shortened
from training.failures import count_fitting, first_of_each_instance, shared_texts, worst_queries
from training.initial_embeddings import sample_group_ids
from training.multifold_retrieval.bootstrap import bootstrap_intervals
from training.report_plots import (
    RecallCurve,
    Similarities,
    curve_ks,
    flatten,
    map_figure,
    rank_figure,
    recall_figure,
    similarity_figure,
)
from training.retrieval import Report, score_search
from training.score_tables import directions_of
from training.searches import Search

NUM_EXHIBITS, NUM_FAILURES, NUM_AMBIGUOUS, NUM_OWNERS, NUM_CAPTIONS = 6, 8, 6, 8, 3
ANSWERS = 5
LOOKED_AT = 2048  # queries, drawn at random where there are more, whose similarities are drawn
NEGATIVES = 100_000
SCORES_AT_ONCE = 2**24


class Shared(NamedTuple):
    """A text that several instances have, and some of them."""

    text: str
    num_instances: int
    owners: list[Item]


class Ambiguous(NamedTuple):
    """Captions that fit several instances."""

    num_shared: int
    num_captions: int
    shared: list[Shared]
    num_fitting: int  # captions all of whose words another instance has
    vague: list[tuple[Exhibit, int]]  # and how many other instances have them


class Changed(NamedTuple):
    """An instance whose queries changed, and each query's words with its rank before and after."""

    item: Item
    gain: float
    queries: list[tuple[str, float, float]]


def draw_plots(evaluation: Evaluation, initial: Observations | None) -> dict[str, str]:
    """The figures, as data URIs."""
    titles = directions_of(evaluation.report)
    searches = {title: evaluation.searches[direction] for direction, title in titles.items()}
    ranks = {title: evaluation.scores[direction].values["rank"] for direction, title in titles.items()}
    maps = {"after training": flatten(sample_of(evaluation))}
    if initial is not None:
        maps = {"before training": flatten(initial), **maps}
    return {
        "recall": recall_figure({title: recall_curve(search, evaluation) for title, search in searches.items()}),
        "ranks": rank_figure(ranks, {title: len(search.gallery.group_ids) for title, search in searches.items()}),
        "similarities": similarity_figure({title: similarities(search) for title, search in searches.items()}),
        "map": map_figure(maps),
    }


def recall_curve(search: Search, evaluation: Evaluation) -> RecallCurve:
    """Any-hit recall over k, with intervals and chance."""
    ks = curve_ks(len(search.gallery.group_ids))
    protocol = replace(
        evaluation.protocol, hit_rule="any", hit_ks=tuple(ks), recall_ks=(), precision_ks=(), ndcg_ks=()
    )
    scores = score_search(search, protocol)
    values = {f"rr@{k}": scores.values[f"rr@{k}"] for k in ks}
    intervals = bootstrap_intervals(values, scores.group_ids, protocol.resamples, protocol.seed)
    return RecallCurve(
        ks,
        [value.mean().item() for value in values.values()],
        [intervals[name][0] for name in values],
        [intervals[name][1] for name in values],
        [scores.chance[name].mean().item() for name in values],
    )


def similarities(search: Search) -> Similarities:
    """Scores of positives, of negatives drawn at random, and of each query's hardest negative."""
    positives, negatives, hardest = [], [], []
    items = looked_at(search)
    share = min(1.0, NEGATIVES / (len(items) * len(search.gallery.group_ids)))
    generator = torch.Generator().manual_seed(0)
    for block in items.split(max(1, SCORES_AT_ONCE // len(search.gallery.group_ids))):
        scores = score_items(search, block)
        is_positive = search.queries.group_ids[block][:, None] == search.gallery.group_ids
        positives.append(scores[is_positive])
        drawn = torch.rand(scores.shape, generator=generator) < share
        negatives.append(scores[~is_positive & drawn])
        best = scores.masked_fill(is_positive, -torch.inf).amax(dim=1)
        hardest.append(best[best.isfinite()])
    return Similarities(torch.cat(positives), torch.cat(negatives), torch.cat(hardest))


def score_items(search: Search, items: Tensor) -> Tensor:
    """The score of some queries with every gallery item, `(num_items, num_gallery)` float32."""
    embeds, sets = rows_of_items(search.queries, items.tolist())
    scores = best_of_sets(embeds.float() @ search.gallery.embeds.float().T, search.gallery.sets)
    return best_of_sets(scores.T, sets).T


def best_of_sets(scores: Tensor, sets: Tensor | None) -> Tensor:
    """The largest score within each set of columns; the scores as they are where each column is one."""
    if sets is None:
        return scores
    best = scores.new_full((len(scores), int(sets[-1]) + 1), -torch.inf)
    return best.scatter_reduce(1, sets.expand_as(scores), scores, "amax")


def looked_at(search: Search) -> Tensor:
    """The queries whose similarities are drawn, ascending, `(num_items,)` int64."""
    order = torch.randperm(len(search.queries.group_ids), generator=torch.Generator().manual_seed(0))
    return order[:LOOKED_AT].sort().values


def sampling_note(evaluation: Evaluation) -> str:
    """A sentence for where not all queries are looked at; else empty."""
    most = max(len(search.queries.group_ids) for search in evaluation.searches.values())
    return f" From {LOOKED_AT:,} queries drawn at random." if most > LOOKED_AT else ""


def sample_of(evaluation: Evaluation) -> Observations:
    """The observations of the instances that `initial_embeddings` holds, as the checkpoint embeds them."""
    embeddings = evaluation.embeddings
    chosen = sample_group_ids(embeddings.image_group_ids, embeddings.text_group_ids)
    images, texts = (torch.isin(ids, chosen) for ids in (embeddings.image_group_ids, embeddings.text_group_ids))
    return Observations(
        embeddings.image_embeds[images],
        embeddings.text_embeds[texts],
        embeddings.image_group_ids[images],
        embeddings.text_group_ids[texts],
    )


def random_exhibits(evaluation: Evaluation, curator: Curator, direction: str) -> list[Exhibit]:
    """Queries drawn at random, of as many instances."""
    scores = evaluation.scores[direction]
    order = torch.randperm(len(scores.query_rows), generator=torch.Generator().manual_seed(0))
    rows = first_of_each_instance(order.tolist(), scores.group_ids, NUM_EXHIBITS)
    return curator.exhibits(direction, scores.query_rows[rows].tolist(), ANSWERS)


def worst_exhibits(evaluation: Evaluation, curator: Curator, direction: str) -> list[Exhibit]:
    """The queries whose first hit comes latest."""
    scores = evaluation.scores[direction]
    rows = worst_queries(scores.values["rank"], scores.group_ids, NUM_FAILURES)
    return curator.exhibits(direction, scores.query_rows[rows].tolist(), ANSWERS) if rows else []


def notes_of(evaluation: Evaluation) -> dict[str, str]:
    """What to remark where a caption is shown: by its text, that several instances have it."""
    shared = shared_texts(evaluation.embeddings.captions, evaluation.embeddings.text_group_ids)
    return {shortened(each.text): f"{len(each.group_ids)} instances have this very text" for each in shared}


def ambiguous_captions(evaluation: Evaluation, curator: Curator) -> Ambiguous | None:
    """Captions that fit several instances, by their whole text and by their words; None where captions don't search."""
    if "text_to_instance" not in evaluation.searches:
        return None
    embeddings = evaluation.embeddings
    fitting = count_fitting(embeddings.captions, embeddings.text_group_ids)
    chosen = vaguest_queries(evaluation, fitting)
    exhibits = curator.exhibits("text_to_instance", list(chosen), ANSWERS) if chosen else []
    return Ambiguous(
        evaluation.report["identical_captions"],
        evaluation.report["num_captions"],
        shared_captions(evaluation, curator),
        sum(count > 0 for count in fitting),
        list(zip(exhibits, chosen.values(), strict=True)),
    )


def vaguest_queries(evaluation: Evaluation, fitting: Sequence[int]) -> dict[int, int]:
    """By query, how many other instances its caption fits: those that fit most, each text and each instance once."""
    queries = evaluation.searches["text_to_instance"].queries
    scored = set(evaluation.scores["text_to_instance"].query_rows.tolist())
    captions, group_ids = evaluation.embeddings.captions, evaluation.embeddings.text_group_ids.tolist()
    chosen: dict[int, int] = {}
    seen: set[str | int] = set()
    pairs = zip(queries.rows.tolist(), queries.items.tolist(), strict=True)
    for row, item in sorted(pairs, key=lambda pair: -fitting[pair[0]]):
        if len(chosen) == NUM_AMBIGUOUS or fitting[row] == 0:
            break
        if item in scored and seen.isdisjoint(names := {captions[row], group_ids[row]}):
            chosen[item] = fitting[row]
            seen |= names
    return chosen


def shared_captions(evaluation: Evaluation, curator: Curator) -> list[Shared]:
    """Texts of most instances, with pictures of some of those."""
    embeddings = evaluation.embeddings
    shared = shared_texts(embeddings.captions, embeddings.text_group_ids)[:NUM_AMBIGUOUS]
    return [
        Shared(
            shortened(each.text),
            len(each.group_ids),
            [curator.instance(group_id, num_pictures=1) for group_id in each.group_ids[:NUM_OWNERS]],
        )
        for each in shared
    ]


def changed_instances(
    comparison: Report, evaluation: Evaluation, curator: Curator, direction: str
) -> dict[str, list[Changed]]:
    """The instances that changed most, "better" and "worse"."""
    group_ids = {name: group_id for group_id, name in evaluation.embeddings.instance_ids.items()}
    queries = evaluation.searches[direction].queries
    return {
        what: [
            Changed(
                curator.instance(group_ids[change["instance_id"]]),
                change["gain"],
                [
                    (
                        " / ".join(curator.item(queries, each["item"], 0).texts) or "by its pictures",
                        each["first"],
                        each["second"],
                    )
                    for each in sorted(
                        change["queries"], key=lambda each: -abs(1 / each["first"] - 1 / each["second"])
                    )
                ][:NUM_CAPTIONS],
            )
            for change in comparison[direction][what]
        ]
        for what in ("better", "worse")
    }
