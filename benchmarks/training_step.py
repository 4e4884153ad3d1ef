"""Our training step against a hand-written one around the same towers: python benchmarks/training_step.py [--rounds 30].

Ours is `training/loop.py` as a run has it: ragged folds, `mfh` with soft targets, schedule, log. The other is what one
writes in an afternoon: the same towers with the same weights encode the same images and texts, CLIP's loss for the first
caption of each image, for the second and so on, AdamW, clipping. Both get the same batch, in memory already, and take
turns step by step. A ratio of 1 says that folds cost nothing beyond their encodes.
"""

import argparse
import sys
from collections.abc import Iterator
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks.side_by_side import CLOCKS, machine, parse, ratio, seconds_of, spread, verdict
from modeling_mxmclr import MXMCLRModel
from training.arguments import Arguments, parse_arguments
from training.loop import train
from training.models import build_from_towers
from training.optimization import build_optimizer
from training.session import Session
from training.sources import Sources

RECIPE = ROOT / "training" / "configs" / "shapes_cpu.yaml"
BAR = 0.95
WARM_UP = 3


class HandWritten(nn.Module):
    """The towers and heads of a model of ours with a loss of one's own.

    Args:
        model: What is copied.
        views: Images of each instance.
        captions: Texts of each instance.
    """

    def __init__(self, model: MXMCLRModel, views: int, captions: int) -> None:
        super().__init__()
        self.vision, self.text = deepcopy(model.vision_model), deepcopy(model.text_model)
        self.vision_head, self.text_head = deepcopy(model.visual_projection), deepcopy(model.text_projection)
        self.log_scale = nn.Parameter(model.logit_scale.weight.detach().clone())
        self.views, self.captions = views, captions

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """CLIP's loss of each view with each caption, averaged, `()`."""
        images = self.vision_head(self.vision(pixel_values=pixel_values).pooler_output.flatten(1))
        tokens = self.text(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[:, :, None]
        texts = self.text_head((tokens * mask).sum(dim=1) / mask.sum(dim=1))
        images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
        places = torch.arange(len(images) // self.views)
        losses = []
        for view, caption in product(range(self.views), range(self.captions)):
            logits = self.log_scale.exp() * images[view :: self.views] @ texts[caption :: self.captions].T
            losses.append((F.cross_entropy(logits, places) + F.cross_entropy(logits.T, places)) / 2)
        return torch.stack(losses).mean()


class Turns:
    """Batches for `train`, before each of which the other loop takes its step.

    Args:
        batch: The flat batch, the same each time.
        other: The other step.
        rounds: How many count.
        clock: A key of `CLOCKS`.

    Attributes:
        seconds: Of each step, `ours` from the moment that the batch is handed over until the next one is asked for.
    """

    def __init__(self, batch: dict[str, Tensor], other: Any, rounds: int, clock: str) -> None:
        self.batch, self.other, self.rounds, self.clock = batch, other, rounds, clock
        self.seconds: dict[str, list[float]] = {"ours": [], "hand-written": []}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for number in range(-WARM_UP, self.rounds):
            of_other = seconds_of(self.other, self.clock)
            start = CLOCKS[self.clock]()
            yield dict(self.batch)
            of_ours = CLOCKS[self.clock]() - start
            if number >= 0:
                self.seconds["ours"].append(of_ours)
                self.seconds["hand-written"].append(of_other)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: these batches are never resumed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""


def draw_batch(chosen: argparse.Namespace, size: int, vocabulary: int) -> dict[str, Tensor]:
    """Noise and random tokens, padded to the longest caption, instance after instance."""
    generator = torch.Generator().manual_seed(chosen.seed)
    ids = torch.randint(2**40, 2**60, (chosen.instances,), generator=generator)
    num_images, num_texts = chosen.instances * chosen.views, chosen.instances * chosen.captions
    lengths = torch.randint(chosen.tokens // 2, chosen.tokens + 1, (num_texts, 1), generator=generator)
    mask = (torch.arange(chosen.tokens) < lengths).long()
    return {
        "pixel_values": torch.randn(num_images, 3, size, size, generator=generator),
        "image_group_ids": ids.repeat_interleave(chosen.views),
        "input_ids": mask * torch.randint(4, vocabulary, (num_texts, chosen.tokens), generator=generator),
        "attention_mask": mask,
        "text_group_ids": ids.repeat_interleave(chosen.captions),
    }


def step_of(module: HandWritten, batch: dict[str, Tensor], arguments: Arguments) -> Any:
    """The hand-written step."""
    module.train()
    options = arguments.optimization
    optimizer = build_optimizer(module, options)
    inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}

    def step() -> None:
        loss = module(**inputs)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), options.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(chosen: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each step of both loops."""
    steps = WARM_UP + chosen.rounds
    words = [str(RECIPE), "--cpu", "true", "--objective", chosen.objective, "--seed", str(chosen.seed)]
    # One step more than there are batches: a run that ends evaluates and keeps its checkpoint. A log entry each step.
    arguments = parse_arguments([*words, "--max_steps", str(steps + 1), "--log_every", "1"], __doc__ or "")
    torch.manual_seed(chosen.seed)
    vocabulary = arguments.model.vocabulary_size
    model = build_from_towers(arguments.model, vocabulary)
    batch = draw_batch(chosen, arguments.model.image_size or 224, vocabulary)
    other = step_of(HandWritten(model, chosen.views, chosen.captions), batch, arguments)
    turns = Turns(batch, other, chosen.rounds, chosen.clock)
    session = Session(
        arguments=arguments, accelerator=Accelerator(cpu=True), sources=Sources({}), model=model, processor=None,
        adapter=None, frozen_text=None, folder=None, pusher=None,
    )  # fmt: skip
    train(session, turns)
    return turns.seconds


def main() -> None:
    """Measure, and print both times and the ratio of observations per second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=128, help="Instances of a step (default: %(default)s).")
    parser.add_argument("--views", type=int, default=1, help="Images of each (default: %(default)s).")
    parser.add_argument("--captions", type=int, default=3, help="Texts of each (default: %(default)s).")
    parser.add_argument("--tokens", type=int, default=24, help="Of the longest text (default: %(default)s).")
    parser.add_argument("--objective", default="mfh", help="Ours; the other is CLIP's (default: %(default)s).")
    chosen = parse(parser, rounds=30)
    seconds = measure(chosen)
    observations = chosen.instances * (chosen.views + chosen.captions)
    print(machine("transformers", "accelerate"))
    print(
        f"{chosen.instances} instances x ({chosen.views} images + {chosen.captions} texts), {chosen.rounds} rounds\n"
    )
    for name, values in seconds.items():
        print(f"{name:<14}{spread([observations / value for value in values])} observations a second")
    rates = ratio(seconds["hand-written"], seconds["ours"])
    print(f"ours are {rates} times those of the hand-written loop")
    print(verdict("lower end of the 95 % interval", rates.low, BAR, at_least=True))


if __name__ == "__main__":
    main()
