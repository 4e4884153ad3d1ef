"""Facts that two files state, stated equally; and docs that name all there is to name."""

import inspect
import re
import tomllib
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest
import yaml

import modeling_mxmclr
from benchmarks.scaling import estimate_table
from modeling_mxmclr.objectives_mxmclr import OBJECTIVES, setting_names
from modeling_mxmclr.terms_mxmclr import TERMS

ROOT = Path(__file__).resolve().parents[1]
EQUATIONS, OBJECTIVES_PAGE = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("equations", "objectives"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_pre_commit_runs_the_ruff_that_the_tests_run():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    pinned = {pin for hook in hooks for pin in hook.get("additional_dependencies", []) if pin.startswith("ruff")}
    assert pinned == {need for need in PROJECT["optional-dependencies"]["dev"] if need.startswith("ruff")}


def test_every_dependency_has_a_floor_and_a_cap_or_a_pin():
    needs = chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    others = [need for need in needs if not need.startswith("mxmclr[")]
    assert [need for need in others if not re.fullmatch(r"[\w-]+(==[\d.]+|>=[\d.]+,<[\d.]+)", need)] == []


def test_the_changelog_has_the_version():
    assert f"## [{modeling_mxmclr.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_architecture_names_every_public_name():
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert [name for name in modeling_mxmclr.__all__ if f"`{name}`" not in page] == []


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_objectives_page_has_every_objective_and_its_settings(name):
    section = OBJECTIVES_PAGE.partition(f"\n## `{name}`\n")[2].partition("\n## ")[0]
    assert section
    assert [setting for setting in setting_names(name) if f"`{setting}`" not in section] == []
    assert f"\n| `{name}` |" in OBJECTIVES_PAGE


def test_the_scaling_page_has_the_table_that_its_script_prints():
    assert estimate_table() in (ROOT / "docs" / "scaling.md").read_text()


@pytest.mark.parametrize("name", [*OBJECTIVES, *TERMS])
def test_the_equations_have_every_objective_and_term(name):
    assert f" | `{name}` |\n" in EQUATIONS
    assert f"`{name}`" in OBJECTIVES_PAGE


def test_every_function_of_the_equations_exists():
    functions = re.findall(r"^\|.*\| `(\w+)` \|$", EQUATIONS, re.MULTILINE)
    modules = [
        import_module(f"modeling_mxmclr.{path.stem}") for path in (ROOT / "modeling_mxmclr").glob("*_mxmclr.py")
    ]
    known = {name for module in modules for name, _ in inspect.getmembers(module, inspect.isfunction)}
    assert len(functions) > 40
    assert set(functions) - known == {"own"}  # the default of `soft_columns`, in the last cell of its row
