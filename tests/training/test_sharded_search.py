import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.references import rank_jobs
from tests.references.gloo_pool import GlooPool
from training.multifold_retrieval.ranking import rank_positives
from training.multifold_retrieval.search import top_k
from training.sharded_search import gather_ranks

RAGGED, FIRST_EMPTY, LAST_EMPTY = [50, 13], [0, 63], [63, 0]  # items of each rank
every_split = pytest.mark.parametrize("sizes", [RAGGED, FIRST_EMPTY, LAST_EMPTY])


@pytest.fixture(scope="module")
def two_ranks():
    pool = GlooPool(2)
    yield pool
    pool.close()


def unit_rows(num_rows: int, seed: int) -> Tensor:
    return normalize(torch.randn(num_rows, 16, generator=torch.Generator().manual_seed(seed)), dim=1)


def gallery_of(num_items: int) -> Tensor:
    """Half of the items have a copy, the more of them on the other rank."""
    rows = unit_rows(num_items, 1)
    return rows[torch.arange(num_items) * 7 % (num_items // 2)]


def assert_all_equal(answers: list[list[np.ndarray]], expected: tuple[Tensor, ...]) -> None:
    for answer in answers:
        for part, expected_part in zip(answer, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(part), expected_part)


@every_split
@pytest.mark.parametrize("depth", [2, None])
def test_ranks_in_a_split_gallery_are_those_of_one_process(two_ranks, sizes, depth):
    arguments = {"query_embeds": unit_rows(20, 0), "query_group_ids": torch.arange(20) % 9, "depth": depth}
    gallery, ids = gallery_of(63), torch.arange(63) * 5 % 8  # one id of the queries has no item, others up to eight
    expected = rank_positives(gallery_embeds=gallery, gallery_group_ids=ids, **arguments)
    shards = [
        arguments | {"gallery_embeds": rows, "gallery_group_ids": row_ids}
        for rows, row_ids in zip(gallery.split(sizes), ids.split(sizes), strict=True)
    ]
    assert_all_equal(two_ranks.run(rank_jobs.search_shard, rank_positives, shards), expected)


@every_split
def test_top_k_of_a_split_gallery_is_that_of_one_process(two_ranks, sizes):
    arguments = {"query_embeds": unit_rows(20, 0), "k": 30}  # more than the smaller parts hold
    expected = top_k(gallery_embeds=gallery_of(63), **arguments)
    shards = [arguments | {"gallery_embeds": rows} for rows in gallery_of(63).split(sizes)]
    assert_all_equal(two_ranks.run(rank_jobs.search_shard, top_k, shards), expected)


def test_sets_of_a_split_gallery_count_on_from_rank_to_rank(two_ranks):
    gallery, sets = gallery_of(63), torch.arange(63) // 3
    ids = torch.arange(21) % 7
    queries = {"query_embeds": unit_rows(20, 0)}
    shards = [
        queries | {"gallery_embeds": gallery[:18], "gallery_sets": sets[:18]},
        queries | {"gallery_embeds": gallery[18:], "gallery_sets": sets[18:] - 6},
    ]
    expected = top_k(**queries, gallery_embeds=gallery, gallery_sets=sets, k=5)
    found = two_ranks.run(rank_jobs.search_shard, top_k, [shard | {"k": 5} for shard in shards])
    assert_all_equal(found, expected)
    labels = {"query_group_ids": torch.arange(20) % 7}
    expected = rank_positives(**queries, **labels, gallery_embeds=gallery, gallery_sets=sets, gallery_group_ids=ids)
    shards = [
        shard | labels | {"gallery_group_ids": part} for shard, part in zip(shards, (ids[:6], ids[6:]), strict=True)
    ]
    assert_all_equal(two_ranks.run(rank_jobs.search_shard, rank_positives, shards), expected)


def test_no_rank_waits_for_one_whose_part_is_refused(two_ranks):
    good, bad = ({"query_embeds": unit_rows(2, 0), "gallery_embeds": unit_rows(5, 1), "k": 1} for _ in range(2))
    bad["gallery_embeds"] = bad["gallery_embeds"] / 0
    answers = two_ranks.run(rank_jobs.search_shard, top_k, [good, bad])
    assert "Rank 1 refused its part of the gallery" in answers[0]
    assert "`gallery_embeds` must be finite" in answers[1]


def test_a_gallery_that_is_empty_on_all_ranks_is_an_error(two_ranks):
    empty = {"query_embeds": unit_rows(2, 0), "gallery_embeds": torch.zeros(0, 16), "k": 1}
    for answer in two_ranks.run(rank_jobs.search_shard, top_k, [empty, empty]):
        assert "`gallery_embeds` must be (rows, dim) with at least one row" in answer


def test_one_process_gathers_its_own():
    assert [part.tolist() for part in gather_ranks(torch.arange(3))] == [[0, 1, 2]]
