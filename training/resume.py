"""Where a run goes on: the training state that was asked for, checked to be of this very run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list

from training.arguments import Arguments
from training.redaction import redacted
from training.state_folder import FOLDER, SavedState, StateFolder, check_state, load_state, step_of

logger = get_logger(__name__)

AUTO = "auto"
# What changes nothing that is learned, chosen or scored.
FREE_SETTINGS = (
    "output_dir", "log_every", "checkpoint_every", "keep_checkpoints", "num_processes", "num_workers",
    "prefetch_factor", "num_proc", "push_to_hub", "private", "hub_branch", "hub_tag",
)  # fmt: skip


def is_finished(arguments: Arguments) -> bool:
    """Whether this command would resume a run that has come to its end."""
    run_dir = Path(arguments.optimization.output_dir or "")
    run = run_dir / "run.json"
    if arguments.optimization.resume_from_checkpoint is None or (run_dir / FOLDER).exists() or not run.is_file():
        return False
    return "unfinished" not in json.loads(run.read_text(encoding="utf-8"))


def find_resumable(arguments: Arguments, accelerator: Accelerator) -> SavedState | None:
    """The state to go on from, the same on every rank; None where the run begins.

    Raises:
        ValueError: When a state that was named is missing, broken or of another run, or a setting has changed since.
    """
    options = arguments.optimization
    if options.resume_from_checkpoint is None:
        return None
    run_dir = Path(options.output_dir or "")
    chosen = [str(choose_state(options.resume_from_checkpoint, run_dir) or "") if accelerator.is_main_process else ""]
    broadcast_object_list(chosen)
    if not chosen[0]:
        logger.info("There is no training state in %s to resume from; the run starts afresh.", run_dir)
        return None
    state = load_state(Path(chosen[0]))
    check_same_run(state.values["arguments"], redacted(arguments.as_dict()))
    return state


def choose_state(asked: str, run_dir: Path) -> Path | None:
    """The folder of the state that a flag asks for; None for `auto` where there is none.

    Args:
        asked: `auto`, the run folder, or a folder of its states.
        run_dir: The run folder.

    Raises:
        ValueError: When what was named is no whole state of this run.
    """
    states = StateFolder(run_dir / FOLDER, keep=0)
    if asked == AUTO:
        return states.newest()
    named = Path(asked)
    of_run = named if step_of(named) < 0 else named.parent.parent
    if of_run.resolve() != run_dir.resolve():
        raise ValueError(
            f"`resume_from_checkpoint` must lie in the run folder {str(run_dir)!r}, got {asked!r}; a run goes on where "
            f"it was, so add `--output_dir {of_run}`."
        )
    if of_run != named:
        check_state(named)
        return named
    newest = states.newest()
    if newest is None:
        raise ValueError(f"`resume_from_checkpoint` names {asked!r}, which has no whole training state; use `auto`.")
    return newest


def check_same_run(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise where a setting that matters is not what it was.

    Raises:
        ValueError: Naming it.
    """
    for name, value in current.items():
        if name in saved and name not in FREE_SETTINGS and saved[name] != value:
            raise ValueError(
                f"`{name}` must be {saved[name]!r}, as in the run that is resumed, got {value!r}; a run with other "
                "settings needs another `output_dir`."
            )
