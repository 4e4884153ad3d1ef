import json

import pytest

from modeling_mxmclr import MXMCLRModel
from tests.references.tiny import tiny_model, tiny_processor
from training import run_folder
from training.run_folder import RunFolder, git_revision
from training.state_folder import StateFolder


def test_an_earlier_run_is_moved_aside_not_lost(tmp_path):
    for number in range(3):
        folder = RunFolder(tmp_path / "run")
        folder.write_json("number.json", number)
    assert [json.loads((tmp_path / name / "number.json").read_text()) for name in ("run.1", "run.2", "run")] == [
        0,
        1,
        2,
    ]
    assert folder.moved_to == tmp_path / "run.2"


def test_history_is_on_disk_as_it_is_in_memory(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.log(1, {"train/loss": 2.5})
    folder.log(2, {"eval/text_to_instance_rr@1": 0.5})
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == folder.history == [
        {"step": 1, "train/loss": 2.5},
        {"step": 2, "eval/text_to_instance_rr@1": 0.5},
    ]  # fmt: skip


def test_a_run_that_dies_while_saving_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    folder, model, processor = RunFolder(tmp_path / "run"), tiny_model(), tiny_processor()
    folder.save_checkpoint("last", model, processor)

    def die(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(processor), "save_pretrained", die)
    with pytest.raises(KeyboardInterrupt):
        folder.save_checkpoint("last", tiny_model(seed=1), processor)
    monkeypatch.undo()
    saved = MXMCLRModel.from_pretrained(tmp_path / "run" / "checkpoints" / "last")
    assert (saved.visual_projection.weight == model.visual_projection.weight).all()
    monkeypatch.setattr(run_folder.shutil, "rmtree", lambda *a, **k: None)
    folder.save_checkpoint("best", tiny_model(seed=1), processor)


def test_published_checkpoint_loads_from_the_run_folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.save_checkpoint("best", tiny_model(), tiny_processor())
    folder.publish("best")
    assert MXMCLRModel.from_pretrained(tmp_path / "run").config.projection_dim == 16
    folder.publish("best")  # as by a run that is killed while it finishes, and resumed
    assert (tmp_path / "run" / "checkpoints" / "best").exists()
    folder.close()
    assert not (tmp_path / "run" / "checkpoints" / "best").exists()
    assert MXMCLRModel.from_pretrained(tmp_path / "run").config.projection_dim == 16


def test_a_resumed_run_goes_on_in_its_folder_after_the_step_it_is_resumed_from(tmp_path):
    folder = RunFolder(tmp_path / "run")
    for step in (1, 2, 3):
        folder.log(step, {"train/loss": 1 / 3 / step})
    with (tmp_path / "run" / "history.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')
    (tmp_path / "run" / "checkpoints" / ".best.old").mkdir(parents=True)
    (tmp_path / "run" / ".push-of-a-dead-process").mkdir()
    states = StateFolder(tmp_path / "run" / "state", keep=3)
    for step in (2, 3):
        states.save(step, {}, {})
    again = RunFolder(tmp_path / "run", resumed_step=2)
    assert again.moved_to is None
    assert again.history == folder.history[:2]
    again.log(3, {"train/loss": 0.5})
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == again.history
    assert [path.name for path in states.steps()] == ["step-000002"]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["best"]
    assert not (tmp_path / "run" / ".push-of-a-dead-process").exists()


def test_revision_names_a_commit_and_is_unknown_outside_a_clone(tmp_path, monkeypatch):
    assert len(git_revision().partition("+")[0]) == 40
    monkeypatch.setattr(run_folder, "REPOSITORY", tmp_path)
    assert git_revision() == "unknown"
