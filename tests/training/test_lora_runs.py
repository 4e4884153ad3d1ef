"""Runs with an adapter from end to end: `training/train.py` and `training/merge.py`, launched by path."""

import json

import pytest
import torch
from transformers import AutoModel, AutoProcessor

from modeling_mxmclr import MXMCLRModel
from modeling_mxmclr.adapters_mxmclr import adapted_model, load_adapter
from tests.references.adapters import save_base
from tests.references.corpus import write_corpus
from tests.references.tiny import picture
from tests.training.test_train import launch

RECIPE = """
model: {folder}/base
dataset: {folder}/corpus
lora_rank: 4
instances_per_step: 6
views_per_instance: 2
captions_per_instance: all
num_workers: 0
max_steps: 3
eval_every: 2
log_every: 1
warmup_steps: 1
learning_rate: 1.0e-2
cpu: true
"""
WORDS = ["red chair", "a blue table with legs"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    save_base(folder / "base")
    write_corpus(folder / "corpus")
    (folder / "lora.yaml").write_text(RECIPE.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    run = launch("train.py", folder / "lora.yaml", cwd=folder)
    assert run.returncode == 0, run.stderr
    return folder / "runs" / "lora", run


def text_embeddings(model, processor):
    batch = processor(text=[WORDS])
    with torch.no_grad():
        return model.get_text_features(batch["input_ids"], batch["attention_mask"])


def test_the_run_folder_is_an_adapter_with_its_probe(finished):
    path, run = finished
    names = {each.name for each in path.iterdir()}
    assert names >= {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "metrics.json", "probe.json",
        "probe.safetensors", "processor_config.json", "run.json", "tokenizer.json",
    }  # fmt: skip
    assert not names & {"model.safetensors", "config.json", "adapter_model.bin"}
    assert "LoRA of rank 4, alpha 16, on" in run.stderr
    assert "2 x text_model.encoder.layer.*.attention.self.query" in run.stderr
    assert "% of the base's" in run.stderr
    config = json.loads((path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(path.parents[1] / "base")


def test_the_folder_loads_verified_and_by_the_auto_classes(finished):
    path, _ = finished
    model, processor = adapted_model(load_adapter(path)), AutoProcessor.from_pretrained(path)
    expected = text_embeddings(model, processor)
    torch.testing.assert_close(text_embeddings(AutoModel.from_pretrained(path).eval(), processor), expected)
    base = text_embeddings(MXMCLRModel.from_pretrained(path.parents[1] / "base"), processor)
    assert (base - expected).abs().max() > 1e-3
    assert processor(images=[[picture()]])["pixel_values"].shape == (1, 3, 32, 32)


def test_merging_writes_a_checkpoint_that_needs_no_adapter(finished):
    path, _ = finished
    output = path.parent / "merged"
    run = launch("merge.py", path, "--output", output, cwd=path.parents[1])
    assert run.returncode == 0, run.stderr
    assert f"Merged into {output}; its embeddings differ from the adapter's by " in run.stdout
    names = {each.name for each in output.iterdir()}
    assert names >= {"config.json", "model.safetensors", "modeling_mxmclr.py", "processor_config.json"}
    processor = AutoProcessor.from_pretrained(output)
    merged, adapted = AutoModel.from_pretrained(output), adapted_model(load_adapter(path))
    assert merged.state_dict().keys() == MXMCLRModel.from_pretrained(path.parents[1] / "base").state_dict().keys()
    torch.testing.assert_close(
        text_embeddings(merged, processor), text_embeddings(adapted, processor), rtol=0, atol=1e-6
    )
    again = launch("merge.py", path, "--output", output, cwd=path.parents[1])
    assert again.returncode != 0
    assert "`--output` must be an empty folder" in again.stderr


@pytest.mark.slow
def test_two_ranks_train_in_bf16_with_checkpointing_on_the_weights_of_one_tower(folder):
    flags = ["--mixed_precision=bf16", "--gradient_checkpointing=true", "--use_dora=true", "--lora_towers=vision"]
    run = launch("train.py", folder / "lora.yaml", *flags, "--output_dir=runs/two", processes=2, cwd=folder)
    assert run.returncode == 0, run.stderr
    tensors = json.loads((folder / "runs" / "two" / "probe.json").read_text())["adapter"]
    assert not any("text_model" in name for name in tensors)
    assert any("lora_magnitude_vector" in name for name in tensors)
    assert load_adapter(folder / "runs" / "two")


@pytest.mark.slow
def test_the_recipe_trains_all_weights_when_the_rank_is_zero(folder):
    run = launch("train.py", folder / "lora.yaml", "--lora_rank=0", "--output_dir=runs/whole", cwd=folder)
    assert run.returncode == 0, run.stderr
    assert (folder / "runs" / "whole" / "model.safetensors").is_file()
