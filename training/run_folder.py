"""The folder of a run: what was asked for, what was logged, and checkpoints that are whole or not there."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor
from training.durable import link_or_copy, remove_folder, replace_folder, restore_folder, sync, write_durably
from training.lora import Adapter
from training.redaction import redacted
from training.state_folder import FOLDER, StateFolder

CHECKPOINTS = ("best", "last")  # models, for whoever wants to use them while the run goes on
REPOSITORY = Path(__file__).resolve().parents[1]


class RunFolder:
    """Files of a run, written by the main process alone.

    Args:
        path: The folder. An earlier run there is moved aside, under the first free number.
        resumed_step: A step after which the run that is there goes on, in place of that; later entries of the history
            and later training states are taken back.
    """

    def __init__(self, path: str | os.PathLike[str], resumed_step: int | None = None) -> None:
        self.path = Path(path)
        self.history: list[dict[str, float]] = []
        self.moved_to = None
        if resumed_step is None:
            self.moved_to = move_aside(self.path)
            self.path.mkdir(parents=True)
        else:
            self._take_back(resumed_step)

    def _take_back(self, step: int) -> None:
        for leftover in self.path.glob(".push-*"):
            shutil.rmtree(leftover)
        for name in CHECKPOINTS:
            restore_folder(self.path / "checkpoints" / name)
        history = self.path / "history.jsonl"
        if history.exists():
            self.history = entries_until(step, history.read_text(encoding="utf-8"))
            write_durably(history, "".join(f"{json.dumps(entry)}\n" for entry in self.history))
        StateFolder(self.path / FOLDER, keep=0).remove_after(step)

    def write_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Keep the resolved arguments, as a recipe that repeats the run."""
        text = yaml.safe_dump(redacted(dict(arguments)), sort_keys=False, allow_unicode=True)
        (self.path / "arguments.yaml").write_text(text, encoding="utf-8")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add an entry to the history, in memory and on disk."""
        entry = {"step": step, **values}
        self.history.append(entry)
        with (self.path / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def sync(self) -> None:
        """Have the disk hold the history: a training state is worth nothing without what came before it."""
        history = self.path / "history.jsonl"
        if history.exists():
            sync(history)

    def save_checkpoint(self, name: str, model: MXMCLRModel | Adapter, processor: MXMCLRProcessor) -> Path:
        """Save model, or adapter, and processor as `checkpoints/name`, which a run that dies leaves as it was or as it will be."""
        target = self.path / "checkpoints" / name
        beside = target.with_name(f".{name}.unfinished")
        shutil.rmtree(beside, ignore_errors=True)
        model.save_pretrained(beside)
        processor.save_pretrained(beside)
        replace_folder(beside, target)
        return target

    def publish(self, name: str) -> None:
        """Lay a checkpoint's files in the run folder itself, from where `from_pretrained` loads them."""
        checkpoint = self.path / "checkpoints" / name
        shutil.copytree(checkpoint, self.path, copy_function=link_or_copy, dirs_exist_ok=True)

    def close(self) -> None:
        """Remove what a finished run needs no more."""
        clear(self.path)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run."""
        write_json(self.path / name, value)


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and programs, without secrets."""
    path.write_text(json.dumps(redacted(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def move_aside(path: Path) -> Path | None:
    """Rename a folder that holds anything, and say to what."""
    if not path.exists() or not any(path.iterdir()):
        shutil.rmtree(path, ignore_errors=True)
        return None
    number = next(n for n in range(1, 10**6) if not path.with_name(f"{path.name}.{n}").exists())
    return path.rename(path.with_name(f"{path.name}.{number}"))


def clear(run_dir: Path) -> None:
    """Remove a finished run's training states, then the checkpoint that was published; can be repeated."""
    StateFolder(run_dir / FOLDER, keep=0).remove()
    remove_folder(run_dir / "checkpoints" / "best")


def entries_until(step: int, lines: str) -> list[dict[str, float]]:
    r"""The entries of a history up to a step; what a crash tore apart came later.

    Example:
        >>> entries_until(2, '{"step": 2, "train/loss": 0.5}\n{"step": 3, "tra')
        [{'step': 2, 'train/loss': 0.5}]
    """
    entries = []
    for line in lines.splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            break
        if entry["step"] > step:
            break
        entries.append(entry)
    return entries


def git_revision() -> str:
    """The commit of this clone, with `+changes` where files differ from it; `unknown` outside a clone."""
    try:
        commands = (["rev-parse", "HEAD"], ["status", "--porcelain"])
        revision, changes = (
            subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
            for words in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{revision}+changes" if changes else revision
