import json
import logging

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from tests.references.gloo_pool import GlooPool
from tests.references.small_run import LAST, draw_and_score, outcome, run_small
from tests.references.state_jobs import gradients_of_the_third_step, sharded_round_trip
from tests.references.tiny import tiny_model
from training import loop
from training.data import FoldCollator
from training.memory import FIELDS
from training.meter import Meter
from training.state_folder import StateFolder, load_state
from training.training_state import fill_optimizer, fill_tensors, optimizer_state, tensors_of


class Killed(BaseException):
    """The end of a process, as far as a test can have it."""


def kill_after(number, monkeypatch):
    """Let a run end within the step of its batch of that number."""
    add, seen = Meter.add, []

    def counting(self, *arguments):
        add(self, *arguments)
        seen.append(1)
        if len(seen) == number:
            raise Killed

    monkeypatch.setattr(Meter, "add", counting)


def run_until_killed(number, folder, **settings):
    with pytest.MonkeyPatch.context() as patch:
        kill_after(number, patch)
        with pytest.raises(Killed):
            run_small(folder, **settings)


@pytest.fixture(autouse=True)
def evaluation_that_draws(monkeypatch):
    monkeypatch.setattr(loop, "evaluate_and_keep", draw_and_score)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate_and_keep", draw_and_score)
        run_small(folder)
    return folder


@pytest.mark.parametrize("number", [1, 5, 10])
def test_a_run_killed_in_any_batch_ends_bit_by_bit_as_the_unbroken_one(number, unbroken, tmp_path):
    run_until_killed(number, tmp_path / "run")
    run_small(tmp_path / "run", resume_from_checkpoint="auto")
    assert outcome(tmp_path / "run") == outcome(unbroken)


def test_without_the_random_states_dropout_would_differ(unbroken, tmp_path, monkeypatch):
    run_until_killed(9, tmp_path / "run")
    monkeypatch.setattr("training.training_state.set_random_states", lambda states, device: None)
    run_small(tmp_path / "run", resume_from_checkpoint="auto")
    assert outcome(tmp_path / "run") != outcome(unbroken)


def test_a_run_can_be_killed_again_and_again(unbroken, tmp_path):
    for number in (6, 3, 4):
        run_until_killed(number, tmp_path / "run", resume_from_checkpoint="auto")
    run_small(tmp_path / "run", resume_from_checkpoint="auto")
    assert outcome(tmp_path / "run") == outcome(unbroken)


def test_an_earlier_state_that_is_named_leads_to_the_same_end(unbroken, tmp_path):
    run_small(tmp_path / "run", keep_checkpoints=3)
    run_small(tmp_path / "run", resume_from_checkpoint=str(tmp_path / "run" / "state" / "step-000002"))
    assert outcome(tmp_path / "run") == outcome(unbroken)


def test_a_run_that_has_taken_its_last_step_takes_no_further_one(unbroken, tmp_path):
    run_small(tmp_path / "run")
    session = run_small(tmp_path / "run", resume_from_checkpoint="auto")
    assert outcome(tmp_path / "run") == outcome(unbroken)
    saved = load_state(tmp_path / "run" / "state" / f"step-{LAST:06d}").tensors["model"]
    assert all(torch.equal(each, saved[name]) for name, each in tensors_of(session.model).items())


@pytest.mark.parametrize("number", [3, 9])
def test_a_run_that_remembers_goes_on_with_what_it_remembered(number, tmp_path, unbroken):
    settings = {"memory_batches": 2, "memory_from": 0.3}
    run_small(tmp_path / "unbroken", **settings)
    run_until_killed(number, tmp_path / "run", **settings)
    run_small(tmp_path / "run", resume_from_checkpoint="auto", **settings)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "unbroken")
    assert {f"memory.1.{name}" for name in FIELDS} <= outcome(tmp_path / "run").keys()
    moved = [name for name, value in outcome(unbroken).items() if value != outcome(tmp_path / "run")[name]]
    assert any(name.startswith("model.") for name in moved)


def test_an_objective_that_cannot_remember_is_refused_before_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"A memory needs one of the objectives .*got 'clip'"):
        run_small(tmp_path / "run", model=tiny_model("bert", "resnet", objective="clip"), memory_batches=2)
    assert not (tmp_path / "run" / "history.jsonl").exists()


def test_an_adapter_in_training_goes_on_as_it_was(tmp_path):
    run_small(tmp_path / "unbroken", lora_rank=2)
    run_until_killed(9, tmp_path / "run", lora_rank=2)
    run_small(tmp_path / "run", lora_rank=2, resume_from_checkpoint="auto")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "unbroken")
    assert any("lora_A" in name for name in outcome(tmp_path / "run"))


