"""Time and memory of the cached-gradient step against the plain one: python benchmarks/cached_step.py.

[--images 128] [--micro-batch 32] [--text-layers 2] [--rounds 7] [--larger 16] [--threads 1]

Time: both steps on the same batch, interleaved, dropout on, in CPU seconds of one thread unless told otherwise; the
cached one in micro-batches of `--micro-batch` images and three times as many texts. Memory: the peak of one cached step on a batch of `--larger` micro-batches, and of one
plain step on a batch of a single one, each in a process of its own, above what was there before the step. That leaves
out the model with its gradients, which are as large for any batch, and the batch itself: pixels and tokens must be held
however they are encoded. Embeddings, their gradients and the objective's work, by tiles as in batches of any size,
count. The C library gives freed blocks of 64 kB back at once there: what is measured is what is held.

Defaults, one thread of a Xeon at 2.1 GHz that other work shared (load 11 on 2 cores), torch 2.13, seven rounds: plain
1.00 s a step (0.97 to 1.09), cached 1.20 s, 1.19 of it (1.10 to 1.50); 94 MB for 32 images at once, 99 MB for 512.
Micro-batches of 16 take 1.43 of it (1.35 to 1.52): a pass has costs of its own, and so small towers feel them.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from accelerate import Accelerator
from torch import Tensor

from modeling_mxmclr import MXMCLRModel, contrast_mxmclr
from training.cached_step import MicroBatchSizes, take_gradients

TEXTS_PER_IMAGE = 3
LENGTH = 24
IMAGE_SIZE = 64


def build(chosen: argparse.Namespace) -> MXMCLRModel:
    """The text tower of `training/configs/shapes_cpu.yaml`, and a vision transformer, which has no batch norms."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256}
    text = {"model_type": "bert", **sizes, "num_hidden_layers": chosen.text_layers, "vocab_size": 1000}
    vision = {"model_type": "vit", **sizes, "num_hidden_layers": 4, "image_size": IMAGE_SIZE, "patch_size": 8}
    model = MXMCLRModel.from_text_vision_pretrained(text, vision, projection_dim=128, text_pooling="mean").train()
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    return model


def draw(num_images: int) -> dict[str, Tensor]:
    """A batch of instances with an image and three texts each."""
    generator = torch.Generator().manual_seed(0)
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


def peak_megabytes(chosen: argparse.Namespace) -> float:
    """Peak memory of the step that `--peak` names, above model, gradients and batch, found in this process."""
    accelerator, model = Accelerator(cpu=True), build(chosen)
    contrast_mxmclr.MATRIX_LOGITS = -1
    is_cached = chosen.peak == "cached"
    batch = draw(chosen.micro_batch * (chosen.larger if is_cached else 1))
    sizes = sizes_of(chosen.micro_batch) if is_cached else MicroBatchSizes()
    # Loads what a first step loads, in either process alike.
    take_gradients(accelerator, model, draw(2), MicroBatchSizes(1, 1))
    before = resident_megabytes()
    Path("/proc/self/clear_refs").write_text("5")
    take_gradients(accelerator, model, batch, sizes)
    return resident_megabytes("VmHWM") - before


def resident_megabytes(field: str = "VmRSS") -> float:
    """Resident memory of this process, now or at its highest since the mark was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def peak_elsewhere(step: str, words: list[str]) -> float:
    """`peak_megabytes` of a step in a process of its own."""
    command = [sys.executable, __file__, *words, "--peak", step]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout))


def seconds_of(
    accelerator: Accelerator, model: MXMCLRModel, batch: dict[str, Tensor], sizes: MicroBatchSizes
) -> float:
    """CPU seconds of one step."""
    start = time.process_time()
    take_gradients(accelerator, model, batch, sizes)
    return time.process_time() - start


def parse() -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128, help="Of the batch whose steps are timed.")
    parser.add_argument("--micro-batch", type=int, default=32, help="Images that pass the tower at once.")
    parser.add_argument("--text-layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="Timed steps of each kind; 0 measures memory alone.")
    parser.add_argument("--larger", type=int, default=16, help="Micro-batches of the batch whose memory is measured.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", choices=["plain", "cached"], help="Print that step's peak in this process.")
    return parser.parse_args()


def main() -> None:
    """Measure the peaks in processes of their own, then the times of both steps in turn."""
    chosen = parse()
    torch.set_num_threads(chosen.threads)
    if chosen.peak:
        print(json.dumps(peak_megabytes(chosen)))
        return
    print(f"{platform.processor() or platform.machine()}, threads: {chosen.threads}, torch {torch.__version__}")
    one, many = (peak_elsewhere(step, sys.argv[1:]) for step in ("plain", "cached"))
    print(
        f"memory: {one:.0f} MB for {chosen.micro_batch} images at once, {many:.0f} MB for {chosen.larger} times as "
        f"many in micro-batches of {chosen.micro_batch}, {many / one:.2f} of it"
    )
    accelerator, model, batch = Accelerator(cpu=True), build(chosen), draw(chosen.images)
    kinds = {"plain": MicroBatchSizes(), "cached": sizes_of(chosen.micro_batch)}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(chosen.rounds + bool(chosen.rounds)):
        for kind, sizes in kinds.items():
            seconds = seconds_of(accelerator, model, batch, sizes)
            if number:  # the first round warms up
                times[kind].append(seconds)
    for kind, seconds in times.items():
        ratios = [own / plain for own, plain in zip(seconds, times["plain"], strict=True)]
        if ratios:
            print(
                f"{kind}: {statistics.median(seconds):.2f} s a step ({min(seconds):.2f} to {max(seconds):.2f}), "
                f"{statistics.median(ratios):.2f} of the plain one's time ({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
