"""What the ranks of a `GlooPool` do; importable, so that the pool's processes find it."""

import os
import warnings
from unittest import mock

import torch
from accelerate import Accelerator, PartialState
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from modeling_mxmclr import MXMCLRModel, contrast_mxmclr, tiles_mxmclr
from modeling_mxmclr.distributed_mxmclr import gather_inputs, gather_observations, gather_ragged
from modeling_mxmclr.folds_mxmclr import Observations
from tests.references.observed import SCALE, VARIANTS, Variant
from tests.references.tiny import tiny_batch, tiny_model
from training import gradient_cases
from training.cached_step import MicroBatchSizes, take_gradients
from training.sharded_search import gather_ranks

IMAGE_KEYS = ("pixel_values", "image_group_ids")


def split_batch(
    batch: dict[str, torch.Tensor], shares: dict[str, list[list[int]]], rank: int
) -> dict[str, torch.Tensor]:
    """One rank's rows: `shares` lists the rows of each rank, for images and for texts."""
    return {
        name: rows[torch.tensor(shares["images" if name in IMAGE_KEYS else "texts"][rank], dtype=torch.int64)]
        for name, rows in batch.items()
    }


def as_plain(tensors):
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def loss_and_gradients(model: MXMCLRModel, batch: dict[str, torch.Tensor]):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a split may leave no pair on one rank; the whole batch has some
        output = model(**batch)
    output.loss.backward()
    inner = getattr(model, "module", model)
    gradients = {name: p.grad for name, p in inner.named_parameters() if p.grad is not None}
    return output.loss.item(), as_plain(gradients)


def whole_batch(dtype: torch.dtype, fields: dict):
    """The loss and gradients of one process that holds all rows."""
    return loss_and_gradients(tiny_model(**fields).to(dtype), tiny_batch(dtype))


def ddp_step(rank: int, dtype: torch.dtype, fields: dict, shares: dict, steps: int = 1):
    """The loss and gradients of a rank under DDP, dropout off; several steps show that DDP does not stall."""
    model = tiny_model(**fields).to(dtype)
    model.training = True  # gathers; the towers stay in eval mode, so that dropout is off
    wrapped = DistributedDataParallel(model)
    for _ in range(steps):
        wrapped.zero_grad()
        answer = loss_and_gradients(wrapped, split_batch(tiny_batch(dtype), shares, rank))
    return answer


def hashed_draw(variant: Variant) -> Observations:
    """A variant's observations with ids that mean the same on every rank."""
    observed = variant.draw()
    return observed._replace(
        image_group_ids=observed.image_group_ids + 2**40, text_group_ids=observed.text_group_ids + 2**40
    )


def objective_gradients(variant: Variant, observed: Observations, inputs: dict, gather: bool):
    """The loss, and its gradients in the given rows, the scale and a learned bias, as plain arrays."""
    learned = {"scale": SCALE.clone().requires_grad_()}
    beside = {name: rows for name, rows in inputs.items() if name != "bias"}
    if "bias" in inputs:
        learned["bias"] = torch.as_tensor(inputs["bias"], dtype=torch.float64).clone().requires_grad_()
    gathered = gather_observations(observed) if gather else observed
    beside = gather_inputs(beside) if gather else beside
    extra = {name: value for name, value in learned.items() if name == "bias"}
    loss = variant.loss(gathered, learned["scale"], **beside, **extra)
    leaves = {"images": observed.image_embeds, "texts": observed.text_embeds} | learned
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return loss.item(), as_plain(dict(zip(leaves, gradients, strict=True)))


def whole_objective(label: str):
    """The loss and gradients of one process that holds all rows."""
    observed = hashed_draw(VARIANTS[label])
    return objective_gradients(VARIANTS[label], observed, VARIANTS[label].inputs(observed), gather=False)


