"""Train a multifold dual encoder, evaluate it, and leave a run folder worth looking at.

Usage:
    accelerate launch training/train.py training/configs/shapes_cpu.yaml
    accelerate launch training/train.py training/configs/emoji_cpu.yaml --seed 1 --output_dir runs/emoji-1
    accelerate launch training/train.py training/configs/emoji_cpu.yaml --dataset path/to/my/folder
    accelerate launch training/train.py training/configs/emoji_cpu.yaml --resume_from_checkpoint auto

A recipe names settings, and a flag overrides it. The run folder gets the checkpoint that was best on validation with
its processor, `arguments.yaml`, `metrics.json` of the test split, `history.jsonl`, pictures and a model card.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

# Launched by path, this file's folder comes first, where `evaluate` would be ours instead of the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from accelerate.logging import get_logger

from training.arguments import parse_arguments
from training.batches import build_batches
from training.data import fold_count
from training.launching import check_processes, set_up_engine
from training.loop import train
from training.redaction import redact_uncaught_errors
from training.report import describe_plan
from training.resume import find_resumable, is_finished
from training.run_folder import clear
from training.session import open_folder, prepare, start
from training.sharding import let_accelerate_split
from training.stages import finish

logger = get_logger(__name__)


def main(words: Sequence[str]) -> None:
    """Train, evaluate and report, as a command line says."""
    arguments = parse_arguments(words, __doc__ or "")
    accelerator = start(arguments)
    check_processes(accelerator, arguments.optimization, words)
    set_up_engine(accelerator, arguments)
    if is_finished(arguments):
        if accelerator.is_main_process:
            clear(Path(arguments.optimization.output_dir or ""))  # of what a kill in its last moment left
        logger.info("The run in %s is finished; there is nothing to resume.", arguments.optimization.output_dir)
        accelerator.end_training()
        return
    resumed = find_resumable(arguments, accelerator)
    folder = open_folder(arguments, resumed) if accelerator.is_main_process else None
    session = prepare(arguments, accelerator, folder, resumed)
    let_accelerate_split(session.model)
    views, captions = (fold_count(getattr(arguments.data, f"{kind}_per_instance")) for kind in ("views", "captions"))
    logger.info("About to train:\n%s", describe_plan(arguments, session.splits, session.model, views, captions))
    train(session, build_batches(session, views, captions))
    finish(session)
    accelerator.end_training()


if __name__ == "__main__":
    redact_uncaught_errors()
    main(sys.argv[1:])
