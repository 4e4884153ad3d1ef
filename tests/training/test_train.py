"""`training/train.py` and `training/evaluate.py`, launched by path as users do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel, CLIPProcessor

import modeling_mxmclr  # noqa: F401 - registers the Auto classes
from tests.references.corpus import write_corpus
from tests.references.tiny import (
    CLIP_TEXT,
    CLIP_VISION,
    picture,
    tiny_image_processor,
    tiny_model,
    tiny_tokenizer,
)

ROOT = Path(__file__).resolve().parents[2]
TINY = """
dataset: {corpus}
instances_per_step: 6
views_per_instance: 2
captions_per_instance: all
crop_scale: 0.8
num_workers: 0
text_config: {{model_type: bert, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16}}
vision_config: {{model_type: resnet, embedding_size: 8, hidden_sizes: [8, 16], depths: [1, 1], layer_type: basic}}
image_size: 16
vocabulary_size: 60
projection_dim: 8
max_steps: 4
eval_every: 2
log_every: 1
warmup_steps: 1
learning_rate: 1.0e-3
cpu: true
"""


def launch(script, *words, processes=1, cwd=ROOT):
    """Run a script by path, on several processes where asked for, and return what it printed."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(cwd / "cache")}
    return subprocess.run(
        [*launcher, str(ROOT / "training" / script), *map(str, words)],
        cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=240,
    )  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    corpus = write_corpus(folder / "corpus")
    (folder / "tiny.yaml").write_text(TINY.format(corpus=corpus))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def finished(recipe):
    run = launch("train.py", recipe, cwd=recipe.parent)
    assert run.returncode == 0, run.stderr
    return recipe.parent / "runs" / "tiny", run


def test_the_run_folder_holds_all_that_was_promised(finished):
    folder, run = finished
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "README.md", "arguments.yaml", "best.json", "checkpoints", "config.json", "curves.png", "history.jsonl",
        "initial_embeddings.safetensors", "metrics.json", "model.safetensors", "processor_config.json",
        "retrieval.png", "run.json", "tensorboard", "tokenizer.json", "train.log",
    }  # fmt: skip
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history if "train/loss" in entry] == [1, 2, 3, 4]
    assert [entry["step"] for entry in history if "eval/text_to_instance_rr@1" in entry] == [2, 4]
    logged = {name for entry in history for name in entry}
    assert logged >= {
        "train/scale", "train/grad_norm", "train/images_per_second", "train/positives_per_image",
        "train/negatives_per_text", "train/hard", "train/soft", "train/lr",
    }  # fmt: skip
    assert list((folder / "tensorboard").rglob("events*"))
    assert "About to train" in run.stderr
    assert "parameters" in run.stderr


def test_the_published_checkpoint_gives_the_embeddings_that_were_scored(finished):
    folder, _ = finished
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    best = json.loads((folder / "best.json").read_text())
    last = AutoModel.from_pretrained(folder / "checkpoints" / "last")
    same = torch.equal(last.visual_projection.weight, model.visual_projection.weight)
    assert same == (best["step"] == 4)
    assert model(
        **processor(images=[[picture()]], text=[["red large"]]), return_loss=False
    ).logits_per_image.isfinite()


def test_evaluation_by_itself_gives_the_scores_of_the_run(finished):
    folder, _ = finished
    output = folder.parent / "scores.json"
    run = launch("evaluate.py", folder, "--output", output, "--cpu", "--num_workers", "0", cwd=folder.parents[1])
    assert run.returncode == 0, run.stderr
    assert "text → instance" in run.stdout
    assert json.loads(output.read_text()) == json.loads((folder / "metrics.json").read_text())


def test_the_same_seed_gives_the_same_run_and_another_one_another(recipe, finished):
    def losses(folder):
        lines = (folder / "history.jsonl").read_text().splitlines()
        return [entry["train/loss"] for entry in map(json.loads, lines) if "train/loss" in entry]

    for seed in (0, 1):
        run = launch("train.py", recipe, "--seed", seed, "--output_dir", f"runs/{seed}", cwd=recipe.parent)
        assert run.returncode == 0, run.stderr
    again, other = (losses(recipe.parent / "runs" / str(seed)) for seed in (0, 1))
    assert again == losses(finished[0])
    assert other != again


