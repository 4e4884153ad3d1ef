"""The ragged algebra of multifold batches: observations, the instances they show, and pooling over folds."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Item = TypeVar("Item")

# A hashed id always has this bit, so it is told apart from the numbers 0..B-1, which hold for one call only.
HASHED_ID_BIT = 1 << 62
SMALLEST_GLOBAL_ID = 1 << 31


class Observations(NamedTuple):
    """What a batch observed of its instances, one row per observation.

    An objective may be asked for the losses of some observations alone. It then gives their share of the loss over all,
    so that the shares of askers who divide all observations among themselves add up to it. The others still are keys.

    The last ones may be remembered from earlier steps: they are keys alone, and count in no mean.
    """

    image_embeds: Tensor  # (num_images, dim), unit norm
    text_embeds: Tensor  # (num_texts, dim), unit norm
    image_group_ids: Tensor  # (num_images,), int64
    text_group_ids: Tensor  # (num_texts,), int64
    image_queries: Tensor | None = None  # (num_images,), bool, the images that are asked for; None for all
    text_queries: Tensor | None = None  # (num_texts,), bool
    # (2,), int64, on the CPU, how many of the last images and texts; the masks leave them out
    num_remembered: Tensor | None = None

    @property
    def num_images_asked(self) -> int:
        """How many images are queries of this step, to be answered for here or elsewhere."""
        return len(self.image_group_ids) - (0 if self.num_remembered is None else int(self.num_remembered[0]))

    @property
    def num_texts_asked(self) -> int:
        """How many texts are queries of this step."""
        return len(self.text_group_ids) - (0 if self.num_remembered is None else int(self.num_remembered[1]))

    def of_this_step(self) -> "Observations":
        """The same observations without those that are remembered."""
        if self.num_remembered is None:
            return self
        images, texts = slice(self.num_images_asked), slice(self.num_texts_asked)
        return self._replace(
            image_embeds=self.image_embeds[images],
            text_embeds=self.text_embeds[texts],
            image_group_ids=self.image_group_ids[images],
            text_group_ids=self.text_group_ids[texts],
            num_remembered=None,
        )

    def remembering(self, memory: "Observations") -> "Observations":
        """The same observations with those of earlier steps, which get no gradient, as further keys."""
        images, texts, image_ids, text_ids = (
            torch.cat([own, past.detach().to(own)]) for own, past in zip(self[:4], memory[:4], strict=True)
        )
        counts = torch.tensor([len(ids) for ids in memory[2:4]])
        return self._replace(
            image_embeds=images,
            text_embeds=texts,
            image_group_ids=image_ids,
            text_group_ids=text_ids,
            num_remembered=counts,
        )

    def asking_for_all(self) -> "Observations":
        """The same observations, all of which are asked for."""
        return self._replace(image_queries=None, text_queries=None)

    def asked_share(self) -> Tensor | float:
        """How many of all observations are asked for, a share in [0, 1]."""
        if self.image_queries is None or self.text_queries is None:
            return 1.0
        asked = torch.cat([self.image_queries, self.text_queries])
        return asked.to(torch.promote_types(self.image_embeds.dtype, torch.float32)).mean()


class Instances(NamedTuple):
    """The distinct instances of a batch, and where each observation belongs."""

    image_index: Tensor  # (num_images,), int64, the instance of each image
    text_index: Tensor  # (num_texts,), int64, the instance of each text
    image_fold_sizes: Tensor  # (num_instances,), int64
    text_fold_sizes: Tensor  # (num_instances,), int64

    @property
    def in_both(self) -> Tensor:
        """True for instances with at least one image and one text, `(num_instances,)`."""
        return (self.image_fold_sizes > 0) & (self.text_fold_sizes > 0)


def hash_instance_id(instance_id: str) -> int:
    """The group id of an instance: a 63-bit hash, equal on every rank, in every epoch and run.

    Example:
        >>> hash_instance_id("chair-1042") == hash_instance_id("chair-1042") >= SMALLEST_GLOBAL_ID
        True
    """
    digest = blake2b(instance_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2 | HASHED_ID_BIT


def flatten_folds(folds: Sequence[Sequence[Item]], group_ids: Sequence[int]) -> tuple[list[Item], Tensor]:
    """All observations in order, and the group id of each, `(num_observations,)` int64.

    Example:
        >>> flatten_folds([["a", "b"], [], ["c"]], [7, 8, 9])
        (['a', 'b', 'c'], tensor([7, 7, 9]))
    """
    observations = [observation for fold in folds for observation in fold]
    fold_sizes = torch.tensor([len(fold) for fold in folds], dtype=torch.int64)
    return observations, torch.tensor(group_ids, dtype=torch.int64).repeat_interleave(fold_sizes)


def positive_mask(query_group_ids: Tensor, key_group_ids: Tensor) -> Tensor:
    """True where query and key show the same instance, `(num_queries, num_keys)`."""
    return query_group_ids[:, None] == key_group_ids[None, :]


def find_instances(image_group_ids: Tensor, text_group_ids: Tensor) -> Instances:
    """The distinct instances of a batch, in ascending order of their group ids."""
    group_ids = torch.cat([image_group_ids, text_group_ids])
    distinct, index = group_ids.unique(return_inverse=True)
    image_index, text_index = index.split([len(image_group_ids), len(text_group_ids)])
    return Instances(
        image_index,
        text_index,
        image_index.bincount(minlength=len(distinct)),
        text_index.bincount(minlength=len(distinct)),
    )


def mean_by_index(rows: Tensor, index: Tensor, fold_sizes: Tensor) -> Tensor:
    """Mean row of each instance, `(num_instances, dim)`; zero where its fold is empty."""
    sums = rows.new_zeros(len(fold_sizes), rows.shape[1]).index_add(0, index, rows)
    return sums / fold_sizes.clamp(min=1)[:, None]


def pool_by_instance(embeds: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Mean embedding of each fold, `(num_instances, dim)`, and the ascending ids of the instances."""
    instance_ids, index, fold_sizes = group_ids.unique(return_inverse=True, return_counts=True)
    return mean_by_index(embeds, index, fold_sizes), instance_ids


