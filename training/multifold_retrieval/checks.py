"""What the sides of a search must be, and errors that all ranks raise together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .items import REDUCTIONS, Items

CHECKED_ROWS = 2**14  # embeddings whose norms are taken at once
UNIT_NORM_TOLERANCE = 1e-2  # what rounding a unit vector to bfloat16 may cost

Gather = Callable[[Tensor], list[Tensor]]  # from a rank's tensor to those of all ranks, of one shape, in rank order


def alone(rows: Tensor) -> list[Tensor]:
    """The `Gather` of a process that holds the whole gallery."""
    return [rows]


def check_embeds(side: str, embeds: Tensor, group_ids: Tensor) -> None:
    """Raise unless `{side}_embeds`, `(rows, dim)`, are finite unit vectors with one int64 group id each."""
    check_rows(side, embeds)
    _check_not_empty(side, embeds, len(embeds))
    check_group_ids(side, group_ids, len(embeds), None)


def check_rows(side: str, embeds: Tensor) -> None:
    """Raise unless `{side}_embeds`, `(rows, dim)`, are finite unit vectors; there may be none."""
    if embeds.ndim != 2:
        raise ValueError(f"`{side}_embeds` must be (rows, dim) with at least one row, got {tuple(embeds.shape)}.")
    if not embeds.is_floating_point():
        raise TypeError(f"`{side}_embeds` must be of a float type, got {embeds.dtype}.")
    for start in range(0, len(embeds), CHECKED_ROWS):
        _check_norms(side, embeds[start : start + CHECKED_ROWS], start)


def check_group_ids(side: str, group_ids: Tensor, num_items: int, sets: Tensor | None) -> None:
    """Raise unless `{side}_group_ids` is int64, one for each embedding, or for each set where there are sets."""
    if group_ids.dtype != torch.int64:
        raise TypeError(f"`{side}_group_ids` must be int64, got {group_ids.dtype}.")
    if group_ids.shape != (num_items,):
        owners = "embeddings" if sets is None else "sets"
        raise ValueError(
            f"`{side}_group_ids` has shape {tuple(group_ids.shape)} for {num_items} {owners}; pass one id for each."
        )


def check_sets(side: str, embeds: Tensor, sets: Tensor | None, reduce: str) -> None:
    """Raise unless `{side}_sets` numbers the rows' sets ascending from 0 without a gap, and the reduction exists."""
    if reduce not in REDUCTIONS:
        raise ValueError(f"`{side}_reduce` must be one of {list(REDUCTIONS)}, got {reduce!r}.")
    if sets is None:
        return
    if sets.dtype != torch.int64:
        raise TypeError(f"`{side}_sets` must be int64, got {sets.dtype}.")
    if sets.shape != (len(embeds),):
        raise ValueError(
            f"`{side}_sets` has shape {tuple(sets.shape)} for {len(embeds)} embeddings; pass one set for each."
        )
    steps = sets.diff(prepend=sets.new_tensor([-1]))
    if len(sets) and (steps[0] != 1 or steps.min() < 0 or steps.max() > 1):
        raise ValueError(f"`{side}_sets` must ascend from 0 without a gap; sort the rows by set and number the sets.")


def check_search(
    query_embeds: Tensor,
    gallery_embeds: Tensor,
    query_sets: Tensor | None,
    gallery_sets: Tensor | None,
    query_reduce: str,
    gallery_reduce: str,
) -> None:
    """Raise unless both sides are unit vectors of one dimension with well-formed sets; the gallery may be empty."""
    check_rows("query", query_embeds)
    _check_not_empty("query", query_embeds, len(query_embeds))
    check_rows("gallery", gallery_embeds)
    if query_embeds.shape[1] != gallery_embeds.shape[1]:
        raise ValueError(
            f"`query_embeds` and `gallery_embeds` must have one dimension, got {query_embeds.shape[1]} and "
            f"{gallery_embeds.shape[1]}; embed both sides with the same model."
        )
    check_sets("query", query_embeds, query_sets, query_reduce)
    check_sets("gallery", gallery_embeds, gallery_sets, gallery_reduce)


@contextmanager
def raise_together(gather: Gather, device: torch.device) -> Iterator[None]:
    """Let no rank wait for one whose input is refused: they all raise, that rank the error itself."""
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    refused = [int(flag) for flag in gather(torch.tensor([problem is not None], device=device).long())]
    if problem is not None:
        raise problem
    if any(refused):
        raise ValueError(f"Rank {refused.index(1)} refused its part of the gallery; the error it raised says why.")


def gallery_sizes(gather: Gather, gallery: Items) -> list[int]:
    """How many items of the gallery each rank holds, of which one at least must hold some."""
    sizes = [int(size) for size in gather(torch.tensor([len(gallery)], device=gallery.embeds.device))]
    _check_not_empty("gallery", gallery.embeds, sum(sizes))
    return sizes


def _check_not_empty(side: str, embeds: Tensor, num_items: int) -> None:
    if num_items == 0:
        raise ValueError(f"`{side}_embeds` must be (rows, dim) with at least one row, got {tuple(embeds.shape)}.")


def _check_norms(side: str, embeds: Tensor, first_row: int) -> None:
    norms = torch.linalg.vector_norm(embeds, dim=1, dtype=torch.promote_types(embeds.dtype, torch.float32))
    if not norms.isfinite().all():
        row = int(norms.isfinite().logical_not().nonzero()[0])
        raise ValueError(f"`{side}_embeds` must be finite, got NaN or infinity in row {first_row + row}.")
    off = ((norms - 1).abs() > UNIT_NORM_TOLERANCE).nonzero()
    if len(off):
        raise ValueError(
            f"`{side}_embeds` must have unit norm, got {norms[off[0]].item():.4g} in row {first_row + int(off[0])}; "
            "divide each row by its norm."
        )
