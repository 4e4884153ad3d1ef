"""Does a run that is killed at random moments, and resumed, end bit by bit as one that nobody kills?

    python benchmarks/kills.py --output runs/kills [--kills 30] [--per_run 3] [--ranks 1] [--seed 0]

Trains a tiny model on a corpus made on the spot: once to its end, then again and again with SIGKILL to all processes in
random moments of start-up, steps, evaluation, the writing of a training state, and the end; `--resume_from_checkpoint
auto` each time. States a row for every kill, and fails unless all weights, moments, random states, log values and scores
are equal, and every training state was readable after every kill.
"""

import argparse
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from training.run_folder import RunFolder
from training.state_folder import BrokenStateError, StateFolder, check_state, step_of

CHILD = "--child"
LAST, EVERY, EVALUATE = 16, 2, 5
CLOCKS = {"train/images_per_second", "train/waiting_share"}
PHASES = ("start-up", "step", "evaluation", "writing", "end")
RECIPE = f"""
dataset: {{corpus}}
instances_per_step: 6
views_per_instance: 1
captions_per_instance: 1
crop_scale: 0.8
text_config: {{{{model_type: bert, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16}}}}
vision_config: {{{{model_type: resnet, embedding_size: 8, hidden_sizes: [8, 16], depths: [1, 1], layer_type: basic}}}}
image_size: 16
vocabulary_size: 60
projection_dim: 8
projection_dropout: 0.1
gradient_accumulation_steps: 2
max_steps: {LAST}
checkpoint_every: {EVERY}
eval_every: {EVALUATE}
log_every: 3
warmup_steps: 2
learning_rate: 1.0e-2
cpu: true
"""
COLOURS = ("red", "green", "blue", "white", "black", "yellow", "purple", "orange")


class Kill(NamedTuple):
    """What became of one kill."""

    run: int
    seed: int
    phase: str
    seconds: float  # since the process started
    step: int  # the last one in the log
    state: int  # the newest whole state, 0 for none
    unreadable: int
    hit: bool  # or the run had come to its end before


def write_corpus(folder: Path) -> None:
    """Thirty squares of colours, each seen twice and named twice."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(30):
        colour, views = COLOURS[number % len(COLOURS)], []
        for view in range(2):
            image = Image.new("RGB", (16, 16), "grey")
            image.paste(Image.new("RGB", (6 + number // 8 * 2, 6 + view * 4), colour), (view, 0))
            views.append(f"{number}-{view}.png")
            image.save(folder / views[-1])
        split = "train" if number < 20 else ("validation", "test")[number % 2]
        captions = [f"a {colour} square", f"{colour} {number // 8}"]
        row = {"instance_id": f"square-{number}", "images": views, "captions": captions, "split": split}
        lines.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


class Launch:
    """A run in processes of its own, one a rank."""

    def __init__(self, output: Path, name: str, ranks: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [str(output / "recipe.yaml"), "--output_dir", str(output / name), "--resume_from_checkpoint", "auto"]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(output / "cache")}
        self.started = time.monotonic()
        self.processes = []
        self.log = (output / f"{name}.log").open("a")
        for rank in range(ranks):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            own = environment | ({key: str(value) for key, value in place.items()} if ranks > 1 else {})
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, CHILD, *words], env=own, stdout=self.log, stderr=self.log,
                    stdin=subprocess.DEVNULL, start_new_session=True,
                )
            )  # fmt: skip

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def runs(self) -> bool:
        """Whether no process has ended yet."""
        return all(process.poll() is None for process in self.processes)

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Wait until something happens or the run ends."""
        while self.runs() and not happened():
            time.sleep(0.002)

    def kill(self) -> None:
        """SIGKILL to all processes, loader workers included."""
        for process in self.processes:
            os.killpg(process.pid, signal.SIGKILL)
        self.close()

    def finish(self) -> None:
        """Wait for the end.

        Raises:
            SystemExit: When it is not a good one.
        """
        self.close()
        if any(process.returncode for process in self.processes):
            raise SystemExit(f"A run failed, see {self.log.name}.")

    def close(self) -> None:
        """Wait until all processes are gone."""
        for process in self.processes:
            process.wait()
        self.log.close()


def last_step(run: Path) -> int:
    """The last step in the log, 0 for none."""
    history = run / "history.jsonl"
    lines = history.read_text().splitlines() if history.exists() else []
    steps = [int(line.partition('"step": ')[2].partition(",")[0]) for line in lines if line.endswith("}")]
    return max(steps, default=0)


