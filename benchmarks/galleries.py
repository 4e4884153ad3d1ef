"""Exact search in a gallery of a million against faiss: python benchmarks/galleries.py [--data clustered].

1,000,000 x 256, 2,000 queries, one positive each, 2 threads of a Xeon at 2.1 GHz that other work shared (load 8 to 9),
torch 2.13, faiss-cpu 1.15.1, seed 0; medians of five interleaved rounds, as a multiple of the time of `faiss.knn`:

    random      top-10 0.40, full ranks 0.52; peak 1,227 and 1,104 MB, faiss 1,005
    clustered   top-10 0.40, full ranks 0.43; peak 1,245 and 1,112 MB, faiss 1,036
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path[0] = str(Path(__file__).resolve().parents[1])

import faiss
import torch
from torch import Tensor

from benchmarks.side_by_side import machine, parse, peak_elsewhere, resident_megabytes, seconds_of, take_turns
from training.multifold_retrieval.ranking import rank_positives
from training.multifold_retrieval.search import top_k

TASKS = ("faiss.knn", "top_k", "rank_positives")
LIMITS = {"faiss.knn": 1.0, "top_k": 1.2, "rank_positives": 2.0}  # of the time of faiss
ROWS_AT_ONCE = 2**16  # so that making the data needs no more memory than searching it
SPREAD = 0.7  # of a cluster: its members score 0.67 with each other


class Data(NamedTuple):
    """Unit vectors, and ids by which each query has `num_positives` relevant items."""

    queries: Tensor
    gallery: Tensor
    query_ids: Tensor
    gallery_ids: Tensor


def make_data(chosen: argparse.Namespace) -> Data:
    """Random directions, or noise around centres that lie in the gallery one after the other."""
    generator = torch.Generator().manual_seed(chosen.seed)
    gallery = torch.empty(chosen.num_gallery, chosen.dim)
    centres = torch.nn.functional.normalize(torch.randn(chosen.num_clusters, chosen.dim, generator=generator), dim=1)
    for start in range(0, len(gallery), ROWS_AT_ONCE):
        part = gallery[start : start + ROWS_AT_ONCE]
        part.normal_(generator=generator)
        if chosen.data == "clustered":
            cluster = torch.arange(start, start + len(part)) * len(centres) // len(gallery)
            part.mul_(SPREAD / chosen.dim**0.5).add_(centres[cluster])
        part.div_(part.norm(dim=1, keepdim=True))
    rows = torch.randint(len(gallery), (chosen.num_queries,), generator=generator)
    queries = torch.randn(chosen.num_queries, chosen.dim, generator=generator)
    if chosen.data == "clustered":
        queries = gallery[rows] + queries * SPREAD / chosen.dim**0.5
    ids = torch.arange(len(gallery)) // chosen.num_positives
    return Data(torch.nn.functional.normalize(queries, dim=1), gallery, ids[rows], ids)


def search_with(task: str, data: Data) -> Callable[[], object]:
    """The call that is measured."""
    return {
        "faiss.knn": lambda: faiss.knn(
            data.queries.numpy(), data.gallery.numpy(), 10, metric=faiss.METRIC_INNER_PRODUCT
        ),
        "top_k": lambda: top_k(data.queries, data.gallery, 10),
        "rank_positives": lambda: rank_positives(*data),
    }[task]


def print_peak(chosen: argparse.Namespace) -> None:
    """Megabytes that this process held at most, the embeddings included, beyond those of its imports."""
    before = resident_megabytes()
    search_with(chosen.peak_of, make_data(chosen))()
    print(resident_megabytes("VmHWM") - before)


def measure_seconds(chosen: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each task in each round."""
    data = make_data(chosen)
    measures = {task: partial(seconds_of, search_with(task, data), chosen.clock) for task in TASKS}
    return take_turns(measures, chosen.rounds, warm_up=0)


def main() -> None:
    """Print seconds, ratios to faiss and peaks, side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=("random", "clustered"), default="random")
    parser.add_argument("--num-gallery", type=int, default=1_000_000)
    parser.add_argument("--num-queries", type=int, default=2000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--num-clusters", type=int, default=1000)
    parser.add_argument("--num-positives", type=int, default=1, help="Relevant items of each query.")
    parser.add_argument("--peak-of", choices=TASKS, help=argparse.SUPPRESS)
    chosen = parse(parser, rounds=5)
    faiss.omp_set_num_threads(chosen.threads)
    if chosen.peak_of:
        print_peak(chosen)
        return
    allowed = 1.5 * (chosen.num_gallery + chosen.num_queries) * chosen.dim * 4 / 2**20 + 300
    peaks = {task: peak_elsewhere(__file__, *sys.argv[1:], "--peak-of", task) for task in TASKS}
    seconds = measure_seconds(chosen)
    reference = statistics.median(seconds["faiss.knn"])
    print(f"{machine('faiss-cpu')}\n{chosen.data}, {chosen.num_gallery} x {chosen.dim}, {chosen.num_queries} queries")
    print("task             seconds (median, lowest to highest)   x faiss (limit)   peak MB (limit)")
    for task in TASKS:
        runs, median = seconds[task], statistics.median(seconds[task])
        print(
            f"{task:16s} {median:6.1f}, {min(runs):.1f} to {max(runs):.1f} {'':16s} {median / reference:5.2f} ({LIMITS[task]:.1f})"
            f"       {peaks[task]:5.0f} ({allowed:.0f})"
        )


if __name__ == "__main__":
    main()
