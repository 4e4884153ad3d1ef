"""What ranks do whose texts run in buckets; importable, so that a pool's processes find it."""

from unittest import mock

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from modeling_mxmclr import MXMCLRModel, buckets_mxmclr
from tests.references.rank_jobs import as_plain, loss_and_gradients, split_batch
from tests.references.tiny import tiny_batch, tiny_model


def bucketed_model() -> MXMCLRModel:
    """A model in training mode without dropout, whose texts share three calls."""
    model = tiny_model().double()
    model.training = True
    model.text_buckets = 3
    return model


def ddp_in_buckets(rank: int, shares: dict):
    """The loss and gradients of a rank under DDP."""
    with mock.patch.dict(buckets_mxmclr.CALL_TOKENS, cpu=0):
        wrapped = DistributedDataParallel(bucketed_model())
        return loss_and_gradients(wrapped, split_batch(tiny_batch(torch.float64), shares, rank))


def fsdp_in_buckets(rank: int, shares: dict):
    """The same under FSDP2, and how often the text tower ran."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    model, calls = bucketed_model(), []
    model.text_model.register_forward_hook(lambda *_: calls.append(1))
    for block in (*model.text_model.encoder.layer, model.text_model, model):
        fully_shard(block, mesh=mesh)
    with mock.patch.dict(buckets_mxmclr.CALL_TOKENS, cpu=0):
        output = model(**split_batch(tiny_batch(torch.float64), shares, rank))
    output.loss.backward()
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}
    return output.loss.item(), as_plain(gradients), len(calls)
