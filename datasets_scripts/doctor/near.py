"""Finding what is nearly equal among very many, by comparing only what shares a part of its hash."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
BITS_OF_BYTE = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


class Occurrences(NamedTuple):
    """Observations in groups of equal or nearly equal ones, one entry an observation."""

    groups: Indices
    instances: Indices


def count_bits(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many bits of each are set, `(num_values,)`."""
    octets = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), 8)
    return BITS_OF_BYTE[octets].sum(axis=1, dtype=np.int64)


def pairs_in_buckets(
    keys: NDArray[np.uint64], order_by: NDArray[np.uint64], window: int
) -> Iterator[tuple[Indices, Indices]]:
    """Pairs of places that share a key.

    In a bucket of more than `window`, each is compared with the `window` that follow it in the order of `order_by`
    only, so that the work stays below `window * len(keys)` pairs however many share one key.
    """
    order = np.lexsort((order_by, keys))
    ordered = keys[order]
    for offset in range(1, min(window, len(keys) - 1) + 1):
        is_shared = ordered[offset:] == ordered[:-offset]
        if not is_shared.any():
            return
        yield order[:-offset][is_shared], order[offset:][is_shared]


def unique_pairs(pairs: list[tuple[Indices, Indices]]) -> NDArray[np.int64]:
    """Each pair once, the smaller place first, `(num_pairs, 2)`."""
    if not pairs:
        return np.empty((0, 2), dtype=np.int64)
    both = np.concatenate([np.stack(pair, axis=1) for pair in pairs])
    return np.unique(np.sort(both, axis=1), axis=0)


def star_groups(num_items: int, pairs: NDArray[np.int64]) -> Indices:
    """The group of each item, `(num_items,)`, called by its first member.

    Every member is a pair with the first one, so that groups don't drift along chains of small differences.
    """
    leaders = np.arange(num_items)
    is_settled = np.zeros(num_items, dtype=bool)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    starts = np.searchsorted(both[:, 0], np.arange(num_items + 1))
    for item in np.unique(pairs):
        if not is_settled[item]:
            near = both[starts[item] : starts[item + 1], 1]
            near = near[~is_settled[near]]
            leaders[near], is_settled[near], is_settled[item] = item, True, True
    return leaders


def members_by_group(groups: Indices) -> Iterator[Indices]:
    """The places of each group of two or more, in order of its first."""
    order = np.argsort(groups, kind="stable")
    cuts = np.flatnonzero(np.diff(groups[order])) + 1
    found = [members for members in np.split(order, cuts) if len(members) > 1]
    yield from sorted(found, key=lambda members: int(members[0]))
