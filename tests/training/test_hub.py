"""What is pushed, how, and what happens where the Hub does not play along."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from tests.references.hub_server import Fault, hub_server
from tests.references.tiny import tiny_model, tiny_processor
from training import push
from training.hub import Destination, Pusher, is_pushed, push_folder, pushed_files

# Of huggingface_hub's own upload, with the http client that it has.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
TO = Destination("org/model")
COMMIT = "POST .*/commit/main"
STAYS_HERE = [
    "train.log", "tensorboard/events.out", "checkpoints/last/model.safetensors", "checkpoints/last/optimizer.bin",
    "embeddings/test.safetensors", "optimizer.pt", "optimizer.safetensors", "pytorch_model.bin", "random_states_0.pkl",
    "scheduler.bin", ".best.unfinished/model.safetensors", ".env", "notes.py", "validation.png", "token", "a.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    (folder / "README.md").write_text("# a card\n")
    return folder


@pytest.fixture
def run(checkpoint, tmp_path):
    return Path(shutil.copytree(checkpoint, tmp_path / "run"))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with hub_server() as server:
        yield server


@pytest.fixture
def api(server):
    return HfApi(endpoint=server.endpoint, token="hf_dummy")


def pusher(run, api, **settings):
    return Pusher(run, **{"to": TO, "api": api, "waits": (0.01, 0.01), **settings})


def messages(server, repo_id="org/model"):
    return [commit.message for commit in server.repo("model", repo_id).commits.values()][1:]


def snapshots(run):
    return [path.name for path in run.iterdir() if path.name.startswith(".push-")]


def test_only_what_is_named_leaves_this_machine(run, server, api):
    for name in STAYS_HERE:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"secret")
    (run / ".eval_results").mkdir()
    (run / ".eval_results" / "org--data.yaml").write_text("[]\n")
    push_folder(run, TO, "all")
    there = server.repo("model", "org/model").find("main").files
    assert not set(STAYS_HERE) & set(there)
    assert set(there) == set(pushed_files(run))
    assert {
        "README.md", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json",
        "modeling_mxmclr.py", ".eval_results/org--data.yaml",
    } <= set(there)  # fmt: skip
    assert b"secret" not in b"".join(request.body for request in server.log)


@pytest.fixture(autouse=True)
def default_client(monkeypatch, request):
    """`push_folder` without a client talks to the test's server."""
    if "api" in request.fixturenames:
        monkeypatch.setattr("training.hub.HfApi", lambda: request.getfixturevalue("api"))


@pytest.mark.parametrize("name", ["checkpoints/best/config.json", "sub/model.safetensors", ".eval_results/a/b.yaml"])
def test_names_are_meant_for_the_top_alone(name):
    assert not is_pushed(name)


def test_an_adapter_is_pushed_with_its_probe(tmp_path, server, api):
    names = ["adapter_config.json", "adapter_model.safetensors", "probe.json", "probe.safetensors", "README.md"]
    for name in names:
        (tmp_path / name).write_text("{}")
    push_folder(tmp_path, TO, "adapter")
    assert set(server.repo("model", "org/model").find("main").files) == set(names)


def test_a_folder_without_a_model_is_not_pushed(tmp_path):
    with pytest.raises(
        ValueError, match=r"`run_dir` must hold a saved model or adapter, .* has no config\.json; train"
    ):
        push_folder(tmp_path, TO, "nothing")


def test_an_unfinished_run_is_pushed_by_its_best_checkpoint(run, server, api, tmp_path):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished / "checkpoints" / "best")
    (unfinished / "history.jsonl").write_text("{}\n")
    push_folder(unfinished, TO, "what there is")
    assert set(server.repo("model", "org/model").find("main").files) == set(pushed_files(run))


