"""Training states on disk: folders that are whole or not there, under the hash of every file; the last few are kept."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.durable import UNFINISHED, remove_folder, sha256_of, sync, sync_tree

logger = logging.getLogger(__name__)

FOLDER = "state"  # of a run folder
MANIFEST, VALUES = "manifest.json", "state.json"


class BrokenStateError(ValueError):
    """A training state that is not what was written."""


class SavedState(NamedTuple):
    """A training state as it lies on disk."""

    values: dict[str, Any]  # JSON
    tensors: dict[str, dict[str, Tensor]]  # on the CPU, by file


class StateFolder:
    """The training states of a run, `step-000123` and so on; written by the main process alone.

    Args:
        path: The folder.
        keep: How many of the newest stay.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self.keep = path, keep

    def save(self, step: int, values: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> Path | None:
        """Write a state, then remove those that are too many; None where the disk refused it, which is logged."""
        target = self.path / f"step-{step:06d}"
        beside = target.with_name(f".{target.name}{UNFINISHED}")
        try:
            self.path.mkdir(exist_ok=True)
            for leftover in self.path.glob(".*"):
                shutil.rmtree(leftover)
            write_state(beside, values, tensors)
            beside.rename(target)
            sync(self.path)
        except (OSError, SafetensorError) as error:  # a full disk, say
            shutil.rmtree(beside, ignore_errors=True)
            logger.error("The training state of step %d could not be written, the run goes on: %s", step, error)
            return None
        for old in self.steps()[self.keep :]:
            remove_folder(old)
        return target

    def steps(self) -> list[Path]:
        """The states there are, whole or not, the newest first."""
        return sorted(self.path.glob("step-*"), key=step_of, reverse=True)

    def newest(self) -> Path | None:
        """The newest state that is whole; a warning names each newer one that is not."""
        for folder in self.steps():
            try:
                check_state(folder)
            except BrokenStateError as error:
                logger.warning("%s It is left out.", error)
            else:
                return folder
        return None

    def remove_after(self, step: int) -> None:
        """Remove the states of later steps, which will come again."""
        for folder in self.steps():
            if step_of(folder) > step:
                logger.warning("%s is removed: the run goes on from step %d.", folder, step)
                remove_folder(folder)

    def remove(self) -> None:
        """Remove all of it, in one moment: a run without it is finished."""
        remove_folder(self.path)


def step_of(folder: Path) -> int:
    """The step of a state, by its name; -1 for another one.

    Example:
        >>> step_of(Path("runs/mine/state/step-000120"))
        120
    """
    number = folder.name.removeprefix("step-")
    return int(number) if number.isdecimal() else -1


def write_state(folder: Path, values: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write a state's files and the hash of each, and have the disk hold them."""
    folder.mkdir()
    for name, part in tensors.items():
        save_file(dict(part), folder / f"{name}.safetensors")
    (folder / VALUES).write_text(json.dumps(values), encoding="utf-8")
    hashes = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"sha256": hashes}, indent=2) + "\n", encoding="utf-8")
    sync_tree(folder)


def check_state(folder: Path) -> None:
    """Raise unless a state is as it was written.

    Raises:
        BrokenStateError: When a file is missing, has changed, or can't be read.
    """
    try:
        hashes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        changed = sorted(name for name, digest in hashes.items() if sha256_of(folder / name) != digest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenStateError(f"The training state {str(folder)!r} is not whole: {error}.") from error
    if changed:
        raise BrokenStateError(f"The training state {str(folder)!r} is not what was written: {changed} changed.")


def load_state(folder: Path) -> SavedState:
    """A state that was checked."""
    values = json.loads((folder / VALUES).read_text(encoding="utf-8"))
    return SavedState(values, {path.stem: load_file(path) for path in folder.glob("*.safetensors")})
