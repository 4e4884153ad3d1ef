"""A run of a few steps in this process, with tiny towers: what tests of the training loop start from."""

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file

from modeling_mxmclr import MXMCLRModel
from tests.references.evaluations import rows_of
from tests.references.tiny import WORDS, tiny_model, tiny_processor
from training.arguments import Arguments, DataArguments, LoraArguments, ModelArguments, OptimizationArguments
from training.batches import build_batches
from training.loop import train
from training.lora import attach_adapter
from training.models import set_training_mode
from training.resume import find_resumable
from training.run_folder import RunFolder
from training.session import Session
from training.sources import Sources

LAST = 5
CLOCKS = {"train/images_per_second", "train/waiting_share"}
SETTINGS = {
    "max_steps": LAST,
    "gradient_accumulation_steps": 2,
    "checkpoint_every": 2,
    "log_every": 3,
    "eval_every": 3,
    "warmup_steps": 1,
    "learning_rate": 1e-2,
    "cpu": True,
}


def small_arguments(folder: Path, lora_rank: int | None = None, **settings) -> Arguments:
    data = DataArguments(dataset="things", instances_per_step=3, views_per_instance="1", captions_per_instance="1")
    optimization = OptimizationArguments(output_dir=str(folder), **{**SETTINGS, **settings})
    return Arguments(data, ModelArguments(model="tiny"), LoraArguments(lora_rank=lora_rank), optimization, None)


def small_model() -> MXMCLRModel:
    """Towers with dropout and with batch norms, so that random states and buffers matter."""
    return tiny_model("bert", "resnet")


def run_small(folder: Path, lora_rank: int | None = None, model: MXMCLRModel | None = None, **settings) -> Session:
    """Train as `training/train.py` does, without the data set's files and what comes after the last step."""
    arguments = small_arguments(folder, lora_rank, **settings)
    arguments.data.num_workers = 0
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    resumed = find_resumable(arguments, accelerator)
    run_folder = RunFolder(folder, None if resumed is None else resumed.values["step"])
    rows = rows_of({f"thing-{n}": [f"{WORDS[n]} {WORDS[n + 1]}", WORDS[n]] for n in range(8)})
    model, processor = model or small_model(), tiny_processor()
    adapter = attach_adapter(model, processor, arguments.lora) if lora_rank else None
    set_seed(0)
    sources = Sources({"train": rows}, [len(rows)])
    session = Session(arguments, accelerator, sources, model, processor, adapter, None, run_folder, None, resumed)
    train(session, build_batches(session, 1, 1))
    return session


def draw_and_score(session: Session, step: int, best: float) -> float:
    """An evaluation that costs nothing and, as loaders do, draws at random."""
    session.log(step, {"eval/score": torch.rand(()).item()})
    set_training_mode(session.model)
    return max(step / 10, best)


def outcome(folder: Path, step: int = LAST) -> dict[str, object]:
    """All that must be equal of two runs: weights and moments bit by bit, random states, history without its clock."""
    state = folder / "state" / f"step-{step:06d}"
    values = json.loads((state / "state.json").read_text())
    del values["seconds"], values["arguments"]
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for entry in history:
        for name in CLOCKS & entry.keys():
            del entry[name]
    tensors = {
        f"{name}.{key}": each.numpy().tobytes()
        for name in ("model", "optimizer", "memory")
        for key, each in load_file(state / f"{name}.safetensors").items()
    }
    return {"values": values, "history": history, **tensors}
