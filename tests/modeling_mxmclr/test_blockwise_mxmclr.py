import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_mxmclr import contrast_mxmclr, tiles_mxmclr
from modeling_mxmclr.blockwise_mxmclr import BlockwiseDirection, LogitTiles, find_pairs
from modeling_mxmclr.contrast_mxmclr import MATRIX_LOGITS, Direction, both_directions, prepare, within
from modeling_mxmclr.folds_mxmclr import Observations, unit_norm
from modeling_mxmclr.objectives_mxmclr import compute_objective
from modeling_mxmclr.tiles_mxmclr import (
    Grid,
    Pairs,
    everything,
    pair_scores,
    reduce_logits,
    row_log_sums,
    sigmoid_losses,
    spread_values,
)
from tests.golden_cases import CASES, evaluate

# Ragged folds in no order; instances 2 and 6 have no text, 5 no image: they stand in the denominators only.
IMAGE_IDS = [3, 0, 0, 1, 2, 3, 0, 6, 4, 4, 7, 0, 7, 3]
TEXT_IDS = [1, 0, 3, 5, 3, 0, 4, 7, 1, 1, 4]
EVEN_IDS = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
EVEN = {"mv_dhel", "mv_infonce", "ntxent", "pvc"}
# (TILE, PAIRS): all in one tile, and tiles that divide nothing.
SIZES = [(512, 1024), (5, 7)]
SETTINGS = [
    ("clip", {}),
    ("cwcl", {}),
    ("cwcl", {"text_weights": "raw"}),
    ("hn_nce", {}),
    ("hn_nce", {"alpha": 0.0, "beta": 0.0}),
    ("hn_nce", {"alpha": 0.3, "beta": 1.5}),
    ("mfh", {}),
    ("mfh", {"soft_weight": 0.0, "score": "max_sim"}),
    ("mfh", {"score": "attentive"}),
    ("mfh", {"soft_weight": 1.0, "soft_detach": False}),
    ("mfh", {"soft_detach": False, "soft_temperature": 0.2, "soft_source": 0.3, "normaliser": "pairs"}),
    ("mfh", {"soft_detach": False, "soft_columns": "transposed", "soft_weight": 0.9, "direction_weight": 0.2}),
    ("mfh", {"soft_columns": "transposed", "hard_form": "in", "normaliser": "instances"}),
    ("mfh", {"soft_level": "observation"}),
    ("mfh", {"soft_level": "observation", "soft_detach": False, "soft_source": 0.8, "denominator": "one_positive"}),
    ("milnce", {}),
    ("milnce", {"anchors": "images"}),
    ("milnce", {"anchors": "texts"}),
    ("ntxent", {}),
    ("one_to_k", {}),
    ("one_to_k", {"divide": False, "normaliser": "instances"}),
    ("pvc", {}),
    ("pvc", {"mean": "arithmetic", "sides": "images"}),
    ("pvc", {"mean": "public_arithmetic"}),
    ("siglip", {}),
    ("siglip", {"bias": -1.5, "normaliser": "pairs"}),
    ("siglip", {"normaliser": "texts"}),
    ("soft_clip", {}),
    ("soft_clip", {"soft_columns": "own", "temperature_use": "divide", "soft_source": 0.2}),
    ("soft_clip", {"soft_detach": True, "normaliser": "pairs", "direction_weight": 0.9}),
    ("stablerep", {}),
    ("supcon", {}),
    ("supcon", {"sides": "images", "lonely": "drop", "denominator": "one_positive"}),
    ("supcon", {"sides": "texts", "anchors": "first", "hard_form": "in", "base_temperature": 0.3}),
    ("supcon", {"sides": "cross", "denominator": "negatives", "normaliser": "instances"}),
    ("tcl", {}),
    *(
        ("unicl", {"hard_form": form, "denominator": denominator})
        for form in ("out", "in", "ones")
        for denominator in ("all", "one_positive", "negatives")
    ),
    ("unicl", {"terms": {"pooled": 0.5, "mixup": 0.5}}),
]
every_setting = pytest.mark.parametrize(
    ("name", "settings"), SETTINGS, ids=[f"{name}-{'-'.join(map(str, given.values()))}" for name, given in SETTINGS]
)


