"""What a run's log says of the steps since its last entry."""

import time
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from training.report import relations_per_observation


class Meter:
    """Means of what was seen since the last log entry."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.restart()

    def restart(self) -> None:
        """Forget what was seen."""
        self.sums: dict[str, Tensor] = {}
        self.batches = self.images = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Count images per second from now on."""
        self.images, self.since = 0, time.monotonic()

    def add(self, batch: dict[str, Tensor], output: object) -> None:
        """Take in one batch and what the model made of it."""
        parts = {"loss": output.loss, **output.loss_components}  # type: ignore[attr-defined]
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()
        self.batches += 1
        self.images += len(batch["pixel_values"])
        self.ids = batch["image_group_ids"], batch["text_group_ids"]
        self.log_scale = output.logit_scale.detach()  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """What was seen since the last log entry, fit for JSON; the clock is left out."""
        sums = {name: [str(total.dtype).removeprefix("torch."), total.item()] for name, total in self.sums.items()}
        return {"sums": sums, "batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what was seen when `state_dict` gave this."""
        self.sums = {
            name: torch.tensor(value, dtype=getattr(torch, dtype), device=self.accelerator.device)
            for name, (dtype, value) in state["sums"].items()
        }
        self.batches = state["batches"]

    def read(self) -> dict[str, float]:
        """The means, and start again; every rank must call it."""
        values = {f"train/{name}": (total / self.batches).item() for name, total in self.sums.items()}
        image_ids, text_ids = (torch.cat(gather_object([ids])) for ids in self.ids)
        relations = relations_per_observation(image_ids, text_ids)
        values |= {f"train/{name}": value for name, value in relations.items()}
        values["train/scale"] = self.log_scale.exp().item()
        images = self.images * self.accelerator.num_processes
        values["train/images_per_second"] = images / (time.monotonic() - self.since)
        self.restart()
        return values
