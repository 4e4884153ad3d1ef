"""From the embeddings of a data set to the result of a run under a protocol."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from training.multifold_retrieval.bootstrap import bootstrap_intervals
from training.multifold_retrieval.checks import check_embeds
from training.multifold_retrieval.geometry import geometry
from training.multifold_retrieval.metrics import QueryScores, rank_spread, score_bands
from training.multifold_retrieval.ranking import rank_positives
from training.protocol import DEFAULT_PROTOCOL, Protocol, load_protocol
from training.searches import ClassEmbeddings, Embeddings, Search, kept_captions, owners_of, searches

Report: TypeAlias = dict[str, Any]  # JSON: what `metrics.json` holds


def retrieval_report(
    embeddings: Embeddings, protocol: Protocol | None = None, classes: ClassEmbeddings | None = None
) -> Report:
    """The result of a run under a protocol, as `metrics.json` holds it: fractions from 0 to 1, ranks from 1.

    Each direction of the protocol, such as `text_to_instance`, holds the mean of every metric, "median_rank",
    "mean_rank", "chance_rr@1", "queries", "queries_left_out", "ci95" (an interval for each mean) and "per_category"
    (the queries of a category against the whole gallery); where single observations are the queries, "rank_spread",
    over those of an instance. "geometry" describes the embeddings, and "warnings" says in words what a reader of the
    numbers must know.

    Args:
        embeddings: All observations of a split.
        protocol: `multifold/instance` by default.
        classes: Needed where classes are searched.

    Raises:
        ValueError: If the parts of `embeddings` do not fit, or one of the directions has nothing to score.
    """
    protocol = protocol or load_protocol(DEFAULT_PROTOCOL)
    check_embeddings(embeddings, needs_texts=protocol.gallery_unit != "class")
    found = searches(embeddings, protocol, classes)
    scores = {direction: score_search(search, protocol) for direction, search in found.items()}
    return report_scores(embeddings, protocol, found, scores, classes)


def report_scores(
    embeddings: Embeddings,
    protocol: Protocol,
    found: Mapping[str, Search],
    scores: Mapping[str, QueryScores],
    classes: ClassEmbeddings | None = None,
) -> Report:
    """The report of `retrieval_report`, of searches that are scored already, both by direction."""
    sizes = count_observations(embeddings)
    return {
        "protocol": protocol.as_dict(),
        "gallery_hash": gallery_hash(embeddings, classes),
        **sizes,
        "num_captions_used": len(kept_captions(embeddings, protocol)),
        "identical_captions": count_shared_captions(embeddings.captions, embeddings.text_group_ids.tolist()),
        "warnings": [*size_warnings(protocol, sizes), *cutoff_warnings(protocol, found)],
        **{name: _direction(search, scores[name], protocol, embeddings.categories) for name, search in found.items()},
        "geometry": describe_geometry(embeddings),
    }


def score_search(search: Search, protocol: Protocol) -> QueryScores:
    """Every metric of every query; its `group_ids` are those of the queries' instances.

    Cut-offs beyond the gallery are left out.
    """
    queries, gallery = search.queries, search.gallery
    bands = rank_positives(
        queries.embeds,
        gallery.embeds,
        queries.group_ids,
        gallery.group_ids,
        depth=None,
        query_sets=queries.sets,
        gallery_sets=gallery.sets,
    )
    num_gallery = len(gallery.group_ids)
    reachable = {name: [k for k in ks if k <= num_gallery] for name, ks in _cutoffs(protocol).items()}
    scores = score_bands(bands, queries.group_ids, num_gallery, **reachable)
    return replace(scores, group_ids=search.query_instances[scores.query_rows])


def check_embeddings(embeddings: Embeddings, needs_texts: bool = True) -> None:
    """Raise a ValueError that names the part unless rows, ids and captions fit each other."""
    check_embeds("image", embeddings.image_embeds, embeddings.image_group_ids)
    if needs_texts or len(embeddings.text_embeds):
        check_embeds("text", embeddings.text_embeds, embeddings.text_group_ids)
    if len(embeddings.captions) != len(embeddings.text_embeds):
        raise ValueError(
            f"`captions` has {len(embeddings.captions)} entries for {len(embeddings.text_embeds)} `text_embeds`; "
            "pass the text of each row."
        )


def describe_geometry(embeddings: Embeddings) -> dict[str, float]:
    """How images and texts lie on the sphere, whatever the protocol; empty where there are no texts."""
    images, image_group_ids, texts, text_group_ids = embeddings[:4]
    return geometry(images, image_group_ids, texts, text_group_ids) if len(texts) else {}


def count_observations(embeddings: Embeddings) -> dict[str, int]:
    """How many instances, images and captions there are."""
    return {
        "num_instances": len(torch.cat([embeddings.image_group_ids, embeddings.text_group_ids]).unique()),
        "num_images": len(embeddings.image_embeds),
        "num_captions": len(embeddings.captions),
    }


def count_shared_captions(captions: Sequence[str], group_ids: Sequence[int]) -> int:
    """How many captions have a text that another instance has too.

    Example:
        >>> count_shared_captions(["a chair", "a chair", "a chair", "a red chair"], [7, 7, 8, 8])
        3
    """
    owners = owners_of(captions, group_ids)
    return sum(len(owners[caption]) > 1 for caption in captions)


def gallery_hash(embeddings: Embeddings, classes: ClassEmbeddings | None = None) -> str:
    """Twelve hexadecimal digits of what is searched: instances, their numbers of images, captions, classes.

    Results of two models are comparable only where these agree; the order of observations does not matter.
    """
    captions: dict[int, list[str]] = defaultdict(list)
    for caption, group_id in zip(embeddings.captions, embeddings.text_group_ids.tolist(), strict=True):
        captions[group_id].append(caption)
    images = Counter(embeddings.image_group_ids.tolist())
    folds = sorted([group_id, images[group_id], sorted(captions[group_id])] for group_id in {*images, *captions})
    text = json.dumps([folds, classes.names if classes else []])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def size_warnings(protocol: Protocol, sizes: dict[str, int]) -> list[str]:
    """What to say where the data has none of the sizes that the protocol is defined on."""
    expected = protocol.expected_sizes
    if not expected or any(all(sizes[name] == size for name, size in split.items()) for split in expected.values()):
        return []
    named = [f"{split} ({_in_words(split_sizes)})" for split, split_sizes in expected.items()]
    return [f"This is no split of '{protocol.name}', which has {' and '.join(named)}, but {_in_words(sizes)}."]


def cutoff_warnings(protocol: Protocol, found: Mapping[str, Search]) -> list[str]:
    """What to say where cut-offs pass the gallery."""
    return [
        f"Cut-offs {beyond} of {direction} are left out: its gallery has {len(search.gallery.group_ids)} items."
        for direction, search in found.items()
        if (
            beyond := sorted(
                {k for ks in _cutoffs(protocol).values() for k in ks if k > len(search.gallery.group_ids)}
            )
        )
    ]


def _direction(search: Search, scores: QueryScores, protocol: Protocol, categories: Mapping[int, str]) -> Report:
    """One direction of the report."""
    values = {"mean_rank" if name == "rank" else name: value for name, value in scores.values.items()}
    intervals = bootstrap_intervals(values, scores.group_ids, protocol.resamples, protocol.seed)
    report = scores.as_dict() | {
        "ci95": {name: list(interval) for name, interval in intervals.items()},
        "per_category": _per_category(scores, categories),
    }
    if search.queries.unit in ("caption", "image"):
        report["rank_spread"] = rank_spread(scores.values["rank"], scores.group_ids)
    return report


def _in_words(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{size:,} {name.removeprefix('num_')}" for name, size in sizes.items())


def _cutoffs(protocol: Protocol) -> dict[str, tuple[int, ...]]:
    return {name: getattr(protocol, name) for name in ("hit_ks", "recall_ks", "precision_ks", "ndcg_ks")}


def _per_category(scores: QueryScores, categories: Mapping[int, str]) -> dict[str, Report]:
    names = [categories.get(group_id) for group_id in scores.group_ids.tolist()]
    parts = {}
    for category in sorted({name for name in names if name is not None}):
        part = scores.select(torch.tensor([name == category for name in names])).as_dict()
        parts[category] = {name: value for name, value in part.items() if name != "queries_left_out"}
    return parts