def test_another_number_of_ranks_sees_the_same_instances_and_says_what_differs(
    unbroken, tmp_path, monkeypatch, caplog
):
    seen: list[list[str]] = []
    collate = FoldCollator.__call__

    def watching(self, rows):
        seen.append([row["instance_id"] for row in rows])
        return collate(self, rows)

    monkeypatch.setattr(FoldCollator, "__call__", watching)
    run_small(tmp_path / "whole")
    of_the_rest = seen[8:]
    run_until_killed(9, tmp_path / "run")
    monkeypatch.setattr("training.resume.load_state", as_if_of_two_ranks)
    seen.clear()
    with caplog.at_level(logging.WARNING):
        run_small(tmp_path / "run", resume_from_checkpoint="auto")
    assert seen == of_the_rest
    assert "The run had 2 ranks and goes on with 1" in caplog.text
    assert outcome(tmp_path / "run") != outcome(unbroken)


def as_if_of_two_ranks(folder):
    state = load_state(folder)
    return state._replace(values=state.values | {"ranks": 2 * state.values["ranks"]})


def test_no_state_is_kept_where_none_is_asked_for(tmp_path):
    run_small(tmp_path / "run", checkpoint_every=0)
    assert not (tmp_path / "run" / "state").exists()


def test_the_newest_states_stay_and_the_last_step_is_always_one(unbroken):
    names = [path.name for path in StateFolder(unbroken / "state", keep=2).steps()]
    assert names == ["step-000005", "step-000004"]


def test_another_setting_is_an_error_that_names_it(tmp_path):
    run_until_killed(9, tmp_path / "run")
    with pytest.raises(ValueError, match=r"`learning_rate` must be 0\.01, as in the run that is resumed, got 0\.5"):
        run_small(tmp_path / "run", resume_from_checkpoint="auto", learning_rate=0.5)
    run_small(tmp_path / "run", resume_from_checkpoint="auto", log_every=1, keep_checkpoints=1)


def two_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    groups = [{"params": [model[0].weight, model[2].weight]}, {"params": [model[0].bias], "weight_decay": 0.0}]
    return model, AdamW(groups, lr=0.1, betas=(0.9, 0.98))


def learn(model, optimizer, steps):
    rows = torch.arange(12.0).reshape(4, 3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(rows).square().sum().backward()
        optimizer.step()


def test_an_optimiser_goes_on_from_json_and_tensors_alone():
    model, optimizer = two_layers()
    learn(model, optimizer, steps=2)
    groups, moments = optimizer_state(model, optimizer)
    assert {"0.weight.step", "0.weight.exp_avg", "2.weight.exp_avg_sq"} <= moments.keys()
    other, fresh = two_layers()
    fill_tensors(tensors_of(other), {name: each.clone() for name, each in tensors_of(model).items()})
    fill_optimizer(
        other, fresh, json.loads(json.dumps(groups)), {name: each.clone() for name, each in moments.items()}
    )
    assert fresh.param_groups[0]["betas"] == (0.9, 0.98)
    learn(model, optimizer, steps=3)
    learn(other, fresh, steps=3)
    assert all(torch.equal(each, tensors_of(model)[name]) for name, each in tensors_of(other).items())


def test_a_state_of_another_model_is_refused():
    model, optimizer = two_layers()
    tensors = tensors_of(model)
    with pytest.raises(ValueError, match=r"\['0\.bias'\] are in one of them alone; resume with the versions"):
        fill_tensors(tensors, {name: each for name, each in tensors.items() if name != "0.bias"})
    groups, moments = optimizer_state(model, optimizer)
    with pytest.raises(ValueError, match="the same groups of parameters"):
        fill_optimizer(model, optimizer, groups[::-1], moments)


@pytest.fixture(scope="module")
def three_ranks():
    pool = GlooPool(3)
    yield pool
    pool.close()


@pytest.mark.slow
def test_ddp_rounds_alike_in_its_first_step_and_in_a_later_one(three_ranks):
    assert three_ranks.run(gradients_of_the_third_step, True) == [True, True, True]
    assert not all(three_ranks.run(gradients_of_the_third_step, False))


@pytest.mark.slow
def test_sharded_weights_and_moments_are_kept_whole_and_put_back_in_shards(three_ranks):
    assert three_ranks.run(sharded_round_trip) == [True, True, True]
