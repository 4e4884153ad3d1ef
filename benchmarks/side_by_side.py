"""What the benchmarks share: tasks that take turns, ratios with their spread, peak memory, the machine in a line."""

import argparse
import ctypes
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

RESAMPLES = 10_000
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Spread(NamedTuple):
    """A median, and how sure it is."""

    median: float
    low: float  # of its 95 % interval, by bootstrap
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def spread(values: Sequence[float], seed: int = 0) -> Spread:
    """The median of some measurements with its 95 % interval.

    Example:
        >>> spread([1.0, 2.0, 30.0]).median
        2.0

    Raises:
        ValueError: When there are none.
    """
    if not values:
        raise ValueError("`values` must hold a measurement, got none; measure for at least one round.")
    measured = np.asarray(values)
    drawn = np.random.default_rng(seed).integers(len(measured), size=(RESAMPLES, len(measured)))
    low, high = np.quantile(np.median(measured[drawn], axis=1), (0.025, 0.975))
    return Spread(statistics.median(values), float(low), float(high), len(values))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """The median ratio of measurements that were taken in pairs, round by round, with its 95 % interval."""
    return spread([one / other for one, other in zip(numerators, denominators, strict=True)])


def parse(
    parser: argparse.ArgumentParser, rounds: int, threads: int | None = None, clock: str = "wall"
) -> argparse.Namespace:
    """The flags of a benchmark with those that all of them have, and torch's threads set by them.

    Args:
        parser: It has the benchmark's own flags.
        rounds: The default.
        threads: The default; without one, as many as torch takes by itself.
        clock: The default, a key of `CLOCKS`.
    """
    parser.add_argument("--rounds", type=int, default=rounds, help="Rounds that count (default: %(default)s).")
    parser.add_argument(
        "--threads", type=int, default=threads or torch.get_num_threads(), help="Of torch (default: %(default)s)."
    )
    parser.add_argument("--seed", type=int, default=0, help="Of all that is random (default: %(default)s).")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default=clock,
        help="`cpu` counts this process's seconds on all cores, for a machine that others use too (default: %(default)s).",
    )
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    return chosen


def take_turns(measures: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """What each gives in each round; they take turns, so that a busy machine slows all of them.

    Every other round goes backwards, so that none always follows the same one.

    Args:
        measures: What is called, such as a `seconds_of`.
        rounds: How often.
        warm_up: Rounds before these, which don't count.
    """
    found: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(-warm_up, rounds):
        for name in list(measures)[:: -1 if number % 2 else 1]:
            value = measures[name]()
            if number >= 0:
                found[name].append(value)
    return found


def seconds_of(task: Callable[[], object], clock: str = "wall") -> float:
    """What a task takes by a clock of `CLOCKS`."""
    start = CLOCKS[clock]()
    task()
    return CLOCKS[clock]() - start


def resident_megabytes(field: str = "VmRSS") -> float:
    """Resident memory of this process as Linux counts it; `VmHWM` at its highest since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def forget_peak() -> None:
    """Let the highest resident memory be counted from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes(task: Callable[[], object]) -> float:
    """By how much resident memory grew at most while this ran."""
    gc.collect()
    # What was freed but not given back would be used again, and not be seen.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)
    before = resident_megabytes()
    forget_peak()
    task()
    return resident_megabytes("VmHWM") - before


def peak_elsewhere(script: str, *words: str, variables: Mapping[str, str] | None = None) -> float:
    """What a script prints last when a process of its own runs it: the peak of one task, undisturbed by others.

    Args:
        script: Its path.
        words: Its arguments.
        variables: Of its environment, beside those of this process.
    """
    environment = {**os.environ, **(variables or {})}
    done = subprocess.run(
        [sys.executable, script, *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"`{' '.join([Path(script).name, *words])}` failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def machine(*packages: str) -> str:
    """This machine, how busy it is, and the versions of what matters, in a line."""
    found = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.partition(": ")[2] for line in found if line.startswith("model name")), platform.machine())
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *packages))
    return (
        f"{len(os.sched_getaffinity(0))} cores of {processor}, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}; {versions}"
    )


def verdict(label: str, value: float, bar: float, *, at_least: bool = False) -> str:
    """A line that says whether a figure keeps to its bar."""
    kept = value >= bar if at_least else value <= bar
    return f"{label}: {value:.3g}, bar {'≥' if at_least else '≤'} {bar:g}: {'met' if kept else 'MISSED'}"