@pytest.fixture
def blockwise(monkeypatch):
    """A switch to the tiles, of a size."""

    def switch(tile: int = 5, pairs: int = 7) -> None:
        monkeypatch.setattr(contrast_mxmclr, "MATRIX_LOGITS", -1)
        monkeypatch.setattr(tiles_mxmclr, "TILE", tile)
        monkeypatch.setattr(tiles_mxmclr, "LONG", 2)
        monkeypatch.setattr(tiles_mxmclr, "PAIRS", pairs)

    return switch


def draw(image_ids=IMAGE_IDS, text_ids=TEXT_IDS, dim=6, dtype=torch.float64) -> Observations:
    generator = torch.Generator().manual_seed(0)
    sides = [
        unit_norm(torch.randn(len(ids), dim, dtype=torch.float64, generator=generator)).to(dtype)
        for ids in (image_ids, text_ids)
    ]
    return Observations(*(rows.requires_grad_() for rows in sides), torch.tensor(image_ids), torch.tensor(text_ids))


def outcome(name: str, settings: dict, observed: Observations, scale: float = 7.0) -> dict[str, Tensor]:
    """Loss, components, and the gradients of embeddings, scale and, where there is one, bias."""
    inputs = {"images": observed.image_embeds, "texts": observed.text_embeds}
    inputs["scale"] = torch.tensor([scale], dtype=inputs["images"].dtype, requires_grad=True)
    if name == "siglip":
        start = settings.get("bias", -10.0)
        inputs["bias"] = torch.tensor([start], dtype=inputs["images"].dtype, requires_grad=True)
        settings = settings | {"bias": inputs["bias"]}
    output = compute_objective(name, *observed[:4], scale=inputs["scale"], **settings)
    gradients = torch.autograd.grad(output.loss, list(inputs.values()), allow_unused=True, materialize_grads=True)
    return {"loss": output.loss.detach(), **output.components, **dict(zip(inputs, gradients, strict=True))}


def observed_for(name: str, dtype: torch.dtype = torch.float64) -> Observations:
    return draw(EVEN_IDS, EVEN_IDS, dtype=dtype) if name in EVEN else draw(dtype=dtype)


@pytest.mark.parametrize(("tile", "pairs"), SIZES)
@every_setting
def test_tiles_give_value_components_and_gradients_of_the_matrix(name, settings, tile, pairs, blockwise):
    expected = outcome(name, settings, observed_for(name))
    blockwise(tile, pairs)
    torch.testing.assert_close(outcome(name, settings, observed_for(name)), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [14.3, 100.0])
@every_setting
def test_tiles_give_the_same_in_float32(name, settings, scale, blockwise):
    exact = outcome(name, settings, observed_for(name), scale)
    blockwise()
    ours = outcome(name, settings, observed_for(name, torch.float32), scale)
    for part in exact:
        size = max(1.0, exact[part].abs().max().item())
        torch.testing.assert_close(ours[part].double(), exact[part], rtol=0, atol=1e-5 * size)


def test_tiles_of_single_logits_are_no_special_case(blockwise):
    settings = {"soft_detach": False, "hard_form": "in", "denominator": "one_positive", "soft_columns": "transposed"}
    expected = outcome("mfh", settings, draw())
    blockwise(1, 1)
    torch.testing.assert_close(outcome("mfh", settings, draw()), expected, rtol=1e-10, atol=1e-10)


