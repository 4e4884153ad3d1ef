"""One checkpoint under every protocol, and as common shortcuts would score it, as Markdown tables.

Usage: python benchmarks/protocols.py RUN [--dataset D] [--split test]

Results are in docs/evaluation.md.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from training.checkpoints import add_source_flags, load_checkpoint, load_rows
from training.encoding import encode_rows
from training.markdown import markdown_table
from training.protocol import Protocol, load_protocol
from training.retrieval import Report, retrieval_report
from training.searches import Embeddings, image_side, places_in_folds
from training.zero_shot import category_names, embed_classes

HEADING = ["", "text → instance RR@1", "RR@5", "MRR", "instance → text RR@1", "RR@5", "MRR"]
BATCH = 64


class Pairs(NamedTuple):
    """Images and texts, row by row of the same instance: all that shortcuts look at."""

    images: Tensor  # (num_pairs, dim)
    texts: Tensor  # (num_pairs, dim)


def variants() -> Iterator[tuple[str, Protocol]]:
    """Protocols with a title each, the default first."""
    default = load_protocol("multifold/instance")
    yield "`multifold/instance`", default
    yield "… pooled by maximum", replace(default, pooling="max")
    yield "… pooled by attention", replace(default, pooling="attention")
    yield "`multifold/max_sim`", load_protocol("multifold/max_sim")
    yield "`multifold/observation`", load_protocol("multifold/observation")
    yield "captions fused by two", replace(default, captions_per_query=2)
    yield "all captions of an instance fused", replace(default, captions_per_query=None)
    yield "captions of several instances dropped", replace(default, identical_captions="drop_shared")
    yield "share of the relevant (recall@k for RR@k)", replace(default, hit_rule="share", recall_ks=(1, 5))


def score_cells(report: Report) -> list[str]:
    """RR@1 with its interval, RR@5 and MRR of both directions; recall@k instead where the protocol says so."""
    name = "recall" if report["protocol"]["hit_rule"] == "share" else "rr"
    cells = []
    for direction in ("text_to_instance", "instance_to_text"):
        scores = report[direction]
        low, high = scores["ci95"][f"{name}@1"]
        cells.append(f"{percent(scores[f'{name}@1'])} ({percent(low)}-{percent(high)})")
        cells += [percent(scores[f"{name}@5"]), percent(scores["mrr"])]
    return cells


def shortcuts(embeddings: Embeddings) -> Iterator[tuple[str, list[str]]]:
    """What code that never heard of folds and ties says, with a title each."""
    instances = image_side(embeddings, "mean")
    every = pairs_of(embeddings, instances.embeds, instances.group_ids, torch.arange(len(embeddings.captions)))
    yield "a row a caption, positive on the diagonal, `argsort`", naive_cells(every, "argsort")
    yield "… rank = number of scores above the diagonal's", naive_cells(every, "above")
    first_texts = (places_in_folds(embeddings.text_group_ids) == 0).nonzero()[:, 0]
    views = (places_in_folds(embeddings.image_group_ids) == 0).nonzero()[:, 0]
    first = pairs_of(embeddings, embeddings.image_embeds[views], embeddings.image_group_ids[views], first_texts)
    yield "first view and first caption of each instance", naive_cells(first, "argsort")
    batches = [Pairs(*part) for part in zip(first.images.split(BATCH), first.texts.split(BATCH), strict=True)]
    yield f"… within batches of {BATCH}", naive_cells(batches, "argsort")
    pooled = pairs_of(embeddings, instances.embeds, instances.group_ids, first_texts)
    half = Pairs(pooled.images.bfloat16(), pooled.texts.bfloat16())
    yield "pooled instance and first caption, float32, scores above", naive_cells(pooled, "above")
    yield "… in bfloat16", naive_cells(half, "above")


def pairs_of(embeddings: Embeddings, images: Tensor, group_ids: Tensor, text_rows: Tensor) -> Pairs:
    """The texts of these rows, each beside the image row of its instance; those without one left out."""
    row_of = {group_id: row for row, group_id in enumerate(group_ids.tolist())}
    owners = embeddings.text_group_ids[text_rows].tolist()
    rows = [(row_of[owner], text) for owner, text in zip(owners, text_rows.tolist(), strict=True) if owner in row_of]
    image_rows, kept = torch.tensor(rows).unbind(dim=1)
    return Pairs(images[image_rows].float(), embeddings.text_embeds[kept].float())


def naive_cells(pairs: Pairs | Sequence[Pairs], ties: str) -> list[str]:
    """Recall@1, recall@5 and MRR in both directions, the positive of row i taken to be column i alone."""
    batches = [pairs] if isinstance(pairs, Pairs) else pairs
    matrices = [batch.texts @ batch.images.T for batch in batches]
    cells = []
    for scores in (matrices, [matrix.T for matrix in matrices]):
        ranks = torch.cat([diagonal_ranks(matrix, ties) for matrix in scores])
        values = ((ranks < 1).double(), (ranks < 5).double(), 1 / (1 + ranks.double()))
        cells += [percent(value.mean().item()) for value in values]
    return cells


def diagonal_ranks(scores: Tensor, ties: str) -> Tensor:
    """Rank from 0 of each row's diagonal entry: its place in `argsort`, or how many scores are above it."""
    if ties == "above":
        return (scores > scores.diagonal()[:, None]).sum(dim=1)
    order = scores.argsort(dim=1, descending=True, stable=True)
    return (order == torch.arange(len(scores))[:, None]).int().argmax(dim=1)


