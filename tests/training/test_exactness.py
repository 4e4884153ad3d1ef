"""`training/exactness.py` as users run it, and whether it would find a gradient that is wrong."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from tests.references.tiny import tiny_batch, tiny_model
from tests.training.test_train import launch, recipe  # noqa: F401 - a fixture
from training import cached_step, exactness, gradient_cases
from training.gradient_cases import Case, build_cases, compare, largest_difference, share_of


@pytest.mark.parametrize(
    ("words", "ways"),
    [(["--ranks"], 7), pytest.param(["--ranks", "2", "3"], 17, marks=pytest.mark.slow)],
    ids=["one process", "ranks"],
)
def test_every_way_of_a_recipe_is_exact(recipe, words, ways):  # noqa: F811
    run = launch("exactness.py", recipe, "--instances", "6", *words, cwd=recipe.parent)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    assert "objective mfh, float64, 2 batches of [11, 9] images" in lines[0]
    assert [line.split()[0] for line in lines[2:-1]] == ["exact"] * ways
    assert lines[-1] == "All are exact. Allowed are 1e-10."


def test_a_way_that_is_not_exact_ends_with_1(monkeypatch, capsys):
    nothing = SimpleNamespace(
        recipe=None, model=SimpleNamespace(objective="mfh"), optimization=SimpleNamespace(seed=0)
    )
    monkeypatch.setattr(exactness, "parse_arguments", lambda *_: nothing)
    monkeypatch.setattr(exactness, "prepare", lambda *_: (tiny_model().double(), [tiny_batch(torch.float64)]))
    monkeypatch.setattr(cached_step.Side, "hand_down", lambda _: None)
    assert exactness.main(["--ranks"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("FAILS  micro-batches of 1 ")
    assert lines[-1] == "5 ways are NOT exact. Allowed are 1e-10."


@pytest.fixture
def here():
    """The cases of one process."""
    return build_cases([], micro_batch=2, tile=3)


def test_every_way_of_one_process_is_exact(here):
    batches = [tiny_batch(torch.float64, seed) for seed in range(2)]
    found = dict(compare(here, tiny_model(projection_dropout=0.2).double(), batches))
    assert list(found) == here
    assert all(max(each.loss, each.gradient) < 1e-10 for each in found.values())


def test_dropout_that_is_drawn_anew_is_found(here):
    model = tiny_model(projection_dropout=0.2).double()
    with mock.patch.object(cached_step, "set_random_state"):
        found = dict(compare(here, model, [tiny_batch(torch.float64)]))
    assert [case.name for case, each in found.items() if each.gradient > 1e-10] == ["micro-batches, dropout replayed"]


def test_micro_batches_that_are_left_out_are_found(here):
    with mock.patch.object(cached_step.Side, "hand_down"):
        found = dict(compare(here, tiny_model().double(), [tiny_batch(torch.float64)]))
    wrong = {case.name for case, each in found.items() if each.gradient > 1e-10}
    assert wrong == {case.name for case in here if case.sizes != gradient_cases.WHOLE}


def test_a_difference_is_relative_to_the_largest_entry_of_the_whole_gradient():
    plain = {"a": torch.tensor([4.0, 1.0]), "b": torch.tensor([1.0])}
    found = largest_difference([5.0], {"a": torch.tensor([4.0, 1.0]), "b": torch.tensor([0.5])}, [(4.0, plain)])
    assert (found.loss, found.gradient, found.parameter) == (0.25, 0.125, "b")
    broken = largest_difference([torch.nan], {**plain, "b": torch.tensor([torch.nan])}, [(4.0, plain)])
    assert (broken.loss, broken.gradient, broken.parameter) == (torch.inf, torch.inf, "b")
    missing = largest_difference([4.0], {"a": plain["a"]}, [(4.0, plain)])
    assert (missing.loss, missing.gradient) == (0, 0.25)
    mean = largest_difference(
        [4.0, 2.0], {"a": torch.ones(2)}, [(4.0, {"a": torch.ones(2)}), (2.0, {"a": torch.ones(2)})]
    )
    assert (mean.loss, mean.gradient) == (0, 0)


@pytest.mark.parametrize("dealt", ["instances", "observations"])
def test_the_shares_of_all_ranks_make_the_batch(dealt):
    batch = tiny_batch()
    shares = [share_of(batch, Case("", 3, dealt), rank) for rank in range(3)]
    for name, rows in batch.items():
        together = torch.cat([share[name] for share in shares])
        assert sorted(map(str, together.tolist())) == sorted(map(str, rows.tolist()))
    owners = [set(share["image_group_ids"].tolist()) for share in shares]
    assert bool(set.intersection(owners[0], owners[1])) == (dealt == "observations")