def test_one_commit_replaces_what_is_ours_and_leaves_what_is_not(run, server, api):
    push_folder(run, TO, "first")
    api.upload_file(path_or_fileobj=b"by hand", path_in_repo="figure.svg", repo_id="org/model")
    tiny_model().save_pretrained(run, max_shard_size="100KB")
    (run / "model.safetensors").unlink(missing_ok=True)
    push_folder(run, TO, "second")
    files = server.repo("model", "org/model").find("main").files
    assert "model.safetensors" not in files
    assert "model.safetensors.index.json" in files
    assert sum(name.startswith("model-0") for name in files) > 1
    assert files["figure.svg"] == b"by hand"
    assert messages(server)[0::2] == ["first", "second"]


def test_private_branch_and_tag_are_made(run, server, api):
    push_folder(run, Destination("org/model", private=True, branch="dev", tag="v1"), "one")
    repo = server.repo("model", "org/model")
    assert repo.private
    assert repo.find("main").files == {}
    assert repo.find("v1") is repo.find("dev")
    assert "config.json" in repo.find("v1").files


def test_a_tag_never_moves_but_a_repeated_push_may_name_it_again(run, server, api):
    to = Destination("org/model", tag="v1")
    push_folder(run, to, "one")
    push_folder(run, to, "the same")
    first = server.repo("model", "org/model").find("v1")
    (run / "README.md").write_text("# another card\n")
    with pytest.raises(ValueError, match=r"The tag 'v1' of org/model names commit .* already; choose another tag"):
        push_folder(run, to, "two")
    assert server.repo("model", "org/model").find("v1") is first


def test_the_newest_checkpoint_overtakes_those_that_wait_and_holds_no_file_of_another(run, server, api):
    hanging = Fault(COMMIT, "hang")
    server.faults.append(hanging)
    pushing = pusher(run, api)
    for step in (1, 2, 3):
        (run / "best.json").write_text(json.dumps({"step": step}))
        pushing.push(run, f"step {step}", is_last=step == 3)
        (run / "best.json").write_text("changed after the push was asked for")
        if step == 1:
            assert hanging.reached.wait(20)
    hanging.release.set()
    assert pushing.finish()
    commits = list(server.repo("model", "org/model").commits.values())[1:]
    assert [commit.message for commit in commits] == ["step 1", "step 3"]
    assert [json.loads(commit.files["best.json"])["step"] for commit in commits] == [1, 3]
    assert snapshots(run) == []


def test_weights_are_linked_into_a_snapshot_and_survive_their_folder(run, server, api):
    hanging = Fault(COMMIT, "hang")
    server.faults.append(hanging)
    weights = (run / "model.safetensors").read_bytes()
    pushing = pusher(run, api)
    pushing.push(run, "step 1")
    assert hanging.reached.wait(20)
    (copy,) = run.glob(".push-*/model.safetensors")
    assert copy.stat().st_ino == (run / "model.safetensors").stat().st_ino
    (run / "model.safetensors").unlink()
    hanging.release.set()
    assert pushing.finish()
    assert server.repo("model", "org/model").find("main").files["model.safetensors"] == weights


def test_weights_are_copied_where_files_can_not_be_linked(run, server, api, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError("no links here")))
    pushing = pusher(run, api)
    pushing.push(run, "step 1")
    assert pushing.finish()
    assert "model.safetensors" in server.repo("model", "org/model").find("main").files


@pytest.mark.parametrize("fault", [Fault(COMMIT, 500), Fault(COMMIT, "drop"), Fault("POST /api/repos/create", 503, 2)])
def test_trouble_that_passes_is_overcome(fault, run, server, api):
    server.faults.append(fault)
    pushing = pusher(run, api)
    pushing.push(run, "step 1", is_last=True)
    assert pushing.finish()
    assert messages(server) == ["step 1"]
    assert fault.times == 0


