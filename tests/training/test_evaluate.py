"""`training/evaluate.py` as a function of its words; `test_train.py` launches it by path."""

import json

import pytest

from tests.references.corpus import write_corpus
from tests.references.tiny import tiny_model, tiny_processor
from training import evaluate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus and two checkpoints of random weights, of which the first knows its data set."""
    folder = tmp_path_factory.mktemp("evaluate")
    corpus = write_corpus(folder / "corpus")
    for seed, name in enumerate(("one", "two")):
        tiny_model(seed=seed).save_pretrained(folder / name)
        tiny_processor().save_pretrained(folder / name)
    run = {"arguments": {"dataset": str(corpus), "dataset_config": None}}
    (folder / "two" / "run.json").write_text(json.dumps(run))
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "cache")


def words(*given):
    return [*map(str, given), "--cpu", "--num_workers", "0"]


def test_a_folder_gets_scores_and_a_page(folder, tmp_path, capsys):
    evaluate.main(words(folder / "one", "--dataset", folder / "corpus", "--output", tmp_path / "new" / "results"))
    assert "multifold/instance: 4 instances" in capsys.readouterr().out
    scores = json.loads((tmp_path / "new" / "results" / "scores.json").read_text())
    assert (scores["split"], scores["protocol"]["name"], scores["num_instances"]) == ("test", "multifold/instance", 4)
    assert (tmp_path / "new" / "results" / "report.html").read_text().startswith("<!doctype html>")


def test_embeddings_are_kept_in_the_run_and_used_again(folder, tmp_path, monkeypatch):
    arguments = words(folder / "one", "--dataset", folder / "corpus", "--split", "validation")
    evaluate.main([*arguments, "--output", str(tmp_path / "first.json")])
    assert list((folder / "one" / "embeddings").glob("validation-*"))
    monkeypatch.setattr("training.encoding.load_checkpoint", lambda *_: pytest.fail("it embeds again"))
    evaluate.main([*arguments, "--output", str(tmp_path / "second.json")])
    assert (tmp_path / "first.json").read_text() == (tmp_path / "second.json").read_text()


def test_embeddings_are_kept_where_they_are_asked_for(folder, tmp_path):
    evaluate.main(words(folder / "two", "--embeddings", tmp_path / "kept"))
    assert list((tmp_path / "kept").glob("test-*"))
    assert not (folder / "two" / "embeddings").exists()


def test_two_checkpoints_are_compared(folder, tmp_path, capsys):
    evaluate.main(
        words(
            "--compare", folder / "one", folder / "two", "--dataset", folder / "corpus", "--embeddings", tmp_path / "kept",
            "--output", tmp_path / "difference.json", "--html", tmp_path / "difference.html",
        )
    )  # fmt: skip
    shown = capsys.readouterr().out
    comparison = json.loads((tmp_path / "difference.json").read_text())
    assert f"second: {folder / 'two'}" in shown
    assert comparison["text_to_instance"]["metrics"]["mrr"].keys() == {
        "first", "second", "difference", "low", "high", "p_value",
    }  # fmt: skip
    assert (tmp_path / "difference.html").read_text().startswith("<!doctype html>")


def test_a_protocol_of_ones_own_is_taken_from_its_file(folder, tmp_path):
    source = (evaluate.Path(evaluate.__file__).parent / "protocols" / "multifold" / "max_sim.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(source.replace("name: multifold/max_sim", "name: mine"))
    evaluate.main(words(folder / "two", "--protocol", tmp_path / "mine.yaml", "--output", tmp_path / "scores.json"))
    assert json.loads((tmp_path / "scores.json").read_text())["protocol"]["name"] == "mine"


def test_classes_can_be_searched(folder, capsys):
    evaluate.main(words(folder / "two", "--protocol", "zero-shot"))
    assert "instance → class" in capsys.readouterr().out


@pytest.mark.parametrize("given", [[], ["one", "--compare", "one", "two"]])
def test_one_checkpoint_or_two_are_needed(given, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(given)
    assert "name one checkpoint, or two with --compare" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    shown = capsys.readouterr().out
    for part in (
        "--compare runs/emoji-0 runs/emoji-1",
        "multifold/max_sim",
        "Numbers of different protocols",
        "zero-shot",
    ):
        assert part in shown


def test_an_unknown_protocol_or_split_is_refused(folder):
    with pytest.raises(ValueError, match="did you mean 'multifold/max_sim'"):
        evaluate.main(words(folder / "two", "--protocol", "multifold/maxsim"))
    with pytest.raises(ValueError, match="`split` must be one of"):
        evaluate.main(words(folder / "two", "--split", "dev"))