def wait_until(phase: str, run: Path, launch: Launch, draw: np.random.Generator, lengths: dict[str, float]) -> None:
    """Wait for a random moment of a phase, from where the run stands now."""
    begun = max((step_of(state) for state in StateFolder(run / "state", 0).steps()), default=0)
    # In the first half of what is left, so that there is something to kill the next time as well.
    later = min(LAST, begun + 1 + int(draw.integers(0, max(1, (LAST - begun) // 2))))
    if phase == "step":
        launch.wait_for(lambda: last_step(run) >= later)
    elif phase == "evaluation":
        launch.wait_for(lambda: last_step(run) >= min(-(-later // EVALUATE) * EVALUATE, LAST))
    elif phase == "writing":
        launch.wait_for(lambda: step_of_unfinished(run) >= min(-(-later // EVERY) * EVERY, LAST))
    elif phase == "end":
        launch.wait_for(lambda: (run / "state" / f"step-{LAST:06d}").exists())
    pause = launch.seconds + draw.uniform(0, lengths[phase])
    launch.wait_for(lambda: launch.seconds >= pause)


def step_of_unfinished(run: Path) -> int:
    """The step of the state that is being written, -1 for none."""
    names = [path.name.strip(".").partition(".")[0] for path in (run / "state").glob(".*.unfinished")]
    return max((step_of(Path(name)) for name in names), default=-1)


def kill_once(output: Path, run: int, seed: int, ranks: int, lengths: dict[str, float], is_last: bool) -> Kill:
    """Start or resume a run, and kill it in a random moment; at the end only where it is the run's last kill."""
    draw = np.random.default_rng(seed)
    phase, name = str(draw.choice(PHASES if is_last else PHASES[:-1])), f"run-{run}"
    launch = Launch(output, name, ranks)
    wait_until(phase, output / name, launch, draw, lengths)
    hit, seconds = launch.runs(), launch.seconds
    if hit:
        launch.kill()
    else:
        launch.finish()
    states = StateFolder(output / name / "state", keep=0).steps()
    broken = [state for state in states if not is_whole(state)]
    newest = max((step_of(state) for state in states if state not in broken), default=0)
    return Kill(run, seed, phase, seconds, last_step(output / name), newest, len(broken), hit)


def is_whole(state: Path) -> bool:
    """Whether a state is what was written."""
    try:
        check_state(state)
    except BrokenStateError:
        return False
    return True


def outcome(run: Path) -> dict[str, Any]:
    """All that must be equal of two runs: weights and moments bit by bit, random states, scores, the log but its clock."""
    state = run / "state" / f"step-{LAST:06d}"
    values = json.loads((state / "state.json").read_text())
    del values["seconds"], values["arguments"]["output_dir"]
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    for entry in history:
        for name in CLOCKS & entry.keys():
            del entry[name]
    files = {"model": state / "model.safetensors", "optimizer": state / "optimizer.safetensors"}
    files["published"] = run / "model.safetensors"
    tensors = {
        f"{name}.{key}": each.numpy().tobytes()
        for name, path in files.items()
        for key, each in load_file(path).items()
    }
    metrics = json.loads((run / "metrics.json").read_text())
    best = json.loads((run / "best.json").read_text())
    return {"values": values, "history": history, "metrics": metrics, "best": best, **tensors}


def table(kills: list[Kill], equal: dict[int, bool]) -> str:
    """A row for every kill, as Markdown."""
    lines = [
        "| run | seed | moment | killed after | at step | resumed from step | equal? |",
        "|---|---|---|---|---|---|---|",
    ]
    for kill in kills:
        when = f"{kill.seconds:.2f} s" if kill.hit else "ended before"
        said = "yes" if equal[kill.run] else "NO"
        lines.append(f"| {kill.run} | {kill.seed} | {kill.phase} | {when} | {kill.step} | {kill.state} | {said} |")
    return "\n".join(lines)


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="Folder for the corpus and the runs.")
    parser.add_argument("--kills", type=int, default=30, help="How many (default: %(default)s).")
    parser.add_argument("--per_run", type=int, default=3, help="Kills of each run (default: %(default)s).")
    parser.add_argument("--ranks", type=int, default=1, help="Processes of a run (default: %(default)s).")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the first kill (default: %(default)s).")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    write_corpus(output / "corpus")
    (output / "recipe.yaml").write_text(RECIPE.format(corpus=output / "corpus"))
    lengths = measure(output, arguments.ranks)
    kills: list[Kill] = []
    equal: dict[int, bool] = {}
    while sum(kill.hit for kill in kills) < arguments.kills:
        run = len(equal)
        for number in range(1, arguments.per_run + 1):
            seed, is_last = arguments.seed + len(kills), number == arguments.per_run
            kills.append(kill_once(output, run, seed, arguments.ranks, lengths, is_last))
        Launch(output, f"run-{run}", arguments.ranks).finish()
        equal[run] = outcome(output / f"run-{run}") == outcome(output / "unbroken")
    unreadable = sum(kill.unreadable for kill in kills)
    print(table(kills, equal))
    print(f"\n{sum(kill.hit for kill in kills)} kills of {len(equal)} runs on {arguments.ranks} rank(s): ", end="")
    print(f"{sum(equal.values())} runs end as the unbroken one, {unreadable} training states were unreadable.")
    if unreadable or not all(equal.values()):
        raise SystemExit(1)


def measure(output: Path, ranks: int) -> dict[str, float]:
    """Make the unbroken run, and return how long each phase takes, in seconds."""
    run = output / "unbroken"
    launch = Launch(output, run.name, ranks)
    launch.wait_for(lambda: last_step(run) > 0)
    begun = launch.seconds
    launch.wait_for(lambda: (run / "state" / f"step-{LAST:06d}").exists())
    trained = launch.seconds
    launch.finish()
    step = (trained - begun) / LAST
    ended = launch.seconds - trained
    return {"start-up": begun, "step": 2 * step, "evaluation": 6 * step, "writing": 0.02, "end": ended}


def train_as_child(words: list[str]) -> None:
    """Train, and leave the last training state, so that it can be compared."""
    # One core each: so small a model gains nothing from threads, which wait for one another where the machine is busy.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ.get("RANK", os.getpid())) % len(cores)]})
    RunFolder.close = lambda self: None  # type: ignore[method-assign]
    script = str(ROOT / "training" / "train.py")
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        train_as_child(sys.argv[2:])
    else:
        main()
