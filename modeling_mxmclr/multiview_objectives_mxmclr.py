"""Objectives over several views of each instance at once, every instance with as many: MV-InfoNCE, MV-DHEL, PVC, NT-Xent."""

import math
from typing import Literal

import torch
from torch import Tensor

from .contrast_mxmclr import ObjectiveOutput, hard_losses, log_likelihoods, no_pair, prepare, undivided, within
from .folds_mxmclr import Instances, Observations

Sides = Literal["union", "images", "texts"]


@undivided
def mv_infonce(observed: Observations, scale: Tensor, *, sides: Sides = "union") -> ObjectiveOutput:
    """MV-InfoNCE: per instance one ratio, all pairs of its views to all pairs that hold one of its views.

    "A Principled Framework for Multi-View Contrastive Learning" (https://huggingface.co/papers/2507.06979), as its
    public code has it: pairs of the same view of two instances stand in the denominator.

    Args:
        observed: Observations of the whole batch; embeddings of unit norm.
        scale: Exponentiated logit scale, `()` or `(1,)`.
        sides: What counts as views: `images`, `texts`, or the `union` of both.

    Raises:
        ValueError: If instances differ in their number of views, or have a single one.
    """
    observed, scale, instances = prepare(observed, scale)
    if not instances.in_both.any():
        return no_pair(observed, scale)
    views = stack_views("mv_infonce", observed, instances, sides)
    logits = all_pairs(views, scale)
    own = own_pairs(logits)
    everything = logits.masked_fill(same_row(views), -torch.inf).flatten(1).logsumexp(dim=1)
    return ObjectiveOutput((everything - own.flatten(1).logsumexp(dim=1)).mean(), {})


@undivided
def mv_dhel(observed: Observations, scale: Tensor, *, sides: Sides = "union") -> ObjectiveOutput:
    """MV-DHEL: all pairs of an instance's views together, and the uniformity of each view by itself.

    The paper of `mv_infonce`, as its public code has it: an instance is no negative of itself. The loss has no lower
    bound; a single instance has no negatives, and so no uniformity.

    Args:
        observed: Observations of the whole batch; embeddings of unit norm.
        scale: Exponentiated logit scale, `()` or `(1,)`.
        sides: What counts as views: `images`, `texts`, or the `union` of both.

    Returns:
        The loss, with components `alignment` and `uniformity`, which sum up to it.

    Raises:
        ValueError: If instances differ in their number of views, or have a single one.
    """
    observed, scale, instances = prepare(observed, scale)
    if not instances.in_both.any():
        return no_pair(observed, scale)
    views = stack_views("mv_dhel", observed, instances, sides)
    logits = all_pairs(views, scale)
    each_once = torch.ones_like(logits[0, :, 0], dtype=torch.bool).triu(diagonal=1)
    alignment = -own_pairs(logits)[:, each_once].logsumexp(dim=1).mean()
    uniformity = torch.zeros_like(alignment)
    if len(views) > 1:
        same_view = logits.diagonal(dim1=1, dim2=3)  # (num_instances, num_instances, num_views)
        itself = torch.eye(len(views), dtype=torch.bool, device=views.device)[:, :, None]
        uniformity = same_view.masked_fill(itself, -torch.inf).logsumexp(dim=1).sum(dim=1).mean()
    components = {"alignment": alignment.detach(), "uniformity": uniformity.detach()}
    return ObjectiveOutput(alignment + uniformity, components)


@undivided
def pvc(
    observed: Observations,
    scale: Tensor,
    *,
    sides: Sides = "union",
    mean: Literal["geometric", "arithmetic", "public_arithmetic"] = "geometric",
) -> ObjectiveOutput:
    """Poly-view contrast: each view against each other view of its instance, whose likelihoods are averaged.

    "Poly-View Contrastive Learning" (https://huggingface.co/papers/2403.05490), as in the public code of `mv_infonce`.

    Args:
        observed: Observations of the whole batch; embeddings of unit norm.
        scale: Exponentiated logit scale, `()` or `(1,)`.
        sides: What counts as views: `images`, `texts`, or the `union` of both.
        mean: `geometric` averages the losses of a view's pairs, `arithmetic` their inverse likelihoods.
            `public_arithmetic` is what the public code makes of the latter: losses are averaged over the instances
            first, and the log of the batch size is taken off where the number of other views is meant.

    Returns:
        The loss, with component `kl`, which is the loss itself, but for `public_arithmetic`.

    Raises:
        ValueError: If instances differ in their number of views, or have a single one.
    """
    observed, scale, instances = prepare(observed, scale)
    if not instances.in_both.any():
        return no_pair(observed, scale)
    views = stack_views("pvc", observed, instances, sides)
    num_instances, num_views, dim = views.shape
    instance = torch.arange(num_instances, device=views.device).repeat_interleave(num_views)
    direction = within(views.reshape(-1, dim), instance, scale)
    if mean != "public_arithmetic":
        loss = hard_losses(direction, "out" if mean == "geometric" else "inverse", "one_positive").mean()
        return ObjectiveOutput(loss, {"kl": loss.detach()})
    _, likelihoods = log_likelihoods(direction, "one_positive")
    by_pair = -likelihoods.view(num_instances, num_views, num_views - 1).mean(dim=0)
    return ObjectiveOutput((by_pair.logsumexp(dim=1) - math.log(num_instances)).mean(), {})


