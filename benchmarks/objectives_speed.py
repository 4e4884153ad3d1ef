"""Time of each objective, forward and backward, against `clip`'s: python benchmarks/objectives_speed.py.

768 images and 320 texts of 64 instances, 256 dimensions; `clip` takes one pair of each instance. Rounds take turns.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor
from tqdm import tqdm

from modeling_mxmclr.objectives_mxmclr import OBJECTIVES, compute_objective

SETTINGS = {"pmrl": {"intra_temperature": 0.5}}


def main() -> None:
    """Print the median time of each objective, and its ratio to that of `clip` in the same round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="Rounds over all objectives (default: %(default)s).")
    parser.add_argument("--instances", type=int, default=64, help="Instances (default: %(default)s).")
    parser.add_argument("--views", type=int, default=12, help="Images of each (default: %(default)s).")
    parser.add_argument("--captions", type=int, default=5, help="Texts of each (default: %(default)s).")
    parser.add_argument("--dim", type=int, default=256, help="Dimensions (default: %(default)s).")
    chosen = parser.parse_args()
    sides = [
        draw(chosen.instances, size, chosen.dim, seed) for seed, size in enumerate((chosen.views, chosen.captions))
    ]
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in tqdm(range(chosen.rounds + 1), desc="rounds"):
        for name in OBJECTIVES:
            seconds[name].append(timed(name, sides))
    print(
        f"{chosen.instances} x ({chosen.views} + {chosen.captions}) x {chosen.dim}, {torch.get_num_threads()} threads\n"
    )
    print(f"{'objective':<12}{'ms':>9}{'x clip':>9}")
    for name, times in seconds.items():
        ratios = [own / clip for own, clip in zip(times[1:], seconds["clip"][1:], strict=True)]  # the first warms up
        print(f"{name:<12}{1000 * statistics.median(times[1:]):>9.1f}{statistics.median(ratios):>9.1f}")


def draw(num_instances: int, fold_size: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random unit vectors, and the instance of each."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_instances * fold_size, dim, generator=generator)
    ids = torch.arange(num_instances).repeat_interleave(fold_size)
    return torch.nn.functional.normalize(rows, dim=1).requires_grad_(), ids


def timed(name: str, sides: list[tuple[Tensor, Tensor]]) -> float:
    """Seconds of one forward and backward."""
    (images, image_ids), (texts, text_ids) = sides
    scale = torch.tensor([14.3], requires_grad=True)
    started = time.perf_counter()
    loss = compute_objective(name, images, texts, image_ids, text_ids, scale=scale, **SETTINGS.get(name, {})).loss
    torch.autograd.grad(loss, (images, texts, scale), allow_unused=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
