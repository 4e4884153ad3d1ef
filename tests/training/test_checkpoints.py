import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from tests.references.adapters import make_adapter, save_adapter, save_base
from tests.references.corpus import write_corpus
from tests.references.hub_server import hub_server
from tests.references.tiny import tiny_model, tiny_processor, tower_config
from training.checkpoints import add_source_flags, data_source, load_checkpoint, load_rows, revision_of

ROOT = Path(__file__).resolve().parents[2]
TALK = """
import sys
from huggingface_hub import HfApi
from tests.references.tiny import tiny_model
from training.checkpoints import revision_of

if "push" in sys.argv:
    tiny_model().push_to_hub("org/model")
    print(HfApi().model_info("org/model").sha, end=" ")
print(revision_of("org/model"))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def test_an_adapter_comes_on_its_base_and_is_verified(tmp_path):
    base = save_base(tmp_path / "base")
    folder = save_adapter(make_adapter(base), tmp_path / "adapter")
    tiny_processor().save_pretrained(folder)
    model, _ = load_checkpoint(str(folder), "cpu")
    assert type(model).__name__ == "MXMCLRModel"
    before = revision_of(str(folder))
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: rows + 0.5 for name, rows in weights.items()}, folder / "adapter_model.safetensors")
    assert revision_of(str(folder)) != before
    with pytest.raises(ValueError, match="adapter"):
        load_checkpoint(str(folder), "cpu")


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_source_flags(parser)
    return parser.parse_args([*map(str, words)])


def write_run(folder, **trained_with):
    (folder / "run.json").write_text(json.dumps({"arguments": {"dataset": "shapes", **trained_with}}))
    return folder


def test_a_run_knows_its_data_set(tmp_path):
    run = write_run(tmp_path, dataset_config="small", data_dir=None, image_columns=[])
    assert data_source(parsed(run)) == {"dataset": "shapes", "config": "small"}
    assert data_source(parsed(run, "--dataset_config", "large")) == {"dataset": "shapes", "config": "large"}


def test_another_data_set_takes_nothing_from_the_run(tmp_path):
    run = write_run(tmp_path, dataset_config="small")
    given = ["--dataset", "org/photos", "--instance_column", "id", "--image_columns", "front", "back"]
    expected = {"dataset": "org/photos", "config": None, "instance_column": "id", "image_columns": ["front", "back"]}
    assert data_source(parsed(run, *given)) == expected


def test_a_checkpoint_that_is_no_run_needs_a_data_set():
    with pytest.raises(ValueError, match="`--dataset` is needed: 'org/model' is no run folder"):
        data_source(parsed("org/model"))


def test_an_unknown_split_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    corpus = write_corpus(tmp_path / "corpus")
    assert len(load_rows(parsed("org/model", "--dataset", corpus, "--split", "validation"))) == 4
    with pytest.raises(ValueError, match=r"`split` must be one of \['test', 'train', 'validation'\], got 'dev'"):
        load_rows(parsed("org/model", "--dataset", corpus, "--split", "dev"))


def test_a_checkpoint_loads_in_eval_mode_with_its_processor(checkpoint):
    model, processor = load_checkpoint(str(checkpoint))
    assert not model.training
    batch = processor(text=[["red chair"]], instance_ids=["a"])
    batch.pop("text_group_ids")
    with torch.no_grad():
        torch.testing.assert_close(model.get_text_features(**batch), tiny_model().get_text_features(**batch))


def test_another_kind_of_model_is_refused(tmp_path):
    AutoModel.from_config(tower_config("bert")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a BertModel, not an MXMCLRModel; train one first"):
        load_checkpoint(str(tmp_path))


def test_the_revision_is_of_what_embeddings_depend_on(checkpoint, tmp_path):
    copy = tmp_path / "moved"
    copy.mkdir()
    for path in checkpoint.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "metrics.json").write_text("{}")
    assert revision_of(str(copy)) == revision_of(str(checkpoint))
    for name in ("model.safetensors", "processor_config.json", "tokenizer.json"):
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert revision_of(str(copy)) != revision_of(str(checkpoint))
        (copy / name).write_bytes(content)


def test_a_name_that_stands_for_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"`checkpoint` must be a run folder or a model of the Hub, got '.*gone'"):
        revision_of(str(tmp_path / "gone"))


@pytest.mark.slow
def test_the_revision_of_a_model_on_the_hub_is_its_commit_also_without_network(tmp_path):
    with hub_server() as server:
        environment = server.environment(tmp_path)
        command = [sys.executable, "-c", TALK]
        run = {"env": environment, "cwd": ROOT, "capture_output": True, "text": True, "check": True, "timeout": 240}
        commit, revision = subprocess.run([*command, "push"], **run).stdout.split()
    run["env"] = environment | {"HF_HUB_OFFLINE": "1"}
    assert commit == revision == subprocess.run(command, **run).stdout.strip()
