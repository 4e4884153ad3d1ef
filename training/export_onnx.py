"""Export the two towers of a checkpoint to ONNX, with pooling, projection and unit norm inside.

Usage:
    python training/export_onnx.py runs/shapes_cpu --output runs/shapes_cpu/onnx
    python training/export_onnx.py org/mxmclr-text2shape --output exported --int8

`text.onnx` maps `input_ids` and `attention_mask` to `text_embeds`, `image.onnx` maps `pixel_values` to `image_embeds`,
for any number of rows and any length; the tokenizer and the image processor are saved beside them. Every file is run
in onnxruntime against the model before it stays. An instance's embedding is the unit-norm mean of its rows.
"""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

# Launched by path, this file's folder comes first, where `evaluate` would be ours instead of the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from PIL import Image
from torch import Tensor, nn

from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor
from training.checkpoints import load_checkpoint

TOLERANCE = 1e-4
TEXTS = ("a", "a small red chair with four legs", "two words")
LARGEST_FILE = 2_000_000_000  # bytes of a protocol buffer; larger weights go to a file beside it
# Convolutions stay in float32: onnxruntime's int8 ones were 5 times slower than its float ones.
INT8_OPERATIONS = ("MatMul", "Gemm", "Gather")


class TextEncoder(nn.Module):
    """A model's text side as one function."""

    def __init__(self, model: MXMCLRModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The unit-norm embedding of each text, `(num_texts, projection_dim)`."""
        return self.model.get_text_features(input_ids, attention_mask)


class ImageEncoder(nn.Module):
    """A model's image side as one function."""

    def __init__(self, model: MXMCLRModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The unit-norm embedding of each image, `(num_images, projection_dim)`."""
        return self.model.get_image_features(pixel_values)


class Tower(NamedTuple):
    """What it takes to export one side of a model."""

    name: str
    encoder: nn.Module
    axes: dict[str, dict[int, str]]  # of each input, the axes of any length, named
    batches: list[dict[str, Tensor]]  # to trace with, the first, and to check with


class Int8File(NamedTuple):
    """A quantised tower."""

    path: Path
    lowest_cosine: float  # to the embeddings of the float file, over the check batches


def main(words: Sequence[str]) -> None:
    """Export as a command line says."""
    arguments = parse(words)
    model, processor = load(arguments.checkpoint)
    folder = Path(arguments.output)
    for path, difference in export_towers(model, processor, folder).items():
        sys.stdout.write(f"{path}: {megabytes(path)}, differs from the model by {difference:.1e} at most\n")
        if arguments.int8:
            sys.stdout.write(describe_int8(path, quantise(path, check_batches(processor)[path.stem])) + "\n")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="Run folder, or Hub id of a checkpoint of ours.")
    parser.add_argument("--output", required=True, help="Folder for text.onnx, image.onnx and the processor's files.")
    parser.add_argument(
        "--int8",
        action="store_true",
        help="Also write text.int8.onnx, and image.int8.onnx for an image tower of matrix products: weights in 8 bits, "
        "activations quantised as they come. Measure the loss of recall with benchmarks/quantisation.py.",
    )
    return parser.parse_args(words)


def load(checkpoint: str) -> tuple[MXMCLRModel, MXMCLRProcessor]:
    """The model in float32, and its processor.

    Raises:
        ValueError: When the checkpoint is not one of ours.
    """
    model, processor = load_checkpoint(checkpoint)
    return model.float(), processor


def export_towers(model: MXMCLRModel, processor: MXMCLRProcessor, folder: Path) -> dict[Path, float]:
    """The files of both towers, each with its largest difference from the model.

    Raises:
        RuntimeError: When a file's embeddings are not the model's; it is removed then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(folder)
    return {folder / f"{tower.name}.onnx": export(tower, folder) for tower in towers_of(model, processor)}


def towers_of(model: MXMCLRModel, processor: MXMCLRProcessor) -> list[Tower]:
    """Both sides of a model."""
    batches = check_batches(processor)
    text_axes = {name: {0: "num_texts", 1: "length"} for name in ("input_ids", "attention_mask")}
    return [
        Tower("text", TextEncoder(model).eval(), text_axes, batches["text"]),
        Tower("image", ImageEncoder(model).eval(), {"pixel_values": {0: "num_images"}}, batches["image"]),
    ]


def check_batches(processor: MXMCLRProcessor) -> dict[str, list[dict[str, Tensor]]]:
    """Inputs of each tower in several sizes, a single row among them; the first has more than one of everything."""
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for _ in range(3)]
    texts = [processor(text=[list(some)]) for some in (TEXTS, TEXTS[:1], TEXTS[1:])]
    views = [processor(images=[some]) for some in (images, images[:1])]
    return {
        "text": [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in texts],
        "image": [{"pixel_values": batch["pixel_values"]} for batch in views],
    }


def export(tower: Tower, folder: Path) -> float:
    """Write a tower's file, and return its largest difference from the model."""
    path = folder / f"{tower.name}.onnx"
    int8_path(path).unlink(missing_ok=True)  # of an earlier export, perhaps of another checkpoint
    size = sum(weight.nbytes for weight in tower.encoder.parameters())
    with torch.no_grad(), quiet_tools():
        torch.onnx.export(
            tower.encoder,
            (),
            path,
            kwargs=tower.batches[0],
            input_names=list(tower.axes),
            output_names=[f"{tower.name}_embeds"],
            dynamic_shapes=tower.axes,
            dynamo=True,
            external_data=size > LARGEST_FILE,
            verbose=False,
        )
    return check(path, tower)


@torch.no_grad()
def check(path: Path, tower: Tower) -> float:
    """The largest difference between a file's embeddings and the model's.

    Raises:
        RuntimeError: When it is more than rounding; the file is removed.
    """
    pairs = zip(run(path, tower.batches), tower.batches, strict=True)
    differences = [(torch.from_numpy(rows) - tower.encoder(**batch)).abs().flatten() for rows, batch in pairs]
    difference = torch.cat(differences).max().item()
    if not difference <= TOLERANCE:
        path.unlink()
        raise RuntimeError(
            f"`{path.name}` must give the model's embeddings to {TOLERANCE:g}, it differs by {difference:.2g} and was "
            f"removed; onnxruntime {onnxruntime.__version__} can't run this {tower.name} tower as it is."
        )
    return difference


def run(path: Path, batches: Sequence[Mapping[str, Tensor]]) -> list[np.ndarray]:
    """What onnxruntime makes of some batches on the CPU."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [session.run(None, {name: rows.numpy() for name, rows in batch.items()})[0] for batch in batches]


def quantise(path: Path, batches: Sequence[Mapping[str, Tensor]]) -> Int8File | None:
    """A tower in 8 bits beside its float file, one scale a column; None where most weights are convolutions."""
    graph = onnx.load(path)
    if int8_share(graph) < 0.5:
        return None
    # The exporter notes the shapes of weights, which the quantiser then transposes without a note.
    del graph.graph.value_info[:]
    target = int8_path(path)
    with quiet_tools():
        quantize_dynamic(
            graph, target, op_types_to_quantize=INT8_OPERATIONS, per_channel=True, weight_type=QuantType.QInt8
        )
    pairs = zip(run(path, batches), run(target, batches), strict=True)
    return Int8File(target, min(float((exact * rough).sum(axis=1).min()) for exact, rough in pairs))


def int8_path(path: Path) -> Path:
    """Where the 8-bit twin of a tower's file goes."""
    return path.with_suffix(".int8.onnx")


def int8_share(graph: onnx.ModelProto) -> float:
    """The share of a file's weights that 8 bits would hold."""
    users = {name: node.op_type for node in graph.graph.node for name in node.input}
    sizes = {weight.name: int(np.prod(weight.dims)) for weight in graph.graph.initializer}
    return sum(size for name, size in sizes.items() if users.get(name) in INT8_OPERATIONS) / sum(sizes.values())


@contextmanager
def quiet_tools() -> Iterator[None]:
    """Keep exporter and quantiser from warning of their own affairs; what they write is checked."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "While compiling, we found certain side effects", UserWarning)
        warnings.filterwarnings("ignore", "# The axis name: .* shares the same shape constraints", UserWarning)
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def describe_int8(path: Path, quantised: Int8File | None) -> str:
    """What became of a tower in 8 bits."""
    if quantised is None:
        return f"{path}: stays in float32 only, most of its weights are convolutions, which 8 bits slow down"
    return f"{quantised.path}: {megabytes(quantised.path)}, cosine to float32 {quantised.lowest_cosine:.4f} at least"


def megabytes(path: Path) -> str:
    """The size of a file."""
    return f"{path.stat().st_size / 1e6:.1f} MB"


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main(sys.argv[1:])
