"""A run of `train.py` that pushes to a Hub on this machine, and what anyone then loads from there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModel

import modeling_mxmclr  # noqa: F401 - registers the Auto classes
from tests.references.corpus import write_corpus
from tests.references.hub_server import hub_server
from tests.references.hub_state import Fault

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_" + "aB3dE6gH9" * 4
ELSEWHERE = "hf_" + "Zy8xW5vU2" * 4  # a secret that is not the one in use
PICKLES = re.compile(r"\.(bin|pt|pth|pkl|pickle|ckpt|npy|npz|joblib)$")
REPO = "org/mxmclr-text2shape"
TINY = """
instances_per_step: 6
views_per_instance: 2
captions_per_instance: all
num_workers: 0
text_config: {model_type: bert, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16}
vision_config: {model_type: resnet, embedding_size: 8, hidden_sizes: [8, 16], depths: [1, 1], layer_type: basic}
image_size: 16
vocabulary_size: 60
projection_dim: 8
max_steps: 6
eval_every: 2
log_every: 1
warmup_steps: 1
learning_rate: 1.0e-2
cpu: true
"""
ADAPTED = """
lora_rank: 2
lora_norms: true
instances_per_step: 6
views_per_instance: 2
captions_per_instance: all
num_workers: 0
max_steps: 3
eval_every: 2
log_every: 1
warmup_steps: 1
learning_rate: 1.0e-1
cpu: true
"""
EMBED = """
import sys
{preamble}
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor
options = {options}
model = AutoModel.from_pretrained({repo!r}, **options).eval()
processor = AutoProcessor.from_pretrained({repo!r}, **options)
batch = processor(text=[["red large", "a small blue square"]])
with torch.no_grad():
    save_file({{"text": model.get_text_features(**{{k: batch[k] for k in ("input_ids", "attention_mask")}})}}, {result!r})
