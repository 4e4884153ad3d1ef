"""Weights that FSDP has split over ranks, whole: to evaluate with, and to keep."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

from modeling_mxmclr import MXMCLRModel


def let_accelerate_split(model: MXMCLRModel) -> None:
    """Let Accelerate's FSDP 2 take a model of two towers.

    It gives the input embeddings a shard of their own after the layers have theirs. A dual encoder has no single ones,
    for which transformers raises; and each tower's are within a layer that was split already.
    """
    model.get_input_embeddings = lambda: None  # type: ignore[method-assign,assignment,return-value]


def shards_of(model: nn.Module) -> list[FSDPModule]:
    """The modules of a model whose weights `fully_shard` has split; none elsewhere."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """A context in which a rank holds all weights, so that it may call the model as often as it likes; every rank must enter it.

    A sharded model gathers weights at each call, and ranks that evaluate shares of different sizes would wait for each
    other for ever. Afterwards weights are split again, and after each forward pass, as FSDP does unless told otherwise.
    """
    shards = shards_of(model)
    for shard in shards:
        shard.set_reshard_after_forward(False, recurse=False)
        shard.unshard()
    try:
        yield
    finally:
        for shard in shards:
            shard.set_reshard_after_forward(True, recurse=False)
            shard.reshard()


def whole_copy(model: MXMCLRModel) -> MXMCLRModel:
    """A sharded model's plain copy, whole on the main process alone; a model that isn't sharded itself. Every rank must call it.

    The sharded one can't be saved: its class is one that torch made up, in no file that could travel with a checkpoint.
    """
    if not shards_of(model):
        return model
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    with torch.device("meta"):
        copied = MXMCLRModel(deepcopy(model.config))
    if state:
        copied.load_state_dict(state, assign=True)
    return copied
