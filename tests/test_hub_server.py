"""The test Hub answers as the real one does where our code and the Hugging Face libraries ask."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.references.hub_server import hub_server

ROOT = Path(__file__).resolve().parents[1]
TALK = """
import json
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

api, said = HfApi(), {}
api.create_repo("org/model")
api.create_repo("org/model", exist_ok=True)
first = api.upload_file(path_or_fileobj=b"one", path_in_repo="sub/a.txt", repo_id="org/model")
api.upload_file(path_or_fileobj=b"weights" * 1000, path_in_repo="model.safetensors", repo_id="org/model")
api.create_branch("org/model", branch="old", revision=first.oid)
api.create_tag("org/model", tag="v1", revision=first.oid)
api.upload_file(path_or_fileobj=b"two", path_in_repo="sub/a.txt", repo_id="org/model")
api.delete_file("model.safetensors", "org/model", revision="main")
said["main"] = api.list_repo_files("org/model")
said["old"] = api.list_repo_files("org/model", revision="old")
said["a"] = [open(hf_hub_download("org/model", "sub/a.txt", revision=name)).read() for name in ("main", "old", "v1")]
api.upload_file(path_or_fileobj=b"weights" * 1000, path_in_repo="b.safetensors", repo_id="org/model")
said["weights"] = len(open(snapshot_download("org/model") + "/b.safetensors", "rb").read())
said["paths"] = [entry.path for entry in api.get_paths_info("org/model", ["sub/a.txt", "no"])]
said["who"] = api.whoami()["name"]

def refusal(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return type(error).__name__

said["refused"] = [
    refusal(hf_hub_download, "org/model", "no.txt"),
    refusal(hf_hub_download, "org/model", "sub/a.txt", revision="no"),
    refusal(api.model_info, "org/no"),
]
api.delete_repo("org/model")
said["gone"] = refusal(api.model_info, "org/model")
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    with hub_server() as server:
        environment = server.environment(tmp_path_factory.mktemp("home"))
        done = subprocess.run([sys.executable, "-c", TALK], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_branches_tags_and_deleted_files_are_kept_apart(said):
    assert said["main"] == ["sub/a.txt"]
    assert said["old"] == ["sub/a.txt"]
    assert said["a"] == ["two", "one", "one"]


def test_large_files_come_back_whole(said):
    assert said["weights"] == 7000


def test_what_is_not_there_is_refused_by_the_right_name(said):
    assert said["refused"] == ["RemoteEntryNotFoundError", "RevisionNotFoundError", "RepositoryNotFoundError"]
    assert said["gone"] == "RepositoryNotFoundError"
    assert said["paths"] == ["sub/a.txt"]
    assert said["who"] == "tester"
