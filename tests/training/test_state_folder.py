import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from training import state_folder
from training.state_folder import BrokenStateError, StateFolder, check_state, load_state

TENSORS = {"model": {"weight": torch.arange(6.0)}, "optimizer": {"weight.step": torch.tensor(3.0)}}


class Killed(BaseException):
    pass


def folder_with(path, *steps, keep=2):
    folder = StateFolder(path, keep)
    for step in steps:
        folder.save(step, {"step": step}, TENSORS)
    return folder


def test_a_state_is_read_as_it_was_written(tmp_path):
    values = {"step": 7, "best": -float("inf"), "rate": 0.1 + 0.2}
    saved = StateFolder(tmp_path / "state", keep=1).save(7, values, TENSORS)
    check_state(saved)
    state = load_state(saved)
    assert state.values == values
    assert {name: part.keys() for name, part in state.tensors.items()} == {n: p.keys() for n, p in TENSORS.items()}
    assert torch.equal(state.tensors["model"]["weight"], TENSORS["model"]["weight"])
    assert torch.equal(state.tensors["optimizer"]["weight.step"], TENSORS["optimizer"]["weight.step"])


def test_no_file_of_a_state_is_a_pickle(tmp_path):
    folder_with(tmp_path / "state", 1)
    assert {path.suffix for path in (tmp_path / "state").rglob("*.*")} == {".json", ".safetensors"}


def test_the_newest_stay(tmp_path):
    folder = folder_with(tmp_path / "state", 5, 10, 900, 1000000, keep=2)
    assert sorted(path.name for path in folder.path.iterdir()) == ["step-000900", "step-1000000"]
    assert folder.newest().name == "step-1000000"


def flip_a_byte(state):
    content = bytearray((state / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (state / "model.safetensors").write_bytes(content)


BREAKS = {
    "a byte": flip_a_byte,
    "a file": lambda state: (state / "optimizer.safetensors").unlink(),
    "an end": lambda state: os.truncate(state / "state.json", 3),
    "the manifest": lambda state: (state / "manifest.json").unlink(),
    "zeros": lambda state: (state / "manifest.json").write_bytes(bytes(20)),
    "another manifest": lambda state: (state / "manifest.json").write_text("[]"),
    "all": lambda state: [path.unlink() for path in state.iterdir()],
}


@pytest.mark.parametrize("broken", BREAKS)
def test_a_broken_state_is_never_taken_and_the_one_before_it_is(broken, tmp_path, caplog):
    folder = folder_with(tmp_path / "state", 1, 2)
    BREAKS[broken](tmp_path / "state" / "step-000002")
    with pytest.raises(BrokenStateError, match="step-000002' is not w"):
        check_state(tmp_path / "state" / "step-000002")
    assert folder.newest() == tmp_path / "state" / "step-000001"
    assert "step-000002" in caplog.text
    assert "It is left out." in caplog.text


def test_there_is_none_in_a_folder_that_is_not_there(tmp_path):
    assert StateFolder(tmp_path / "state", keep=1).newest() is None


def operations(monkeypatch, number):
    """Let the process die in the file operation of that number, and return the list that counts them."""
    seen = []

    def dying(operation):
        def counted(*arguments, **keywords):
            seen.append(operation)
            if len(seen) == number:
                raise Killed
            return operation(*arguments, **keywords)

        return counted

    for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "mkdir"), (Path, "write_text"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    monkeypatch.setattr(state_folder, "save_file", dying(state_folder.save_file))
    return seen


def test_a_kill_in_any_moment_of_the_writing_leaves_a_whole_state(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        seen = operations(patch, number=0)
        folder_with(tmp_path / "counted", 1, 2, keep=1)
    assert len(seen) > 20
    for number in range(1, len(seen) + 1):
        path = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            operations(patch, number)
            with pytest.raises(Killed):
                folder_with(path, 1, 2, keep=1)
        folder = StateFolder(path, keep=1)
        for state in folder.steps():  # those that have a name are whole, all of them
            check_state(state)
        done = 0 if (newest := folder.newest()) is None else load_state(newest).values["step"]
        folder.save(done + 1, {"step": done + 1}, TENSORS)
        assert load_state(folder.newest()).values == {"step": done + 1}
        assert [each.name for each in path.iterdir() if each.name.startswith(".")] == []


def test_a_full_disk_is_logged_and_costs_no_state(tmp_path, monkeypatch, caplog):
    folder = folder_with(tmp_path / "state", 1)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.state_folder.save_file", full)
    assert folder.save(2, {"step": 2}, TENSORS) is None
    assert "The training state of step 2 could not be written, the run goes on" in caplog.text
    assert [path.name for path in folder.path.iterdir()] == ["step-000001"]
    assert folder.newest().name == "step-000001"


def test_later_states_are_removed_where_a_run_goes_on_from_an_earlier_one(tmp_path):
    folder = folder_with(tmp_path / "state", 1, 2, 3, keep=3)
    folder.remove_after(1)
    assert [path.name for path in folder.steps()] == ["step-000001"]


def test_removal_takes_all_of_it_and_can_be_repeated(tmp_path):
    folder = folder_with(tmp_path / "state", 1)
    folder.remove()
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_holds_the_hash_of_every_file(tmp_path):
    folder_with(tmp_path / "state", 1)
    state = tmp_path / "state" / "step-000001"
    hashes = json.loads((state / "manifest.json").read_text())["sha256"]
    assert hashes.keys() == {path.name for path in state.iterdir()} - {"manifest.json"}