# Peers' code in float64; what they compute in float32 is compared elsewhere.
COVERED = {"ccrk", "clip", "google_supcon", "milnce", "mv_ntxent_mv", "mv_ntxent_pwe", "mv_pvc_geometric"}
COVERED |= {"pml_ntxent", "pml_supcon", "siglip", "soft_clip", "supcon", "tricolo", "unicl"}
GOLDEN = [name for name in CASES if name.partition("/")[2].partition(".")[0] in COVERED]


@pytest.mark.parametrize("name", GOLDEN)
def test_tiles_give_the_peers_values_where_the_matrix_does(name, blockwise):
    dense, leaves = evaluate(CASES[name])
    gradients = torch.autograd.grad(dense, leaves, allow_unused=True, materialize_grads=True)
    blockwise()
    tiled, leaves = evaluate(CASES[name])
    torch.testing.assert_close(tiled, dense, rtol=1e-10, atol=1e-10)
    ours = torch.autograd.grad(tiled, leaves, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(ours, gradients, rtol=1e-10, atol=1e-10)
    if "f32" not in name:
        assert tiled.item() == pytest.approx(CASES[name]["value"], rel=1e-9, abs=1e-9)


def rows(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 4, dtype=torch.float64, generator=generator).requires_grad_() for size in sizes]


SCALE = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
QUERY_INSTANCE, KEY_INSTANCE = torch.tensor([2, 0, 1, 1, 0, 2, 2]), torch.tensor([0, 3, 2, 1, 2])


@pytest.mark.parametrize("leave_out", ["nothing", "own"])
def test_gradients_of_log_sums_and_pairs_are_those_of_finite_differences(leave_out, blockwise):
    blockwise(3, 2)
    grid = Grid(QUERY_INSTANCE, KEY_INSTANCE, leave_out, mirrored=False)
    pairs = Pairs(*find_pairs(QUERY_INSTANCE, KEY_INSTANCE, leave_out_itself=False), grid)
    assert torch.autograd.gradcheck(lambda *given: reduce_logits(*given, grid, pairs), (*rows(7, 5), SCALE))


