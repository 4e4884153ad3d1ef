"""What stops a run, or is said of it once: a loss that is no number, and signs that nothing can be learned."""

import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.logging import get_logger
from torch import Tensor

from training.failed_batch import describe_failure, save_failed_batch
from training.session import Session
from training.waiting import WaitingClock

logger = get_logger(__name__)

NO_ID = 2**63 - 1  # beyond every group id
# Signs that pass by themselves at times are told of when they hold at so many readings in a row.
READINGS = 2
COLLAPSED = 0.99  # mean cosine of two embeddings of a modality
SLOW_LOADER = 0.2  # share of the time


class Judgement(NamedTuple):
    """What is to be judged once its flags have reached the host."""

    step: int
    subject: str  # `loss` or `gradient`
    value: Tensor
    batch: dict[str, Tensor]
    embeds: dict[str, Tensor]  # of this rank, by modality
    flags: Tensor  # on the host, as soon as `copied` has happened
    copied: torch.cuda.Event | None


class Guards:
    """Watches the steps of a run.

    On a CPU a step is judged before its gradient is used. The results of a GPU reach the host late: there the flags of
    a step are copied in the background and judged in the next step, so that no step waits for them, and the batch is
    kept until then. `settle` judges what is left, before weights are kept. Flags are of all ranks, which stop together.

    Args:
        session: The run.
        is_late: Whether to judge a step in the next one; None does on a GPU.
    """

    def __init__(self, session: Session, is_late: bool | None = None) -> None:
        self.session, self.accelerator = session, session.accelerator
        self.is_late = self.accelerator.device.type == "cuda" if is_late is None else is_late
        self.pending: list[Judgement] = []
        self.said: set[str] = set()
        self.readings: Counter[str] = Counter()
        self.clock = WaitingClock()

    def check_loss(self, step: int, batch: dict[str, Tensor], output: Any) -> None:
        """Judge a batch by what the model made of it; every rank must call it.

        Args:
            step: The optimiser's step that the batch belongs to.
            batch: The flat batch of this rank.
            output: The model's `MXMCLROutput`.

        Raises:
            FloatingPointError: When the loss of this step, or where steps are judged late of the last one, is no
                finite number on any rank; the batch is then in the run folder.
        """
        self._judge_pending()
        self.batch = batch
        self.embeds = {"image": output.image_embeds.detach(), "text": output.text_embeds.detach()}
        self.log_scale = output.logit_scale.detach()
        flags = step_flags(output.loss.detach(), batch["image_group_ids"], batch["text_group_ids"])
        self._await(step, "loss", output.loss.detach(), self.accelerator.reduce(flags, "max"))

    def check_gradient(self, step: int, norm: Tensor | float | None) -> None:
        """Judge the norm of a step's whole gradient, the same on every rank, before the gradient is used.

        Args:
            step: The step.
            norm: `()`; None where the engine doesn't tell. fp16 is not judged: its scaler skips such steps.

        Raises:
            FloatingPointError: When the norm is no finite number, as `check_loss`.
        """
        if norm is None or self.accelerator.scaler is not None:
            return
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else torch.as_tensor(norm)
        self._await(step, "gradient", norm.detach(), (~norm.isfinite()).long().view(1))

    def settle(self) -> None:
        """Judge all that was not judged yet, and leave what comes before the next batch out of the loader's share.

        Raises:
            FloatingPointError: As `check_loss`.
        """
        self.clock.pause()
        self._judge_pending()

    def read(self, step: int) -> dict[str, float]:
        """What the log says of the state of things, after warnings where it is bad.

        The mean cosine of two embeddings of a modality in this rank's last batch, where it has two, and the share of
        the time since the last judgement of the loader that went into waiting for batches.
        """
        cosines = {name: mean_cosine(embeds) for name, embeds in self.embeds.items() if len(embeds) > 1}
        self._read_scale()
        if step > self.session.arguments.optimization.warmup_steps:  # fresh towers begin with embeddings all alike
            self._read_cosines(cosines)
        share = self.clock.share
        if self.clock.is_worth_judging:
            self._read_share(share)
            self.clock.restart()
        return {f"train/{name}_cosine": value for name, value in cosines.items()} | {"train/waiting_share": share}

    def _await(self, step: int, subject: str, value: Tensor, flags: Tensor) -> None:
        copied = None
        if flags.device.type == "cuda":
            flags = flags.to("cpu", non_blocking=True)  # to pinned memory
            copied = torch.cuda.current_stream().record_event()
        self.pending.append(Judgement(step, subject, value, self.batch, self.embeds, flags, copied))
        if not self.is_late:
            self._judge_pending()

    def _judge_pending(self) -> None:
        while self.pending:
            self._judge(self.pending.pop(0))

    def _judge(self, found: Judgement) -> None:
        if found.copied is not None:
            found.copied.synchronize()
        is_broken, *relations = found.flags.tolist()
        if is_broken:
            self._stop(found)
        if relations:
            has_positive, last_id, negated_first_id = relations
            self._tell_relations(found.step, bool(has_positive), last_id != -negated_first_id)

    def _stop(self, found: Judgement) -> None:
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        folder = Path(self.session.arguments.optimization.output_dir or "")
        path = folder / "failed" / f"step-{found.step}-rank-{rank}.safetensors"
        rows = self.session.splits.get("train")  # none of a stream, whose instances nobody has listed
        ids = rows.column("instance_id") if rows is not None else ()
        names = save_failed_batch(path, found.batch, ids, {"step": str(found.step), "rank": f"{rank} of {ranks}"})
        # The first rank that ends takes the others down, so each has to have written its batch.
        self.accelerator.wait_for_everyone()
        raise FloatingPointError(
            describe_failure(found.subject, found.value.item(), found.step, found.batch, found.embeds, names, path)
        )

    def _tell_relations(self, step: int, has_positive: bool, has_negative: bool) -> None:
        if not has_positive:
            self._say(
                "positive",
                f"No image of the batch of step {step} has a caption of its own instance, so there is nothing to pull "
                "together; raise `instances_per_step`, or give more instances both images and captions (`python -m "
                "datasets_scripts.doctor` counts them).",
            )
        if not has_negative:
            self._say(
                "negative",
                f"The batch of step {step} holds a single instance, so there is no negative; raise "
                "`instances_per_step`, or use a data set with more instances.",
            )

    def _read_scale(self) -> None:
        maximum = self.session.model.config.logit_scale_max
        if self._holds("scale", self.log_scale.item() >= math.log(maximum) - 1e-6):
            self._say(
                "scale",
                f"The scale of the logits is pinned at its maximum, {maximum:g}: the training pairs are told apart as "
                "far as it allows. Draw more instances in a step (`instances_per_step`), vary the images, or lower "
                "`head_learning_rate`; it is no fault where the run began there, as from a CLIP checkpoint.",
            )

    def _read_cosines(self, cosines: dict[str, float]) -> None:
        for name, cosine in cosines.items():
            if self._holds(name, cosine > COLLAPSED):
                self._say(
                    name,
                    f"The {name} embeddings have collapsed: two of them have a cosine of {cosine:.4f} in the mean. Lower "
                    f"`learning_rate`, raise `warmup_steps`, and see that the {name}s of different instances differ.",
                )

    def _read_share(self, share: float) -> None:
        if share > SLOW_LOADER:
            workers = self.session.arguments.data.num_workers
            self._say(
                "loader",
                f"{share:.0%} of the time goes into waiting for batches, which the model works off faster than they are "
                f"loaded; raise `num_workers` ({workers} on each rank now), draw fewer views, or store smaller images.",
            )

    def _holds(self, sign: str, is_seen: bool) -> bool:
        self.readings[sign] = self.readings[sign] + 1 if is_seen else 0
        return self.readings[sign] >= READINGS

    def _say(self, sign: str, message: str) -> None:
        if sign not in self.said:
            self.said.add(sign)
            logger.warning(message)


