"""The queries of a direction: whose losses are asked for, and what each counts for in the mean over all of them."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Normaliser = Literal["observations", "instances", "pairs"]


class Queries(NamedTuple):
    """All queries that a mean is over, and those among them that are answered for here.

    Where several ranks train together, each answers for its own: it finds their losses alone, divided by what the
    queries of all ranks count for, so that the ranks' shares add up to the mean.
    """

    instance: Tensor  # (num_queries,), int64
    num_positives: Tensor  # (num_queries,), int64
    answered: Tensor  # (num_answered,), int64, ascending

    @property
    def answers_all(self) -> bool:
        """Whether none is left to others."""
        return len(self.answered) == len(self.instance)

    def only(self, kept: Tensor) -> "Queries":
        """The queries where the bool mask `kept`, `(num_queries,)`, is true."""
        number = kept.cumsum(0) - 1
        return Queries(self.instance[kept], self.num_positives[kept], number[self.answered[kept[self.answered]]])

    def weights(self, normaliser: Normaliser, dtype: torch.dtype) -> Tensor:
        """What each query counts for, `(num_queries,)`; `normaliser` is a key of `QUERY_WEIGHTS`."""
        return QUERY_WEIGHTS[normaliser](self, dtype)


def all_queries(instance: Tensor, num_positives: Tensor, asked: Tensor | None = None) -> Queries:
    """Queries of which those of the bool mask `asked`, `(num_queries,)`, are answered for; None for all."""
    places = torch.arange(len(instance), device=instance.device)
    return Queries(instance, num_positives, places if asked is None else places[asked])


def _one_each(queries: Queries, dtype: torch.dtype) -> Tensor:
    return torch.ones_like(queries.instance, dtype=dtype)


def _one_per_fold(queries: Queries, dtype: torch.dtype) -> Tensor:
    return 1 / queries.instance.bincount().to(dtype)[queries.instance]


def _one_per_positive(queries: Queries, dtype: torch.dtype) -> Tensor:
    return queries.num_positives.to(dtype)


QUERY_WEIGHTS: dict[str, Callable[[Queries, torch.dtype], Tensor]] = {
    "observations": _one_each,
    "instances": _one_per_fold,
    "pairs": _one_per_positive,
}
