from pathlib import Path

import pytest

from training.durable import link_or_copy, remove_folder, replace_folder, restore_folder, sync, write_durably


class Killed(BaseException):
    pass


def folder_of(path, word):
    path.mkdir()
    (path / "word").write_text(word)
    return path


def test_a_folder_takes_the_place_of_another(tmp_path):
    target = folder_of(tmp_path / "best", "old")
    replace_folder(folder_of(tmp_path / "new", "new"), target)
    assert (target / "word").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_folder_survives_a_kill_in_any_moment_of_its_replacement(number, tmp_path, monkeypatch):
    target, seen = folder_of(tmp_path / "best", "old"), []

    def dying(operation):
        def counted(*arguments, **keywords):
            seen.append(1)
            if len(seen) == number:
                raise Killed
            return operation(*arguments, **keywords)

        return counted

    source = folder_of(tmp_path / "new", "new")
    monkeypatch.setattr(Path, "rename", dying(Path.rename))
    monkeypatch.setattr("training.durable.shutil.rmtree", dying(lambda *arguments, **keywords: None))
    with pytest.raises(Killed):
        replace_folder(source, target)
    monkeypatch.undo()
    restore_folder(target)
    assert (target / "word").read_text() == "old"
    replace_folder(folder_of(tmp_path / "next", "next"), target)
    assert (target / "word").read_text() == "next"


def test_a_text_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "history.jsonl"
    write_durably(path, "old")

    def die(*arguments):
        raise Killed

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(Killed):
        write_durably(path, "new")
    assert path.read_text() == "old"


def test_a_folder_that_can_not_be_synced_is_no_error_and_a_file_is(tmp_path, monkeypatch):
    (tmp_path / "word").write_text("a")

    def refuse(descriptor):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("training.durable.os.fsync", refuse)
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "word")


def test_an_interrupted_removal_can_be_repeated(tmp_path, monkeypatch):
    target = folder_of(tmp_path / "state", "old")
    monkeypatch.setattr("training.durable.shutil.rmtree", lambda *arguments, **keywords: None)
    remove_folder(target)
    assert not target.exists()
    monkeypatch.undo()
    remove_folder(target)
    assert list(tmp_path.iterdir()) == []


def test_weights_are_linked_and_all_else_is_copied(tmp_path):
    for name in ("model.safetensors", "run.json"):
        (tmp_path / name).write_text("a")
        for _ in range(2):
            link_or_copy(tmp_path / name, tmp_path / f"copy-of-{name}")
        assert (tmp_path / f"copy-of-{name}").read_text() == "a"
    assert (tmp_path / "model.safetensors").samefile(tmp_path / "copy-of-model.safetensors")
    assert not (tmp_path / "run.json").samefile(tmp_path / "copy-of-run.json")
