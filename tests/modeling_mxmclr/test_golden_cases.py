"""The values and gradients of the peers' public code, see `tests/golden_cases.py`."""

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from modeling_mxmclr.folds_mxmclr import Observations
from modeling_mxmclr.objectives_mxmclr import compute_objective
from tests.golden_cases import CASES, evaluate, run_case
from tests.references.golden_inputs import case_inputs, firsts
from tests.references.objective_loops import hn_nce_loops, public_hn_nce_loops
from tests.references.observed import assert_near, tangent

# Their code normalises what it is given, so that a gradient along a row of theirs says nothing.
MENDED_VALUE = 0.0009608505942493295  # of the case that is left out
NORMALISED_INSIDE = ("stablerep.", "siglip.mps", "tricolo.", "pml_", "mv_", "tcl.", "cwcl.bi")


@pytest.fixture(scope="module")
def tally(request) -> Iterator[dict[str, str | None]]:
    """Why each case that was run is left out, or None; the sum is printed at the end."""
    outcomes: dict[str, str | None] = {}
    yield outcomes
    lines = [f"{Counter(outcomes.values())[None]} golden cases run"]
    lines += [f"left out: {name}: {reason}" for name, reason in outcomes.items() if reason]
    plugins = request.config.pluginmanager
    with plugins.getplugin("capturemanager").global_and_fixture_disabled():
        plugins.getplugin("terminalreporter").ensure_newline()
        for line in lines:
            plugins.getplugin("terminalreporter").write_line(line)


def tolerance_of(case: dict) -> float:
    name = case["name"].partition("/")[2]
    in_float32 = name.endswith(".f32") or name.startswith("sca3d")
    return 1e-6 if in_float32 else 1e-10


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_peers_code(name, tally):
    case = CASES[name]
    try:
        loss, leaves = evaluate(case)
    except NotImplementedError as reason:
        tally[name] = str(reason)
        return
    tally[name] = None
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True) if leaves else ()
    if case["value"] is None:  # their code overflows
        assert all(value.isfinite().all() for value in (loss, *gradients))
        return
    assert_near(loss, case["value"], tolerance_of(case))
    for side, rows, ours in zip("VT", leaves, gradients, strict=False):
        assert_gradient(name.partition("/")[2], case, side, rows, ours)


def assert_gradient(name: str, case: dict, side: str, rows: Tensor, ours: Tensor) -> None:
    if side in case.get("gradients", {}):
        theirs = torch.tensor(case["gradients"][side], dtype=torch.float64).reshape(rows.shape)
        if name.startswith(NORMALISED_INSIDE):
            ours, theirs = tangent(ours, rows), tangent(theirs, rows)
        assert_near(ours, theirs, tolerance_of(case))
    elif case["grad_norm"] and case["grad_norm"].get(side) is not None:
        assert_near(ours.norm(), case["grad_norm"][side], tolerance_of(case))


def test_a_case_is_left_out_where_public_code_is_wrong_and_ours_is_mended():
    """SCA3D's value is that of weights divided by other rows' sums; `hn_nce` divides by the row's own."""
    case = CASES["grid/sca3d.hnnce.v1t1"]
    with pytest.raises(NotImplementedError, match="`hn_nce` mends it"):
        run_case(case)
    images, texts = firsts(case_inputs(case))
    observed = Observations(images.embeds, texts.embeds, images.ids, texts.ids)
    scale, settings = 1 / case["hyper"]["temp"], {name: case["hyper"][name] for name in ("alpha", "beta")}
    assert_near(public_hn_nce_loops(observed, scale, **settings), case["value"], 1e-6)
    mended = hn_nce_loops(observed, scale, **settings)
    assert_near(mended, MENDED_VALUE, 1e-12)
    ours = compute_objective("hn_nce", *observed[:4], scale=scale, **settings)
    assert_near(ours.loss, mended, 1e-12)
