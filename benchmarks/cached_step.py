"""Time and memory of the cached-gradient step against the plain one: python benchmarks/cached_step.py [--rounds 7].

Time: both steps on the same batch, in turns, dropout on, in CPU seconds of one thread unless told otherwise; the cached
one in micro-batches of `--micro-batch` images and three times as many texts. Memory: the peak of one cached step on a
batch of `--larger` micro-batches, and of one plain step on a batch of a single one, each in a process of its own, above
what was there before the step. That leaves out the model with its gradients, which are as large for any batch, and the
batch itself: pixels and tokens must be held however they are encoded. Embeddings, their gradients and the objective's
work, by tiles as in batches of any size, count. The C library gives freed blocks of 64 kB back at once there: what is
measured is what is held.

Defaults, one thread of a Xeon at 2.1 GHz that other work shared (load 6 on 2 cores), torch 2.13, seven rounds: plain
0.87 s a step (0.86 to 0.92), cached 1.06 s, 1.22 of it (1.19 to 1.25); 95 MB for 32 images at once, 101 MB for 512. An
earlier run in micro-batches of 16 took 1.43 of it (1.35 to 1.52): a pass has costs of its own, and small towers feel them.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks.side_by_side import (
    machine,
    parse,
    peak_elsewhere,
    peak_megabytes,
    ratio,
    seconds_of,
    spread,
    take_turns,
    verdict,
)
from modeling_mxmclr import MXMCLRModel, contrast_mxmclr
from training.cached_step import MicroBatchSizes, take_gradients

TEXTS_PER_IMAGE = 3
LENGTH = 24
IMAGE_SIZE = 64
BARS = {"time": 1.4, "memory": 1.15}
# Blocks that the C library keeps for itself would count as held: a fifth more, and another number each time.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def build(chosen: argparse.Namespace) -> MXMCLRModel:
    """The text tower of `training/configs/shapes_cpu.yaml`, and a vision transformer, which has no batch norms."""
    torch.manual_seed(chosen.seed)
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256}
    text = {"model_type": "bert", **sizes, "num_hidden_layers": chosen.text_layers, "vocab_size": 1000}
    vision = {"model_type": "vit", **sizes, "num_hidden_layers": 4, "image_size": IMAGE_SIZE, "patch_size": 8}
    model = MXMCLRModel.from_text_vision_pretrained(text, vision, projection_dim=128, text_pooling="mean").train()
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    return model


def draw(num_images: int, seed: int) -> dict[str, Tensor]:
    """A batch of instances with an image and three texts each."""
    generator = torch.Generator().manual_seed(seed)
    num_texts = TEXTS_PER_IMAGE * num_images
    ids = torch.arange(num_images) + 2**40
    return {
        "pixel_values": torch.randn(num_images, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator),
        "image_group_ids": ids,
        "input_ids": torch.randint(4, 1000, (num_texts, LENGTH), generator=generator),
        "attention_mask": torch.ones(num_texts, LENGTH, dtype=torch.int64),
        "text_group_ids": ids.repeat_interleave(TEXTS_PER_IMAGE),
    }


def sizes_of(micro_batch: int) -> MicroBatchSizes:
    """A micro-batch of so many images, and the texts of as many instances."""
    return MicroBatchSizes(micro_batch, TEXTS_PER_IMAGE * micro_batch)


def peak(chosen: argparse.Namespace) -> float:
    """Peak memory of the step that `--peak` names, above model, gradients and batch, found in this process."""
    accelerator, model = Accelerator(cpu=True), build(chosen)
    contrast_mxmclr.MATRIX_LOGITS = -1
    is_cached = chosen.peak == "cached"
    batch = draw(chosen.micro_batch * (chosen.larger if is_cached else 1), chosen.seed)
    sizes = sizes_of(chosen.micro_batch) if is_cached else MicroBatchSizes()
    # Loads what a first step loads, in either process alike.
    take_gradients(accelerator, model, draw(2, chosen.seed), MicroBatchSizes(1, 1))
    return peak_megabytes(partial(take_gradients, accelerator, model, batch, sizes))


def compare_memory(chosen: argparse.Namespace) -> None:
    """Print the peaks of both steps, each in a process of its own."""
    one, many = (
        peak_elsewhere(__file__, *sys.argv[1:], "--peak", step, variables=GIVEN_BACK) for step in ("plain", "cached")
    )
    print(
        f"memory: {one:.0f} MB for {chosen.micro_batch} images at once, {many:.0f} MB for {chosen.larger} times as "
        f"many in micro-batches of {chosen.micro_batch}"
    )
    print(verdict("memory of cached / plain", many / one, BARS["memory"]))


def compare_times(chosen: argparse.Namespace) -> None:
    """Print seconds of both steps on the same batch."""
    accelerator, model, batch = Accelerator(cpu=True), build(chosen), draw(chosen.images, chosen.seed)
    kinds = {"plain": MicroBatchSizes(), "cached": sizes_of(chosen.micro_batch)}
    steps = {kind: partial(take_gradients, accelerator, model, batch, sizes) for kind, sizes in kinds.items()}
    seconds = take_turns(
        {kind: partial(seconds_of, step, chosen.clock) for kind, step in steps.items()}, chosen.rounds
    )
    for kind, values in seconds.items():
        print(f"{kind:<7}{spread(values)} s a step")
    taken = ratio(seconds["cached"], seconds["plain"])
    print(f"the cached step takes {taken} of the plain one's time")
    print(verdict("time of cached / plain, median", taken.median, BARS["time"]))


def main() -> None:
    """Measure the peaks, then the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128, help="Of the batch that is timed (default: %(default)s).")
    parser.add_argument("--micro-batch", type=int, default=32, help="Images encoded at once (default: %(default)s).")
    parser.add_argument("--text-layers", type=int, default=2, help="Of the text tower (default: %(default)s).")
    parser.add_argument(
        "--larger", type=int, default=16, help="Micro-batches whose memory is measured (default: %(default)s)."
    )
    parser.add_argument("--peak", choices=["plain", "cached"], help=argparse.SUPPRESS)
    chosen = parse(parser, rounds=7, threads=1, clock="cpu")
    if chosen.peak:
        print(peak(chosen))
        return
    print(machine("transformers", "accelerate"))
    compare_memory(chosen)
    if chosen.rounds:  # without, memory alone
        compare_times(chosen)


if __name__ == "__main__":
    main()
