"""What a step costs a GPU, by formula, and what this CPU needs for the same: python benchmarks/scaling.py.

[--estimate-only] [--rows 2048] [--dim 512] [--repeats 5]

The formulas are those of docs/scaling.md, which holds the table that this prints. The rates of GPUs are assumptions:
none was at hand. Measured here are the time of the objective by tiles against its formula, at two sizes, and its memory at larger ones.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.objective_memory import draw
from modeling_mxmclr import contrast_mxmclr
from modeling_mxmclr.objectives_mxmclr import compute_objective

FLOAT = 4  # bytes
# CLIP ViT-B/32: weights that a token passes, times tokens, times two, forward.
IMAGE_FLOP, TEXT_FLOP = 2 * 85.1e6 * 50, 2 * 37.8e6 * 77
PARAMETERS = 151e6
DIM = 512
# Assumed, of what a GPU of 80 GB reaches: bfloat16 in the towers, float32 in the objective, bytes a second in and out
# of it within a machine of eight and between machines.
TOWER_RATE, OBJECTIVE_RATE, NEAR, FAR = 150e12, 15e12, 200e9, 20e9
GPUS_PER_MACHINE = 8


class Batch(NamedTuple):
    """A global batch."""

    num_gpus: int
    num_images: int
    num_texts: int

    @property
    def rows(self) -> int:
        """Observations."""
        return self.num_images + self.num_texts

    @property
    def tower_flop(self) -> float:
        """Of one GPU, forward and backward; a cached-gradient step adds a third."""
        return 3 * (self.num_images * IMAGE_FLOP + self.num_texts * TEXT_FLOP) / self.num_gpus

    @property
    def objective_flop(self) -> float:
        """Of one GPU, see `objective_flop`."""
        return objective_flop(self.num_images, self.num_texts, DIM, self.num_gpus)

    @property
    def embedding_bytes(self) -> float:
        """Of one GPU: all embeddings and their gradient, and on several the sum of the latter over ranks."""
        return (2 if self.num_gpus == 1 else 3) * self.rows * DIM * FLOAT

    @property
    def matrix_bytes(self) -> float:
        """What the logits would take that are never held."""
        return self.num_images * self.num_texts * FLOAT

    @property
    def embedding_traffic(self) -> float:
        """Bytes into one GPU: embeddings are gathered, and their gradient is summed in a ring."""
        return 3 * self.rows * DIM * FLOAT * (self.num_gpus - 1) / self.num_gpus

    @property
    def weight_traffic(self) -> float:
        """Bytes into one GPU: the weights' gradient is summed in a ring."""
        return 2 * PARAMETERS * FLOAT * (self.num_gpus - 1) / self.num_gpus

    @property
    def seconds(self) -> dict[str, float]:
        """Of a step, by what they go into, none of it at once with another."""
        speed = NEAR if self.num_gpus <= GPUS_PER_MACHINE else FAR
        return {
            "towers": self.tower_flop / TOWER_RATE,
            "objective": self.objective_flop / OBJECTIVE_RATE,
            "traffic": (self.embedding_traffic + self.weight_traffic) / speed,
        }


def objective_flop(num_images: int, num_texts: int, dim: int, num_gpus: int = 1) -> float:
    """Of one GPU: the logits, the logits again in the backward pass, and a product for the gradient of each side.

    One process answers both directions from the same logits. Of several, each scores its own images against all texts
    and its own texts against all images.
    """
    whole = 8 * num_images * num_texts * dim
    return whole if num_gpus == 1 else 2 * whole / num_gpus


# 256 instances a GPU of 4 images and 5 texts each; then 100,000 instances of 5 and 5, whatever the GPUs.
BATCHES = [Batch(gpus, 1024 * gpus, 1280 * gpus) for gpus in (1, 8, 64)]
BATCHES += [Batch(gpus, 500_000, 500_000) for gpus in (1, 8, 64)]


def estimate_table() -> str:
    """What each of `BATCHES` costs one GPU, as Markdown."""
    lines = [
        "| GPUs | images x texts | towers | objective | embeddings | logits, not held | traffic: embeddings | weights | "
        "step: towers + objective + traffic |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for batch in BATCHES:
        parts = " + ".join(short(seconds) for seconds in batch.seconds.values())
        cells = [
            str(batch.num_gpus),
            f"{batch.num_images:,} x {batch.num_texts:,}",
            f"{short(batch.tower_flop / 1e12)} TFLOP",
            f"{short(batch.objective_flop / 1e12)} TFLOP",
            f"{batch.embedding_bytes / 1e6:,.0f} MB",
            f"{short(batch.matrix_bytes / 1e9)} GB",
            f"{batch.embedding_traffic / 1e6:,.0f} MB",
            f"{batch.weight_traffic / 1e6:,.0f} MB",
            f"{parts} = {short(sum(batch.seconds.values()))} s",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def short(value: float) -> str:
    """A figure with two digits, or all before the point where there are more.

    Example:
        >>> short(0.01234), short(1234.5)
        ('0.012', '1,234')
    """
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def seconds_of(objective: str, rows: int, dim: int, repeats: int) -> list[float]:
    """CPU seconds of a forward and a backward pass by tiles, of as many images as texts, after one that warms up."""
    contrast_mxmclr.MATRIX_LOGITS = -1
    chosen = argparse.Namespace(num_images=rows, num_texts=rows, num_instances=max(1, rows // 5), dim=dim)
    observed, scale = draw(chosen), torch.tensor([1 / 0.07], requires_grad=True)
    seconds = []
    for _ in range(repeats + 1):
        started = time.process_time()
        compute_objective(objective, *observed[:4], scale=scale).loss.backward()
        seconds.append(time.process_time() - started)
    return seconds[1:]


def measured_table(rows: int, dim: int, repeats: int) -> str:
    """Time of `unicl` and `mfh` on this machine, against the formula, at half the rows and at all of them."""
    lines = [
        "| objective | images x texts x dim | CPU s (least to most) | GFLOP/s by the formula |",
        "|---|---|---|---|",
    ]
    for objective in ("unicl", "mfh"):
        for size in (rows // 2, rows):
            seconds = seconds_of(objective, size, dim, repeats)
            middle = statistics.median(seconds)
            rate = objective_flop(size, size, dim) / middle / 1e9
            lines.append(
                f"| `{objective}` | {size:,} x {size:,} x {dim} | {middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) "
                f"| {rate:.1f} |"
            )
    return "\n".join(lines)


def peak_lines(rows: int, dim: int) -> str:
    """Memory of `unicl` by tiles above inputs and gradients at twice the rows and at four times, each in its own process."""
    script = str(Path(__file__).with_name("objective_memory.py"))
    lines = []
    for size in (2 * rows, 4 * rows):
        sizes = ["--num-images", size, "--num-texts", size, "--num-instances", max(1, size // 5), "--dim", dim]
        command = [sys.executable, script, *map(str, sizes), "--forms", "tiles", "--repeats", "0"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        lines.append(
            f"{size:,} x {size:,} x {dim}, {printed}; the logits would be {size * size * FLOAT / 1e6:,.0f} MB"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the estimate, and what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--estimate-only", action="store_true", help="Measure nothing.")
    parser.add_argument("--rows", type=int, default=2048, help="Images, and texts, of the larger time.")
    parser.add_argument("--dim", type=int, default=DIM)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(estimate_table())
    if not chosen.estimate_only:
        print(f"\nOne thread, torch {torch.__version__}\n")
        print(measured_table(chosen.rows, chosen.dim, chosen.repeats))
        print("\n" + peak_lines(chosen.rows, chosen.dim))


if __name__ == "__main__":
    main()
