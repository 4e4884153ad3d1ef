"""How a run calls its towers: captions in buckets by length, and both towers compiled."""

import shutil

import torch

from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor

TOLERANCE = 1e-3  # of a vector's largest entry; half types are as coarse
COMPILERS = ("c++", "g++", "clang++")


def share_texts(model: MXMCLRModel, processor: MXMCLRProcessor, num_buckets: int) -> None:
    """Let so many calls of the text tower share a batch; one, where its vectors depend on the padding behind a text."""
    model.text_buckets = num_buckets if ignores_padding(model, processor) else 1


@torch.no_grad()
def ignores_padding(model: MXMCLRModel, processor: MXMCLRProcessor) -> bool:
    """Whether a text has the same vector alone as beside a longer one, in eval mode."""
    words = ["one", "one two three four five six seven eight"]
    tokens = processor(text=[[each] for each in words]).to(model.device)
    tokens.pop("text_group_ids")
    if "attention_mask" not in tokens:
        return False
    length = int(tokens["attention_mask"][0].nonzero().max()) + 1
    was_training = model.text_model.training
    model.text_model.eval()
    padded = model.get_text_tower_output(**tokens)[0]
    alone = model.get_text_tower_output(**{name: rows[:1, :length] for name, rows in tokens.items()})[0]
    model.text_model.train(was_training)
    return bool((padded - alone).abs().max() <= TOLERANCE * padded.abs().max())


def compile_towers(model: MXMCLRModel, backend: str = "inductor") -> None:
    """Compile both towers, for any number of images and texts and any length of texts.

    A batch's numbers differ from step to step. The text tower is compiled for any; the image tower's images keep their
    height and width, and the second number of images that comes makes the number free. So each tower is compiled a few
    times, not once a batch: in training and in eval mode, and for a call with a single row.

    Raises:
        ValueError: Where the backend's compiler is missing.
    """
    if backend == "inductor" and model.device.type == "cpu" and not any(map(shutil.which, COMPILERS)):
        raise ValueError(
            f"`compile_towers` needs a C++ compiler on a CPU, found none of {list(COMPILERS)}; install g++."
        )
    model.vision_model.compile(backend=backend)
    model.text_model.compile(backend=backend, dynamic=True)
