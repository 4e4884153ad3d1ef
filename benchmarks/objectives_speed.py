"""Time of each objective, forward and backward, against `clip`'s: python benchmarks/objectives_speed.py.

768 images and 320 texts of 64 instances, 256 dimensions; `clip` takes one pair of each instance. Rounds take turns.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from benchmarks.side_by_side import machine, parse, ratio, seconds_of, spread, take_turns
from modeling_mxmclr.objectives_mxmclr import OBJECTIVES, compute_objective

SETTINGS = {"pmrl": {"intra_temperature": 0.5}}


def main() -> None:
    """Print the median time of each objective, and its ratio to that of `clip` in the same round, with 95 % intervals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=64, help="Instances (default: %(default)s).")
    parser.add_argument("--views", type=int, default=12, help="Images of each (default: %(default)s).")
    parser.add_argument("--captions", type=int, default=5, help="Texts of each (default: %(default)s).")
    parser.add_argument("--dim", type=int, default=256, help="Dimensions (default: %(default)s).")
    chosen = parse(parser, rounds=7)
    sides = [
        draw(chosen.instances, size, chosen.dim, chosen.seed + side)
        for side, size in enumerate((chosen.views, chosen.captions))
    ]
    measures = {name: partial(seconds_of, partial(step, name, sides), chosen.clock) for name in OBJECTIVES}
    seconds = take_turns(measures, chosen.rounds)
    print(f"{machine()}\n{chosen.instances} x ({chosen.views} + {chosen.captions}) x {chosen.dim}\n")
    print(f"{'objective':<12}{'ms':>24}{'x clip':>24}")
    for name, times in seconds.items():
        milliseconds = spread([1000 * each for each in times])
        print(f"{name:<12}{milliseconds!s:>24}{ratio(times, seconds['clip'])!s:>24}")


def draw(num_instances: int, fold_size: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random unit vectors, and the instance of each."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_instances * fold_size, dim, generator=generator)
    ids = torch.arange(num_instances).repeat_interleave(fold_size)
    return torch.nn.functional.normalize(rows, dim=1).requires_grad_(), ids


def step(name: str, sides: list[tuple[Tensor, Tensor]]) -> None:
    """One forward and backward."""
    (images, image_ids), (texts, text_ids) = sides
    scale = torch.tensor([14.3], requires_grad=True)
    loss = compute_objective(name, images, texts, image_ids, text_ids, scale=scale, **SETTINGS.get(name, {})).loss
    torch.autograd.grad(loss, (images, texts, scale), allow_unused=True)


if __name__ == "__main__":
    main()
