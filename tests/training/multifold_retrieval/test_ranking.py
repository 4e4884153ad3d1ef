import doctest

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from training.multifold_retrieval import ranking
from training.multifold_retrieval.ranking import TIE, check_embeds, rank_positives

SEVERAL_BLOCKS = [(2048, 1024), (7, 11), (30, 64)]
IDS = torch.arange(12)


def unit_rows(num_rows: int, dim: int = 8, seed: int = 0) -> Tensor:
    return normalize(torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def at_scores(*scores: float) -> Tensor:
    """Unit vectors, float64, whose product with (1, 0) is the score."""
    first = torch.tensor(scores, dtype=torch.float64)
    return torch.stack([first, (1 - first.square()).sqrt()], dim=1)


def random_rows(seed: int) -> tuple[Tensor, Tensor]:
    return unit_rows(30, 48, seed), unit_rows(200, 48, seed + 1)


def clustered_rows(seed: int) -> tuple[Tensor, Tensor]:
    queries, centres = unit_rows(30, 48, seed), unit_rows(5, 48, seed + 1)
    return normalize(centres.repeat(6, 1) + 0.1 * queries), normalize(centres.repeat(40, 1) + 0.1 * unit_rows(200, 48))


def duplicated_rows(seed: int) -> tuple[Tensor, Tensor]:
    queries, gallery = random_rows(seed)
    return queries, gallery[torch.randint(20, (200,), generator=torch.Generator().manual_seed(seed))]


def crowded_rows(seed: int) -> tuple[Tensor, Tensor]:
    """Scores of about 1 whose distances are those of float32 rounding and of ties: only float64 can order them."""
    centre = normalize(torch.rand(1, 256, generator=torch.Generator().manual_seed(seed)), dim=1)
    return normalize(centre + 3e-3 * unit_rows(30, 256, seed)), normalize(centre + 3e-3 * unit_rows(200, 256, seed))


def constant_rows(seed: int) -> tuple[Tensor, Tensor]:
    return unit_rows(1, 37, seed).repeat(30, 1), unit_rows(1, 37, seed).repeat(200, 1)


every_kind = pytest.mark.parametrize(
    "draw", [random_rows, clustered_rows, duplicated_rows, crowded_rows, constant_rows]
)


def bands_of(scores: Tensor, query_ids: Tensor, gallery_ids: Tensor, depth: int) -> list[Tensor]:
    """`ahead`, `rivals` and `positives` by their definition, from the whole matrix of scores."""
    answer = []
    for row, relevant in zip(scores.tolist(), query_ids[:, None] == gallery_ids, strict=True):
        positives = sorted(relevant.nonzero()[:, 0].tolist(), key=lambda item: -row[item])
        bands, held = torch.zeros(3, depth, dtype=torch.int64), set()
        for column, anchor in enumerate(positives[:depth]):
            if anchor not in held:
                above = {item for item in range(len(row)) if row[item] > row[anchor] + TIE} | held
                band = {item for item in range(len(row)) if row[item] >= row[anchor] - TIE} - above
                inside = len(band.intersection(positives))
                bands[:, column] = torch.tensor([len(above), len(band) - inside, inside])
                held |= band
        answer.append(bands)
    return list(torch.stack(answer).unbind(dim=1))


def assert_bands(bands, expected: list[Tensor]) -> None:
    for part, expected_part in zip(bands[:3], expected, strict=True):
        torch.testing.assert_close(part, expected_part)


@every_kind
@pytest.mark.parametrize("depth", [1, 8])
@pytest.mark.parametrize(("query_block", "gallery_block"), SEVERAL_BLOCKS)
def test_bands_are_their_definition_on_float64_scores(draw, depth, query_block, gallery_block):
    queries, gallery = draw(3)
    query_ids, gallery_ids = torch.arange(30) % 12, torch.arange(200) % 25
    bands = rank_positives(queries, gallery, query_ids, gallery_ids, depth, query_block, gallery_block)
    assert_bands(bands, bands_of(queries.double() @ gallery.double().T, query_ids, gallery_ids, depth))


@every_kind
@pytest.mark.parametrize(("query_block", "gallery_block"), SEVERAL_BLOCKS)
def test_all_of_many_positives_get_their_bands(draw, query_block, gallery_block):
    queries, gallery = draw(4)
    query_ids, gallery_ids = torch.arange(30) % 4, torch.arange(200) % 5
    bands = rank_positives(queries, gallery, query_ids, gallery_ids, None, query_block, gallery_block)
    assert_bands(bands, bands_of(queries.double() @ gallery.double().T, query_ids, gallery_ids, 40))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("depth", [2, None])
def test_other_types_score_as_their_values_do_in_float64(dtype, depth):
    queries, gallery = (rows.to(dtype) for rows in clustered_rows(5))
    query_ids, gallery_ids = torch.arange(30) % 4, torch.arange(200) % 5
    bands = rank_positives(queries, gallery, query_ids, gallery_ids, depth, 16, 32)
    assert_bands(bands, bands_of(queries.double() @ gallery.double().T, query_ids, gallery_ids, depth or 40))


@every_kind
def test_order_of_the_gallery_changes_nothing(draw):
    queries, gallery = draw(6)
    query_ids, gallery_ids = torch.arange(30) % 12, torch.arange(200) % 25
    order = torch.randperm(200, generator=torch.Generator().manual_seed(7))
    for depth in (4, None):
        bands = rank_positives(queries, gallery, query_ids, gallery_ids, depth)
        shuffled = rank_positives(queries, gallery[order], query_ids, gallery_ids[order], depth, gallery_block=64)
        for part, shuffled_part in zip(bands, shuffled, strict=True):
            torch.testing.assert_close(shuffled_part, part)


@pytest.mark.parametrize("dim", [64, 256, 4096])
def test_rivals_that_float32_cannot_tell_apart_are_counted_right(dim):
    # Products of such rows are off by up to 1e-6, the distance at which scores tie.
    centre = normalize(torch.rand(1, dim, generator=torch.Generator().manual_seed(8)), dim=1)
    gallery = normalize(centre + 3e-3 * unit_rows(1500, dim, 9), dim=1)
    scores = centre.double() @ gallery.double().T
    bands = rank_positives(centre.expand(20, -1), gallery, torch.arange(20), torch.arange(1500))
    assert_bands(bands, bands_of(scores.expand(20, -1), torch.arange(20), torch.arange(1500), 1))


def test_constant_embeddings_leave_every_place_open():
    bands = rank_positives(*constant_rows(0), torch.arange(30), torch.arange(200) // 2, depth=None)
    assert bands.ahead.any().item() is False
    assert bands.rivals[:, 0].unique().tolist() == [198]
    assert bands.positives.tolist() == [[2, 0]] * 30


def test_bands_of_near_ties_do_not_overlap():
    # Neighbours are within the tolerance, the ends are not: the first two form a band, the third one its own.
    gallery = at_scores(0.5 + 1.6e-6, 0.5 + 0.8e-6, 0.5)
    bands = rank_positives(at_scores(1.0), gallery, torch.tensor([7]), torch.tensor([7, 7, 7]))
    assert bands.ahead.tolist() == [[0, 0, 2]]
    assert bands.positives.tolist() == [[2, 0, 1]]


def test_a_rival_between_two_positives_belongs_to_the_better_ones_band():
    gallery = at_scores(0.5 + 1.6e-6, 0.5 + 0.8e-6, 0.5, 0.5 - 1e-4)
    bands = rank_positives(at_scores(1.0), gallery, torch.tensor([7]), torch.tensor([7, 8, 7, 9]))
    assert bands.ahead.tolist() == [[0, 2]]
    assert bands.rivals.tolist() == [[1, 0]]
    assert bands.positives.tolist() == [[1, 1]]


def test_scores_within_the_tolerance_are_ties_and_others_are_not():
    gallery = at_scores(0.5 + 1.1e-6, 0.5 + 0.9e-6, 0.5, 0.5 - 0.9e-6, 0.5 - 1.1e-6)
    bands = rank_positives(at_scores(1.0), gallery, torch.tensor([2]), torch.arange(5))
    assert [bands.ahead.item(), bands.rivals.item(), bands.positives.item()] == [1, 2, 1]


def test_queries_without_a_positive_are_left_out():
    queries, gallery = random_rows(10)
    query_ids = torch.where(torch.arange(30) % 3 == 0, 999, torch.arange(30))
    bands = rank_positives(queries, gallery, query_ids, torch.arange(200))
    kept = (query_ids != 999).nonzero()[:, 0]
    alone = rank_positives(queries[kept], gallery, query_ids[kept], torch.arange(200))
    assert bands.query_rows.tolist() == kept.tolist()
    for part, alone_part in zip(bands[:4], alone[:4], strict=True):
        torch.testing.assert_close(part, alone_part)


def test_products_are_exact_whatever_the_process_has_set():
    queries, gallery = random_rows(11)
    arguments = queries, gallery, torch.arange(30), torch.arange(200)
    expected = rank_positives(*arguments)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            bands = rank_positives(*arguments)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert_bands(bands, list(expected[:3]))


def sets_of(sizes: Tensor) -> Tensor:
    return torch.arange(len(sizes)).repeat_interleave(sizes)


def set_scores(rows: Tensor, query_sets: Tensor, gallery_sets: Tensor, reduces: tuple[str, str]) -> Tensor:
    """Scores of sets by their definition: over the side of "max" first, then over that of "mean"."""
    answer = torch.empty(int(query_sets.max()) + 1, int(gallery_sets.max()) + 1, dtype=rows.dtype)
    for query in range(len(answer)):
        for item in range(answer.shape[1]):
            cell = rows[query_sets == query][:, gallery_sets == item]
            if reduces == ("max", "max"):
                answer[query, item] = cell.max()
            elif reduces == ("mean", "mean"):
                answer[query, item] = cell.mean()
            else:
                answer[query, item] = cell.amax(dim=0 if reduces[0] == "max" else 1).mean()
    return answer


@pytest.mark.parametrize("reduces", [("max", "max"), ("max", "mean"), ("mean", "max"), ("mean", "mean")])
@pytest.mark.parametrize("depth", [2, None])
@pytest.mark.parametrize("gallery_block", [1024, 9])
def test_sets_score_by_their_definition(reduces, depth, gallery_block):
    generator = torch.Generator().manual_seed(12)
    query_sets = sets_of(torch.randint(1, 4, (20,), generator=generator))
    gallery_sets = sets_of(torch.randint(1, 6, (60,), generator=generator))
    queries, gallery = unit_rows(len(query_sets), 16, 13), unit_rows(len(gallery_sets), 16, 14)
    query_ids, gallery_ids = torch.arange(20) % 4, torch.arange(60) % 5
    scores = set_scores(queries.double() @ gallery.double().T, query_sets, gallery_sets, reduces)
    bands = rank_positives(
        queries, gallery, query_ids, gallery_ids, depth, 8, gallery_block, query_sets, gallery_sets, *reduces
    )
    assert_bands(bands, bands_of(scores, query_ids, gallery_ids, depth or 12))
    assert bands.query_rows.tolist() == list(range(20))


def test_sets_of_one_row_are_rows():
    queries, gallery = random_rows(15)
    arguments = queries, gallery, torch.arange(30) % 12, torch.arange(200) % 25
    sets = rank_positives(*arguments, query_sets=torch.arange(30), gallery_sets=torch.arange(200))
    assert_bands(sets, list(rank_positives(*arguments)[:3]))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"gallery_embeds": torch.ones(12, 3) / 3**0.5}, ValueError, "must have one dimension, got 8 and 3"),
        ({"gallery_embeds": torch.zeros(0, 8), "gallery_group_ids": IDS[:0]}, ValueError, "with at least one row"),
        ({"gallery_group_ids": IDS[:5]}, ValueError, "`gallery_group_ids` has shape (5,) for 12 embeddings"),
        ({"query_group_ids": IDS.float()}, TypeError, "`query_group_ids` must be int64, got torch.float32"),
        ({"query_group_ids": IDS + 99}, ValueError, "No query has a relevant item in the gallery"),
        ({"query_embeds": unit_rows(12) * 3}, ValueError, "`query_embeds` must have unit norm, got 3 in row 0"),
        ({"query_embeds": unit_rows(12)[0]}, ValueError, "`query_embeds` must be (rows, dim)"),
        ({"query_embeds": IDS[:, None]}, TypeError, "`query_embeds` must be of a float type, got torch.int64"),
        ({"depth": 0}, ValueError, "`depth` must be at least 1, or None for all positives, got 0"),
        ({"gallery_sets": IDS[:3]}, ValueError, "`gallery_sets` has shape (3,) for 12 embeddings"),
        ({"gallery_sets": IDS.int()}, TypeError, "`gallery_sets` must be int64, got torch.int32"),
        ({"gallery_sets": IDS // 2}, ValueError, "`gallery_group_ids` has shape (12,) for 6 sets"),
        ({"query_sets": IDS + 1}, ValueError, "`query_sets` must ascend from 0 without a gap"),
        ({"query_sets": IDS * 2}, ValueError, "`query_sets` must ascend from 0 without a gap"),
        ({"query_sets": IDS.flip(0)}, ValueError, "`query_sets` must ascend from 0 without a gap"),
        ({"query_reduce": "sum"}, ValueError, "`query_reduce` must be one of ['max', 'mean'], got 'sum'"),
    ],
)
def test_bad_input_names_the_culprit(changes, error, message):
    arguments = {"query_embeds": unit_rows(12), "gallery_embeds": unit_rows(12)}
    arguments |= {"query_group_ids": IDS, "gallery_group_ids": IDS} | changes
    with pytest.raises(error) as raised:
        rank_positives(**arguments)
    assert message in str(raised.value)


@pytest.mark.parametrize("row", [7, 20_000])
def test_nan_is_named_by_its_row(row):
    gallery = unit_rows(20_001)
    gallery[row, 3] = torch.nan
    with pytest.raises(ValueError, match=f"`gallery_embeds` must be finite, got NaN or infinity in row {row}"):
        rank_positives(unit_rows(12), gallery, IDS, torch.arange(20_001))


def test_embeddings_without_rows_are_refused():
    with pytest.raises(ValueError, match=r"`image_embeds` must be .* with at least one row, got \(0, 8\)"):
        check_embeds("image", torch.zeros(0, 8), IDS[:0])


def test_docstring_examples_hold():
    assert doctest.testmod(ranking).failed == 0
