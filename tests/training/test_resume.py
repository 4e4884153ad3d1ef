import json

import pytest
import torch
from accelerate import Accelerator

from tests.references.small_run import small_arguments
from training.resume import FREE_SETTINGS, check_same_run, choose_state, find_resumable, is_finished
from training.state_folder import BrokenStateError, StateFolder


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "run").mkdir()
    states = StateFolder(tmp_path / "run" / "state", keep=2)
    for step in (2, 4):
        values = {"step": step, "arguments": small_arguments(tmp_path / "run").as_dict()}
        states.save(step, values, {"model": {"weight": torch.zeros(1)}})
    return tmp_path / "run"


def state_of(run_dir, step):
    return run_dir / "state" / f"step-00000{step}"


def test_auto_takes_the_newest_and_none_where_there_is_none(run_dir, tmp_path):
    assert choose_state("auto", run_dir) == state_of(run_dir, 4)
    assert choose_state("auto", tmp_path / "another") is None


def test_a_run_folder_stands_for_its_newest_state_and_a_state_for_itself(run_dir):
    assert choose_state(str(run_dir), run_dir) == state_of(run_dir, 4)
    assert choose_state(str(state_of(run_dir, 2)), run_dir) == state_of(run_dir, 2)


def test_a_named_state_that_is_broken_is_an_error_while_auto_goes_back(run_dir):
    (state_of(run_dir, 4) / "state.json").write_text("{}")
    with pytest.raises(BrokenStateError, match=r"step-000004' is not what was written: \['state.json'\] changed"):
        choose_state(str(state_of(run_dir, 4)), run_dir)
    assert choose_state("auto", run_dir) == state_of(run_dir, 2)


def test_a_named_run_without_a_state_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="has no whole training state; use `auto`"):
        choose_state(str(tmp_path), tmp_path)


def test_a_state_of_another_run_folder_is_refused_with_the_cure(run_dir, tmp_path):
    with pytest.raises(ValueError, match=f"add `--output_dir {run_dir}`"):
        choose_state(str(state_of(run_dir, 2)), tmp_path / "another")


def test_nothing_to_resume_is_said_and_the_run_starts_afresh(tmp_path, caplog):
    accelerator = Accelerator(cpu=True)
    with caplog.at_level("INFO"):
        assert find_resumable(small_arguments(tmp_path / "run"), accelerator) is None
        assert caplog.text == ""
        arguments = small_arguments(tmp_path / "run", resume_from_checkpoint="auto")
        assert find_resumable(arguments, accelerator) is None
    assert "no training state" in caplog.text
    assert "starts afresh" in caplog.text


def test_the_state_that_is_found_is_loaded(run_dir):
    state = find_resumable(small_arguments(run_dir, resume_from_checkpoint="auto"), Accelerator(cpu=True))
    assert state.values["step"] == 4
    assert state.tensors["model"].keys() == {"weight"}


def test_settings_must_be_as_they_were_but_for_those_that_change_nothing(tmp_path):
    saved = small_arguments(tmp_path).as_dict()
    check_same_run(saved, {name: "another" if name in FREE_SETTINGS else value for name, value in saved.items()})
    check_same_run({}, saved)  # of a version that knew none of them
    for name in saved.keys() - set(FREE_SETTINGS):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            check_same_run(saved, saved | {name: "another"})


def test_how_a_launch_resumes_is_no_setting_of_the_run(tmp_path):
    assert "resume_from_checkpoint" not in small_arguments(tmp_path, resume_from_checkpoint="auto").as_dict()


def test_a_run_is_finished_once_its_states_are_gone_and_it_has_told_its_end(run_dir, tmp_path):
    arguments = small_arguments(run_dir, resume_from_checkpoint="auto")
    (run_dir / "run.json").write_text(json.dumps({"steps": 4}))
    assert not is_finished(arguments)
    StateFolder(run_dir / "state", keep=0).remove()
    assert is_finished(arguments)
    assert not is_finished(small_arguments(run_dir))
    (run_dir / "run.json").write_text(json.dumps({"steps": 4, "unfinished": {"step": 4, "of": 5}}))
    assert not is_finished(arguments)
    assert not is_finished(small_arguments(tmp_path / "another", resume_from_checkpoint="auto"))
