"""Against sentence-transformers' trainer on image and text: python benchmarks/against_sentence_transformers.py [--rounds 5].

It trains a checkpoint of ours as its module (`MXMCLRModule`), by MultipleNegativesRankingLoss in both directions, on
pairs: each image stands in a row of its own with each of its captions, and is decoded and encoded for each. We train the
same towers by `mfh` on folds, under transformers' `Trainer`. Both read one data set of encoded pictures and captions
and prepare it by one processor. A relation is an image with a caption of its own, seen once; a step of either learns
equally many. Peaks are of a process each, above model and data, for two steps.

There is no such comparison on texts alone: our models have two towers, and a fold's captions are not contrasted with
each other.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from datasets.utils.logging import disable_progress_bar
from PIL import Image as PILImage
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import Trainer, TrainingArguments, set_seed
from transformers.utils.logging import set_verbosity_error

from benchmarks.side_by_side import machine, parse, peak_elsewhere, peak_megabytes, ratio, spread, take_turns
from benchmarks.trainers import SILENT, Encodes, seconds_a_step
from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor
from modeling_mxmclr.sentence_transformers_mxmclr import MXMCLRModule
from training.arguments import parse_arguments
from training.models import build_model

RECIPE = ROOT / "training" / "configs" / "shapes_cpu.yaml"
WAYS = ("ours", "sentence-transformers")
WORDS = (
    "red",
    "green",
    "blue",
    "round",
    "square",
    "tall",
    "low",
    "wooden",
    "chair",
    "table",
    "lamp",
    "with",
    "a",
    "and",
)
FEATURES = Features({"instance_id": Value("string"), "images": List(Image()), "captions": List(Value("string"))})


def draw_rows(chosen: argparse.Namespace) -> Dataset:
    """Pictures of noise with captions of random words, as many as three steps need."""
    draw = np.random.default_rng(chosen.seed)
    rows = []
    for number in range(3 * chosen.relations // chosen.captions):
        pixels = draw.integers(0, 256, (chosen.size, chosen.size, 3), dtype=np.uint8)
        captions = [" ".join(draw.choice(WORDS, draw.integers(6, 16))) for _ in range(chosen.captions)]
        rows.append({"instance_id": str(number), "images": [PILImage.fromarray(pixels)], "captions": captions})
    return Dataset.from_list(rows, features=FEATURES)


def exploded(rows: Dataset) -> Dataset:
    """A row a pair, as sentence-transformers wants it, the pictures still encoded."""
    plain = rows.with_format("arrow")[:].to_pylist()
    pairs = [{"image": row["images"][0], "caption": caption} for row in plain for caption in row["captions"]]
    return Dataset.from_list(pairs, features=Features({"image": Image(), "caption": Value("string")}))


def build(rows: Dataset, chosen: argparse.Namespace) -> tuple[MXMCLRModel, MXMCLRProcessor]:
    """The towers of the recipe `shapes_cpu.yaml`, fresh, the same each time."""
    set_seed(chosen.seed)
    words = [str(RECIPE), "--objective", chosen.objective, "--image_size", str(chosen.size)]
    return build_model(
        parse_arguments(words, __doc__ or "").model, (caption for fold in rows["captions"] for caption in fold)
    )


def our_trainer(
    model: MXMCLRModel, processor: MXMCLRProcessor, rows: Dataset, chosen: argparse.Namespace, keywords: dict[str, Any]
) -> Trainer:
    """Folds, an instance a row."""

    def collate(instances: Sequence[dict[str, Any]]) -> dict[str, Any]:
        columns = {name: [row[name] for row in instances] for name in FEATURES}
        return dict(processor(images=columns["images"], text=columns["captions"], instance_ids=columns["instance_id"]))

    arguments = TrainingArguments(
        per_device_train_batch_size=chosen.relations // chosen.captions, remove_unused_columns=False, **keywords
    )
    return Trainer(model, arguments, data_collator=collate, train_dataset=rows)


def their_trainer(
    model: MXMCLRModel, processor: MXMCLRProcessor, rows: Dataset, chosen: argparse.Namespace, keywords: dict[str, Any]
) -> Trainer:
    """Pairs, an image with a caption a row."""
    sentence_model = SentenceTransformer(modules=[MXMCLRModule(model, processor)], device="cpu")
    loss = MultipleNegativesRankingLoss(
        sentence_model,
        scale=model.logit_scale().exp().item(),
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    pairs_a_step = chosen.relations // chosen.captions * chosen.captions
    arguments = SentenceTransformerTrainingArguments(per_device_train_batch_size=pairs_a_step, **keywords)
    return SentenceTransformerTrainer(model=sentence_model, args=arguments, train_dataset=exploded(rows), loss=loss)


def trainer_of(
    way: str, model: MXMCLRModel, processor: MXMCLRProcessor, rows: Dataset, chosen: argparse.Namespace, folder: str
) -> Trainer:
    """A new trainer of one of `WAYS`, for a step more than is measured."""
    keywords = {**SILENT, "output_dir": folder, "max_steps": chosen.steps + 1, "seed": chosen.seed}
    return (our_trainer if way == "ours" else their_trainer)(model, processor, rows, chosen, keywords)


def peak(way: str, chosen: argparse.Namespace) -> float:
    """Megabytes by which this process grows in two steps."""
    rows = draw_rows(chosen)
    two_steps = argparse.Namespace(**{**vars(chosen), "steps": 1})
    with TemporaryDirectory() as folder:
        trainer = trainer_of(way, *build(rows, chosen), rows, two_steps, folder)
        return peak_megabytes(lambda: seconds_a_step(trainer, chosen.clock))


def main() -> None:
    """Print encodes, time and memory, a relation, side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="Steps of each in a round (default: %(default)s).")
    parser.add_argument("--captions", type=int, default=5, help="Texts of an image (default: %(default)s).")
    parser.add_argument("--relations", type=int, default=160, help="Of a step (default: %(default)s).")
    parser.add_argument("--size", type=int, default=64, help="Pixels (default: %(default)s).")
    parser.add_argument("--objective", default="mfh", help="Ours (default: %(default)s).")
    parser.add_argument("--peak-of", choices=WAYS, help=argparse.SUPPRESS)
    chosen = parse(parser, rounds=5)
    disable_progress_bar()
    set_verbosity_error()
    if chosen.peak_of:
        print(peak(chosen.peak_of, chosen))
        return
    peaks = {way: peak_elsewhere(__file__, *sys.argv[1:], "--peak-of", way) for way in WAYS}
    rows = draw_rows(chosen)
    built = {way: build(rows, chosen) for way in WAYS}
    encodes = {way: Encodes(model) for way, (model, _) in built.items()}
    with TemporaryDirectory() as folder:
        measures = {
            way: lambda way=way: seconds_a_step(trainer_of(way, *built[way], rows, chosen, folder), chosen.clock)
            for way in WAYS
        }
        seconds = take_turns(measures, chosen.rounds)
    relations = chosen.relations // chosen.captions * chosen.captions
    learned = (chosen.rounds + 1) * (chosen.steps + 1) * relations
    print(machine("transformers", "sentence-transformers"))
    print(f"1 image x {chosen.captions} captions, {relations} relations a step; by relation\n")
    for way, values in seconds.items():
        time_taken = spread([1000 * value / relations for value in values])
        memory = f"{peaks[way] / relations:.2f} MB at the peak ({peaks[way]:.0f} MB in all)"
        print(f"{way:<23}{time_taken} ms, {encodes[way].per(learned)}, {memory}")
    ours, theirs = (seconds[way] for way in WAYS)
    print(f"\nours takes {ratio(ours, theirs)} of the time, {peaks['ours'] / peaks[WAYS[1]]:.2f} of the memory")


if __name__ == "__main__":
    main()