@pytest.mark.parametrize("leave_out", ["itself", "own"])
def test_gradients_of_rows_against_themselves_are_those_of_finite_differences(leave_out, blockwise):
    blockwise(3, 2)
    grid = Grid(QUERY_INSTANCE, QUERY_INSTANCE, leave_out, mirrored=True)
    pairs = Pairs(*find_pairs(QUERY_INSTANCE, QUERY_INSTANCE, leave_out_itself=True), grid)

    def sums(own: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        reduced = reduce_logits(own, own, scale, grid, pairs)
        return reduced.of_queries, reduced.of_pairs

    assert torch.autograd.gradcheck(sums, (*rows(7), SCALE))


FAR = {"far rows": (1, 0), "far columns": (0, 1), "far apart": (1, 1)}


@pytest.mark.parametrize("far", FAR.values(), ids=FAR.keys())
@pytest.mark.parametrize("leave_out", ["nothing", "own"])
def test_log_sums_far_below_the_highest_logit_are_exact(leave_out, far, blockwise):
    # Logits from -200 to 200 beside each other: what shares an exponential with 200 is 0 in float32.
    blockwise(3, 2)
    queries, keys = torch.tensor([[2.0]] * 4 + [[-2.0]] * 3), torch.tensor([[1.0]] * 3 + [[-1.0]] * 2)
    queries, keys = (
        (given.abs() if not is_far else given).requires_grad_()
        for given, is_far in zip((queries, keys), far, strict=True)
    )
    with torch.no_grad():
        keys[-1] /= 50
    scale = torch.tensor(100.0)
    grid = Grid(QUERY_INSTANCE, KEY_INSTANCE, leave_out, mirrored=False)
    nothing = torch.empty(0, dtype=torch.int64)
    reduced = reduce_logits(queries, keys, scale, grid, Pairs(nothing, nothing, grid))
    logits = (scale * queries @ keys.T).masked_fill(
        (QUERY_INSTANCE[:, None] == KEY_INSTANCE) & (leave_out == "own"), -torch.inf
    )
    expected = logits.logsumexp(dim=1), logits.logsumexp(dim=0)
    torch.testing.assert_close((reduced.of_queries, reduced.of_keys), expected)
    ours = torch.autograd.grad(reduced.of_queries.sum() + reduced.of_keys.sum(), (queries, keys))
    gradients = torch.autograd.grad(expected[0].sum() + expected[1].sum(), (queries, keys))
    torch.testing.assert_close(ours, gradients, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("leave_out", ["itself", "own"])
def test_rows_far_below_the_highest_logit_are_exact_against_themselves(leave_out, blockwise):
    blockwise(3, 2)
    own = torch.tensor([[20.0, 0.0], [18.0, 0.0], [0.0, 1.0], [0.0, 2.0], [19.0, 0.0], [0.0, -1.5], [0.0, 0.5]])
    own.requires_grad_()
    grid = Grid(QUERY_INSTANCE, QUERY_INSTANCE, leave_out, mirrored=True)
    nothing = torch.empty(0, dtype=torch.int64)
    sums = reduce_logits(own, own, torch.tensor(1.0), grid, Pairs(nothing, nothing, grid)).of_queries
    left = torch.eye(7, dtype=torch.bool) if leave_out == "itself" else QUERY_INSTANCE[:, None] == QUERY_INSTANCE
    expected = (own @ own.T).masked_fill(left, -torch.inf).logsumexp(dim=1)
    torch.testing.assert_close(sums, expected)
    torch.testing.assert_close(
        torch.autograd.grad(sums.sum(), own), torch.autograd.grad(expected.sum(), own), rtol=1e-5, atol=1e-4
    )


def test_gradients_of_pairs_sigmoids_and_spreads_are_those_of_finite_differences(blockwise):
    blockwise(3, 2)
    grid = Grid(QUERY_INSTANCE, KEY_INSTANCE, "nothing", mirrored=False)
    query, key = find_pairs(QUERY_INSTANCE, KEY_INSTANCE, leave_out_itself=False)
    queries, keys, of_keys, of_queries = rows(7, 5, 5, 7)
    bias = torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: pair_scores(*given, query, key), (queries, keys, SCALE))
    assert torch.autograd.gradcheck(lambda *given: sigmoid_losses(*given, grid)[0], (queries, keys, SCALE, bias))
    for values, transposed in ((of_keys, False), (of_queries, True)):

        def spread(queries: Tensor, keys: Tensor, scale: Tensor, values: Tensor, transposed=transposed) -> Tensor:
            sums = row_log_sums(queries, keys, scale)
            return spread_values(queries, keys, scale, sums, values, transposed=transposed).values

        assert torch.autograd.gradcheck(spread, (queries, keys, SCALE, values))


def test_a_query_that_no_key_may_answer_has_no_sum_and_no_gradient(blockwise):
    blockwise(2)
    queries, keys = rows(3, 2)
    grid = Grid(torch.tensor([0, 1, 0]), torch.tensor([0, 0]), "own", mirrored=False)
    pairs = Pairs(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64), grid)
    sums = reduce_logits(queries, keys, SCALE, grid, pairs).of_queries
    assert sums.isinf().tolist() == [True, False, True]
    (gradient,) = torch.autograd.grad(sums, queries, torch.ones(3, dtype=torch.float64))
    assert gradient.isfinite().all()
    assert gradient.any(dim=1).tolist() == [False, True, False]


