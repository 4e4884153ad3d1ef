"""Against transformers' VisionTextDualEncoderModel, both under `Trainer`: python benchmarks/against_trainer.py [--rounds 5].

Same towers, same weights, same arguments, images and tokens in memory; only model and collation differ. Ours gets folds:
an image passes its tower once for all of its captions. The peer gets them exploded, as its loss wants them: a row a
pair. A relation is an image with a caption of its own, seen once; a step of either learns equally many. At `--captions
1` both do the same work, and what is left is what our loss and our bookkeeping cost.
"""

import argparse
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BertConfig,
    Trainer,
    TrainingArguments,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    set_seed,
)

from benchmarks.side_by_side import Spread, machine, parse, ratio, spread, take_turns, verdict
from benchmarks.trainers import SILENT, Encodes, seconds_a_step
from modeling_mxmclr import MXMCLRConfig, MXMCLRModel

BARS = {"folds": 0.5, "pairs": 1.03}
VOCABULARY = 1000
Batch = dict[str, Any]


class Instance(NamedTuple):
    """An image, and captions of it."""

    group_id: int
    image: Tensor  # (3, size, size)
    captions: list[Tensor]  # each (length,) int64


class Way(NamedTuple):
    """One of the two ways to train."""

    model: torch.nn.Module
    rows: list[Any]
    rows_a_step: int
    collate: Callable[[list[Any]], Batch]


def draw_instances(chosen: argparse.Namespace, captions: int) -> list[Instance]:
    """As many as two steps need."""
    generator = torch.Generator().manual_seed(chosen.seed)
    instances = []
    for number in range(2 * chosen.relations // captions):
        lengths = torch.randint(chosen.tokens // 2, chosen.tokens + 1, (captions,), generator=generator).tolist()
        instances.append(
            Instance(
                2**40 + number,
                torch.randn(3, chosen.size, chosen.size, generator=generator),
                [torch.randint(4, VOCABULARY, (length,), generator=generator) for length in lengths],
            )
        )
    return instances


def build_models(chosen: argparse.Namespace) -> tuple[MXMCLRModel, VisionTextDualEncoderModel]:
    """Both models, with the weights of one of them."""
    set_seed(chosen.seed)
    shape = {
        "hidden_size": chosen.width,
        "num_hidden_layers": chosen.layers,
        "num_attention_heads": max(1, chosen.width // 32),
        "intermediate_size": 4 * chosen.width,
    }
    text = BertConfig(**shape, vocab_size=VOCABULARY, max_position_embeddings=64)
    vision = ViTConfig(**shape, image_size=chosen.size, patch_size=8)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=chosen.width)
    peer = VisionTextDualEncoderModel(config)
    ours = MXMCLRModel(
        MXMCLRConfig(
            text_config=text.to_dict(), vision_config=vision.to_dict(), text_pooling="pooler", vision_pooling="pooler",
            projection_dim=chosen.width, objective=chosen.objective,
        ),
        deepcopy(peer.text_model),
        deepcopy(peer.vision_model),
    )  # fmt: skip
    ours.text_projection.load_state_dict(peer.text_projection.state_dict())
    ours.visual_projection.load_state_dict(peer.visual_projection.state_dict())
    return ours, peer


def tokens_of(captions: list[Tensor]) -> Batch:
    """Captions padded to the longest."""
    mask = pad_sequence([torch.ones_like(caption) for caption in captions], batch_first=True)
    return {"input_ids": pad_sequence(captions, batch_first=True), "attention_mask": mask}


def collate_folds(instances: list[Instance]) -> Batch:
    """The flat batch that our model takes."""
    ids = torch.tensor([instance.group_id for instance in instances])
    sizes = torch.tensor([len(instance.captions) for instance in instances])
    return {
        "pixel_values": torch.stack([instance.image for instance in instances]),
        "image_group_ids": ids,
        **tokens_of([caption for instance in instances for caption in instance.captions]),
        "text_group_ids": ids.repeat_interleave(sizes),
    }


def collate_pairs(pairs: list[tuple[Tensor, Tensor]]) -> Batch:
    """The batch of pairs that the peer takes."""
    images, captions = zip(*pairs, strict=True)
    return {"pixel_values": torch.stack(images), **tokens_of(list(captions)), "return_loss": True}


def both_ways(chosen: argparse.Namespace, captions: int) -> dict[str, Way]:
    """Ours and the peer's on the same instances, a step of each with as many relations."""
    instances = draw_instances(chosen, captions)
    pairs = [(instance.image, caption) for instance in instances for caption in instance.captions]
    ours, peer = build_models(chosen)
    return {
        "ours": Way(ours, instances, chosen.relations // captions, collate_folds),
        "peer": Way(peer, pairs, chosen.relations // captions * captions, collate_pairs),
    }


def trainer_of(way: Way, chosen: argparse.Namespace, folder: str) -> Trainer:
    """A new `Trainer` of one way, for a step more than is measured."""
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=way.rows_a_step, max_steps=chosen.steps + 1, seed=chosen.seed,
        remove_unused_columns=False, **SILENT,
    )  # fmt: skip
    return Trainer(way.model, arguments, data_collator=way.collate, train_dataset=way.rows)


def compare(chosen: argparse.Namespace, captions: int) -> Spread:
    """Measure one comparison, print it, and give ours as a multiple of the peer's time."""
    ways = both_ways(chosen, captions)
    relations = chosen.relations // captions * captions
    encodes = {name: Encodes(way.model) for name, way in ways.items()}
    with TemporaryDirectory() as folder:
        seconds = take_turns(
            {
                name: lambda way=way: seconds_a_step(trainer_of(way, chosen, folder), chosen.clock)
                for name, way in ways.items()
            },
            chosen.rounds,
        )
    print(f"\n1 image x {captions} caption{'s' if captions > 1 else ''}, by relation")
    for name, values in seconds.items():
        learned = (chosen.rounds + 1) * (chosen.steps + 1) * relations
        print(f"  {name}  {spread([1000 * value / relations for value in values])} ms, {encodes[name].per(learned)}")
    taken = ratio(seconds["ours"], seconds["peer"])
    print(f"  ours takes {taken} of the peer's time")
    return taken


def main() -> None:
    """Measure folds of several captions, then pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="Steps of each in a round (default: %(default)s).")
    parser.add_argument("--captions", type=int, default=5, help="Texts of an image (default: %(default)s).")
    parser.add_argument("--relations", type=int, default=120, help="Of a step (default: %(default)s).")
    parser.add_argument("--size", type=int, default=64, help="Pixels, in patches of 8 (default: %(default)s).")
    parser.add_argument("--tokens", type=int, default=20, help="Of the longest text (default: %(default)s).")
    parser.add_argument("--width", type=int, default=128, help="Of both towers (default: %(default)s).")
    parser.add_argument("--layers", type=int, default=4, help="Of both towers (default: %(default)s).")
    parser.add_argument("--objective", default="mfh", help="Ours; the peer's is CLIP's (default: %(default)s).")
    chosen = parse(parser, rounds=5)
    of_folds, of_pairs = compare(chosen, chosen.captions), compare(chosen, 1)
    print(f"\n{machine('transformers', 'accelerate')}")
    print(verdict("folds, median ratio per relation", of_folds.median, BARS["folds"]))
    print(verdict("pairs, median ratio per pair", of_pairs.median, BARS["pairs"]))


if __name__ == "__main__":
    main()
