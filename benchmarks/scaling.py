"""What a step costs a GPU, by formula, and what this CPU needs for the same: python benchmarks/scaling.py.

[--estimate-only] [--rows 2048] [--dim 512] [--rounds 5]

The formulas are those of docs/scaling.md, which holds the table that this prints. The rates of GPUs are assumptions:
none was at hand. Measured here are the time of the objective by tiles against its formula, at two sizes, and its memory at larger ones.
"""

import argparse
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.objective_memory import draw, step_of
from benchmarks.side_by_side import machine, parse, peak_elsewhere, seconds_of, spread, take_turns

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


def measured_table(chosen: argparse.Namespace) -> str:
    """Time of `unicl` and `mfh` by tiles against the formula, forward and backward, at half the rows and at all."""
    measures = {}
    for objective, size in product(("unicl", "mfh"), (chosen.rows // 2, chosen.rows)):
        sizes = {"num_images": size, "num_texts": size, "num_instances": max(1, size // 5)}
        observed = draw(argparse.Namespace(**{**vars(chosen), **sizes}))
        measures[objective, size] = partial(seconds_of, step_of("tiles", objective, observed), chosen.clock)
    lines = [
        "| objective | images x texts x dim | s (95 % interval) | GFLOP/s by the formula |",
        "|---|---|---|---|",
    ]
    for (objective, size), seconds in take_turns(measures, chosen.rounds).items():
        taken = spread(seconds)
        rate = objective_flop(size, size, chosen.dim) / taken.median / 1e9
        lines.append(f"| `{objective}` | {size:,} x {size:,} x {chosen.dim} | {taken} | {rate:.1f} |")
    return "\n".join(lines)


def peak_lines(chosen: argparse.Namespace) -> str:
    """Memory of `unicl` by tiles above inputs and gradients at twice the rows and at four times, each in its own process."""
    script = str(Path(__file__).with_name("objective_memory.py"))
    lines = []
    for size in (2 * chosen.rows, 4 * chosen.rows):
        sizes = ["--num-images", size, "--num-texts", size, "--num-instances", max(1, size // 5), "--dim", chosen.dim]
        words = map(str, [*sizes, "--threads", chosen.threads, "--seed", chosen.seed])
        megabytes = peak_elsewhere(script, *words, "--forms", "tiles", "--peak")
        logits = size * size * FLOAT / 1e6
        lines.append(f"{size:,} x {size:,} x {chosen.dim}: {megabytes:.0f} MB; the logits would be {logits:,.0f} MB")
    return "\n".join(lines)


def main() -> None:
    """Print the estimate, and what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimate-only", action="store_true", help="Measure nothing.")
    parser.add_argument("--rows", type=int, default=2048, help="Images, and texts, of the larger time (%(default)s).")
    parser.add_argument("--dim", type=int, default=DIM, help="Of the embeddings (default: %(default)s).")
    chosen = parse(parser, rounds=5, threads=1, clock="cpu")
    print(estimate_table())
    if not chosen.estimate_only:
        print(f"\n{machine()}\n")
        print(measured_table(chosen))
        print("\n" + peak_lines(chosen))


if __name__ == "__main__":
    main()
