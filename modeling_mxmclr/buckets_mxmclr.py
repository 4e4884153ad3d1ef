"""Texts encoded once and padded little: equal ones are one row, and rows of like length share a call of the tower."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What a call of a tower costs beside its tokens, in tokens. On a CPU: 15 ms for MiniLM, at 0.3 ms a token. Elsewhere
# launches take the time of thousands, an estimate.
CALL_TOKENS = {"cpu": 64}
LAUNCHED_CALL_TOKENS = 2048


class Buckets(NamedTuple):
    """How texts are shared among calls of a tower.

    `rows` and `lengths` have one entry a bucket, ascending in length.
    """

    rows: list[Tensor]  # each (num_rows,) int64: the texts that it encodes, all different
    lengths: list[int]  # columns that it needs
    places: Tensor  # (num_texts,) int64: where each text's vector stands among those of all buckets


def holds_shards(tower: nn.Module) -> bool:
    """Whether a rank holds but a part of some weight, as FSDP and ZeRO have it, so that a call waits for other ranks."""
    return any(type(weight) is not nn.Parameter or weight.numel() == 0 for weight in tower.parameters())


def can_be_cut(tokens: dict[str, object]) -> bool:
    """Whether all that goes to a text tower is columns of tokens, and a mask says which of them are padding."""
    shapes = [value.shape if isinstance(value, Tensor) else None for value in tokens.values()]
    return "attention_mask" in tokens and len(set(shapes)) == 1 and shapes[0] is not None and len(shapes[0]) == 2


def pool_in_buckets(
    encode: Callable[[dict[str, Tensor]], Tensor], tokens: dict[str, Tensor], num_buckets: int, min_calls: int = 1
) -> Tensor:
    """One vector a text, `(num_texts, width)`, as one call of `encode` over all of them would give.

    Equal texts are encoded once: each use adds to the one gradient, and all share what dropout takes.

    Args:
        encode: From tokens to one vector a row, whatever the padding behind them.
        tokens: `input_ids` and `attention_mask`, and maybe more that belong to tokens; all `(num_texts, length)`.
        num_buckets: At most so many calls.
        min_calls: At least so many calls; those that have no text encode blanks. Where a call exchanges weights with
            other ranks (FSDP), all must make as many, whatever their texts.
    """
    buckets = plan_buckets(torch.cat(list(tokens.values()), dim=1), tokens["attention_mask"], num_buckets)
    pooled = [
        encode({name: value[rows, :length] for name, value in tokens.items()})
        for rows, length in zip(buckets.rows, buckets.lengths, strict=True)
    ]
    blank = tokens["input_ids"].new_zeros(2, 2)
    while len(pooled) < min_calls:
        pooled.append(encode({"input_ids": blank, "attention_mask": torch.ones_like(blank)}))
    return torch.cat(pooled)[buckets.places]


def plan_buckets(keys: Tensor, attention_mask: Tensor, num_buckets: int) -> Buckets:
    """The buckets that cost least.

    Args:
        keys: `(num_texts, anything)` int64, equal for equal texts.
        attention_mask: `(num_texts, length)`, 1 for real tokens.
        num_buckets: At most so many buckets.
    """
    distinct, own = (
        keys.unique(dim=0, return_inverse=True) if len(keys) else (keys, keys.new_zeros(0, dtype=torch.int64))
    )
    texts = torch.arange(len(keys), device=keys.device)
    first = texts.new_full((len(distinct),), len(keys)).scatter_reduce(0, own, texts, "amin")
    lengths, order = text_lengths(attention_mask[first]).sort(stable=True)
    call_tokens = CALL_TOKENS.get(keys.device.type, LAUNCHED_CALL_TOKENS)
    on_cpu = lengths.cpu()
    ends = cheapest_ends(on_cpu, num_buckets, call_tokens)
    starts = [0, *ends][: len(ends)]
    rows = [first[order[start:end]] for start, end in zip(starts, ends, strict=True)]
    rank = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
    return Buckets(rows, [int(on_cpu[end - 1]) for end in ends], rank[own])


def text_lengths(attention_mask: Tensor) -> Tensor:
    """Columns of each text up to its last real token, at least one, `(num_texts,)` int64."""
    mask = F.pad(attention_mask.bool(), (1, 0), value=True)
    return (mask * torch.arange(mask.shape[1], device=mask.device)).amax(dim=1).clamp(min=1)


def cheapest_ends(lengths: Tensor, num_buckets: int, call_tokens: int = CALL_TOKENS["cpu"]) -> list[int]:
    """Where to split sorted texts, so that padding each bucket to its own longest, and the calls, cost least.

    Args:
        lengths: `(num_texts,)` int64 on the CPU, ascending.
        num_buckets: At most so many buckets.
        call_tokens: What a bucket costs beside its tokens.

    Returns:
        The end of each bucket, ascending; the last is `num_texts`. Empty where there is no text.
    """
    if len(lengths) == 0:
        return []
    values, counts = lengths.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0)
    # costs[i, j]: a bucket from the i-th distinct length to the j-th
    costs = (ends[None, :] - (ends - counts)[:, None]) * values[None, :] + call_tokens
    costs = costs.double().masked_fill(~torch.ones_like(costs, dtype=torch.bool).triu(), torch.inf)
    total, choices = costs[0], []
    for _ in range(1, min(num_buckets, len(values))):
        # One bucket more: the last starts at i, after the best split of all before it; at 0 it is the only one.
        before = torch.cat([total.new_zeros(1), total[:-1]])
        total, starts = (before[:, None] + costs).min(dim=0)
        choices.append(starts)
    found, place = [], len(values)
    while place > 0:
        found.append(int(ends[place - 1]))
        place = int(choices.pop()[place - 1]) if choices else 0
    return found[::-1]