def collapsed(embeddings: Embeddings) -> Embeddings:
    """The same data as a model sees it that maps everything to one vector."""
    one = torch.nn.functional.normalize(embeddings.image_embeds[:1].float(), dim=1)
    return embeddings._replace(
        image_embeds=one.expand(len(embeddings.image_embeds), -1), text_embeds=one.expand(len(embeddings.captions), -1)
    )


def first_views(embeddings: Embeddings) -> Embeddings:
    """The data set with one view an instance, as photos have."""
    kept = places_in_folds(embeddings.image_group_ids) == 0
    images, group_ids = embeddings.image_embeds[kept], embeddings.image_group_ids[kept]
    return embeddings._replace(image_embeds=images, image_group_ids=group_ids)


def percent(fraction: float) -> str:
    """Such as 26.7; two digits where one would say little."""
    return f"{100 * fraction:.1f}" if fraction >= 0.01 or fraction == 0 else f"{100 * fraction:.2f}"


def main() -> None:
    """Encode once, score many times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source_flags(parser)
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    rows = load_rows(arguments)
    model, processor = load_checkpoint(arguments.checkpoint)
    embeddings = encode_rows(model, processor, rows, num_workers=arguments.num_workers, show_progress=True)

    reports = {title: retrieval_report(embeddings, protocol) for title, protocol in variants()}
    photos = retrieval_report(first_views(embeddings), load_protocol("flickr30k/karpathy-1k"))
    scored = [[title, *score_cells(report)] for title, report in reports.items()]
    scored.append(["`flickr30k/karpathy-1k` on first views", *score_cells(photos)])
    naive = [[title, *cells] for title, cells in shortcuts(embeddings)]
    constant = collapsed(embeddings)
    chance = [["`multifold/instance`", *score_cells(retrieval_report(constant))]]
    chance += [[title, *cells] for title, cells in shortcuts(constant)]
    sizes = reports["`multifold/instance`"]
    print(", ".join(f"{sizes[f'num_{name}']:,} {name}" for name in ("instances", "images", "captions")))
    for title, lines in (
        ("Protocols", scored),
        ("Shortcuts", naive),
        ("A model that maps everything to one vector", chance),
    ):
        print(f"\n{title}, in percent:\n\n{markdown_table(HEADING, lines)}")
    if embeddings.categories:
        protocol = load_protocol("zero-shot")
        classes = embed_classes(model, processor, category_names(embeddings), protocol.templates)
        report = retrieval_report(embeddings, protocol, classes)
        cells = [percent(report[direction]["rr@1"]) for direction in protocol.directions]
        print(f"\n`zero-shot`, top-1 of {len(classes.names)} classes: {cells[0]} of views, {cells[1]} of instances")


if __name__ == "__main__":
    main()
