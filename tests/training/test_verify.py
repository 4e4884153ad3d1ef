"""`training/verify.py` on cards that hold, do not hold, or can't be checked."""

import shutil
from pathlib import Path

import pytest
import torch

from datasets_scripts.loading import load_multifold
from modeling_mxmclr import MXMCLRModel
from tests.references.corpus import write_corpus
from tests.references.tiny import tiny_model, tiny_processor
from training.arguments import DataArguments
from training.card import save_run_card
from training.card_results import Figure
from training.data import named_splits
from training.dataset_used import content_hash, describe_dataset
from training.retrieval import retrieval_report
from training.searches import Embeddings
from training.verify import Check, check, conclude, main, measure


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus", (("train", 4), ("test", 10)))


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model, processor = tiny_model(), tiny_processor()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    data = DataArguments(dataset=str(corpus))
    splits = named_splits(load_multifold(**data.source))
    save_run_card(
        folder,
        {
            "model_name": "tiny",
            "objective": "mfh",
            "towers": {"text": "bert", "vision": "vit"},
            "parameters": 1,
            "dataset": describe_dataset(data, splits, "test"),
            "arguments": {"seed": 0},
            "command": "train",
            "git_revision": "1",
            "hardware": "CPU",
            "versions": {},
            "steps": 1,
            "seconds": 1.0,
            "metrics": measure(model, processor, splits["test"], "multifold/instance"),
        },
    )
    return folder


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "copy"))


def verify(folder, *words):
    return main([str(folder), "--cpu", "--num_workers", "0", *map(str, words)])


def test_a_card_holds_on_the_weights_that_it_was_made_with(run, capsys):
    assert verify(run) == 0
    said = capsys.readouterr().out
    assert "the same data as the card's (sha256:" in said
    assert said.count("holds exactly") == 10
    assert said.endswith("The card holds.\n")


def test_a_card_does_not_hold_on_disturbed_weights(copy, capsys):
    model = MXMCLRModel.from_pretrained(copy)
    # Every text in one place finds nothing but by chance, whatever the scores were.
    torch.nn.init.zeros_(model.text_projection.weight)
    with torch.no_grad():
        model.text_projection.weight[0] = 1.0
    model.save_pretrained(copy)
    assert verify(copy) == 1
    said = capsys.readouterr().out
    assert "does not hold" in said
    assert "text_to_instance_mrr" in said
    assert said.endswith("The card does not hold.\n")


def test_a_card_that_claims_more_than_was_measured_does_not_hold(copy, capsys):
    card = copy / "README.md"
    text = card.read_text()
    first = text.index("value: ") + len("value: ")
    card.write_text(text[:first] + "0.987" + text[text.index("\n", first) :])
    assert verify(copy) == 1
    assert "0.9870" in capsys.readouterr().out


def test_other_data_can_not_refute_a_card(copy, tmp_path, capsys):
    other = write_corpus(tmp_path / "other", (("train", 2), ("test", 6)))
    assert verify(copy, "--dataset", other) == 2
    said = capsys.readouterr().out
    assert "NOT the card's data" in said
    assert "can't be told" in said


def test_the_same_data_elsewhere_is_the_same(run, corpus, tmp_path, capsys):
    elsewhere = shutil.copytree(corpus, tmp_path / "elsewhere")
    assert verify(run, "--dataset", elsewhere) == 0
    assert "the same data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda text: None, "has no card, README.md"),
        (lambda text: "# by hand\n", "states no figure"),
        (lambda text: text.replace("protocol_hash: ", "protocol_hash: x"), "check out the card's git revision"),
        (lambda text: text.replace("multifold/instance", "another/protocol"), "The protocol 'another/protocol' is not known"),
        (lambda text: text.replace("split: test", "split: validation"), "the card's figures are on 'validation'"),
    ],
)  # fmt: skip
def test_what_can_not_be_checked_is_said_with_a_code_of_its_own(spoil, reason, copy, capsys):
    text = spoil((copy / "README.md").read_text())
    (copy / "README.md").unlink() if text is None else (copy / "README.md").write_text(text)
    assert verify(copy) == 2
    assert reason in capsys.readouterr().err


def test_data_that_is_gone_is_no_verdict(copy, corpus, capsys):
    card = copy / "README.md"
    card.write_text(card.read_text().replace(str(corpus), "/nowhere"))
    assert verify(copy) == 2
    assert "`dataset` must be one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stated", "interval", "verdict"),
    [
        (1.0, (1.0, 1.0), "holds exactly"),
        (0.9995, None, "holds exactly"),
        (0.9, (0.8, 1.0), "holds"),
        (0.9, (0.8, 0.95), "does not hold"),  # what is measured lies outside
        (0.7, (0.0, 1.0), "does not hold"),  # an interval that would hold anything
        (0.9, None, "does not hold"),
    ],
)
def test_a_figure_holds_where_it_is_equal_or_both_lie_in_the_interval_of_the_other(
    stated, interval, verdict, perfect_report
):
    scores = perfect_report["text_to_instance"]
    report = perfect_report | {"text_to_instance": scores | {"ci95": {"mrr": [0.85, 1.0]}}}
    assert check(Figure("text_to_instance", "mrr", stated, interval), report).verdict == verdict


def test_a_figure_that_is_no_longer_measured_does_not_hold(perfect_report):
    found = check(Figure("text_to_instance", "rr@77", 1.0, None), perfect_report)
    assert found.verdict == "is not measured"
    assert conclude([found], is_same_data=True) == 1


@pytest.mark.parametrize(
    ("verdicts", "is_same_data", "code"),
    [
        (["holds exactly", "holds"], True, 0),
        (["holds exactly", "holds"], False, 0),
        (["holds", "does not hold"], True, 1),
        (["holds", "does not hold"], False, 2),
    ],
)
def test_the_exit_code_follows_from_figures_and_data(verdicts, is_same_data, code):
    figure = Figure("text_to_instance", "mrr", 0.5, None)
    assert conclude([Check(figure, 0.5, verdict) for verdict in verdicts], is_same_data) == code


@pytest.fixture
def perfect_report():
    eye, ids = torch.eye(3), torch.arange(3)
    names = {row: str(row) for row in range(3)}
    return retrieval_report(Embeddings(eye, ids, eye, ids, ["a", "b", "c"], names, {}))


def test_the_hash_of_the_content_follows_every_part_of_the_data(corpus, tmp_path):
    def changed(change):
        folder = Path(shutil.copytree(corpus, tmp_path / str(len(list(tmp_path.iterdir())))))
        change(folder)
        return content_hash(named_splits(load_multifold(str(folder)))["test"])

    def rewrite(old, new):
        def change(folder):
            path = folder / "metadata.jsonl"
            assert old in path.read_text()
            path.write_text(path.read_text().replace(old, new))

        return change

    def other_pixels(folder):
        (folder / "5-0.png").write_bytes((folder / "6-0.png").read_bytes())

    hashes = {
        changed(change)
        for change in (
            lambda folder: None,
            rewrite("square-5", "square-x"),
            rewrite("yellow small", "yellow tiny"),
            other_pixels,
        )
    }
    assert len(hashes) == 4
    assert changed(lambda folder: None) in hashes
