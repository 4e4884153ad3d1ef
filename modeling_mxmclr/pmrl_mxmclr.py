"""PMRL: the observations of each instance aligned along their leading singular vector."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .contrast_mxmclr import ObjectiveOutput, Positive, Weight, no_pair, prepare, undivided
from .folds_mxmclr import Observations

SMALLEST_GAP = 1e-9  # between the two largest eigenvalues, relative to the largest; below it the vector is any of many


@undivided
def pmrl(
    observed: Observations,
    scale: Tensor,
    *,
    intra_temperature: Positive = 0.05,
    intra_weight: Weight = 1.0,
    inter_weight: Weight = 1.0,
) -> ObjectiveOutput:
    """PMRL: one large singular value within an instance, and leading vectors that differ between instances.

    "Principled Multimodal Representation Learning" (https://huggingface.co/papers/2507.17343). The sign of a singular
    vector is the linear algebra library's whim, which moves the public code's second part; ours points to the side of
    its observations. Folds may be ragged; all observations of an instance count alike.

    Args:
        observed: Observations of the whole batch; embeddings of unit norm.
        scale: Exponentiated logit scale between leading vectors, `()` or `(1,)`; the paper has 10.
        intra_temperature: Temperature of the singular values; the loss vanishes below about 0.05.
        intra_weight: Weight of the part within instances.
        inter_weight: Weight of the part between them.

    Returns:
        The loss, with components `intra` and `inter`.

    Raises:
        ValueError: If an instance has more observations than the embeddings have dimensions.
    """
    observed, scale, instances = prepare(observed, scale)
    if not instances.in_both.any():
        return no_pair(observed, scale)
    rows = torch.cat([observed.image_embeds, observed.text_embeds])
    index = torch.cat([instances.image_index, instances.text_index])
    intra, leading = [], []
    for tuples in tuples_by_size(rows, index, instances.in_both):
        if tuples.shape[1] > tuples.shape[2]:
            raise ValueError(
                f"`pmrl` needs at most as many observations of an instance as dimensions, got {tuples.shape[1]} "
                f"observations in {tuples.shape[2]} dimensions; draw fewer."
            )
        # Descending; those that are found in float32 depend on the order of the rows by more than 1e-5.
        singular_values = torch.linalg.svdvals(tuples.double()).to(tuples)
        intra.append(-(singular_values / intra_temperature).log_softmax(dim=1)[:, 0])
        leading.append(LeadingVector.apply(tuples))
    vectors = torch.cat(leading)
    within = torch.cat(intra).mean()
    between = F.cross_entropy(scale * vectors @ vectors.T, torch.arange(len(vectors), device=vectors.device))
    components = {"intra": within.detach(), "inter": between.detach()}
    return ObjectiveOutput(intra_weight * within + inter_weight * between, components)


def tuples_by_size(rows: Tensor, index: Tensor, kept: Tensor) -> list[Tensor]:
    """The rows of each kept instance, `(num_instances, size, dim)` for each size that there is."""
    order = index.argsort(stable=True)
    sizes = index.bincount(minlength=len(kept))
    starts = sizes.cumsum(dim=0) - sizes
    tuples = []
    for size in sizes[kept].unique().tolist():
        chosen = (kept & (sizes == size)).nonzero()
        tuples.append(rows[order[starts[chosen] + torch.arange(size, device=rows.device)]])
    return tuples


class LeadingVector(torch.autograd.Function):
    """The leading right singular vector of each matrix, on the side of the sum of its rows.

    Torch's own gradient divides by the gaps between all singular values, and equal rows have several at 0. Only the
    gaps to the first matter.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """Unit vectors `(num_matrices, dim)` of `rows`, `(num_matrices, size, dim)`."""
        eigenvalues, eigenvectors = torch.linalg.eigh(rows @ rows.transpose(1, 2))
        leading = F.normalize((eigenvectors[:, None, :, -1] @ rows).squeeze(1), dim=1)
        sign = torch.where((leading * rows.sum(dim=1)).sum(dim=1, keepdim=True) < 0, -1.0, 1.0).to(rows)
        leading = sign * leading
        ctx.save_for_backward(rows, eigenvalues, eigenvectors, leading)
        return leading

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Gradient of the rows: with C = rowsᵀ rows, du = pinv(λ₁ - C) dC u."""
        rows, eigenvalues, eigenvectors, leading = ctx.saved_tensors
        (gradient,) = gradients
        largest = eigenvalues[:, -1:]
        gaps = (largest - eigenvalues[:, :-1]).clamp(min=SMALLEST_GAP * largest)
        others = eigenvectors[:, :, :-1].transpose(1, 2) @ rows  # (num_matrices, size - 1, dim)
        along = (others @ gradient[:, :, None]).squeeze(2) / (largest * gaps)
        tangent = gradient - (gradient * leading).sum(dim=1, keepdim=True) * leading
        moved = tangent / largest + (along[:, None] @ others).squeeze(1)
        from_leading = (rows @ leading[:, :, None]) * moved[:, None]
        return from_leading + (rows @ moved[:, :, None]) * leading[:, None]
