"""What the README, CONTRIBUTING and docs/ name exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/equations.md")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
# A path in backticks or a command, such as `training/train.py`, `docs/` or `.ci/run`; placeholders have `<name>`.
NAMED_PATH = re.compile(
    r"(?<![\w./<>-])((?:modeling_mxmclr|datasets_scripts|training|tests|docs|\.ci)/[\w./-]*+|[A-Z]+\.md)(?!<name>)"
)
MAKE_CALL = re.compile(r"(?:^|`|&& )make ([a-z][a-z -]*?)(?= *(?:`|#|&&|$))", re.MULTILINE)


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