@undivided
def ntxent(
    observed: Observations,
    scale: Tensor,
    *,
    sides: Sides = "union",
    pairing: Literal["pairwise", "average"] = "pairwise",
) -> ObjectiveOutput:
    """SimCLR's NT-Xent between two views at a time: every pair of views, or each view and the mean of the others.

    SimCLR, Eq. 1 (https://huggingface.co/papers/2002.05709), over several views as in the public code of `mv_infonce`;
    with all views in one denominator it is `supcon`.

    Args:
        observed: Observations of the whole batch; embeddings of unit norm.
        scale: Exponentiated logit scale, `()` or `(1,)`.
        sides: What counts as views: `images`, `texts`, or the `union` of both.
        pairing: `pairwise`, or `average`, in which the mean is not made a unit vector again.

    Returns:
        The loss, with component `kl`, which is the loss itself.

    Raises:
        ValueError: If instances differ in their number of views, or have a single one.
    """
    observed, scale, instances = prepare(observed, scale)
    if not instances.in_both.any():
        return no_pair(observed, scale)
    views = stack_views("ntxent", observed, instances, sides).unbind(dim=1)
    if pairing == "pairwise":
        pairs = [(one, other) for place, one in enumerate(views) for other in views[place + 1 :]]
    else:
        total = torch.stack(views).sum(dim=0)
        pairs = [(one, (total - one) / (len(views) - 1)) for one in views]
    loss = torch.stack([two_view_ntxent(*pair, scale) for pair in pairs]).mean()
    return ObjectiveOutput(loss, {"kl": loss.detach()})


def two_view_ntxent(one: Tensor, other: Tensor, scale: Tensor) -> Tensor:
    """NT-Xent of two views, `(num_instances, dim)` each, `()`: every row against all others of both."""
    places = torch.arange(len(one), device=one.device)
    direction = within(torch.cat([one, other]), torch.cat([places, places]), scale)
    return hard_losses(direction).mean()


def stack_views(name: str, observed: Observations, instances: Instances, sides: Sides) -> Tensor:
    """The views of each instance, `(num_instances, num_views, dim)`, in the order in which they stand.

    Raises:
        ValueError: If instances differ in their number of views, or have a single one.
    """
    parts = []
    if sides != "texts":
        parts.append(
            as_rectangle(name, "image", observed.image_embeds, instances.image_index, instances.image_fold_sizes)
        )
    if sides != "images":
        parts.append(as_rectangle(name, "text", observed.text_embeds, instances.text_index, instances.text_fold_sizes))
    views = torch.cat(parts, dim=1)
    if views.shape[1] < 2:
        raise ValueError(f"`{name}` needs at least two views an instance, got one; draw more, or use `sides` 'union'.")
    return views


def as_rectangle(name: str, kind: str, rows: Tensor, index: Tensor, fold_sizes: Tensor) -> Tensor:
    """The rows of each instance, `(num_instances, fold_size, dim)`.

    Raises:
        ValueError: If folds differ in size.
    """
    smallest, largest = int(fold_sizes.min()), int(fold_sizes.max())
    if smallest != largest:
        raise ValueError(
            f"`{name}` needs as many {kind}s of every instance, got folds of {smallest} to {largest}; draw equal folds, "
            "or choose an objective that takes ragged ones, such as 'mfh'."
        )
    return rows[index.argsort(stable=True)].view(len(fold_sizes), largest, rows.shape[1])


def all_pairs(views: Tensor, scale: Tensor) -> Tensor:
    """Logit of view a of instance i with view b of instance j at `[i, a, j, b]`."""
    return scale * torch.einsum("iad,jbd->iajb", views, views)


def own_pairs(logits: Tensor) -> Tensor:
    """Logit of two views of an instance, `(num_instances, num_views, num_views)`; -inf of a view with itself."""
    itself = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    return logits.diagonal(dim1=0, dim2=2).permute(2, 0, 1).masked_fill(itself, -torch.inf)


def same_row(views: Tensor) -> Tensor:
    """True at `[i, a, i, a]`, of the shape of `all_pairs`."""
    num_instances, num_views, _ = views.shape
    itself = torch.eye(num_instances * num_views, dtype=torch.bool, device=views.device)
    return itself.view(num_instances, num_views, num_instances, num_views)
