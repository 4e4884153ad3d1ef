import doctest

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from training.multifold_retrieval import search
from training.multifold_retrieval.search import top_k

SEVERAL_BLOCKS = [(2048, 1024), (7, 11), (1, 64), (64, 1)]
IDS = torch.arange(12)


def unit_rows(num_rows: int, dim: int = 8, seed: int = 0) -> Tensor:
    return normalize(torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def best_of(scores: Tensor, k: int) -> list[list[int]]:
    """The k best columns of each row by their definition, the lower of equal ones first."""
    return [sorted(range(len(row)), key=lambda item: (-row[item], item))[:k] for row in scores.float().tolist()]


def draw(kind: str, seed: int) -> tuple[Tensor, Tensor]:
    queries, gallery = unit_rows(30, 64, seed), unit_rows(200, 64, seed + 1)
    generator = torch.Generator().manual_seed(seed)
    if kind == "duplicated":
        gallery = gallery[torch.randint(20, (200,), generator=generator)]
    elif kind == "constant":
        gallery = gallery[:1].expand(200, -1)
    elif kind == "crowded":  # scores of about 1 that float32 cannot order
        centre = normalize(torch.rand(1, 64, generator=generator), dim=1)
        queries, gallery = normalize(centre + 3e-3 * queries), normalize(centre + 3e-3 * gallery)
    elif kind == "ascending":  # every block of the gallery is better than all before it
        gallery = gallery[(gallery @ queries[0]).argsort()]
    return queries, gallery


@pytest.mark.parametrize("kind", ["random", "duplicated", "constant", "crowded", "ascending"])
@pytest.mark.parametrize("k", [1, 10, 200])
@pytest.mark.parametrize(("query_block", "gallery_block"), SEVERAL_BLOCKS)
def test_the_best_items_are_those_of_the_whole_matrix(kind, k, query_block, gallery_block):
    queries, gallery = draw(kind, 0)
    exact = queries.double() @ gallery.double().T
    found = top_k(queries, gallery, k, query_block, gallery_block)
    assert found.rows.tolist() == best_of(exact, k)
    torch.testing.assert_close(found.scores, exact.gather(1, found.rows).float(), rtol=0, atol=1e-7)


def test_copies_come_in_the_order_of_their_rows():
    gallery = unit_rows(3)[torch.tensor([0, 1, 0, 2, 0, 1])]
    assert top_k(gallery[2:3], gallery, 3).rows.tolist() == [[0, 2, 4]]


def test_negative_zero_and_zero_are_equal():
    gallery = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [-0.0, 1.0], [-0.0, -1.0]])
    found = top_k(torch.tensor([[1.0, 0.0]]), gallery, 4)
    assert found.rows.tolist() == [[1, 2, 3, 0]]
    assert found.scores.tolist() == [[0.0, 0.0, 0.0, -1.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_score_as_their_values_do_in_float64(dtype):
    queries, gallery = (rows.to(dtype) for rows in draw("random", 2))
    found = top_k(queries, gallery, 10, gallery_block=32)
    assert found.rows.tolist() == best_of(queries.double() @ gallery.double().T, 10)
    assert found.scores.dtype == torch.float32


@pytest.mark.parametrize("gallery_block", [1024, 9])
def test_an_instance_scores_as_its_best_view(gallery_block):
    views_per_instance = torch.randint(1, 6, (60,), generator=torch.Generator().manual_seed(3))
    sets = torch.arange(60).repeat_interleave(views_per_instance)
    captions, views = unit_rows(20, 16, 4), unit_rows(len(sets), 16, 5)
    exact = captions.double() @ views.double().T
    best_views = torch.stack([exact[:, sets == instance].amax(dim=1) for instance in range(60)], dim=1)
    found = top_k(captions, views, 7, gallery_block=gallery_block, gallery_sets=sets)
    assert found.rows.tolist() == best_of(best_views, 7)


def test_captions_of_a_query_are_averaged():
    captions, gallery = unit_rows(12, 16, 6), unit_rows(40, 16, 7)
    found = top_k(captions, gallery, 5, query_sets=IDS // 3, query_reduce="mean")
    means = (captions.double() @ gallery.double().T).view(4, 3, 40).mean(dim=1)
    assert found.rows.tolist() == best_of(means, 5)


@pytest.mark.parametrize("k", [0, 13])
def test_k_beyond_the_gallery_is_an_error(k):
    with pytest.raises(ValueError, match=f"`k` must be from 1 to the 12 items of the gallery, got {k}"):
        top_k(unit_rows(3), unit_rows(12), k)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gallery_embeds": unit_rows(12, dim=5)}, "must have one dimension, got 8 and 5"),
        (
            {"gallery_embeds": torch.zeros(0, 8)},
            "`gallery_embeds` must be (rows, dim) with at least one row, got (0, 8)",
        ),
        ({"query_embeds": torch.zeros(0, 8)}, "`query_embeds` must be (rows, dim) with at least one row, got (0, 8)"),
        ({"query_embeds": unit_rows(3) / 0}, "`query_embeds` must be finite, got NaN or infinity in row 0"),
        ({"gallery_sets": IDS + 1}, "`gallery_sets` must ascend from 0 without a gap"),
    ],
)
def test_bad_input_names_the_culprit(changes, message):
    with pytest.raises(ValueError, match="`") as raised:
        top_k(**{"query_embeds": unit_rows(3), "gallery_embeds": unit_rows(12), "k": 2} | changes)
    assert message in str(raised.value)


def test_docstring_examples_hold():
    assert doctest.testmod(search).failed == 0
