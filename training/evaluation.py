"""A checkpoint on a split of a data set under a protocol: its embeddings, what searched what, and every score."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.checkpoints import data_source, load_checkpoint, load_rows, run_embeddings_folder
from training.data import RawRows
from training.encoding import stored_or_encoded
from training.hardware import choose_device
from training.multifold_retrieval.metrics import QueryScores
from training.protocol import Protocol
from training.retrieval import Report, check_embeddings, report_scores, score_search
from training.searches import ClassEmbeddings, Embeddings, Search, searches
from training.zero_shot import category_names, embed_classes


@dataclass(frozen=True)
class Evaluation:
    """All that a page or a comparison needs to know of a checkpoint on a split."""

    checkpoint: str  # run folder, or Hub id
    dataset: str  # its name, and that of its configuration
    rows: RawRows
    embeddings: Embeddings
    protocol: Protocol
    classes: ClassEmbeddings | None  # where the protocol searches classes
    searches: dict[str, Search]  # by direction
    scores: dict[str, QueryScores]  # by direction
    report: Report  # what `metrics.json` holds

    @property
    def run(self) -> dict[str, Any]:
        """What the run folder says of itself; empty for a checkpoint without."""
        path = Path(self.checkpoint) / "run.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def evaluate_checkpoint(arguments: argparse.Namespace, protocol: Protocol) -> Evaluation:
    """The evaluation that a command line asks for, see `add_source_flags`; `arguments.embeddings` says where to keep them.

    Raises:
        ValueError: When the checkpoint is not one of ours, names no data set, or the data set lacks the split.
    """
    device = choose_device(arguments.cpu)
    rows = load_rows(arguments)
    embeddings = stored_or_encoded(
        arguments.checkpoint,
        rows,
        arguments.split,
        embeddings_folder(arguments),
        num_workers=arguments.num_workers,
        device=device,
        show_progress=True,
    )
    classes = None
    if protocol.gallery_unit == "class":
        model, processor = load_checkpoint(arguments.checkpoint, device)
        classes = embed_classes(model, processor, category_names(embeddings), protocol.templates)
    source = data_source(arguments)
    dataset = " ".join(filter(None, (source["dataset"], source["config"])))
    return score_embeddings(arguments.checkpoint, dataset, arguments.split, rows, embeddings, protocol, classes)


def embeddings_folder(arguments: argparse.Namespace) -> Path | None:
    """Where embeddings are kept: as asked for, else in the run folder; None for a checkpoint that is none."""
    return Path(arguments.embeddings) if arguments.embeddings else run_embeddings_folder(arguments.checkpoint)


def score_embeddings(
    checkpoint: str,
    dataset: str,
    split: str,
    rows: RawRows,
    embeddings: Embeddings,
    protocol: Protocol,
    classes: ClassEmbeddings | None = None,
) -> Evaluation:
    """The evaluation of embeddings that are there."""
    check_embeddings(embeddings, needs_texts=protocol.gallery_unit != "class")
    found = searches(embeddings, protocol, classes)
    scores = {direction: score_search(search, protocol) for direction, search in found.items()}
    report = {"split": split, **report_scores(embeddings, protocol, found, scores, classes)}
    return Evaluation(checkpoint, dataset, rows, embeddings, protocol, classes, found, scores, report)
