"""What a run does beside its steps: score and keep checkpoints on the way, and fill the run folder at the end."""

from pathlib import Path

import numpy as np
from accelerate.logging import get_logger
from PIL import Image

from modeling_mxmclr import MXMCLRModel
from training.budget_curves import BudgetSettings, budget_curves
from training.budget_plots import plot_budgets
from training.card import save_run_card
from training.checkpoints import load_model
from training.encoding import encode_rows
from training.models import set_training_mode
from training.plots import plot_curves, retrieval_grid
from training.report import describe_run, draw_queries, find_failures, flat_scores
from training.retrieval import Report, retrieval_report
from training.run_folder import write_json
from training.score_tables import format_table
from training.searches import Embeddings
from training.session import Session, final_split
from training.sharding import whole_copy, whole_weights

logger = get_logger(__name__)

CARD_BUDGETS = BudgetSettings(poolings=("mean",), draws=2, resamples=200)  # `training/budgets.py` measures them well


def evaluate(session: Session, model: MXMCLRModel, split: str) -> tuple[Embeddings, Report]:
    """Embeddings and scores of a split, the same on every rank."""
    accelerator = session.accelerator
    with whole_weights(model):
        embeddings = encode_rows(
            model,
            session.processor,
            session.splits[split],
            accelerator.process_index,
            accelerator.num_processes,
            session.frozen_text,
            session.arguments.data.num_workers,
            accelerator.is_main_process,
        )
    return embeddings, retrieval_report(embeddings)


def evaluate_and_keep(session: Session, step: int, best: float) -> float:
    """Score the validation split, keep the checkpoint, and return the best score so far."""
    score, report = best, None
    if "validation" in session.splits:
        embeddings, report = evaluate(session, session.model, "validation")
        scores = flat_scores(report)
        session.log(step, {f"eval/{name}": value for name, value in scores.items()})
        score = chosen_score(scores, session.arguments.optimization.best_metric)
        show_retrieval(session, embeddings, step)
    kept = session.adapter or whole_copy(session.model)
    if session.folder is not None:
        session.folder.save_checkpoint("last", kept, session.processor)
        if score > best or "validation" not in session.splits:
            checkpoint = session.folder.save_checkpoint("best", kept, session.processor)
            session.folder.write_json("best.json", {"step": step, session.arguments.optimization.best_metric: score})
            share(session, checkpoint, step, report)
    set_training_mode(session.model)
    return max(score, best)


def share(session: Session, checkpoint: Path, step: int, report: Report | None) -> None:
    """Lay the card so far beside a kept checkpoint, so that it can be loaded and checked by itself; push both if asked to."""
    arguments = session.arguments
    split = "train" if report is None else "validation"
    run = describe_run(arguments, session.model, session.splits, split, report, session.seconds)
    run["steps"], run["unfinished"] = step, {"step": step, "of": arguments.optimization.max_steps}
    write_json(checkpoint / "run.json", run)
    save_run_card(checkpoint, run)
    if report is not None:
        write_json(checkpoint / "metrics.json", {"split": split, **report})
    if session.pusher is not None:
        session.pusher.push(checkpoint, f"Checkpoint of step {step}")


def chosen_score(scores: dict[str, float], name: str) -> float:
    """The score that chooses the checkpoint.

    Raises:
        ValueError: When there is none of that name.
    """
    if name not in scores:
        raise ValueError(f"`best_metric` must be one of {sorted(scores)}, got {name!r}.")
    return scores[name]


def show_retrieval(session: Session, embeddings: Embeddings, step: int) -> None:
    """The retrieval picture of some validation captions, in TensorBoard."""
    if session.folder is None:
        return
    path = session.folder.path / "validation.png"
    retrieval_grid(draw_queries(embeddings, session.splits["validation"], count=4), path)
    picture = np.asarray(Image.open(path).convert("RGB"))
    session.accelerator.get_tracker("tensorboard").log_images(
        {"validation": picture[None]}, step=step, dataformats="NHWC"
    )


def finish(session: Session) -> None:
    """Score the best checkpoint on the test split, once, and fill the run folder."""
    seconds = session.seconds
    session.accelerator.wait_for_everyone()
    output_dir = Path(session.arguments.optimization.output_dir or "")
    best = load_model(output_dir / "checkpoints" / "best").to(session.accelerator.device)
    split = final_split(session.splits)
    embeddings, report = evaluate(session, best, split)
    if session.folder is None:
        return
    path = session.folder.path
    session.folder.publish("best")
    session.folder.write_json("metrics.json", {"split": split, **report})
    queries = draw_queries(embeddings, session.splits[split])
    retrieval_grid(queries, path / "retrieval.png")
    plot_curves(session.folder.history, path / "curves.png")
    plot_budgets(budget_curves(embeddings, CARD_BUDGETS), path / "budget.png")
    failures = find_failures(embeddings)
    run = describe_run(session.arguments, best, session.splits, split, report, seconds, queries, failures)
    save_run_card(path, run)
    session.folder.write_json("run.json", run)
    logger.info("Scores of the best checkpoint on the split `%s`:\n%s", split, format_table(report))
    logger.info("The run is in %s; start with its README.md.", path)
    if session.pusher is not None:
        session.pusher.push(path, "Finish the run", is_last=True)
        session.pusher.finish()
    session.folder.close()
