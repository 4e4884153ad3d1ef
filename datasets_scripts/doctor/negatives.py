"""How often a batch counts as a negative what is none: instances with an equal or nearly equal image or caption."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .figures import Row, Table
from .findings import Corpus, Finding, Place
from .near import Indices, Occurrences, members_by_group

MAX_ANCHORS = 2000
MAX_SHARE = 0.05
WORST_ANCHORS = 10


FORMULA = (
    "A batch of B instances is drawn without replacement from the N of a split, with all their observations. An anchor "
    "of an instance that is alike c others expects (B - 1) c / (N - 1) false negatives, and meets at least one with "
    "probability 1 - C(N-1-c, B-1) / C(N-1, B-1). Alike: sharing an equal or nearly equal image or caption. Both are "
    f"averaged over the instances of the split, or over {MAX_ANCHORS:,} of them."
)


def count_false_negatives(
    corpus: Corpus, occurrences: Mapping[str, Occurrences], instances: Indices, batch_size: int
) -> tuple[Table, list[Finding]]:
    """How many false negatives an anchor meets in a batch, by `FORMULA`, and a finding where it is too often."""
    split = training_split(corpus)
    pool = np.unique(instances[np.array([row.split == split for row in corpus.rows], dtype=bool)])
    if len(pool) < 2:
        return {}, []
    anchors, size = pool, min(batch_size, len(pool))
    if len(pool) > MAX_ANCHORS:
        anchors = np.sort(np.random.default_rng(0).choice(pool, MAX_ANCHORS, replace=False))
    figures, alike = {}, np.zeros(0, dtype=np.int64)
    sources = {source: [found] for source, found in occurrences.items()} | {"either": list(occurrences.values())}
    for source, observed in sources.items():
        alike = count_alike(observed, pool, anchors)
        shares = [share_with_one(len(pool), size, int(count)) for count in alike]
        expected = float(alike.mean()) * (size - 1) / (len(pool) - 1)
        figures[f"alike by {source}"] = {
            "instances alike": round(float(alike.mean()), 4),
            "false negatives per anchor": round(expected, 4),
            "anchors with one, %": round(100 * float(np.mean(shares)), 2),
            "batch size": size,
            "instances drawn from": len(pool),
        }
    findings = []
    if figures["alike by either"]["anchors with one, %"] > 100 * MAX_SHARE:
        worst = anchors[np.argsort(-alike, kind="stable")[:WORST_ANCHORS]]
        findings.append(often_finding(figures["alike by either"], split, worst, instances))
    return figures, findings


def training_split(corpus: Corpus) -> str:
    """The split that batches are drawn from: `train`, or the largest where there is none."""
    sizes = Counter(row.split for row in corpus.rows if row.instance_id)
    return "train" if "train" in sizes or not sizes else sizes.most_common(1)[0][0]


def often_finding(figures: Row, split: str, worst: Indices, instances: Indices) -> Finding:
    """The finding that batches hold false negatives, which names the instances that are alike the most others."""
    message = (
        f"In batches of {figures['batch size']:,} of the {figures['instances drawn from']:,} instances of {split}, "
        f"{figures['anchors with one, %']:g} % of the anchors meet a false negative, "
        f"{figures['false negatives per anchor']:g} each on average; those with the most are named."
    )
    return Finding("false_negatives", message, [Place(int(np.argmax(instances == anchor))) for anchor in worst])


def count_alike(observed: Sequence[Occurrences], pool: Indices, anchors: Indices) -> NDArray[np.int64]:
    """How many other instances of the pool share a group with each anchor, `(num_anchors,)`."""
    pooled, wanted = set(pool.tolist()), set(anchors.tolist())
    sharing_with: dict[int, list[Indices]] = defaultdict(list)
    for part in observed:
        for members in members_by_group(part.groups):
            sharing = set(part.instances[members].tolist()) & pooled
            if len(sharing) > 1:
                found = np.array(sorted(sharing))
                for anchor in sharing & wanted:
                    sharing_with[anchor].append(found)
    alike = [sharing_with.get(anchor) for anchor in anchors.tolist()]
    return np.array([len(np.unique(np.concatenate(found))) - 1 if found else 0 for found in alike], dtype=np.int64)


def share_with_one(num_instances: int, batch_size: int, num_alike: int) -> float:
    """The probability that a batch which holds an instance also holds one of those alike to it.

    Example:
        >>> share_with_one(num_instances=5, batch_size=2, num_alike=1)
        0.25
    """
    others, drawn = num_instances - 1, batch_size - 1
    if num_alike == 0 or drawn < 1:
        return 0.0
    if others - num_alike < drawn:
        return 1.0
    log_none = (
        math.lgamma(others - num_alike + 1)
        - math.lgamma(others - num_alike - drawn + 1)
        - math.lgamma(others + 1)
        + math.lgamma(others - drawn + 1)
    )
    return round(1 - math.exp(log_none), 12)
