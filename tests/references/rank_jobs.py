"""What the ranks of a `GlooPool` do; importable, so that the pool's processes find it."""

import os
import warnings
from contextlib import contextmanager
from unittest import mock

import torch
from accelerate import Accelerator, PartialState
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from modeling_mxmclr import MXMCLRModel, contrast_mxmclr, tiles_mxmclr
from modeling_mxmclr.distributed_mxmclr import gather_batch, sum_over_ranks
from modeling_mxmclr.folds_mxmclr import Observations
from modeling_mxmclr.objectives_mxmclr import get_objective
from modeling_mxmclr.scale_mxmclr import LogitScale
from tests.references.golden_inputs import case_inputs
from tests.references.observed import SCALE, VARIANTS, Variant
from tests.references.tiny import tiny_batch, tiny_model
from training import gradient_cases
from training.cached_step import MicroBatchSizes, take_gradients
from training.memory import BatchMemory
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


def whole_batch_twice(dtype: torch.dtype, fields: dict):
    """The same of a batch that remembers itself from a step before."""
    model, batch = tiny_model(**fields).to(dtype), tiny_batch(dtype)
    return loss_and_gradients(model, batch | remembering(model, batch))


def ddp_step_twice(rank: int, dtype: torch.dtype, fields: dict, shares: dict):
    """The same as `ddp_step`, with a memory that holds the shares of all ranks, and is half as large as it may be."""
    model = tiny_model(**fields).to(dtype)
    model.training = True
    batch = split_batch(tiny_batch(dtype), shares, rank)
    remembered = remembering(model, batch)
    return loss_and_gradients(DistributedDataParallel(model), batch | remembered)


def remembering(model: MXMCLRModel, batch: dict[str, torch.Tensor]) -> dict[str, Observations]:
    """What a memory gives beside the next batch, when it has seen one."""
    memory = BatchMemory(2, 0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        memory.keep(batch, model(**batch))
    return memory.inputs()


def fsdp_step(rank: int, dtype: torch.dtype, fields: dict, shares: dict):
    """The loss and whole gradients of a rank whose parameters are sharded, dropout off."""
    model = tiny_model(**fields).to(dtype)
    model.training = True
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for module in (model.text_model, model.vision_model, model):
        fully_shard(module, mesh=mesh)
    output = model(**split_batch(tiny_batch(dtype), shares, rank))
    output.loss.backward()
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}
    return output.loss.item(), as_plain(gradients)


def hashed_draw(variant: Variant, dtype: torch.dtype) -> Observations:
    """A variant's observations with ids that mean the same on every rank."""
    observed = variant.draw()
    return Observations(
        observed.image_embeds.detach().to(dtype),
        observed.text_embeds.detach().to(dtype),
        observed.image_group_ids + 2**40,
        observed.text_group_ids + 2**40,
    )


def objective_outcome(variant: Variant, observed: Observations, inputs: dict, gather: bool):
    """Loss and components, and the gradients in the given rows, the scale and a learned bias, as plain arrays."""
    dtype = observed.image_embeds.dtype
    observed = observed._replace(
        image_embeds=observed.image_embeds.requires_grad_(), text_embeds=observed.text_embeds.requires_grad_()
    )
    learned = {"scale": SCALE.to(dtype, copy=True).requires_grad_()}
    if "bias" in inputs:
        learned["bias"] = torch.as_tensor(inputs["bias"], dtype=dtype).clone().requires_grad_()
    beside = {
        name: rows.to(dtype) if rows.is_floating_point() else rows for name, rows in inputs.items() if name != "bias"
    }
    leaves = {"images": observed.image_embeds, "texts": observed.text_embeds} | learned
    if gather:
        observed, beside, learned = gather_batch(observed, beside, learned)
    loss, components = variant.output(observed, **learned, **beside)
    if gather:
        loss, components = sum_over_ranks(loss, components)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    values = {"loss": loss.item()} | {name: part.item() for name, part in components.items()}
    return values, as_plain(dict(zip(leaves, gradients, strict=True)))


def whole_objective(label: str, dtype: torch.dtype):
    """The outcome in one process that holds all rows."""
    observed = hashed_draw(VARIANTS[label], dtype)
    return objective_outcome(VARIANTS[label], observed, VARIANTS[label].inputs(observed), gather=False)