"""
NOT_INSTALLED = """
sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
sys.path = [entry for entry in sys.path if entry not in ("", {root!r})]
try:
    import modeling_mxmclr
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package is installed here")
"""


def run_python(words, server, home, cwd, **variables):
    environment = server.environment(home) | {
        "HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **variables,
    }  # fmt: skip
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def server():
    with hub_server() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("push")
    write_corpus(folder / ELSEWHERE / "corpus")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "adapted.yaml").write_text(ADAPTED)
    return folder


def train(folder, server, repo_id, *words, recipe="tiny.yaml"):
    script, recipe = ROOT / "training" / "train.py", folder / recipe
    corpus = f"{ELSEWHERE}/corpus"  # a path, of all places, with something that looks like a token
    words = [script, recipe, "--dataset", corpus, "--push_to_hub", repo_id, *words]
    return run_python(words, server, folder / "home", folder)


@pytest.fixture(scope="module")
def pushed(folder, server):
    server.faults.append(Fault("POST .*/commit/main", 500))
    done = train(folder, server, REPO, "--private=true", "--hub_tag=v1")
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "tiny", done


def load(repo, server, home, folder, trusting=False, offline=False):
    """The embeddings that a fresh process gets of a repository."""
    result = home / "result.safetensors"
    home.mkdir(exist_ok=True)
    preamble = NOT_INSTALLED.format(root=str(ROOT)) if trusting else f"sys.path.insert(0, {str(ROOT)!r})"
    preamble += "" if trusting else "\nimport modeling_mxmclr"
    options = {"trust_remote_code": True} if trusting else {}
    code = EMBED.format(preamble=preamble, options=options, repo=repo, result=str(result))
    variables = {"HF_HUB_OFFLINE": "1"} if offline else {}
    done = run_python(["-c", code], server, home, folder, **variables)
    assert done.returncode == 0, done.stderr
    return load_file(result)["text"]


def test_every_kept_checkpoint_is_a_commit_with_its_card_and_the_last_one_is_tagged(pushed, server):
    repo = server.repo("model", REPO)
    commits = list(repo.commits.values())[1:]
    assert repo.private
    assert commits[-1].message == "Finish the run"
    assert repo.find("v1") is repo.find("main") is commits[-1]
    for commit in commits[:-1]:
        step = int(re.fullmatch(r"Checkpoint of step (\d)", commit.message)[1])
        card = ModelCard(commit.files["README.md"].decode())
        assert f"these are the weights after step {step} of 6" in card.text
        assert card.data.eval_results[0].dataset_split == "validation"
        assert json.loads(commit.files["metrics.json"])["split"] == "validation"
    last = ModelCard(commits[-1].files["README.md"].decode())
    assert "still running" not in last.text
    assert last.data.eval_results[0].dataset_split == "test"
    assert len(commits) >= 2


def test_the_hub_holds_the_run_and_nothing_that_is_not_for_others(pushed, server):
    files = set(server.repo("model", REPO).find("main").files)
    assert files >= {
        "README.md", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "run.json",
        "metrics.json", "history.jsonl", "arguments.yaml", "curves.png", "retrieval.png", "modeling_mxmclr.py",
    }  # fmt: skip
    assert not [name for name in files if name.startswith(("checkpoints", "tensorboard", "train.log", ".push"))]
    assert not list(pushed[0].glob(".push-*"))


def test_no_token_is_written_anywhere_nor_sent_but_in_its_header(pushed, server):
    folder, done = pushed
    secrets = [TOKEN.encode(), ELSEWHERE.encode()]
    places = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    places |= {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    places |= {request.target: request.target.encode() + b"\n" + request.body for request in server.log}
    places |= server.repo("model", REPO).find("main").files
    assert len(places) > 40
    assert [name for name, content in places.items() if any(secret in content for secret in secrets)] == []
    sent = [request.headers.get("authorization") or request.headers.get("Authorization") for request in server.log]
    assert f"Bearer {TOKEN}" in sent


def test_a_fresh_process_gets_the_embeddings_of_the_run_with_the_package(pushed, server, folder):
    expected = load(str(pushed[0]), server, folder / "local", folder)
    home = folder / "with-package"
    before = len(server.log)
    torch.testing.assert_close(load(REPO, server, home, folder), expected, rtol=0, atol=0)
    asked = [request.target for request in server.log[before:]]
    assert any(target.endswith("model.safetensors") for target in asked)
    after = len(server.log)
    torch.testing.assert_close(load(REPO, server, home, folder, offline=True), expected, rtol=0, atol=0)
    assert len(server.log) == after


def test_a_fresh_process_gets_them_by_the_code_in_the_repository_alone(pushed, server, folder):
    expected = load(str(pushed[0]), server, folder / "local", folder)
    home = folder / "without-package"
    torch.testing.assert_close(load(REPO, server, home, folder, trusting=True), expected, rtol=0, atol=0)
    torch.testing.assert_close(load(REPO, server, home, folder, trusting=True, offline=True), expected, rtol=0, atol=0)


def test_weights_in_shards_are_loaded_as_well(pushed, server, folder):
    expected = load(str(pushed[0]), server, folder / "local", folder)
    sharded = Path(shutil.copytree(pushed[0], folder / "sharded", ignore=shutil.ignore_patterns("model.safetensors")))
    AutoModel.from_pretrained(pushed[0]).save_pretrained(sharded, max_shard_size="10KB")
    done = run_python(
        [ROOT / "training" / "push.py", sharded, "--repo_id", "org/sharded"], server, folder / "home", folder
    )
    assert done.returncode == 0, done.stderr
    assert "model.safetensors.index.json" in server.repo("model", "org/sharded").find("main").files
    torch.testing.assert_close(load("org/sharded", server, folder / "shards", folder), expected, rtol=0, atol=0)


def test_no_request_of_all_these_asks_for_or_sends_a_pickle(pushed, server):
    names = [request.target.partition("?")[0] for request in server.log]
    names += [path for repo in server.repos.values() for commit in repo.commits.values() for path in commit.files]
    assert [name for name in names if PICKLES.search(name)] == []
    assert [request.target for request in server.log if re.search(r"hf_|[?&]\w*token\w*=|@", request.target)] == []


def test_the_pushed_card_is_verified_and_disturbed_weights_are_caught(pushed, server, folder):
    script, data = ROOT / "training" / "verify.py", ["--dataset", f"{ELSEWHERE}/corpus", "--num_workers", "0"]
    done = run_python([script, REPO, "--revision", "v1", *data], server, folder / "verify", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("The card holds.\n")
    disturbed = Path(shutil.copytree(pushed[0], folder / "disturbed"))
    model = AutoModel.from_pretrained(disturbed)
    torch.nn.init.zeros_(model.text_projection.weight)
    with torch.no_grad():
        model.text_projection.weight[0] = 1.0
    model.save_pretrained(disturbed)
    done = run_python([script, disturbed, *data], server, folder / "verify", folder)
    assert done.returncode == 1, done.stderr
    assert "does not hold" in done.stdout


def test_an_adapter_is_pushed_loaded_on_its_base_from_the_hub_and_verified(pushed, server, folder):
    done = train(folder, server, "org/adapter", "--model", REPO, recipe="adapted.yaml")
    assert done.returncode == 0, done.stderr
    files = set(server.repo("model", "org/adapter").find("main").files)
    assert files >= {"adapter_config.json", "adapter_model.safetensors", "probe.json", "README.md", "metrics.json"}
    assert "model.safetensors" not in files
    expected = load(str(folder / "runs" / "adapted"), server, folder / "local-adapter", folder)
    home = folder / "adapter"
    torch.testing.assert_close(load("org/adapter", server, home, folder), expected, rtol=0, atol=0)
    base = load(REPO, server, folder / "with-package", folder)
    assert (base - expected).abs().max() > 1e-3
    # `verify.py` loads by `load_adapter`, so base, weights and probe are checked on the way.
    words = [ROOT / "training" / "verify.py", "org/adapter", "--dataset", f"{ELSEWHERE}/corpus", "--num_workers", "0"]
    done = run_python(words, server, folder / "verify-adapter", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("The card holds.\n")


def test_a_hub_that_refuses_stops_no_run_and_the_named_command_pushes_later(folder, server):
    refusal = Fault("POST /api/repos/create", 403, times=99)
    server.faults.append(refusal)
    done = train(folder, server, "org/later", "--output_dir=runs/refused", "--hub_branch=dev", "--max_steps=2")
    assert done.returncode == 0, done.stderr
    assert (folder / "runs" / "refused" / "metrics.json").is_file()
    command = re.search(r"Repeat it by: python (.*)", done.stderr)[1].split()
    refusal.times = 0
    assert command[1:] == ["runs/refused", "--repo_id", "org/later", "--branch", "dev"]
    again = run_python([ROOT / command[0], *command[1:]], server, folder / "home", folder)
    assert again.returncode == 0, again.stderr
    assert "model.safetensors" in server.repo("model", "org/later").find("dev").files


def test_the_hub_is_asked_to_validate_a_card(pushed, server, folder):
    code = "from huggingface_hub import ModelCard; import sys; ModelCard.load(sys.argv[1]).validate()"
    done = run_python(["-c", code, pushed[0] / "README.md"], server, folder / "home", folder)
    assert done.returncode == 0, done.stderr
    assert server.requests[-1] == "POST /api/validate-yaml"
    assert b"model-index" in server.log[-1].body
    assert os.fspath(pushed[0]).encode() not in server.log[-1].body
