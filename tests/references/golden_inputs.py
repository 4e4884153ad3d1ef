"""The inputs of the golden cases by the formulas of their authors, and the rows of them that each case is fed with."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """Some observations of one modality, flat, and whose each is."""

    embeds: Tensor  # (num_rows, dim)
    ids: Tensor  # (num_rows,) int64
    places: Tensor  # (num_rows,) int64, place in the fold from 0

    def where(self, kept: Tensor) -> "Rows":
        return Rows(*(part[kept] for part in self))


class Inputs(NamedTuple):
    """What a case is computed on; the embeddings ask for gradients."""

    images: Rows
    texts: Rows
    leaves: tuple[Tensor, Tensor]  # the flat embeddings of both sides


def case_inputs(case: dict[str, Any]) -> Inputs:
    """The float64 inputs of a case's shapes, by the formulas of the golden values' authors."""
    shapes = case["shapes"]
    sides = []
    for kind, sizes in (("V", "P"), ("T", "Q")):
        if sizes in shapes:
            fold_sizes, dim = shapes[sizes], shapes[kind][-1]
        else:
            num_instances, fold_size, dim = shapes[kind]
            fold_sizes = [fold_size] * num_instances
        sides.append(ragged_rows(kind, fold_sizes, dim))
    return Inputs(*sides, (sides[0].embeds, sides[1].embeds))


def ragged_rows(kind: str, fold_sizes: list[int], dim: int) -> Rows:
    """The first rows of each fold, of the formula for images (`V`) or texts (`T`)."""
    own = {"V": lambda i, p, d: torch.sin(0.37 * i + 1.13 * p * d + 0.20 * i * p)}
    own["T"] = lambda i, p, d: torch.cos(0.53 * i + 0.77 * p * d - 0.31 * i * p)
    folds = formula(len(fold_sizes), max(fold_sizes), dim, own[kind], 0.6)
    sizes = torch.tensor(fold_sizes)
    places = torch.arange(max(fold_sizes)).expand(len(fold_sizes), -1)
    kept = places < sizes[:, None]
    ids = torch.arange(len(fold_sizes)).repeat_interleave(sizes)
    return Rows(folds[kept].requires_grad_(), ids, places[kept])


def formula(num_instances: int, fold_size: int, dim: int, own: Callable[..., Tensor], share: float) -> Tensor:
    """Unit vectors `(num_instances, fold_size, dim)`: what an instance shares, and an observation's own; from 1 on."""
    i, p, d = torch.meshgrid(
        *(torch.arange(1, size + 1, dtype=torch.float64) for size in (num_instances, fold_size, dim)), indexing="ij"
    )
    rows = torch.sin(0.91 * i * d) + share * own(i, p, d)
    return rows / rows.norm(dim=-1, keepdim=True)


def observation(rows: Rows, number: int) -> Rows:
    """Of each instance, its observation of that number, from 1."""
    return rows.where(rows.places == number - 1)


def firsts(inputs: Inputs) -> tuple[Rows, Rows]:
    """View 1 and caption 1 of each instance."""
    return observation(inputs.images, 1), observation(inputs.texts, 1)


def pooled(rows: Rows) -> Rows:
    """The unit-norm mean of each fold."""
    ids = rows.ids.unique()
    means = torch.stack([rows.embeds[rows.ids == each].mean(dim=0) for each in ids])
    return Rows(means / means.norm(dim=1, keepdim=True), ids, torch.zeros_like(ids))


def flat_pairs(inputs: Inputs) -> tuple[Rows, Rows]:
    """All pairs of a view and a caption of one instance, in order; the ids are the instances'."""
    image, text = (inputs.images.ids[:, None] == inputs.texts.ids).nonzero(as_tuple=True)
    return inputs.images.where(image), inputs.texts.where(text)


def cyclic_pairs(inputs: Inputs) -> tuple[Rows, Rows]:
    """Pairs `(view r % P, caption r % Q)` for r below the larger fold."""
    sizes = [int(rows.places.max()) + 1 for rows in (inputs.images, inputs.texts)]
    drawn = [
        [observation(rows, r % size + 1) for r in range(max(sizes))]
        for rows, size in zip((inputs.images, inputs.texts), sizes, strict=True)
    ]
    images, texts = (Rows(*(torch.cat(parts) for parts in zip(*each, strict=True))) for each in drawn)
    return images, texts


def each_its_own(pairs: tuple[Rows, Rows]) -> tuple[Rows, Rows]:
    """The same pairs, each an instance of its own."""
    ids = torch.arange(len(pairs[0].ids))
    return pairs[0]._replace(ids=ids), pairs[1]._replace(ids=ids)


PAIRINGS: dict[str, Callable[[Inputs], tuple[Rows, Rows]]] = {
    "paired": firsts,
    "pair": firsts,
    "pooled": lambda inputs: (pooled(inputs.images), pooled(inputs.texts)),
    "flat_pairs": lambda inputs: each_its_own(flat_pairs(inputs)),
    "cyclic_pairs": lambda inputs: each_its_own(cyclic_pairs(inputs)),
}


def with_labels(rows: Rows, labels: list[int]) -> Rows:
    """The rows with their instances replaced by classes."""
    return rows._replace(ids=torch.tensor(labels)[rows.ids])


def chosen(names: str, inputs: Inputs) -> tuple[Rows, Rows]:
    """The observations that a name such as `v1v2t1` lists; `all` of them."""
    if names == "all":
        return inputs.images, inputs.texts
    numbers = {kind: [int(n) for n in re.findall(rf"{kind}(\d+)", names)] for kind in "vt"}
    images, texts = (
        rows.where(torch.isin(rows.places + 1, torch.tensor(numbers[kind])))
        for rows, kind in zip(inputs[:2], "vt", strict=True)
    )
    return images, texts


def shortened(images: Rows, texts: Rows) -> tuple[Rows, Rows]:
    """The same, or as many rows of the same singular values and vectors as there are dimensions, if there are more.

    Their code takes more observations of an instance than dimensions, and has one logit a dimension then.
    """
    sizes, dim = images.ids.bincount() + texts.ids.bincount(), images.embeds.shape[1]
    if (sizes <= dim).all():
        return images, texts
    triangles = [
        torch.linalg.qr(torch.cat([side.embeds[side.ids == number] for side in (images, texts)])).R
        for number in images.ids.unique()
    ]
    ids, places = torch.arange(len(triangles)), torch.zeros(len(triangles), dtype=torch.int64)
    rest = Rows(torch.cat([each[1:] for each in triangles]), ids.repeat_interleave(dim - 1), places)
    return Rows(torch.stack([each[0] for each in triangles]), ids, places), rest


def lapack_signs(images: Rows, texts: Rows) -> Tensor:
    """1 where LAPACK's leading singular vector of an instance points to its observations, else -1."""
    signs = []
    for number in images.ids.unique():
        rows = torch.cat([side.embeds[side.ids == number] for side in (images, texts)]).detach()
        leading = torch.linalg.svd(rows.T, full_matrices=True).U[:, 0]
        signs.append((rows @ leading).sum().sign())
    return torch.stack(signs)
