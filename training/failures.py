"""What a model gets wrong, and which captions nobody could get right: rows to look at, from ranks and scores alone."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

WORD = re.compile(r"[^\W_]+")


class SharedText(NamedTuple):
    """A text that several instances have as a caption."""

    text: str
    group_ids: list[int]  # of the instances, in the order in which they come


def worst_queries(ranks: Tensor, group_ids: Tensor, count: int) -> list[int]:
    """The rows of the largest ranks, worst first, one an instance, those of rank 1 left out.

    Args:
        ranks: `(num_queries,)`, the expected rank of each query's best relevant item, from 1.
        group_ids: `(num_queries,)` int64, the instance that each query asks for.
        count: How many at most.

    Example:
        >>> import torch
        >>> worst_queries(torch.tensor([1.0, 9.0, 40.0, 7.0]), torch.tensor([5, 6, 6, 8]), count=2)
        [2, 3]
    """
    order = ranks.argsort(descending=True, stable=True)
    return first_of_each_instance(order[ranks[order] > 1].tolist(), group_ids, count)


def first_of_each_instance(rows: Sequence[int], group_ids: Tensor, count: int) -> list[int]:
    """The first of these rows for each instance, `count` at most, in their order."""
    row_of: dict[int, int] = {}
    for row in rows:
        row_of.setdefault(int(group_ids[row]), row)
        if len(row_of) == count:
            break
    return list(row_of.values())


def count_fitting(captions: Sequence[str], group_ids: Tensor) -> list[int]:
    """Of each caption, how many *other* instances have all of its words, in whatever captions of theirs.

    Words are runs of letters and digits, small or capital. No model is asked.

    Example:
        "chair" says nothing that the captions of instance 8 don't say; "red chair" does.

        >>> import torch
        >>> count_fitting(["chair", "red chair", "a tall chair"], torch.tensor([7, 7, 8]))
        [1, 0, 0]
    """
    words = [set(WORD.findall(caption.casefold())) for caption in captions]
    everyone = set(group_ids.tolist())
    having: dict[str, set[int]] = defaultdict(set)
    for caption_words, group_id in zip(words, group_ids.tolist(), strict=True):
        for word in caption_words:
            having[word].add(group_id)
    # From the rarest word on, so that common ones cost nothing; a caption without words fits everything.
    owners = (sorted((having[word] for word in caption_words), key=len) or [everyone] for caption_words in words)
    return [len(set.intersection(*found)) - 1 for found in owners]


def shared_texts(captions: Sequence[str], group_ids: Tensor) -> list[SharedText]:
    """The texts that are captions of more than one instance, those of most instances first.

    Example:
        >>> import torch
        >>> shared_texts(["a chair", "a chair", "red", "a chair"], torch.tensor([7, 7, 7, 8]))
        [SharedText(text='a chair', group_ids=[7, 8])]
    """
    owners: dict[str, dict[int, None]] = defaultdict(dict)  # a dict for a set with an order
    for caption, group_id in zip(captions, group_ids.tolist(), strict=True):
        owners[caption][group_id] = None
    shared = [SharedText(text, list(found)) for text, found in owners.items() if len(found) > 1]
    return sorted(shared, key=lambda each: -len(each.group_ids))