def step_flags(loss: Tensor, image_group_ids: Tensor, text_group_ids: Tensor) -> Tensor:
    """What is wrong with a batch, in a form whose maxima over ranks are those of the whole batch, `(4,)` int64.

    Whether the loss is no finite number, whether any rank holds an image and a text of one instance, the largest group
    id, and the smallest one negated: an instance alone is both. Nothing here waits for a GPU.
    """
    image_ids, text_ids = (ids.to(loss.device, non_blocking=True) for ids in (image_group_ids, text_group_ids))
    ids = torch.cat([image_ids, text_ids])
    span = (ids.max(), -ids.min()) if len(ids) else (ids.new_tensor(-1), ids.new_tensor(-NO_ID))
    return torch.stack([(~loss.isfinite()).long(), share_an_id(image_ids, text_ids).long(), *span])


def share_an_id(first: Tensor, second: Tensor) -> Tensor:
    """Whether any id stands on both sides, `()` bool; unlike `torch.isin`, no GPU is waited for."""
    if not len(first) or not len(second):
        return torch.zeros((), dtype=torch.bool, device=first.device)
    ordered = second.sort().values
    places = torch.searchsorted(ordered, first).clamp(max=len(ordered) - 1)
    return (ordered[places] == first).any()


def mean_cosine(embeds: Tensor) -> float:
    """Mean cosine of two different ones of some unit vectors, from the length of their mean.

    Args:
        embeds: `(num_observations, dim)`, unit norm, two at least.
    """
    count = len(embeds)
    return (count * embeds.double().mean(dim=0).square().sum().item() - 1) / (count - 1)
