import ast
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from tests.references.tiny import picture, tiny_model, tiny_processor
from training.card import Run, render_card, save_run_card
from training.card_results import figures_of, stated_by
from training.markdown import code_block, code_span, escape_markdown
from training.render_card import main as render
from training.retrieval import retrieval_report
from training.searches import Embeddings

ROOT = Path(__file__).resolve().parents[2]

HOSTILE = [
    "<script>alert(1)</script>",
    "| a |\n|---|",
    "```\n# heading",
    "[a](javascript:b) ![c](d)",
    "{{ model_name }}",
]


@pytest.fixture(scope="module")
def run() -> Run:
    eye, ids = torch.eye(12), torch.arange(12)
    names = {row: f"shape-{row}" for row in range(12)}
    categories = dict.fromkeys(range(12), "a | <b>")
    embeddings = Embeddings(eye, ids, eye, ids, [f"caption {row}" for row in range(12)], names, categories)
    return {
        "model_name": "mxmclr-shapes",
        "objective": "mfh",
        "towers": {"text": "bert from scratch", "vision": "resnet from scratch"},
        "parameters": 1234567,
        "dataset": {
            "name": "shapes small",
            "fingerprint": "a1b2",
            "sizes": {"train": 1050, "test": 12},
            "split": "test",
            "content": "sha256:c3d4",
            "source": {"dataset": "shapes", "config": "small"},
            "license": "Apache-2.0",
        },
        "arguments": {"seed": 3, "text": "```\n# x"},
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
    assert 'from_pretrained("org/model"' in card.content
    assert "python training/verify.py org/model" in card.content


def test_card_says_what_was_run_and_that_it_is_a_reconstruction(run):
    card = render_card(run)
    for fact in (
        "reconstruction",
        "2303.10839",
        "deadbeef",
        "1,234,567",
        "11 min 32 s",
        "a1b2",
        "sha256:c3d4",
        "train 1,050, test 12",
        "licence: Apache-2.0",
        "seed 3",
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


def test_every_figure_is_read_back_from_the_card_with_its_interval_and_the_way_it_was_measured(run):
    statement = stated_by(render_card(run))
    assert statement.figures == list(figures_of(run["metrics"]))
    assert (statement.split, statement.protocol) == ("test", "multifold/instance")
    assert statement.dataset == {key: run["dataset"][key] for key in ("fingerprint", "content", "source")}
    metric = ModelCard(render_card(run)).data.to_dict()["model-index"][0]["results"][0]["metrics"][0]
    assert metric["args"]["seeds"] == [3]
    assert re.fullmatch("[0-9a-f]{12}", metric["args"]["protocol_hash"])
    assert metric["args"]["interval_95"] == [1.0, 1.0]


def test_a_card_without_figures_states_nothing(run):
    assert stated_by(render_card({key: value for key, value in run.items() if key != "metrics"})) is None


def test_results_of_a_data_set_on_the_hub_are_written_in_its_own_form_too(run, tmp_path):
    save_run_card(tmp_path, run | {"dataset": run["dataset"] | {"hub_id": "org/shapes"}})
    entries = parse_eval_result_entries(yaml.safe_load((tmp_path / ".eval_results" / "org--shapes.yaml").read_text()))
    assert [(entry.task_id, entry.value) for entry in entries] == [
        (figure.name, figure.value) for figure in figures_of(run["metrics"])
    ]
    assert {entry.dataset_id for entry in entries} == {"org/shapes"}
    assert all(part in entries[0].notes for part in ("multifold/instance", "split test", "seeds [3]", "(1.0, 1.0)"))


def test_failures_and_the_budget_curve_are_shown_where_a_run_has_them(run):
    failure = {"query": "<b> | worst", "instance_id": "shape-1", "rank": 117.0, "first": "shape_2"}
    text = render_card(run | {"failures": [failure], "budget": "budget.png"})
    assert "| &lt;b&gt; \\| worst | shape-1 | 117 | shape\\_2 |" in text
    assert "](budget.png)" in text


def test_the_card_of_a_run_that_goes_on_says_so(run):
    assert "after step 200 of 1,500" in render_card(run | {"unfinished": {"step": 200, "of": 1500}})
    assert "still running" not in render_card(run)


def test_a_card_says_what_was_mixed_in_and_that_nobody_counted_a_stream(run):
    streamed = {"name": "shapes", "split": "test", "sizes": {"test": 12}, "streamed": True, "content": "sha256:c3d4"}
    mixed = {"mixed_with": ["org/other", HOSTILE[0]], "weights": [2.0, 1.0, 1.0]}
    text = ModelCard(render_card(run | {"dataset": streamed | mixed})).text
    assert "Training also drew from org/other, " in text
    assert "with weights 2.0 : 1.0 : 1.0." in text
    assert HOSTILE[0] not in text
    assert "The training split was streamed" in text
    assert "Fingerprint of how" not in text
    assert "Instances: test 12." in text


def test_five_lines_of_the_card_score_texts_by_the_views_of_an_instance(run, tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    (block,) = python_blocks(render_card(run | {"repo_id": str(tmp_path)}))
    assert len(list(filter(None, block.splitlines()))) == 5
    exec(block, {"views": [picture(), picture(1)]})
    assert "tensor" in capsys.readouterr().out


def test_no_secret_of_a_run_reaches_its_card(run):
    token = "hf_" + "a1B2" * 9
    text = render_card(run | {"command": f"train --model https://me:{token}@hub/x", "hardware": f"a {token}"})
    assert token not in text
    assert "https://***@hub/x" in text


@pytest.mark.parametrize("name", ["text2shape", "flickr30k"])
def test_a_card_of_a_recipe_that_nobody_has_run_states_no_score(name):
    text = (ROOT / "model_cards" / f"mxmclr-{name}.md").read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL).replace("2303.10839", "")
    words_gone = re.sub(r"[\w./-]*[A-Za-z][\w./-]*", "", prose)  # names such as `bert-base` or `text2shape`
    assert not re.search(r"\d", words_gone)
    assert ModelCard(text).data.get("eval_results") is None
    assert "Nobody has trained it yet" in text


@pytest.mark.parametrize("name", ["text2shape", "flickr30k"])
def test_the_cards_of_recipes_are_what_the_command_renders(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (source,) = Path("training/configs").glob(f"{name}_*.yaml")
    render(
        [
            str(source),
            "--name",
            f"mxmclr-{name}",
            "--repo_id",
            f"org/mxmclr-{name}",
            "--output",
            str(tmp_path / "card.md"),
        ]
    )
    assert (tmp_path / "card.md").read_text() == (ROOT / "model_cards" / f"mxmclr-{name}.md").read_text()


def test_the_list_of_cards_names_files_that_exist():
    text = (ROOT / "model_cards" / "README.md").read_text()
    named = re.findall(r"training/[\w/]+\.(?:py|yaml)", text)
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).is_file()] == []
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / "model_cards" / link).is_file(), link


def test_a_card_away_from_the_run_folder_shows_no_picture_that_is_not_there(run, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(run))
    render([str(tmp_path / "run.json"), "--name", "another", "--output", str(tmp_path / "card.md")])
    text = (tmp_path / "card.md").read_text()
    assert "# another" in text
    assert "![" not in text


def test_missing_and_unknown_keys_are_named(run):
    with pytest.raises(ValueError, match=r"`Run` lacks \['steps'\] and does not know \['step'\]"):
        render_card({key: value for key, value in run.items() if key != "steps"} | {"step": 1})
    with pytest.raises(ValueError, match=r"`DatasetUsed` lacks \['name'\]"):
        render_card(run | {"dataset": {"fingerprint": "a"}})


def test_saved_card_is_the_rendered_one(run, tmp_path):
    path = save_run_card(tmp_path, run)
    assert path == tmp_path / "README.md"
    assert path.read_text(encoding="utf-8") == render_card(run)
