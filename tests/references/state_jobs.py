"""What the ranks of a `GlooPool` do with training states."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from training.training_state import (
    fill_optimizer,
    fill_tensors,
    fix_bucket_order,
    optimizer_state,
    tensors_of,
    whole,
)


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(33, 65), nn.GELU(), nn.Linear(65, 17), nn.LayerNorm(17), nn.Linear(17, 5))


def rows_of_steps(rank: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(8, 33, generator=generator) for _ in range(3)]


def gradients_of_the_third_step(rank: int, is_fixed: bool) -> bool:
    """Whether a wrapper that has seen two steps, and one that has not, give the same gradients."""
    used, fresh = DistributedDataParallel(layers()), DistributedDataParallel(layers())
    if is_fixed:
        fix_bucket_order(used)
        fix_bucket_order(fresh)
    for rows in rows_of_steps(rank):
        used.zero_grad()
        used(rows).square().sum().backward()
    fresh(rows).square().sum().backward()
    pairs = zip(used.parameters(), fresh.parameters(), strict=True)
    return all(torch.equal(one.grad, other.grad) for one, other in pairs)


def sharded_round_trip(rank: int) -> bool:
    """Whether a sharded model that is put back after two steps takes the third one as the one that went on."""
    mesh = init_device_mesh("cpu", (3,))
    first, second, third = rows_of_steps(rank)

    def sharded() -> tuple[nn.Module, AdamW]:
        model = fully_shard(layers(), mesh=mesh)
        return model, AdamW(model.parameters(), lr=0.1)

    def learn(model: nn.Module, optimizer: AdamW, rows: torch.Tensor) -> None:
        optimizer.zero_grad()
        model(rows).square().sum().backward()
        optimizer.step()

    model, optimizer = sharded()
    for rows in (first, second):
        learn(model, optimizer, rows)
    groups, moments = optimizer_state(model, optimizer)
    kept = {name: each.clone() for name, each in whole(tensors_of(model)).items()}
    moments = {name: each.clone() for name, each in whole(moments).items()}
    other, fresh = sharded()
    fill_tensors(tensors_of(other), kept)
    fill_optimizer(other, fresh, groups, moments)
    learn(model, optimizer, third)
    learn(other, fresh, third)
    ours, theirs = (whole(tensors_of(each)) for each in (model, other))
    return all(torch.equal(each, theirs[name]) for name, each in ours.items())