def unit_norm(rows: Tensor) -> Tensor:
    """Rows divided by their Euclidean norm; a zero row stays zero."""
    return F.normalize(rows, dim=-1)


def instance_embeddings(embeds: Tensor, group_ids: Tensor, pooling: str = "mean") -> Tensor:
    """One unit vector an instance, `(num_instances, dim)`, in the order in which instances first appear.

    Args:
        embeds: `(num_observations, dim)`, unit norm.
        group_ids: `(num_observations,)` int64.
        pooling: `mean`; `max`, the largest value of each coordinate; or `attention`, the mean weighted by the
            softmax over the fold of each observation's cosine similarity to the fold's mean.

    Example:
        >>> instance_embeddings(torch.eye(3)[[2, 0, 2]], torch.tensor([9, 4, 9]))
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """
    index, num_instances = index_by_appearance(group_ids)
    return unit_norm(FOLD_POOLINGS[pooling](embeds, index, num_instances))


def index_by_appearance(group_ids: Tensor) -> tuple[Tensor, int]:
    """Each observation's instance, numbered in the order of first appearance, and how many there are."""
    distinct, index = group_ids.unique(return_inverse=True)
    return first_rows(index, len(distinct)).argsort().argsort()[index], len(distinct)


def first_rows(index: Tensor, num_instances: int) -> Tensor:
    """Row of each instance's first observation, `(num_instances,)`; `len(index)` where it has none."""
    rows = torch.arange(len(index), device=index.device)
    return rows.new_full((num_instances,), len(index)).scatter_reduce(0, index, rows, "amin")


def _mean_of_folds(embeds: Tensor, index: Tensor, num_instances: int) -> Tensor:
    return mean_by_index(embeds, index, index.bincount(minlength=num_instances))


def _max_of_folds(embeds: Tensor, index: Tensor, num_instances: int) -> Tensor:
    lowest = embeds.new_full((num_instances, embeds.shape[1]), -torch.inf)
    return lowest.scatter_reduce(0, index[:, None].expand_as(embeds), embeds, "amax")


def _attention_over_folds(embeds: Tensor, index: Tensor, num_instances: int) -> Tensor:
    means = unit_norm(_mean_of_folds(embeds, index, num_instances))
    # Cosines lie in [-1, 1], so `exp` needs no shift; the sum of weights cancels in the unit norm.
    weights = (embeds * means[index]).sum(dim=1, keepdim=True).exp()
    return _mean_of_folds(weights * embeds, index, num_instances)


FOLD_POOLINGS = {"mean": _mean_of_folds, "max": _max_of_folds, "attention": _attention_over_folds}
