"""Real processes that are killed and resumed, as `benchmarks/kills.py` does thirty times."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.references.corpus import write_corpus
from tests.training.test_train import TINY, launch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_runs_end_as_the_unbroken_one(ranks, tmp_path):
    words = ["--output", tmp_path, "--kills", "3", "--per_run", "3", "--ranks", ranks]
    run = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "kills.py"), *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    # A moment that passes before it is hit is tried again in a further run.
    kills, runs, equal = map(int, re.search(r"(\d+) kills of (\d+) runs .*: (\d+) runs end as", run.stdout).groups())
    assert kills >= 3
    assert equal == runs
    assert " 0 training states were unreadable" in run.stdout
    assert "NO" not in run.stdout


@pytest.mark.slow
def test_a_finished_run_is_neither_repeated_nor_lost(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY.format(corpus=write_corpus(tmp_path / "corpus")))
    for _ in range(2):
        run = launch("train.py", tmp_path / "tiny.yaml", "--resume_from_checkpoint", "auto", cwd=tmp_path)
        assert run.returncode == 0, run.stderr
    assert "is finished; there is nothing to resume" in run.stderr
    names = {path.name for path in (tmp_path / "runs" / "tiny").iterdir()}
    assert {"metrics.json", "model.safetensors"} <= names
    assert "state" not in names
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny"]
    assert not (tmp_path / "runs" / "tiny" / "checkpoints" / "best").exists()