def test_a_hub_that_stays_down_costs_the_run_nothing_but_the_push(run, server, api, caplog):
    server.faults.append(Fault(COMMIT, 500, times=99))
    pushing = pusher(run, api, to=Destination("org/model", private=True, branch="main", tag="v1"))
    pushing.push(run, "step 1", is_last=True)
    with caplog.at_level(logging.WARNING):
        assert not pushing.finish()
    command = f"python training/push.py {run} --repo_id org/model --private --branch main --tag v1"
    assert "its last push failed: HfHubHTTPError: Server error '500" in caplog.text
    assert command in caplog.text
    assert len([line for line in server.requests if "/commit/" in line]) == 3
    assert snapshots(run) == []
    assert messages(server) == []


def test_a_refusal_is_not_repeated(run, server, api, caplog):
    server.faults.append(Fault(COMMIT, 403, times=99))
    pushing = pusher(run, api, waits=(60,))
    pushing.push(run, "step 1")
    assert not pushing.finish()
    assert len([line for line in server.requests if "/commit/" in line]) == 1


def test_a_repository_that_can_not_be_opened_is_reported_at_the_start(run, server, api, caplog):
    server.faults.append(Fault("POST /api/repos/create", 401, times=99))
    assert pusher(run, api).finish()  # nothing was pushed, so nothing failed
    assert "org/model can't be opened on the Hub" in caplog.text
    assert "hf auth login" in caplog.text


def test_a_newer_checkpoint_ends_the_attempts_of_one_that_fails(run, server, api):
    failing = Fault(COMMIT, 500)
    server.faults.append(failing)
    pushing = pusher(run, api, waits=(60,))
    pushing.push(run, "step 1")
    assert failing.reached.wait(20)
    pushing.push(run, "step 2")
    assert pushing.finish()
    assert messages(server) == ["step 2"]


def test_a_full_disk_stops_no_run(run, server, api, monkeypatch, caplog):
    pushing = pusher(run, api)
    monkeypatch.setattr(shutil, "copy2", lambda *paths: (_ for _ in ()).throw(OSError("No space left on device")))
    pushing.push(run, "step 1")
    assert not pushing.finish()
    assert "No space left on device" in caplog.text
    assert snapshots(run) == []


def test_who_does_not_want_to_wait_is_told_how_to_push_later(run, server, api, monkeypatch, caplog):
    hanging = Fault(COMMIT, "hang")
    server.faults.append(hanging)
    pushing = pusher(run, api)
    pushing.push(run, "step 1", is_last=True)
    assert hanging.reached.wait(20)
    monkeypatch.setattr(pushing._thread, "join", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt))
    assert not pushing.finish()
    assert "its last push failed: interrupted\nRepeat it by: python training/push.py" in caplog.text
    hanging.release.set()
    monkeypatch.undo()
    pushing._thread.join(20)


def test_an_interrupted_upload_is_completed_by_the_command_without_sending_the_weights_again(run, server, api, capsys):
    server.faults.append(Fault(COMMIT, 500))
    with pytest.raises(HfHubHTTPError):
        push_folder(run, TO, "interrupted")
    sent = sum(line.startswith("PUT /lfs/") for line in server.requests)
    assert sent == 1
    push.main([str(run), "--repo_id", "org/model"])
    assert "Pushed to" in capsys.readouterr().out
    assert sum(line.startswith("PUT /lfs/") for line in server.requests) == sent
    assert messages(server) == ["Upload the run"]


def test_the_command_knows_where_the_run_was_meant_to_go(run, server, api):
    known = {"push_to_hub": "org/from-run", "private": True, "hub_branch": "dev", "hub_tag": "v2"}
    (run / "run.json").write_text(json.dumps({"arguments": known}))
    push.main([str(run)])
    repo = server.repo("model", "org/from-run")
    assert repo.private
    assert repo.find("v2") is repo.find("dev")
    push.main([str(run), "--repo_id", "org/elsewhere"])
    assert list(server.repo("model", "org/elsewhere").branches) == ["main"]


def test_the_command_says_what_it_needs(run, tmp_path):
    with pytest.raises(SystemExit, match="`--repo_id` is needed"):
        push.main([str(run)])
    with pytest.raises(SystemExit, match="must hold a saved model"):
        push.main([str(tmp_path / "nothing"), "--repo_id", "org/model"])