def shared_objectives(rank: int, labels: list[str], dtype: torch.dtype, shares: dict[str, list[list[int]]]):
    """Of each variant, the outcome on a rank that holds its share of the rows."""
    answers = {}
    for label in labels:
        whole = hashed_draw(VARIANTS[label], dtype)
        rows = {side: torch.tensor(shares[side][rank], dtype=torch.int64) for side in ("images", "texts")}
        inputs = {
            name: value if "queue" in name or name == "bias" else value[rows[f"{name.partition('_')[0]}s"]]
            for name, value in VARIANTS[label].inputs(whole).items()
        }
        observed = Observations(
            whole.image_embeds[rows["images"]],
            whole.text_embeds[rows["texts"]],
            whole.image_group_ids[rows["images"]],
            whole.text_group_ids[rows["texts"]],
        )
        answers[label] = objective_outcome(VARIANTS[label], observed, inputs, gather=True)
    return answers


def golden_two_ranks(rank: int, name: str, logit_scale: float, logit_bias: float | None):
    """A rank's own loss, as public code has it, the sum over ranks, and the gradients of its rows and the scale."""
    case = {"shapes": {"V": [4, 1, 8], "T": [4, 1, 8]}}
    mine = slice(2 * rank, 2 * rank + 2)
    images, texts = (rows.embeds.detach()[mine].requires_grad_() for rows in case_inputs(case)[:2])
    ids = torch.arange(4)[mine] + 2**40
    learned = {"scale": torch.tensor([logit_scale], dtype=torch.float64, requires_grad=True)}
    if logit_bias is not None:
        learned["bias"] = torch.tensor([logit_bias], dtype=torch.float64)
    leaves = images, texts, learned["scale"]
    observed, _, learned = gather_batch(Observations(images, texts, ids, ids), {}, learned)
    share, components = get_objective(name)(observed, **learned)
    loss, _ = sum_over_ranks(share, components)
    gradients = torch.autograd.grad(loss, leaves)
    return share.item() * torch.distributed.get_world_size(), loss.item(), *(each.numpy() for each in gradients)


def tiled_objectives(rank: int, *arguments):
    """`shared_objectives` without a matrix of logits."""
    with by_tiles():
        return shared_objectives(rank, *arguments)


def ddp_step_by_tiles(rank: int, dtype: torch.dtype, fields: dict, shares: dict):
    """`ddp_step` whose objective holds no matrix of logits."""
    with by_tiles():
        return ddp_step(rank, dtype, fields, shares)


@contextmanager
def by_tiles():
    """A context in which objectives hold no matrix of logits, and tiles are of three rows."""
    with (
        mock.patch.object(contrast_mxmclr, "MATRIX_LOGITS", -1),
        mock.patch.object(tiles_mxmclr, "TILE", 3),
    ):
        yield


def lone_evaluation(rank: int):
    """One rank evaluates while the others do something else: nothing may be gathered."""
    model = tiny_model().eval()
    return model(**tiny_batch()).loss.item() if rank == 0 else None


def gather_in_evaluation(rank: int, shares: dict):
    model = tiny_model().eval()
    return model(**split_batch(tiny_batch(), shares, rank), gather=True).loss.item()


def gather_rows(rank: int, sizes: list[int]):
    """Gathered rows, which are this rank's, and the gradient of the rank's number plus one times their sum."""
    rows = torch.full((sizes[rank], 2), float(rank), requires_grad=True)
    nothing, ids = torch.zeros(0, 2), torch.full((sizes[rank],), 2**40)
    gathered = gather_batch(Observations(rows, nothing, ids, ids[:0]), {}, {}).observed
    ((rank + 1) * gathered.image_embeds.sum()).backward()
    return gathered.image_embeds.detach().numpy(), gathered.image_queries.numpy(), rows.grad.numpy()


def share_a_sum(rank: int):
    """The sum of shares, its component, and the gradient of this rank's share."""
    share = torch.tensor(float(rank + 1), requires_grad=True)
    loss, components = sum_over_ranks(share, {"part": torch.tensor(2.0)})
    loss.backward()
    return loss.item(), components["part"].item(), share.grad.item()


def learned_beyond_its_limit(rank: int, slopes: list[float]):
    """The gradient of a log scale beyond its maximum, of which each rank's share says its own."""
    scale, ids = LogitScale(maximum=10.0), torch.tensor([2**40])
    scale.weight.data.fill_(5.0)
    rows = torch.ones(1, 2)
    learned = gather_batch(Observations(rows, rows, ids, ids), {}, {"scale": scale()}).learned
    sum_over_ranks(slopes[rank] * learned["scale"].sum(), {})[0].backward()
    return scale.weight.grad.item()


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
