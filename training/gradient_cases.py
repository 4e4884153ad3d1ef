"""Ways to take one gradient, as `training/exactness.py` compares them, in this process and on several ranks."""

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, multiprocessing, nn
from torch.nn.modules.batchnorm import _BatchNorm

import modeling_mxmclr.contrast_mxmclr as contrast
import modeling_mxmclr.tiles_mxmclr as tiles
from modeling_mxmclr import MXMCLRModel
from modeling_mxmclr.folds_mxmclr import index_by_appearance
from training.cached_step import MicroBatchSizes, micro_batches, split_inputs, take_gradients

Batch = Mapping[str, Tensor]
Gradients = dict[str, Tensor]
WHOLE = MicroBatchSizes()
MATRIX = 2**62  # a tile that holds every batch: the matrix of logits


@dataclass(frozen=True)
class Case:
    """One way to take the gradient of a batch."""

    name: str
    ranks: int = 1
    dealt: str = "instances"  # to the ranks; or `observations`, so that they share instances
    tile: int = MATRIX  # side of the tiles of logits
    sizes: MicroBatchSizes = WHOLE
    accumulates: bool = False  # all batches to one step
    drops_out: bool = False


@dataclass(frozen=True)
class Difference:
    """How far a way's loss and gradient lie from the plain ones, at most, over batches and ranks."""

    loss: float  # relative to the loss, where that is above 1
    gradient: float  # relative to the largest entry of the whole gradient
    parameter: str  # where that is


def build_cases(world_sizes: Sequence[int], micro_batch: int, tile: int) -> list[Case]:
    """The ways to compare."""
    small, uneven = MicroBatchSizes(1, 1), MicroBatchSizes(micro_batch, micro_batch + 2)
    by_tokens = MicroBatchSizes(micro_batch, tokens=64)
    cases = [
        Case(f"logits in tiles of {tile}", tile=tile),
        Case("micro-batches of 1", sizes=small),
        Case(f"micro-batches of {uneven.images} images, {uneven.texts} texts", sizes=uneven),
        Case(f"micro-batches of {by_tokens.images} images, {by_tokens.tokens} tokens", sizes=by_tokens),
        Case("micro-batches, dropout replayed", sizes=uneven, drops_out=True),
        Case("batches accumulated", accumulates=True),
        Case("batches accumulated, micro-batches", accumulates=True, sizes=uneven),
    ]
    for ranks in world_sizes:
        cases += [
            Case(f"{ranks} ranks", ranks),
            Case(f"{ranks} ranks that share instances", ranks, "observations"),
            Case(f"{ranks} ranks, logits in tiles of {tile}", ranks, tile=tile),
            Case(f"{ranks} ranks, micro-batches", ranks, "observations", sizes=uneven),
            Case(f"{ranks} ranks, all of these, accumulated", ranks, "observations", tile, uneven, True),
        ]
    return cases


def compare(cases: Sequence[Case], model: MXMCLRModel, batches: Sequence[Batch]) -> Iterator[tuple[Case, Difference]]:
    """Each case, and how far it lies from one process that takes each batch whole, with the matrix of logits."""
    for ranks in dict.fromkeys(case.ranks for case in cases):
        chosen = [case for case in cases if case.ranks == ranks]
        differences = differences_here(chosen, model, batches) if ranks == 1 else on_ranks(chosen, model, batches)
        yield from zip(chosen, differences, strict=True)


def on_ranks(cases: Sequence[Case], model: MXMCLRModel, batches: Sequence[Batch]) -> list[Difference]:
    """`differences_here` on as many processes as the cases ask for; of each case the largest over the ranks."""
    with tempfile.TemporaryDirectory() as folder:
        world_size = cases[0].ranks
        arguments = (world_size, Path(folder), cases, model, batches)
        multiprocessing.start_processes(run_rank, arguments, world_size, start_method="spawn")
        answers = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world_size)]
    return [Difference(*max(each, key=lambda found: found[1])) for each in zip(*answers, strict=True)]


def run_rank(
    rank: int, world_size: int, folder: Path, cases: Sequence[Case], model: MXMCLRModel, batches: Sequence[Batch]
) -> None:
    """What each process of `on_ranks` does: join the others, and write what it found to a file."""
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    dist.init_process_group("gloo", f"file://{folder / 'rendezvous'}", rank=rank, world_size=world_size)
    found = differences_here(cases, model, batches)
    (folder / f"{rank}.json").write_text(json.dumps([(each.loss, each.gradient, each.parameter) for each in found]))
    dist.barrier()
    dist.destroy_process_group()


def differences_here(cases: Sequence[Case], model: MXMCLRModel, batches: Sequence[Batch]) -> list[Difference]:
    """How far the gradients that this process takes, as one of its ranks, lie from the plain ones."""
    accelerator = Accelerator(cpu=True)
    plain = [plain_gradients(model, batch) for batch in batches]
    # Prepared, a model carries a mark that other processes would take over with it, and leave it without DDP.
    wrapped = accelerator.prepare_model(model) if accelerator.num_processes > 1 else model
    return [difference_of(case, accelerator, wrapped, model, batches, plain) for case in cases]


