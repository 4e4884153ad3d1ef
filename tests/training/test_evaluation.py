import argparse
import json
from pathlib import Path

import pytest

from tests.references.evaluations import embeddings_of, evaluation_of, plain_rows
from training.evaluation import embeddings_folder, score_embeddings
from training.protocol import load_protocol
from training.retrieval import retrieval_report

ROWS = plain_rows()


def named(checkpoint, embeddings=None) -> argparse.Namespace:
    return argparse.Namespace(checkpoint=str(checkpoint), embeddings=embeddings)


@pytest.mark.parametrize("protocol", ["multifold/instance", "multifold/max_sim"])
def test_an_evaluation_reports_what_its_embeddings_give(protocol):
    embeddings, chosen = embeddings_of(ROWS, noise=0.8), load_protocol(protocol)
    evaluation = score_embeddings("run", "things", "test", ROWS, embeddings, chosen)
    assert evaluation.report == {"split": "test", **retrieval_report(embeddings, chosen)}
    for direction, scores in evaluation.scores.items():
        assert scores.as_dict().items() <= evaluation.report[direction].items()


def test_embeddings_that_do_not_fit_are_refused():
    embeddings = embeddings_of(ROWS, noise=0.8)
    with pytest.raises(ValueError, match="`captions` has 17 entries for 18 `text_embeds`"):
        score_embeddings(
            "run",
            "things",
            "test",
            ROWS,
            embeddings._replace(captions=embeddings.captions[1:]),
            load_protocol("multifold/instance"),
        )


def test_embeddings_are_kept_in_a_local_run_unless_told_where(tmp_path):
    assert embeddings_folder(named(tmp_path)) == tmp_path / "embeddings"
    assert embeddings_folder(named("org/model")) is None
    assert embeddings_folder(named("org/model", "elsewhere")) == Path("elsewhere")


def test_a_run_is_read_from_its_folder(tmp_path):
    assert evaluation_of(ROWS, checkpoint="org/model").run == {}
    (tmp_path / "run.json").write_text(json.dumps({"steps": 3}))
    assert evaluation_of(ROWS, checkpoint=str(tmp_path)).run == {"steps": 3}
