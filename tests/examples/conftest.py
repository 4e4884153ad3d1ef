import shlex
import sys
from pathlib import Path
from runpy import run_path

import datasets
import pytest

from tests.references.corpus import write_corpus
from tests.references.tiny import picture, tiny_model, tiny_processor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """A folder with what the usage lines name: an untrained `runs/shapes_cpu`, a picture; and a small corpus."""
    folder = tmp_path_factory.mktemp("workplace")
    tiny_model("bert", "resnet").save_pretrained(folder / "runs" / "shapes_cpu")
    tiny_processor().save_pretrained(folder / "runs" / "shapes_cpu")
    write_corpus(folder / "corpus")
    picture().save(folder / "chair.png")
    return folder


@pytest.fixture
def run_line(workplace, monkeypatch, capsys, tmp_path_factory):
    """Runs a usage line in that folder, in this process, with more flags behind it, and returns what it printed."""

    def run(line: str, *more: str) -> str:
        python, script, *words = shlex.split(line)
        assert python == "python"
        monkeypatch.setattr(sys, "argv", [script, *words, *more])
        monkeypatch.setattr(sys, "path", [*sys.path])
        run_path(str(ROOT / script), run_name="__main__")
        return capsys.readouterr().out

    monkeypatch.chdir(workplace)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    datasets.disable_progress_bars()
    yield run
    datasets.enable_progress_bars()
