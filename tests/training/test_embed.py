"""`training/embed.py`, killed and launched again as users do."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.references.corpus import write_corpus
from tests.references.tiny import tiny_model, tiny_processor
from training import embed
from training.embedding_store import load_embeddings, read_manifest
from training.encoding import encode_rows

ROOT = Path(__file__).resolve().parents[2]
# Really killed, as by `kill -9`, once some shards are written and while the files of the next one lie beside.
DIES = """
import os, signal
from training import embed, embedding_store

plain = embedding_store.write_durably

def dying(path, content):
    if path.name == "instances-00002-of-00006.parquet":
        path.with_name(f".{path.name}.unfinished").write_bytes(content[:10])
        os.kill(os.getpid(), signal.SIGKILL)
    plain(path, content)

embedding_store.write_durably = dying
embed.main(%r)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed") / "run"
    tiny_model(text="bert", vision="vit").save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    write_corpus(folder.parent / "corpus")
    return folder


@pytest.fixture(autouse=True)
def own_cache(checkpoint, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(checkpoint.parent / "cache"))


def words(checkpoint, output, *more):
    given = [checkpoint, "--dataset", checkpoint.parent / "corpus", "--split", "train", "--output", output]
    return [*map(str, given), "--instances_per_shard", "2", "--num_workers", "0", "--cpu", *more]


def launch(command, checkpoint):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["HF_DATASETS_CACHE"] = str(checkpoint.parent / "cache")
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False, timeout=240,
    )  # fmt: skip


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(checkpoint):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(checkpoint.parent / "cache"))
        embed.main(words(checkpoint, checkpoint.parent / "whole"))
    return checkpoint.parent / "whole"


def test_the_folder_holds_what_the_model_makes_of_the_split(checkpoint, whole):
    rows = embed.load_rows(embed.parse(words(checkpoint, whole)))
    expected = encode_rows(tiny_model(), tiny_processor(), rows)
    found = load_embeddings(whole)
    torch.testing.assert_close(found[:4], expected[:4], rtol=1e-5, atol=1e-5)
    assert found[4:] == expected[4:]
    assert read_manifest(whole)["checkpoint"] == str(checkpoint)


def test_a_whole_folder_is_left_as_it_is(checkpoint, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    embed.main(words(checkpoint, whole))
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before


def test_another_model_is_refused(checkpoint, whole, tmp_path):
    tiny_model(seed=1).save_pretrained(tmp_path / "other")
    tiny_processor().save_pretrained(tmp_path / "other")
    given = words(checkpoint, whole)
    with pytest.raises(ValueError, match=r"revision 'sha256:.*' there and 'sha256:.*' now"):
        embed.main([str(tmp_path / "other"), *given[1:]])
    with pytest.raises(ValueError, match=r"fingerprint '.*' there and '.*' now; split 'train' there and 'test' now"):
        embed.main([*given, "--split", "test"])


def test_flags_explain_themselves(capsys):
    with pytest.raises(SystemExit):
        embed.parse(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("accelerate launch training/embed.py", "what a killed run has to repeat", "Hub id of a checkpoint"):
        assert part in shown


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes_on_one_process_or_two(checkpoint, whole, tmp_path):
    output, copy = tmp_path / "killed", tmp_path / "copy"
    run = launch(["-c", DIES % words(checkpoint, output)], checkpoint)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert sorted(path.name for path in output.glob("receipt-*")) == [f"receipt-0000{n}-of-00006.json" for n in (0, 1)]
    shutil.copytree(output, copy)
    embed.main(words(checkpoint, output))
    assert contents(output) == contents(whole)
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "training" / "embed.py"]
    run = launch([*map(str, ranks), *words(checkpoint, copy)], checkpoint)
    assert run.returncode == 0, run.stderr
    assert contents(copy) == contents(whole)
