"""Peak memory and time of an objective by tiles, against its matrix and a plain form: python benchmarks/objective_memory.py.

[--objective unicl] [--num-images 12288] [--num-texts 5120] [--dim 512] [--num-instances 1024] [--repeats 5]
[--forms tiles matrix plain] [--threads 1]

unicl, 12,288 x 5,120 x 512 of 1,024 instances, float32, one thread of a Xeon at 2.1 GHz that other work shared, torch
2.13, five interleaved rounds, CPU seconds: tiles 3.27 s and 35 MB above inputs and gradients; our matrix 9.83 s and
1,467 MB; plain PyTorch 3.84 s and 1,384 MB. Tiles take 0.88 (0.78 to 1.00) of the plain form's time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from modeling_mxmclr import contrast_mxmclr
from modeling_mxmclr.folds_mxmclr import Observations, mean_by_index, unit_norm
from modeling_mxmclr.objectives_mxmclr import compute_objective


def draw(chosen: argparse.Namespace) -> Observations:
    """Float32 unit vectors that lean to their instance's own, with room for their gradients."""
    generator = torch.Generator().manual_seed(0)
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


def peak_megabytes(chosen: argparse.Namespace) -> float:
    """Peak memory of one step above what inputs and gradients take, found in this process."""
    observed = draw(chosen)
    step_of(
        chosen.forms[0], chosen.objective, draw(argparse.Namespace(num_instances=2, num_images=8, num_texts=8, dim=8))
    )()
    before = resident_megabytes()
    Path("/proc/self/clear_refs").write_text("5")
    step_of(chosen.forms[0], chosen.objective, observed)()
    return resident_megabytes("VmHWM") - before


def resident_megabytes(field: str = "VmRSS") -> float:
    """Resident memory of this process, now or at its highest since the mark was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def peak_elsewhere(form: str, arguments: list[str]) -> float:
    """`peak_megabytes` of a form in a process of its own."""
    command = [sys.executable, __file__, *arguments, "--forms", form, "--peak"]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def seconds_of(step: Callable[[], float]) -> float:
    """Seconds of one step."""
    start = time.process_time()
    step()
    return time.process_time() - start


def main() -> None:
    """Measure each form's peak in a process of its own, then the times of all in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objective", default="unicl")
    parser.add_argument("--num-images", type=int, default=12288)
    parser.add_argument("--num-texts", type=int, default=5120)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--num-instances", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5, help="Timed steps of each form; 0 measures memory alone.")
    parser.add_argument(
        "--forms", nargs="+", choices=["tiles", "matrix", "plain"], default=["tiles", "matrix", "plain"]
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", action="store_true", help="Print the peak of the first form in this process.")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.peak:
        print(json.dumps(peak_megabytes(chosen)))
        return
    for form in chosen.forms:
        print(f"{form}: {peak_elsewhere(form, sys.argv[1:]):.0f} MB above inputs and gradients")
    observed = draw(chosen)
    steps = {form: step_of(form, chosen.objective, observed) for form in chosen.forms}
    times: dict[str, list[float]] = {form: [] for form in chosen.forms}
    for _ in range(chosen.repeats):
        for form, step in steps.items():
            times[form].append(seconds_of(step))
    for form, seconds in times.items():
        ratios = [one / other for one, other in zip(times["tiles"], seconds, strict=True)]
        if ratios:
            print(
                f"{form}: {statistics.median(seconds):.2f} s a step ({min(seconds):.2f} to {max(seconds):.2f}); "
                f"tiles take {statistics.median(ratios):.2f} of it ({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
