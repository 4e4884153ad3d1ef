"""Peak memory and time of an objective by tiles, against its matrix and a plain form: python benchmarks/objective_memory.py.

One forward and backward of each form, in turns; then the tiles' peak at `--times 4` as many rows on both sides. The
plain form is the fastest that we know in PyTorch: row logsumexp less the mean positive, in both directions. Peaks are of
a process each, above inputs and gradients. `--forms tiles plain` leaves our own matrix out, `--rounds 0` all times.

unicl, 12,288 x 5,120 x 512 of 1,024 instances, float32, one thread of a Xeon at 2.1 GHz that other work shared, torch
2.13, five rounds, CPU seconds: tiles 2.39 s and 69 MB above inputs and gradients, plain PyTorch 3.30 s and 1,400 MB.
Tiles take 0.70 (0.65 to 0.72) of the plain form's time. Our own matrix took 9.83 s and 1,467 MB in an earlier run.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from benchmarks.side_by_side import (
    machine,
    parse,
    peak_elsewhere,
    peak_megabytes,
    ratio,
    seconds_of,
    spread,
    take_turns,
    verdict,
)
from modeling_mxmclr import contrast_mxmclr
from modeling_mxmclr.folds_mxmclr import Observations, mean_by_index, unit_norm
from modeling_mxmclr.objectives_mxmclr import compute_objective

FORMS = ("tiles", "matrix", "plain")
BARS = {"time": 0.75, "memory": 1 / 16, "large": 400.0}


def draw(chosen: argparse.Namespace) -> Observations:
    """Float32 unit vectors that lean to their instance's own, with room for their gradients."""
    generator = torch.Generator().manual_seed(chosen.seed)
    centres = torch.randn(chosen.num_instances, chosen.dim, generator=generator)
    sides, ids = [], []
    for size in (chosen.num_images, chosen.num_texts):
        ids.append(torch.arange(size) * chosen.num_instances // size)
        rows = torch.randn(size, chosen.dim, generator=generator).add_(centres[ids[-1]])
        sides.append(unit_norm(rows).requires_grad_())
        sides[-1].grad = torch.full_like(rows, 0.0)
    return Observations(*sides, *ids)


def plain(observed: Observations, scale: Tensor) -> Tensor:
    """Row logsumexp less the mean positive, in both directions: the fastest form that holds the matrix of logits."""
    images, texts, *ids = observed[:4]
    logits = scale * images @ texts.T
    losses = []
    for rows, keys, own, others, way in ((images, texts, *ids, logits), (texts, images, *ids[::-1], logits.T)):
        means = mean_by_index(keys, others, others.bincount())
        losses.append((way.logsumexp(dim=1) - scale * (rows * means[own]).sum(dim=1)).mean())
    return torch.stack(losses).mean()


def step_of(form: str, objective: str, observed: Observations) -> Callable[[], float]:
    """A forward and a backward pass, which gives the loss."""
    scale = torch.tensor([1 / 0.07], requires_grad=True)

    def step() -> float:
        contrast_mxmclr.MATRIX_LOGITS = -1 if form == "tiles" else 2**62
        is_plain = form == "plain"
        loss = plain(observed, scale) if is_plain else compute_objective(objective, *observed[:4], scale=scale).loss
        loss.backward()
        return loss.item()

    return step


def peak(chosen: argparse.Namespace) -> float:
    """Peak memory of one step of the first form above what inputs and gradients take, found in this process."""
    small = {"num_instances": 2, "num_images": 8, "num_texts": 8, "dim": 8}
    step_of(chosen.forms[0], chosen.objective, draw(argparse.Namespace(**{**vars(chosen), **small})))()
    return peak_megabytes(step_of(chosen.forms[0], chosen.objective, draw(chosen)))


def peak_of(form: str, chosen: argparse.Namespace, times: int = 1) -> float:
    """`peak` of a form in a process of its own, with so many times the rows."""
    rows = {"images": chosen.num_images, "texts": chosen.num_texts, "instances": chosen.num_instances}
    sizes = [word for name, size in rows.items() for word in (f"--num-{name}", str(times * size))]
    return peak_elsewhere(__file__, *sys.argv[1:], *sizes, "--forms", form, "--peak")


def measure_seconds(chosen: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of a step of each form in each round."""
    observed = draw(chosen)
    steps = {form: step_of(form, chosen.objective, observed) for form in chosen.forms}
    return take_turns({form: partial(seconds_of, step, chosen.clock) for form, step in steps.items()}, chosen.rounds)


def compare(peaks: dict[str, float], seconds: dict[str, list[float]]) -> None:
    """Print the tiles' share of each other form's memory and time, and what the bars say of the plain form's."""
    for form in [name for name in peaks if name != "tiles"]:
        memory = peaks["tiles"] / peaks[form]
        print(f"tiles take {memory:.3g} of the memory of {form}")
        if form == "plain":
            print(verdict("memory of tiles / plain", memory, BARS["memory"]))
        if seconds:
            taken = ratio(seconds["tiles"], seconds[form])
            print(f"tiles take {taken} of the time of {form}")
            if form == "plain":
                print(verdict("time of tiles / plain", taken.median, BARS["time"]))


def main() -> None:
    """Measure peaks in processes of their own, then the times of all forms in turn, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", default="unicl", help="Of tiles and matrix (default: %(default)s).")
    parser.add_argument("--num-images", type=int, default=12288, help="(default: %(default)s)")
    parser.add_argument("--num-texts", type=int, default=5120, help="(default: %(default)s)")
    parser.add_argument("--dim", type=int, default=512, help="(default: %(default)s)")
    parser.add_argument("--num-instances", type=int, default=1024, help="(default: %(default)s)")
    parser.add_argument(
        "--times", type=int, default=4, help="Rows of the large batch; 0 for none (default: %(default)s)."
    )
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS, help="(default: all)")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    chosen = parse(parser, rounds=5)
    if chosen.peak:
        print(peak(chosen))
        return
    print(f"{machine()}\n{chosen.objective}, {chosen.num_images} x {chosen.num_texts} x {chosen.dim}")
    peaks = {form: peak_of(form, chosen) for form in chosen.forms}
    seconds = measure_seconds(chosen) if chosen.rounds else {}
    for form, megabytes in peaks.items():
        print(
            f"{form}: {megabytes:.0f} MB above inputs and gradients"
            + (f", {spread(seconds[form])} s" if seconds else "")
        )
    if "tiles" in peaks:
        compare(peaks, seconds)
        if chosen.times:
            large = peak_of("tiles", chosen, chosen.times)
            print(verdict(f"MB of tiles at {chosen.times} x the rows", large, BARS["large"]))
            print(
                verdict("the same, against 4.5 x the memory of the row above + 64", large, 4.5 * peaks["tiles"] + 64)
            )


if __name__ == "__main__":
    main()
