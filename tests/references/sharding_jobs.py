"""What the ranks of a `GlooPool` do with a model whose weights are split over them."""

from types import SimpleNamespace

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model

from modeling_mxmclr import MXMCLRModel
from tests.references.rank_jobs import as_plain, split_batch
from tests.references.tiny import tiny_batch, tiny_model
from training.sharding import let_accelerate_split, shards_of, whole_copy, whole_weights

SHARES = {"images": [[0, 1, 2, 3], [4, 5, 6]], "texts": [[0, 1, 2], [3, 4, 5]]}


def split_model() -> MXMCLRModel:
    """A tiny model split over the ranks by Accelerate's own code, which for CPUs it doesn't call."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",
        device=torch.device("cpu"),
        is_main_process=True,
    )
    model = tiny_model()
    let_accelerate_split(model)
    return fsdp2_prepare_model(accelerator, model)


def evaluate_uneven_shares(rank: int):
    """Embeddings that each rank computes in two calls and one, and the weights that the main process keeps afterwards."""
    model = split_model()
    features = []
    with whole_weights(model):
        for rows in torch.arange(7).chunk(3 - rank):
            with torch.no_grad():
                features.append(model(pixel_values=tiny_batch()["pixel_values"][rows]).image_embeds)
    copied = whole_copy(model)
    state = as_plain(copied.state_dict()) if rank == 0 else None
    return torch.cat(features).numpy(), state, len(shards_of(model)), type(copied).__name__


def save_sharded(rank: int, folder: str):
    """Save a split model as a run does."""
    copied = whole_copy(split_model())
    if rank == 0:
        copied.save_pretrained(folder)


def steps_around_evaluation(rank: int):
    """Whether split weights still learn, alike on all ranks, after they were whole for an evaluation."""
    model = split_model()
    model.training = True  # gathers; the towers stay in eval mode, so that dropout is off
    batch = split_batch(tiny_batch(), SHARES, rank)
    losses = []
    for _ in range(2):
        loss = model(**batch).loss
        loss.backward()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.grad is not None:
                    weight -= 0.1 * weight.grad
        model.zero_grad()
        with whole_weights(model), torch.no_grad():
            model(**batch, return_loss=False)
        losses.append(loss.item())
    return losses
