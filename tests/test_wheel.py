"""The wheel holds what it should, and the README's Python runs on it in an environment without the clone."""

import os
import re
import shutil
import string
import subprocess
import sys
import sysconfig
from ast import literal_eval
from email import message_from_string
from pathlib import Path
from zipfile import ZipFile

import pytest
from transformers import BertConfig, BertTokenizer, ViTConfig, ViTImageProcessorPil

from modeling_mxmclr import MXMCLRConfig, MXMCLRModel, MXMCLRProcessor, __version__

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("modeling_mxmclr", "datasets_scripts")
NARROW = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
WHERE = "\nimport datasets_scripts; print(*modeling_mxmclr.__path__, *datasets_scripts.__path__, sep='\\n')\n"


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def readme_python() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


def save_untrained_run(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    words += [f"##{letter}" for letter in string.ascii_lowercase]
    tokenizer = BertTokenizer(vocab={word: place for place, word in enumerate(words)})
    config = MXMCLRConfig(
        text_config=BertConfig(vocab_size=len(words), **NARROW),
        vision_config=ViTConfig(image_size=64, patch_size=32, **NARROW),
        projection_dim=8,
    )
    MXMCLRModel(config).save_pretrained(folder)
    MXMCLRProcessor(ViTImageProcessorPil(size={"height": 64, "width": 64}), tokenizer).save_pretrained(folder)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy, since setuptools would pack whatever lies in an old build/ of the clone."""
    source = tmp_path_factory.mktemp("source")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", source / "dist", source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh_python(wheel, tmp_path_factory):
    """The interpreter of an environment that holds the wheel, and borrows its dependencies from ours."""
    home = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", "--without-pip", home)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    # A folder that a .pth file names has its own .pth files ignored, so our editable install stays out of sight.
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(site) / "borrowed.pth").write_text("\n".join(borrowed))
    return python


def test_the_wheel_holds_both_packages_and_nothing_else(wheel):
    names = [name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name]
    ours = [str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert sorted(names) == sorted([*ours, *(f"{package}/py.typed" for package in PACKAGES)])


def test_the_wheel_states_version_licence_and_python(wheel):
    with ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_string(archive.read(path).decode())
    assert metadata["Version"] == __version__
    assert (metadata["License-Expression"], metadata["License-File"]) == ("Apache-2.0", "LICENSE")
    assert metadata["Requires-Python"] == ">=3.11"


def test_the_readmes_python_runs_on_the_wheel(fresh_python, tmp_path):
    save_untrained_run(tmp_path / "runs" / "shapes_cpu")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    (block,) = readme_python()
    (tmp_path / "readme.py").write_text(block + WHERE)
    printed = run(fresh_python, "readme.py", cwd=tmp_path, env=environment).splitlines()
    site = fresh_python.parents[1]
    assert [Path(path).parent.is_relative_to(site) for path in printed[-2:]] == [True, True]
    captions = literal_eval(printed[-3])
    assert captions
    assert all(isinstance(caption, str) for caption in captions)


def test_the_readmes_python_is_eight_lines():
    (block,) = readme_python()
    assert len([line for line in block.splitlines() if line and "import" not in line]) == 8
