"""What 8 bits cost and gain on a CPU: python benchmarks/quantisation.py runs/shapes_cpu [--dataset shapes] [--threads 1].

Exports a checkpoint's towers, encodes a test split by torch, by onnxruntime, and by onnxruntime in int8, taking turns
batch by batch, and prints recall and time side by side. Measured on one core of an Intel Xeon at 2.1 GHz (AVX-512 VNNI,
AMX) that others used too, text to instance, int8 texts on float32 images against float32 on both:

    run                         text tower, MB     time a text    RR@1 %           RR@5 %
    shapes_cpu, BERT, 2 layers  2.1 to 0.9         1.6 x faster   50.04 to 49.82   82.93 to 83.08
    emoji_cpu, MiniLM, 6        92.0 to 24.0       2.4 x faster   26.72 to 25.98   49.63 to 48.90

Their ResNets stay in float32: in 8 bits they were 5 times slower.
"""

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import onnxruntime
import torch
from torch import Tensor
from tqdm import tqdm

from datasets_scripts import load_multifold
from modeling_mxmclr.folds_mxmclr import flatten_folds, hash_instance_id
from training.data import decode_image, named_splits
from training.export_onnx import Tower, check_batches, export_towers, load, quantise, towers_of
from training.retrieval import Report, retrieval_report
from training.searches import Embeddings

Batch = dict[str, Tensor]
Encoder = Callable[[Batch], Tensor]


def main() -> None:
    """Export, encode and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", default="runs/shapes_cpu")
    parser.add_argument("--dataset", default="shapes")
    parser.add_argument("--split", default="test")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=32)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    rows = named_splits(load_multifold(chosen.dataset))[chosen.split]
    model, processor = load(chosen.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        export_towers(model, processor, Path(folder))
        encoders = {}
        for tower in towers_of(model, processor):
            quantise(Path(folder) / f"{tower.name}.onnx", check_batches(processor)[tower.name])
            encoders[tower.name] = encoders_of(tower, Path(folder), chosen.threads)
        texts, text_ids, captions = caption_batches(rows, processor, chosen.batch_size)
        images, image_ids = view_batches(rows, processor, chosen.batch_size)
        text_rows, text_seconds = take_turns(encoders["text"], texts)
        image_rows, image_seconds = take_turns(encoders["image"], images)
    for text_kind, image_kind in combinations(text_rows, image_rows):
        embeddings = Embeddings(image_rows[image_kind], image_ids, text_rows[text_kind], text_ids, captions, {}, {})
        print(f"{text_kind + ' text, ' + image_kind + ' images':48} {recalls(retrieval_report(embeddings))}")
    for name, seconds in (("text", text_seconds), ("image", image_seconds)):
        print(f"{name} tower, ms a row: " + ", ".join(f"{kind} {value:.2f}" for kind, value in seconds.items()))


def encoders_of(tower: Tower, folder: Path, threads: int) -> dict[str, Encoder]:
    """Each way to run a tower that there is."""
    encoders: dict[str, Encoder] = {"torch": lambda batch: tower.encoder(**batch)}
    for kind, suffix in (("float32", ".onnx"), ("int8", ".int8.onnx")):
        if (path := folder / f"{tower.name}{suffix}").is_file():
            encoders[kind] = onnx_encoder(path, threads)
    return encoders


def onnx_encoder(path: Path, threads: int) -> Encoder:
    """A file of a tower as a function."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {name: x.numpy() for name, x in batch.items()})[0])


def caption_batches(rows, processor, size) -> tuple[list[Batch], Tensor, list[str]]:
    """All captions as inputs of the text tower, their instances, and the captions."""
    captions, ids = flatten_folds([row["captions"] for row in rows], group_ids_of(rows))
    parts = (captions[start : start + size] for start in range(0, len(captions), size))
    batches = [processor(text=[part]) for part in parts]
    return [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in batches], ids, captions


def view_batches(rows, processor, size) -> tuple[list[Batch], Tensor]:
    """All views as inputs of the image tower, and their instances."""
    views, ids = flatten_folds([row["images"] for row in rows], group_ids_of(rows))
    views = [decode_image(view, "a row") for view in tqdm(views, desc="reading", leave=False)]
    parts = (views[start : start + size] for start in range(0, len(views), size))
    return [{"pixel_values": processor(images=[part])["pixel_values"]} for part in parts], ids


def group_ids_of(rows) -> list[int]:
    """The group id of each row."""
    return [hash_instance_id(row["instance_id"]) for row in rows]


@torch.no_grad()
def take_turns(encoders: dict[str, Encoder], batches: Sequence[Batch]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The embeddings by each encoder, and its median milliseconds a row."""
    parts, milliseconds = defaultdict(list), defaultdict(list)
    for encode in encoders.values():
        encode(batches[0])  # the first call sets up
    for batch in tqdm(batches, leave=False):
        for kind, encode in encoders.items():
            start = time.perf_counter()
            parts[kind].append(encode(batch))
            milliseconds[kind].append(1e3 * (time.perf_counter() - start) / len(parts[kind][-1]))
    joined = {kind: torch.cat(rows) for kind, rows in parts.items()}
    return joined, {kind: float(np.median(values)) for kind, values in milliseconds.items()}


def combinations(text_kinds, image_kinds) -> list[tuple[str, str]]:
    """Which embeddings to score together: each kind with its own, and int8 texts with float images."""
    pairs = [(kind, kind if kind in image_kinds else "float32") for kind in text_kinds]
    return pairs if ("int8", "float32") in pairs else [*pairs, ("int8", "float32")]


def recalls(report: Report) -> str:
    """Recall of text to instance with its 95 % interval."""
    scores = report["text_to_instance"]
    # A cut-off beyond the gallery is not in the report.
    found = [(k, scores[f"rr@{k}"], scores["ci95"][f"rr@{k}"]) for k in (1, 5) if f"rr@{k}" in scores]
    return ", ".join(f"RR@{k} {100 * x:.2f} % ({100 * low:.1f} to {100 * high:.1f})" for k, x, (low, high) in found)


if __name__ == "__main__":
    main()