def plain_gradients(model: MXMCLRModel, batch: Batch) -> tuple[float, Gradients]:
    """The loss and the gradient of one process that takes the batch whole, with the matrix of logits, without dropout."""
    model.eval()
    model.zero_grad()
    with tiles_of(MATRIX):
        return backpropagated(model, model(**batch))


def held_gradients(model: MXMCLRModel, batch: Batch, sizes: MicroBatchSizes) -> tuple[float, Gradients]:
    """The same in micro-batches whose graphs are all held, which is what replayed dropout must equal."""
    model.zero_grad()
    images, texts, rest = split_inputs(batch)
    sides = []
    for inputs, size in ((images, sizes.images), (texts, sizes.texts_of(texts.get("input_ids")))):
        outputs = [model(**part) for part in micro_batches(inputs, size)]
        sides.append(
            torch.cat([each.text_embeds if each.image_embeds is None else each.image_embeds for each in outputs])
        )
    return backpropagated(model, model(image_embeds=sides[0], text_embeds=sides[1], **rest))


def difference_of(
    case: Case,
    accelerator: Accelerator,
    wrapped: nn.Module,
    model: MXMCLRModel,
    batches: Sequence[Batch],
    plain: Sequence[tuple[float, Gradients]],
) -> Difference:
    """How far a case's gradients lie from the plain ones, at most over the batches."""
    steps = [list(range(len(batches)))] if case.accumulates else [[number] for number in range(len(batches))]
    differences = []
    for step in steps:
        taken = [share_of(batches[number], case, accelerator.process_index) for number in step]
        losses, gradients = step_gradients(case, accelerator, wrapped, model, taken)
        expected = [plain[number] for number in step]
        if case.drops_out:
            torch.manual_seed(0)
            expected = [held_gradients(model, taken[0], case.sizes)]
        differences.append(largest_difference(losses, gradients, expected))
    return max(differences, key=lambda found: found.gradient)


def step_gradients(
    case: Case, accelerator: Accelerator, wrapped: nn.Module, model: MXMCLRModel, batches: Sequence[Batch]
) -> tuple[list[float], Gradients]:
    """The losses of some batches, and the gradient that a step has accumulated of them, as a case takes it."""
    torch.manual_seed(0)
    model.train(case.drops_out)
    model.training = True  # ranks gather
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    wrapped.zero_grad()
    accelerator.gradient_accumulation_steps, accelerator.step = len(batches), 0
    losses = []
    with tiles_of(case.tile):
        for batch in batches:
            with accelerator.accumulate(wrapped):
                output: Any = take_gradients(accelerator, wrapped, batch, case.sizes)
                losses.append(output.loss.item())
    return losses, gradients_of(model)


def largest_difference(
    losses: Sequence[float], gradients: Gradients, expected: Sequence[tuple[float, Gradients]]
) -> Difference:
    """How far losses lie from those expected, and a gradient from the mean of those expected."""
    pairs = zip(losses, expected, strict=True)
    loss = max(or_infinity(abs(one - other) / max(1, abs(other))) for one, (other, _) in pairs)
    mean = {name: torch.stack([each[name] for _, each in expected]).mean(dim=0) for name in expected[0][1]}
    largest = max(rows.abs().max().item() for rows in mean.values()) or 1.0
    apart = {}
    for name in mean.keys() | gradients.keys():
        one, other = (each.get(name, torch.zeros(())) for each in (gradients, mean))
        apart[name] = or_infinity((one - other).abs().max().item() / largest)
    parameter = max(sorted(apart), key=apart.__getitem__)
    return Difference(loss, apart[parameter], parameter)


def or_infinity(difference: float) -> float:
    """A difference, and infinity for one that is no number, which would compare as small."""
    return math.inf if math.isnan(difference) else difference


def share_of(batch: Batch, case: Case, rank: int) -> Batch:
    """The rows of a batch that a rank holds, where instances or single observations are dealt in turn."""
    if case.ranks == 1:
        return batch
    ids = [batch[name] for name in ("image_group_ids", "text_group_ids")]
    if case.dealt == "instances":
        places = index_by_appearance(torch.cat(ids))[0].split([len(each) for each in ids])
    else:
        places = tuple(torch.arange(len(each)) for each in ids)
    mine = {side: place % case.ranks == rank for side, place in zip(("images", "texts"), places, strict=True)}
    return {
        name: rows[mine["images" if name in ("pixel_values", "image_group_ids") else "texts"]]
        for name, rows in batch.items()
    }


def backpropagated(model: nn.Module, output: Any) -> tuple[float, Gradients]:
    """The loss that a model put out, and its gradient."""
    output.loss.backward()
    return output.loss.item(), gradients_of(model)


def gradients_of(model: nn.Module) -> Gradients:
    """A copy of the gradient of every parameter that has one."""
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@contextmanager
def tiles_of(side: int) -> Iterator[None]:
    """Let objectives work in tiles of so many rows and columns, or hold the matrix of logits."""
    before = contrast.MATRIX_LOGITS, tiles.TILE
    contrast.MATRIX_LOGITS, tiles.TILE = (MATRIX, before[1]) if side == MATRIX else (-1, side)
    try:
        yield
    finally:
        contrast.MATRIX_LOGITS, tiles.TILE = before
