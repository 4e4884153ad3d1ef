import ast
import doctest
import json

import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from training import hub
from training.hub import code_block, code_span, escape_markdown, push_run, render_card, save_run_card
from training.retrieval import Embeddings, retrieval_report

HOSTILE = [
    "<script>alert(1)</script>",
    "| a |\n|---|",
    "```\n# heading",
    "[a](javascript:b) ![c](d)",
    "{{ model_name }}",
]


@pytest.fixture(scope="module")
def run() -> hub.Run:
    eye, ids = torch.eye(12), torch.arange(12)
    names = {row: f"shape-{row}" for row in range(12)}
    categories = dict.fromkeys(range(12), "a | <b>")
    embeddings = Embeddings(eye, ids, eye, ids, [f"caption {row}" for row in range(12)], names, categories)
    return {
        "model_name": "mxmclr-shapes",
        "objective": "mfh",
        "towers": {"text": "bert from scratch", "vision": "resnet from scratch"},
        "parameters": 1234567,
        "dataset": {"name": "shapes", "fingerprint": "a1b2", "sizes": {"train": 1050, "test": 12}, "split": "test"},
        "arguments": {"data": {"views_per_instance": "4"}, "text": "```\n# x"},
        "command": "accelerate launch training/train.py training/configs/shapes_cpu.yaml",
        "git_revision": "deadbeef",
        "hardware": "2 cores",
        "versions": {"torch": "2.13.0"},
        "steps": 1500,
        "seconds": 692.3,
        "metrics": json.loads(json.dumps(retrieval_report(embeddings))),
        "curves": "curves.png",
        "grid": "a grid.png",
        "captions": HOSTILE,
    }


def python_blocks(card: str) -> list[str]:
    return [part.split("```")[0] for part in card.split("```python\n")[1:]]


def test_metadata_parses_and_holds_the_scores_of_both_directions(run):
    data = ModelCard(render_card(run)).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "zero-shot-image-classification")
    assert len(data.eval_results) == 10
    first = data.eval_results[0]
    assert (first.metric_type, first.metric_value, first.dataset_split) == ("rr@1", 1.0, "test")
    assert "multifold/instance" in first.metric_name


def test_optional_keys_reach_the_metadata(run):
    dataset = run["dataset"] | {"hub_id": "org/shapes"}
    extra = {"license": "apache-2.0", "base_models": ["org/tower"], "dataset": dataset, "repo_id": "org/model"}
    card = ModelCard(render_card(run | extra))
    assert (card.data.license, card.data.base_model, card.data.datasets) == (
        "apache-2.0",
        ["org/tower"],
        ["org/shapes"],
    )
    assert 'name = "org/model"' in card.content


def test_card_says_what_was_run_and_that_it_is_a_reconstruction(run):
    card = render_card(run)
    for fact in (
        "reconstruction",
        "2303.10839",
        "deadbeef",
        "1,234,567",
        "11 min 32 s",
        "a1b2",
        "train 1,050, test 12",
    ):
        assert fact in card
    assert "](curves.png)" in card
    assert "](a%20grid.png)" in card


def test_pictures_are_optional(run):
    card = render_card({key: value for key, value in run.items() if key not in {"curves", "grid", "captions"}})
    assert "![" not in card
    assert "Captions in the picture" not in card


def test_results_are_a_table_of_one_width(run):
    table = [line for line in render_card(run).splitlines() if line.startswith("|") and not line.startswith("| |")]
    results = table[table.index(next(line for line in table if "RR@1" in line)) :]
    columns = {len(line.replace("\\|", "").split("|")) for line in results}
    assert columns == {11}
    assert len(results) == 2 + 2 * 4


def test_free_text_cannot_act_as_markup(run):
    dataset = run["dataset"] | {"name": HOSTILE[0]}
    card = ModelCard(render_card(run | {"hardware": HOSTILE[1], "dataset": dataset})).text
    assert "<" not in card.replace("<br>", "")
    assert "\n# heading" not in card
    assert "[a](" not in card.replace("\\[a\\](", "")
    assert "| Training | 1,500 steps in 11 min 32 s on 2 cores |" in render_card(run)
    assert "on \\| a \\| \\|---\\| |" in card
    assert "5. {{ model\\_name }}" in card


def test_code_with_fences_stays_in_its_block():
    assert code_block("```\n# x", "yaml") == "````yaml\n```\n# x\n````"
    assert code_span("a`b") == "`` a`b ``"
    assert code_span("mfh") == "`mfh`"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("- a", "\\- a"), ("1. a", "1\\. a"), ("24.2", "24.2"), ("a & b", "a &amp; b"), ("a_b*", "a\\_b\\*")],
)
def test_escaped_text_shows_as_it_is(text, escaped):
    assert escape_markdown(text) == escaped


def test_the_python_of_the_card_is_python_whatever_the_repository_is_called(run):
    (block,) = python_blocks(render_card(run | {"repo_id": 'org/a"b'}))
    ast.parse(block)


def test_missing_and_unknown_keys_are_named(run):
    with pytest.raises(ValueError, match=r"`Run` lacks \['steps'\] and does not know \['step'\]"):
        render_card({key: value for key, value in run.items() if key != "steps"} | {"step": 1})
    with pytest.raises(ValueError, match=r"`DatasetUsed` lacks \['split'\]"):
        render_card(run | {"dataset": {key: run["dataset"][key] for key in ("name", "fingerprint", "sizes")}})


def test_saved_card_is_the_rendered_one(run, tmp_path):
    path = save_run_card(tmp_path, run)
    assert path == tmp_path / "README.md"
    assert path.read_text(encoding="utf-8") == render_card(run)


def test_push_uploads_the_folder_to_the_repository_it_created(tmp_path, monkeypatch):
    calls = []

    class Created:
        repo_id = "me/model"

    class Commit:
        commit_url = "https://hub/me/model/commit/1"

    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, repo_id, **options: calls.append((repo_id, options)) or Created
    )
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: calls.append(options) or Commit)
    (tmp_path / "config.json").write_text("{}")
    assert push_run(tmp_path, "model", private=True, ignore_patterns=["state/*"]) == Commit.commit_url
    created, uploaded = calls
    assert created == ("model", {"private": True, "exist_ok": True})
    assert (uploaded["repo_id"], uploaded["folder_path"]) == ("me/model", tmp_path)
    assert uploaded["ignore_patterns"] == ["state/*"]


def test_a_folder_without_a_model_is_not_pushed(tmp_path):
    with pytest.raises(ValueError, match=r"`run_dir` must hold a saved model, .* has no config\.json; train first"):
        push_run(tmp_path, "model")


def test_docstring_examples_hold():
    assert doctest.testmod(hub).failed == 0