def test_two_processes_train_on_the_batch_of_one(recipe, finished):
    run = launch("train.py", recipe, "--output_dir", "runs/two", processes=2, cwd=recipe.parent)
    assert run.returncode == 0, run.stderr
    first, both = (
        json.loads((recipe.parent / "runs" / name / "history.jsonl").read_text().splitlines()[0])
        for name in ("tiny", "two")
    )
    for name in ("train/positives_per_image", "train/negatives_per_text"):
        assert both[name] == pytest.approx(first[name])


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--streaming", "--shuffle_buffer=4"]], ids=["stored", "streamed"])
def test_several_data_sets_train_on_two_ranks_and_the_first_is_scored(recipe, flags):
    other = recipe.parent / "other"
    if not other.exists():
        write_corpus(other, splits=(("train", 16),))
    flags = [*flags, f"--more_datasets={other}", "--dataset_weights", 2, 1, "--freeze_text_tower=all"]
    flags += ["--num_workers=1", "--output_dir=runs/mixed"]
    run = launch("train.py", recipe, *flags, processes=2, cwd=recipe.parent)
    assert run.returncode == 0, run.stderr
    folder = recipe.parent / "runs" / "mixed"
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert len([entry for entry in history if "train/loss" in entry]) == 4
    used = json.loads((folder / "run.json").read_text())["dataset"]
    assert (used["name"], used["mixed_with"], used["split"]) == (str(recipe.parent / "corpus"), [str(other)], "test")
    assert ("train" in used["sizes"]) == ("streamed" not in used)
    assert "Training also drew from" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_micro_batches_train_as_the_whole_batch_does(recipe):
    vision = '{"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}'
    text = '{"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, '
    text += '"intermediate_size": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}'
    towers = [f"--vision_config={vision}", f"--text_config={text}"]
    micro = ["--micro_batch_images=3", "--micro_batch_texts=4"]
    losses = {}
    for name, words, processes in (("whole", [], 1), ("micro", micro, 1), ("ranks", micro, 2)):
        words = [*towers, *words, f"--output_dir=runs/{name}"]
        run = launch("train.py", recipe, *words, processes=processes, cwd=recipe.parent)
        assert run.returncode == 0, run.stderr
        lines = (recipe.parent / "runs" / name / "history.jsonl").read_text().splitlines()
        losses[name] = [entry["train/loss"] for entry in map(json.loads, lines) if "train/loss" in entry]
    first, *others = losses.values()
    assert len(first) == 4
    for each in others:
        assert each == pytest.approx(first, rel=1e-4)


def test_a_recipe_with_an_unknown_key_stops_at_once(recipe):
    (recipe.parent / "broken.yaml").write_text("learning_rat: 1\n")
    run = launch("train.py", recipe.parent / "broken.yaml", cwd=recipe.parent)
    assert run.returncode != 0
    assert "did you mean `learning_rate`?" in run.stderr


def test_help_teaches(recipe):
    run = launch("train.py", "--help", cwd=recipe.parent)
    assert run.returncode == 0
    for part in ("accelerate launch training/train.py", "--views_per_instance", "Images drawn of each fold in a step"):
        assert part in run.stdout


@pytest.mark.parametrize("name", ["text2shape_resnet18", "flickr30k_clip_vit_b32"])
def test_recipes_for_gpus_start_with_tiny_towers(name, recipe, tmp_path):
    if name.startswith("flickr"):
        clip = CLIPModel(CLIPConfig(text_config=CLIP_TEXT, vision_config=CLIP_VISION, projection_dim=12))
        clip.save_pretrained(tmp_path / "clip")
        CLIPProcessor(tiny_image_processor(), tiny_tokenizer()).save_pretrained(tmp_path / "clip")
        towers = [f"--clip_model={tmp_path / 'clip'}"]
    else:
        model = tiny_model("bert", "resnet")
        for modality in ("text", "vision"):
            getattr(model, f"{modality}_model").save_pretrained(tmp_path / modality)
        tiny_tokenizer().save_pretrained(tmp_path / "text")
        tiny_image_processor().save_pretrained(tmp_path / "vision")
        towers = [f"--{modality}_model={tmp_path / modality}" for modality in ("text", "vision")]
        towers.append("--max_text_length=10")
    small = [
        "--max_steps=2",
        "--num_workers=0",
        "--image_size=32",
        "--log_every=1",
        f"--output_dir={tmp_path / 'run'}",
    ]
    small += [f"--dataset={recipe.parent / 'corpus'}", "--warmup_steps=1", "--cpu=true"]
    run = launch("train.py", ROOT / "training" / "configs" / f"{name}.yaml", *towers, *small, cwd=recipe.parent)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_a_script_of_ours_does_not_hide_the_package_of_its_name(recipe):
    probe = "import sys, runpy; sys.argv = ['train.py', '--help']\n"
    probe += f"try:\n    runpy.run_path({str(ROOT / 'training' / 'train.py')!r}, run_name='__main__')\n"
    probe += "except SystemExit:\n    pass\nimport evaluate; print(evaluate.__file__)"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert "site-packages" in run.stdout.splitlines()[-1]