def shared_objectives(rank: int, labels: list[str], shares: dict[str, list[list[int]]]):
    """Of each variant, the loss and gradients on a rank that holds its share of the rows."""
    answers = {}
    for label in labels:
        whole = hashed_draw(VARIANTS[label])
        rows = {side: torch.tensor(shares[side][rank], dtype=torch.int64) for side in ("images", "texts")}
        inputs = {
            name: value if "queue" in name or name == "bias" else value[rows[f"{name.partition('_')[0]}s"]]
            for name, value in VARIANTS[label].inputs(whole).items()
        }
        observed = Observations(
            whole.image_embeds.detach()[rows["images"]].requires_grad_(),
            whole.text_embeds.detach()[rows["texts"]].requires_grad_(),
            whole.image_group_ids[rows["images"]],
            whole.text_group_ids[rows["texts"]],
        )
        answers[label] = objective_gradients(VARIANTS[label], observed, inputs, gather=True)
    return answers


def ddp_step_by_tiles(rank: int, dtype: torch.dtype, fields: dict, shares: dict):
    """`ddp_step` whose objective holds no matrix of logits."""
    with (
        mock.patch.object(contrast_mxmclr, "MATRIX_LOGITS", -1),
        mock.patch.object(tiles_mxmclr, "TILE", 3),
    ):
        return ddp_step(rank, dtype, fields, shares)


def lone_evaluation(rank: int):
    """One rank evaluates while the others do something else: nothing may be gathered."""
    model = tiny_model().eval()
    return model(**tiny_batch()).loss.item() if rank == 0 else None


def gather_in_evaluation(rank: int, shares: dict):
    model = tiny_model().eval()
    return model(**split_batch(tiny_batch(), shares, rank), gather=True).loss.item()


def gather_rows(rank: int, sizes: list[int]):
    rows = torch.full((sizes[rank], 2), float(rank), requires_grad=True)
    gathered = gather_ragged(rows)
    gathered.sum().backward()
    return gathered.detach().numpy(), rows.grad.numpy()


def numbered_ids(rank: int):
    model = tiny_model()
    model.training = True
    batch = tiny_batch()
    batch["image_group_ids"] -= 2**40
    try:
        model(**batch)
    except ValueError as error:
        return str(error)
    return None


def join_accelerate(rank: int, world_size: int) -> None:
    """Let Accelerate take over the pool's process group."""
    os.environ |= {name: str(world_size) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    os.environ |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")} | {"OMP_NUM_THREADS": "1"}
    PartialState(cpu=True)


def search_shard(rank: int, search, shards: list[dict]):
    """What `search` finds when each rank passes its own arguments, or the error that it raises there."""
    join_accelerate(rank, len(shards))
    try:
        return [part.numpy() for part in search(**shards[rank], gather=gather_ranks)]
    except ValueError as error:
        return str(error)


def cached_step(rank: int, dtype: torch.dtype, fields: dict, shares: dict, sizes: tuple, steps: int = 1):
    """The loss and gradients of a rank under DDP that encodes its rows in micro-batches, dropout off."""
    join_accelerate(rank, len(shares["images"]))
    accelerator = Accelerator(cpu=True)
    model = tiny_model(**fields).to(dtype)
    model.training = True  # gathers; the towers stay in eval mode, so that dropout is off
    wrapped = accelerator.prepare_model(model)
    assert isinstance(wrapped, DistributedDataParallel)
    batch = split_batch(tiny_batch(dtype), shares, rank)
    synchronised = 0

    def count(state, bucket):
        nonlocal synchronised
        synchronised += bucket.is_last()
        return allreduce_hook(state, bucket)

    wrapped.register_comm_hook(None, count)
    for _ in range(steps):
        wrapped.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            output = take_gradients(accelerator, wrapped, batch, MicroBatchSizes(*sizes))
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return output.loss.item(), as_plain(gradients), synchronised


def exactness(rank: int, world_size: int):
    """What `training/exactness.py` finds of the ways to take a gradient on so many ranks."""
    join_accelerate(rank, world_size)
    cases = [case for case in gradient_cases.build_cases([world_size], micro_batch=2, tile=3) if case.ranks > 1]
    batches = [tiny_batch(torch.float64, seed) for seed in range(2)]
    found = gradient_cases.differences_here(cases, tiny_model().double(), batches)
    return {case.name: max(each.loss, each.gradient) for case, each in zip(cases, found, strict=True)}


def exactness_without_average(rank: int, world_size: int):
    """The same without DDP, so that nothing is averaged."""
    with mock.patch.object(Accelerator, "prepare_model", lambda _, model: model):
        return exactness(rank, world_size)
