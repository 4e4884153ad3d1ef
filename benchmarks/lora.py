"""A checkpoint on another corpus: as it is, with a LoRA adapter, and with all weights trained for as many steps.

    python benchmarks/lora.py runs/shapes_cpu path/to/emoji --output runs/lora-benchmark [--steps 600]

States recall on the test split, the trained share, seconds, peak memory and size on disk, and by how much the adapter
loaded anew, and merged, differs from the one that was trained.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from safetensors.torch import load_file
from transformers import AutoProcessor

from datasets_scripts.loading import load_multifold
from modeling_mxmclr.probe_mxmclr import Probe, largest_differences, probe_outputs
from training.checkpoints import load_model
from training.data import named_splits
from training.encoding import encode_rows

# The adapter learns as the recipe says; all weights with the rate and decay that the base was trained with.
WAYS = {
    "LoRA": [],
    "all weights": ["--lora_rank=0", "--learning_rate=1e-3", "--weight_decay=0.05"],
}
DIRECTIONS = {"text_to_instance": "text → instance", "instance_to_text": "instance → text"}


class Outcome(NamedTuple):
    """What one way came to."""

    scores: dict[str, Any]
    learned: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    bytes_on_disk: int = 0


def run(script: str, *words: str) -> int:
    """Run a script of training and return the peak memory of its process, in bytes."""
    process = subprocess.Popen([sys.executable, str(ROOT / "training" / script), *words], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{script} failed with status {status}.")
    return usage.ru_maxrss * 1024


def evaluate_base(base: str, dataset: str, output: Path) -> Outcome:
    """The base's scores, untouched."""
    run("evaluate.py", base, "--dataset", dataset, "--output", str(output / "base.json"))
    return Outcome(json.loads((output / "base.json").read_text()))


def train(name: str, words: list[str], base: str, dataset: str, output: Path) -> Outcome:
    """Train one way, and read what the run says of itself."""
    folder = output / name.replace(" ", "-")
    recipe = "training/configs/lora.yaml"
    peak = run("train.py", recipe, "--model", base, "--dataset", dataset, "--output_dir", str(folder), *words)
    weights = next(folder.glob("*model.safetensors"))
    learned = sum(rows.numel() for name, rows in load_file(weights).items() if "running" not in name)
    record = json.loads((folder / "run.json").read_text())
    return Outcome(record["metrics"], learned, record["seconds"], peak, weights.stat().st_size)


def largest_gaps(folder: Path, dataset: str) -> dict[str, float]:
    """How far the adapter, loaded here, is from its probe, and the merged model from both."""
    merged_folder = folder.with_name("merged")
    run("merge.py", str(folder), "--output", str(merged_folder))
    probe, processor = Probe.load(folder), AutoProcessor.from_pretrained(folder)
    adapted, merged = load_model(folder), load_model(merged_folder)
    rows = named_splits(load_multifold(dataset))["test"]
    embeddings = [encode_rows(model, processor, rows, show_progress=True) for model in (adapted, merged)]
    image_gap, text_gap = (
        (getattr(embeddings[0], side) - getattr(embeddings[1], side)).abs().max().item()
        for side in ("image_embeds", "text_embeds")
    )
    return {
        "adapter loaded anew, on its probe": max(
            largest_differences(probe, probe_outputs(adapted, probe.inputs)).values()
        ),
        "merged, on the probe": max(largest_differences(probe, probe_outputs(merged, probe.inputs)).values()),
        "merged, on all images of the test split": image_gap,
        "merged, on all captions of the test split": text_gap,
    }


def table(outcomes: dict[str, Outcome]) -> str:
    """The outcomes, in percent, minutes and megabytes."""
    total = outcomes["all weights"].learned
    lines = []
    for name, outcome in outcomes.items():
        recall = "  ".join(
            f"{words} RR@1 {100 * outcome.scores[direction]['rr@1']:.1f} RR@5 {100 * outcome.scores[direction]['rr@5']:.1f}"
            for direction, words in DIRECTIONS.items()
        )
        cost = (
            f"{outcome.learned:,} weights kept ({outcome.learned / total:.1%}), {outcome.seconds / 60:.1f} min, "
            f"{outcome.peak_bytes / 1e6:.0f} MB at the peak, {outcome.bytes_on_disk / 1e6:.2f} MB on disk"
        )
        lines.append(f"{name:<12}{recall}" + (f"\n{'':<12}{cost}" if outcome.learned else ""))
    return "\n".join(lines)


def main() -> None:
    """Run all three, and say how they compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="A run folder of ours.")
    parser.add_argument("dataset", help="What `training/train.py` takes.")
    parser.add_argument("--output", default="runs/lora-benchmark", help="Folder for the runs.")
    parser.add_argument("--steps", type=int, default=600, help="Of each training.")
    chosen = parser.parse_args()
    output = Path(chosen.output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    base = str(Path(chosen.base).resolve())
    steps = [f"--max_steps={chosen.steps}", f"--eval_every={max(1, chosen.steps // 3)}"]
    outcomes = {"as it is": evaluate_base(base, chosen.dataset, output)}
    for name, words in WAYS.items():
        outcomes[name] = train(name, [*steps, *words], base, chosen.dataset, output)
    print(table(outcomes))
    for what, gap in largest_gaps(output / "LoRA", chosen.dataset).items():
        print(f"{what}: largest difference {gap:.1e}")


if __name__ == "__main__":
    main()
