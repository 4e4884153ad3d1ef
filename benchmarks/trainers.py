"""What the comparisons under transformers' `Trainer` share: its arguments, its steps timed, the rows a tower encodes."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback

from benchmarks.side_by_side import CLOCKS

# Of any `TrainingArguments`: nothing is written, shown or sent anywhere.
SILENT: Mapping[str, Any] = {
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "dataloader_drop_last": True,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
}
TOWER_INPUTS = {"vision_model": "pixel_values", "text_model": "input_ids"}


class Clock(TrainerCallback):
    """When each step of a `Trainer` ended, by a clock of `CLOCKS`."""

    def __init__(self, clock: str) -> None:
        self.now = CLOCKS[clock]
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Look at the clock."""
        self.ends.append(self.now())


def seconds_a_step(trainer: Trainer, clock: str) -> float:
    """What a step takes with the fetching of its batch; the first, which sets up, doesn't count."""
    ends = Clock(clock)
    trainer.add_callback(ends)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return (ends.ends[-1] - ends.ends[0]) / (len(ends.ends) - 1)


class Encodes(Counter[str]):
    """How many rows passed each tower of a model, from now on.

    Args:
        model: It has a `vision_model` and a `text_model`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for tower, name in TOWER_INPUTS.items():
            model.get_submodule(tower).register_forward_pre_hook(self._counter(tower, name), with_kwargs=True)

    def _counter(self, tower: str, name: str) -> Any:
        def count(_: nn.Module, __: Any, keywords: Mapping[str, Any]) -> None:
            self[tower] += len(keywords[name])

        return count

    def per(self, relations: int) -> str:
        """Images and texts encoded a relation, in words."""
        images, texts = (self[tower] / relations for tower in TOWER_INPUTS)
        return f"{images:.3g} images and {texts:.3g} texts encoded"