class LargestTensor(TorchDispatchMode):
    """Counts the entries of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                # What is allocated: an expanded tensor has fewer entries than its shape says.
                self.entries = max(self.entries, leaf.untyped_storage().nbytes() // leaf.itemsize)
        return result


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("clip", {}),
        ("mfh", {"soft_detach": False, "soft_columns": "transposed"}),
        ("mfh", {"soft_level": "observation"}),
        ("hn_nce", {}),
        ("milnce", {}),
        ("one_to_k", {}),
        ("siglip", {}),
        ("soft_clip", {}),
        ("stablerep", {}),
        ("supcon", {}),
        ("unicl", {"hard_form": "in", "denominator": "one_positive"}),
    ],
)
def test_nothing_as_large_as_the_matrix_is_ever_made(name, settings, blockwise):
    blockwise(8, 8)
    observed = draw(list(range(40)) * 2, list(range(40)) * 2, dim=4)
    with LargestTensor() as largest:
        outcome(name, settings, observed)
    # 80 x 80 logits, 40 x 40 relations; rows beside which their features and two columns stand are the largest.
    assert largest.entries <= 160 * (2 * 4 + 2)
    assert largest.entries < 40 * 40 + 1


def test_large_batches_choose_tiles_by_themselves():
    dim, side = 2, int(MATRIX_LOGITS**0.5)
    for size, kind in ((side, Direction), (side + 1, BlockwiseDirection)):
        ids = torch.arange(size)
        observed = Observations(torch.zeros(size, dim), torch.zeros(size, dim), ids, ids)
        observed, scale, instances = prepare(observed, torch.ones(1))
        assert isinstance(within(observed.image_embeds, ids, scale), kind)
        assert isinstance(both_directions(observed, instances, scale)[0], kind)


def test_pairs_are_the_equal_ones_in_order():
    generator = torch.Generator().manual_seed(3)
    own, other = (torch.randint(0, 6, (size,), generator=generator) for size in (13, 9))
    expected = (own[:, None] == other).nonzero(as_tuple=True)
    torch.testing.assert_close(find_pairs(own, other, leave_out_itself=False), expected)
    within_own = (own[:, None] == own).fill_diagonal_(False).nonzero(as_tuple=True)
    torch.testing.assert_close(find_pairs(own, own, leave_out_itself=True), within_own)


def test_both_directions_come_from_one_pass_that_brings_the_pairs(blockwise, monkeypatch):
    blockwise()
    calls = []
    monkeypatch.setattr(
        "modeling_mxmclr.blockwise_mxmclr.reduce_logits",
        lambda *given: calls.append(reduce_logits(*given)) or calls[-1],
    )
    outcome("mfh", {}, draw())
    assert len(calls) == 1
    assert len(calls[0].of_pairs) == len(
        find_pairs(torch.tensor(IMAGE_IDS), torch.tensor(TEXT_IDS), leave_out_itself=False)[0]
    )


def test_pairs_may_be_asked_for_before_any_sum(blockwise):
    blockwise()
    observed, scale, instances = prepare(draw(), SCALE)
    tiles = LogitTiles(*observed[:2], instances.image_index, instances.text_index, scale)
    row, column = tiles.pairs
    torch.testing.assert_close(tiles.pair_scores, (scale * observed[0] @ observed[1].T)[row, column])


def test_a_batch_without_a_pair_costs_nothing_by_tiles_too(blockwise):
    blockwise()
    for name in ("mfh", "siglip", "supcon"):
        with pytest.warns(UserWarning, match="both an image and a text"):
            assert not outcome(name, {}, draw([0, 0, 1], [2, 3]))["images"].any()


def test_every_row_gives_mass_to_all_instances_in_both(blockwise):
    blockwise(3)
    queries, keys = rows(7, 5)
    sums = row_log_sums(queries, keys, SCALE)
    torch.testing.assert_close(sums, (SCALE * queries @ keys.T).logsumexp(dim=1))
    spread = spread_values(queries, keys, SCALE, sums, torch.ones(5, 1, dtype=torch.float64), transposed=False)
    torch.testing.assert_close(spread.values, torch.ones(7, 1, dtype=torch.float64))
    masses = (SCALE * queries @ keys.T).softmax(dim=1)
    torch.testing.assert_close(spread.entropies, torch.special.entr(masses).sum(dim=1).detach())
    assert len(list(everything(queries, keys).tiles())) == 4
