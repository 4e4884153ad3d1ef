"""How related rows are to the instances of a batch: the soft targets, as a matrix or tile by tile."""

from functools import cached_property

import torch
from torch import Tensor

from .blockwise_mxmclr import BlockwiseDirection
from .tiles_mxmclr import row_log_sums, spread_values


class Relation:
    """How related some rows are to the instances in both modalities: the softmax of `scale * rows @ keys.T`, row by row.

    Args:
        rows: `(num_rows, dim)`.
        keys: `(num_in_both, dim)`, what each instance is compared by.
        scale: What the products are multiplied by.
        in_both: `(num_instances,)` bool, the instances that the keys stand for, in order.
    """

    def __init__(self, rows: Tensor, keys: Tensor, scale: Tensor | float, in_both: Tensor) -> None:
        self.rows, self.keys, self.in_both = rows, keys, in_both
        self.scale = scale.reshape(()) if isinstance(scale, Tensor) else rows.new_tensor(scale)

    def of(self, place: Tensor) -> tuple["Relation", Tensor]:
        """The relation of the named rows alone, and where each of them is in it."""
        needed, place = place.unique(return_inverse=True)
        return Relation(self.rows[needed], self.keys, self.scale, self.in_both), place

    @cached_property
    def matrix(self) -> Tensor:
        """The masses, `(num_rows, num_in_both)`."""
        return (self.scale * self.rows @ self.keys.T).softmax(dim=1)

    def masses(self, place: Tensor, transposed: bool) -> Tensor:
        """The masses of chosen rows, or of columns, on each instance, `(num_chosen, num_instances)`."""
        chosen = (self.matrix.T if transposed else self.matrix)[place]
        return chosen.new_zeros(len(place), len(self.in_both)).index_copy(1, self.in_both.nonzero().squeeze(1), chosen)

    @cached_property
    def log_sums(self) -> Tensor:
        """Logsumexp of each row's products, `(num_rows,)`, without gradient."""
        return row_log_sums(self.rows, self.keys, self.scale)

    def soft_parts(self, direction: BlockwiseDirection, place: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
        """What `soft_losses` and `soft_floors` say of the masses of chosen rows, or of columns, `(num_queries,)` each."""
        fold_sizes = direction.key_instance.bincount(minlength=len(self.in_both))
        means = direction.key_means(fold_sizes)[self.in_both]
        log_sizes = fold_sizes[self.in_both].to(means).log()[:, None]
        values = torch.cat([means, torch.ones_like(log_sizes), log_sizes], dim=1)
        spread = spread_values(self.rows, self.keys, self.scale, self.log_sums, values, transposed=transposed)
        mass, of_sizes = spread.values[:, -2], spread.values[:, -1].detach()
        floors = spread.entropies + of_sizes + torch.xlogy(mass, mass).detach()
        expected = direction.expected_scores(spread.values[:, :-2], place)
        return mass[place] * direction.log_sums() - expected, floors[place]


def weigh_sides(
    image_rows: Tensor,
    text_rows: Tensor,
    image_keys: Tensor,
    text_keys: Tensor,
    scale: Tensor | float,
    image_share: float,
    in_both: Tensor,
) -> Relation:
    """The relation whose products are the weighted sum of those of both modalities."""
    rows = torch.cat([image_share * image_rows, (1 - image_share) * text_rows], dim=1)
    return Relation(rows, torch.cat([image_keys, text_keys], dim=1), scale, in_both)
