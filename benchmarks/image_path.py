"""Our image path against a plain Pillow loop with as many workers: python benchmarks/image_path.py.

From encoded bytes to a batch of pixel values in the main process: decode, resize, normalise, batch. Both sides are
loaders of torch with the same rows, batches and workers, the same size, and Pillow's bicubic filter. The peer opens,
converts, resizes, stacks and normalises as one writes it by hand. Ours is a training run's `FoldCollator` with all
views of an instance and no caption, which also hashes ids. PNGs must come out equal; JPEGs differ by being reduced while
they are decoded (`draft`), and how much is printed.
"""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from benchmarks.side_by_side import Spread, machine, parse, ratio, seconds_of, spread, take_turns, verdict
from modeling_mxmclr import MXMCLRProcessor
from training.augmentation import Augmentation
from training.data import FoldCollator, loader_processes

BAR = 1.0
Rows = list[dict[str, Any]]


def main() -> None:
    """Print images a second of both, for PNGs and for JPEGs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/emoji"), help="Default: %(default)s.")
    parser.add_argument("--emoji", type=int, default=300, help="With about seven PNGs each (default: %(default)s).")
    parser.add_argument("--png_size", type=int, default=64, help="What they become, in pixels (default: %(default)s).")
    parser.add_argument("--jpegs", type=int, default=256, help="Default: %(default)s.")
    parser.add_argument("--jpeg_side", type=int, default=1024, help="Of what is decoded (default: %(default)s).")
    parser.add_argument("--jpeg_size", type=int, default=224, help="What they become (default: %(default)s).")
    parser.add_argument("--batch_size", type=int, default=32, help="In instances (default: %(default)s).")
    parser.add_argument("--workers", type=int, default=1, help="Of each side (default: %(default)s).")
    chosen = parse(parser, rounds=5)
    if chosen.workers and chosen.clock != "wall":
        parser.error("`--clock cpu` does not see what workers do; leave it out or pass `--workers 0`.")
    pngs, jpegs = read_pngs(chosen.data, chosen.emoji), make_jpegs(chosen.jpegs, chosen.jpeg_side, chosen.seed)
    print(machine("transformers", "pillow"))
    print(f"{chosen.workers} workers, batches of {chosen.batch_size} instances\n")
    title = f"emoji PNGs of 128 px to {chosen.png_size} px"
    of_pngs = compare(title, pngs, chosen.png_size, chosen, exact=True)
    title = f"JPEGs of {chosen.jpeg_side} px to {chosen.jpeg_size} px"
    of_jpegs = compare(title, jpegs, chosen.jpeg_size, chosen, exact=False)
    print(verdict("PNGs, median ratio", of_pngs.median, BAR, at_least=True))
    print(verdict("JPEGs, median ratio", of_jpegs.median, BAR, at_least=True))


def read_pngs(folder: Path, count: int) -> Rows:
    """The first emoji, with all their views."""
    with (folder / "metadata.jsonl").open(encoding="utf-8") as lines:
        described = [json.loads(line) for line in lines][:count]
    return [
        as_row(each["instance_id"], [(folder / path).read_bytes() for path in each["images"]]) for each in described
    ]


def make_jpegs(count: int, side: int, seed: int) -> Rows:
    """Pictures of smooth shapes with some grain, as photos have it, four an instance."""
    files = []
    for number in range(count):
        generator = np.random.default_rng(seed + number)
        coarse = Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = generator.integers(-8, 9, (side, side, 1), dtype=np.int16)
        file = io.BytesIO()
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return [as_row(str(start), files[start : start + 4]) for start in range(0, count, 4)]


def as_row(instance_id: str, files: Sequence[bytes]) -> dict[str, Any]:
    """A row as a training run reads it."""
    images = [{"bytes": content, "path": None} for content in files]
    return {"instance_id": instance_id, "images": images, "captions": [], "epoch": 0}


class PlainLoop:
    """What one writes by hand."""

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.size = size
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))

    def __call__(self, rows: Rows) -> Tensor:
        """The pixel values of a batch."""
        pixels = []
        for row in rows:
            for file in row["images"]:
                image = Image.open(io.BytesIO(file["bytes"])).convert("RGB")
                pixels.append(np.asarray(image.resize((self.size, self.size), Image.Resampling.BICUBIC)))
        return (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std


class OurPath:
    """A training run's collator."""

    def __init__(self, size: int, processor: MXMCLRProcessor) -> None:
        augmentation = Augmentation((size, size))
        self.collator = FoldCollator(processor, augment=augmentation, smallest_source=augmentation.smallest_source)

    def __call__(self, rows: Rows) -> Tensor:
        """The pixel values of a batch."""
        return self.collator(rows)["pixel_values"]


def compare(title: str, rows: Rows, size: int, chosen: argparse.Namespace, exact: bool) -> Spread:
    """Print images a second of both ways, and give ours as a multiple of the peer's.

    Raises:
        SystemExit: When their pixel values differ though they must not.
    """
    image_processor = CLIPImageProcessorPil(size={"height": size, "width": size}, do_center_crop=False)
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]")
    ours = OurPath(size, MXMCLRProcessor(image_processor, tokenizer))
    peer = PlainLoop(size, image_processor.image_mean, image_processor.image_std)
    # A draw of all views is in random order; one view has none.
    some = [row | {"images": row["images"][:1]} for row in rows[:16]]
    apart = (ours(some) - peer(some)).abs() * torch.tensor(image_processor.image_std).view(3, 1, 1) * 255
    if exact and apart.max() > 1e-3:
        raise SystemExit(f"{title}: the images must be equal, they are {apart.max():.2f} of 255 apart.")
    passes = {
        name: partial(
            read, DataLoader(rows, chosen.batch_size, collate_fn=collate, **loader_processes(chosen.workers, 2))
        )
        for name, collate in (("ours", ours), ("plain", peer))
    }
    # The round that warms up also starts the workers.
    seconds = take_turns({name: partial(seconds_of, one, chosen.clock) for name, one in passes.items()}, chosen.rounds)
    num_images = sum(len(row["images"]) for row in rows)
    print(f"{title}, {apart.mean():.2f} of 255 apart on average, {apart.max():.1f} at most")
    for name, values in seconds.items():
        print(f"  {name:<7}{spread([num_images / value for value in values])} a second")
    rates = ratio(seconds["plain"], seconds["ours"])
    print(f"  ours are {rates} times those of the plain loop")
    return rates


def read(loader: DataLoader) -> None:
    """One pass."""
    for batch in loader:
        batch[0, 0, 0, 0].item()


if __name__ == "__main__":
    main()
