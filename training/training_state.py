"""All that the next step depends on: kept every so often, and put back when a run is resumed."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from training.batches import Batches
from training.memory import BatchMemory
from training.meter import Meter
from training.random_states import random_states, seed_anew, set_random_states
from training.redaction import redacted
from training.session import Session
from training.state_folder import FOLDER, SavedState, StateFolder

logger = get_logger(__name__)

OTHER_VERSIONS = "resume with the versions of the libraries that the run was started with"


@dataclass
class TrainingState:
    """What changes from step to step."""

    session: Session
    optimizer: AcceleratedOptimizer
    scheduler: LRScheduler
    batches: Batches
    meter: Meter
    memory: BatchMemory

    def __post_init__(self) -> None:
        """Settle how often to keep it."""
        options, accelerator = self.session.arguments.optimization, self.session.accelerator
        self.every = options.checkpoint_every or 0
        if self.every and accelerator.distributed_type == DistributedType.DEEPSPEED:
            logger.warning("DeepSpeed's optimiser can't be kept: this run can't be resumed. DDP and FSDP2 can.")
            self.every = 0

    def is_due(self, step: int) -> bool:
        """Whether it is time to keep the state after a step."""
        is_last = step == self.session.arguments.optimization.max_steps
        return bool(self.every) and (is_last or step % self.every == 0)

    def keep(self, step: int, best: float) -> None:
        """Write the state after a step; every rank must call it."""
        options = self.session.arguments.optimization
        values, tensors = self.capture(step, best)
        if self.session.folder is not None:
            self.session.folder.sync()
            StateFolder(self.session.folder.path / FOLDER, options.keep_checkpoints).save(step, values, tensors)

    def capture(self, step: int, best: float) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
        """The state after a step: what is fit for JSON, and tensors by file."""
        session = self.session
        scaler = session.accelerator.scaler
        groups, moments = optimizer_state(session.model, self.optimizer)
        values = {
            "step": step,
            "best": best,
            "seconds": session.seconds,
            "arguments": redacted(session.arguments.as_dict()),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "optimizer": groups,
            "ranks": gather_object([self._of_this_rank()]),
        }
        tensors = {"model": whole(tensors_of(session.model)), "optimizer": whole(moments)}
        return values, tensors | {"memory": self.memory.state_dict()}

    def restore(self) -> tuple[int, float]:
        """Put back the state that the run is resumed from, if it is, and return the step and the best score then."""
        session, saved = self.session, self.session.resumed
        if saved is None:
            return 0, -float("inf")
        values = saved.values
        fill_tensors(tensors_of(session.model), saved.tensors["model"])
        fill_optimizer(session.model, self.optimizer, values["optimizer"], saved.tensors["optimizer"])
        self.scheduler.load_state_dict(values["scheduler"])
        if session.accelerator.scaler is not None:
            session.accelerator.scaler.load_state_dict(values["scaler"])
        own = values["ranks"][session.accelerator.process_index if self._has_as_many_ranks(saved) else 0]
        self.batches.load_state_dict(own["batches"])
        self.meter.load_state_dict(own["meter"])
        if "memory" in saved.tensors:  # not in states of before there was a memory
            self.memory.load_state_dict(saved.tensors["memory"], session.accelerator.device)
        session.started -= values["seconds"]
        logger.info("The run goes on after step %d.", values["step"])
        return values["step"], values["best"]

    def on(self, batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The batches, with all random generators as the step before the first of them left them."""
        saved, self.session.resumed = self.session.resumed, None
        for batch in batches:
            if saved is not None:  # not before: a loader that starts draws a seed for its workers
                self._restore_random_states(saved)
                saved = None
            yield batch

    def _restore_random_states(self, saved: SavedState) -> None:
        accelerator, step = self.session.accelerator, saved.values["step"]
        if self._has_as_many_ranks(saved):
            own = saved.values["ranks"][accelerator.process_index]
            set_random_states(own["random"], accelerator.device)
            return
        logger.warning(
            "The run had %d ranks and goes on with %d: stored instances come in the same order and batches, dropout and other "
            "random states of each rank are seeded anew from `seed` and the step %d.",
            len(saved.values["ranks"]),
            accelerator.num_processes,
            step,
        )
        seed_anew(self.session.arguments.optimization.seed, step)

    def _of_this_rank(self) -> dict[str, Any]:
        device = self.session.accelerator.device
        parts = {"batches": self.batches.state_dict(), "meter": self.meter.state_dict()}
        return {**parts, "random": random_states(device)}

    def _has_as_many_ranks(self, saved: SavedState) -> bool:
        return len(saved.values["ranks"]) == self.session.accelerator.num_processes


def fix_bucket_order(model: nn.Module) -> None:
    """On a CPU, let DDP sum gradients in the same buckets in its first step as in all others.

    It would order them anew after that step. With three ranks or more the order of a sum depends on its place in a
    bucket, so a run that is resumed would round otherwise. On GPUs the new order hides traffic, and stays.
    """
    if isinstance(model, DistributedDataParallel) and model.device_type == "cpu":
        model.reducer._push_all_rebuilt_params()


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of a model, each once, by its name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with the shards of each tensor gathered, as safetensors takes it; every rank must call it."""
    gathered = {
        name: (each.full_tensor() if isinstance(each, DTensor) else each).detach() for name, each in tensors.items()
    }
    return {name: each.contiguous() for name, each in gathered.items()}


def like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor on the device, and in the shards, of another one."""
    value = value.to(target.device)
    return distribute_tensor(value, target.device_mesh, target.placements) if isinstance(target, DTensor) else value


@torch.no_grad()
def fill_tensors(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into the tensors of the same names.

    Raises:
        ValueError: When there are others than these.
    """
    if targets.keys() != values.keys():
        raise ValueError(
            f"The training state must hold the tensors of the model, {sorted(targets.keys() ^ values.keys())} are in "
            f"one of them alone; {OTHER_VERSIONS}."
        )
    for name, target in targets.items():
        target.copy_(like(values[name], target))


def optimizer_state(
    model: nn.Module, optimizer: AcceleratedOptimizer
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The groups of an optimiser as JSON, parameters by name, and its tensors, `<parameter>.<kind>`."""
    names = {weight: name for name, weight in model.named_parameters()}
    groups = [{**group, "params": [names[weight] for weight in group["params"]]} for group in optimizer.param_groups]
    moments = {
        f"{names[weight]}.{kind}": value for weight, kinds in optimizer.state.items() for kind, value in kinds.items()
    }
    return groups, moments


def fill_optimizer(
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    groups: list[dict[str, Any]],
    moments: Mapping[str, Tensor],
) -> None:
    """Put back what `optimizer_state` gave.

    Raises:
        ValueError: When it is of other parameters.
    """
    weights = dict(model.named_parameters())
    current, _ = optimizer_state(model, optimizer)
    if [group["params"] for group in current] != [group["params"] for group in groups]:
        raise ValueError(f"The training state must hold the same groups of parameters; {OTHER_VERSIONS}.")
    kinds: dict[str, dict[str, Tensor]] = {}
    for key, value in moments.items():
        name, _, kind = key.rpartition(".")
        kinds.setdefault(name, {})[kind] = like(value, weights[name]) if kind != "step" else value
    as_they_were = [
        {key: tuple(value) if key == "betas" else value for key, value in group.items()} for group in groups
    ]
    optimizer.load_state_dict({"state": kinds, "param_groups": as_they_were})
