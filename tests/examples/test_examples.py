"""Every example runs as its usage line says, on a tiny checkpoint and a tiny corpus."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModel

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
ON_CORPUS = ("--dataset", "corpus")
# How each example is kept short here; a new one gets its line.
SHORT = {
    "compile_bf16.py": ("--backend", "eager", "--rounds", "2", "--images", "2"),
    "faiss_index.py": (*ON_CORPUS, "--save", "squares.faiss"),
    "hf_trainer.py": (*ON_CORPUS, "--max_steps", "3", "--batch_size", "4"),
    "onnx_search.py": ON_CORPUS,
    "sentence_transformers_search.py": ON_CORPUS,
    "zero_shot_pipeline.py": (),
}
SCORED = re.compile(r"^(-?\d\.\d{3})  .*$", re.MULTILINE)


def docstring(name):
    return ast.get_docstring(ast.parse((ROOT / "examples" / name).read_text()))


def usage_lines(name):
    return re.findall(r"^    (python .*)$", docstring(name), re.MULTILINE)


def own_line(name):
    return next(line for line in usage_lines(name) if f"examples/{name}" in line)


def test_every_example_has_its_line_here_and_in_itself():
    assert list(SHORT) == EXAMPLES
    assert [name for name in EXAMPLES if f"python examples/{name}" not in docstring(name)] == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_imports_only_what_a_user_may(name):
    tree = ast.parse((ROOT / "examples" / name).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    ours = {
        module for module in modules if module.partition(".")[0] in ("modeling_mxmclr", "datasets_scripts", "training")
    }
    public = {"modeling_mxmclr", "modeling_mxmclr.sentence_transformers_mxmclr", "datasets_scripts"}
    assert ours <= public


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch's pinned memory without an accelerator, and the like
def test_the_trainer_trains_evaluates_and_saves_a_checkpoint_without_a_pickle(run_line, workplace):
    printed = run_line(own_line("hf_trainer.py"), *SHORT["hf_trainer.py"])
    before, after = map(float, re.search(r"([\d.]+) before, ([\d.]+) after", printed).groups())
    assert before != after
    saved = workplace / "runs" / "hf_trainer"
    assert type(AutoModel.from_pretrained(saved)).__name__ == "MXMCLRModel"
    assert not [path.name for path in saved.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


def test_the_zero_shot_pipeline_runs_with_the_package_and_without_importing_it(run_line, workplace, tmp_path):
    line, with_picture = usage_lines("zero_shot_pipeline.py")
    imported = run_line(line)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "zero_shot_pipeline.py"), *shlex.split(line)[2:]],
        cwd=workplace, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == imported
    assert sum(map(float, SCORED.findall(imported))) == pytest.approx(1, abs=3e-3)
    assert len(SCORED.findall(run_line(with_picture))) == 2
    assert list((tmp_path / "modules").rglob("modeling_mxmclr.py"))


def test_sentence_transformers_searches_instances(run_line):
    printed = run_line(own_line("sentence_transformers_search.py"), *SHORT["sentence_transformers_search.py"])
    scores = [float(score) for score in SCORED.findall(printed)]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert -1 <= float(printed.rsplit(" ", 1)[1]) <= 1


def test_the_faiss_index_finds_what_the_model_finds(run_line, workplace):
    printed = run_line(own_line("faiss_index.py"), *SHORT["faiss_index.py"])
    assert (workplace / "squares.faiss").is_file()
    found = run_line(own_line("sentence_transformers_search.py"), *SHORT["sentence_transformers_search.py"])
    assert SCORED.findall(printed) == SCORED.findall(found)


def test_eager_compilation_and_bfloat16_keep_the_embeddings(run_line):
    printed = run_line(own_line("compile_bf16.py"), *SHORT["compile_bf16.py"])
    cosines = [float(cosine) for cosine in re.findall(r"cosine to float32 ([\d.]+)", printed)]
    assert len(cosines) == 4
    assert cosines[0] == cosines[1] == 1


def test_without_a_compiler_the_example_says_so(run_line, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda program: None)
    with pytest.raises(
        SystemExit, match="needs a C\\+\\+ compiler, found none; install g\\+\\+ or pass `--backend eager`"
    ):
        run_line(own_line("compile_bf16.py"))


@pytest.mark.slow
def test_the_benchmark_of_8_bits_shows_recall_and_time_side_by_side(run_line):
    printed = run_line("python benchmarks/quantisation.py runs/shapes_cpu", *ON_CORPUS)
    assert re.findall(r"^(\w+) text, (\w+) images +RR@1 ", printed, re.MULTILINE) == [
        ("torch", "torch"), ("float32", "float32"), ("int8", "float32")
    ]  # fmt: skip
    assert re.search(r"^text tower, ms a row: torch [\d.]+, float32 [\d.]+, int8 [\d.]+$", printed, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_compiled_towers_keep_the_embeddings(run_line):
    printed = run_line(own_line("compile_bf16.py"), "--rounds", "2", "--images", "2")
    assert printed.count("cosine to float32") == 4


def test_the_exported_towers_find_what_the_model_finds(run_line):
    export, search = usage_lines("onnx_search.py")
    run_line(export)
    printed = run_line(search, *SHORT["onnx_search.py"])
    found = run_line(own_line("sentence_transformers_search.py"), *SHORT["sentence_transformers_search.py"])
    for score, expected in zip(SCORED.findall(printed), SCORED.findall(found), strict=False):
        assert float(score) == pytest.approx(float(expected), abs=2e-3)
    assert len(SCORED.findall(run_line(search, *SHORT["onnx_search.py"], "--text", "text.int8.onnx"))) == 3
