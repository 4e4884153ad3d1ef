"""A saved checkpoint loads in a process where the package is not installed."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.references.tiny import picture, tiny_model, tiny_processor

# What a checkpoint carries: all that the model and the processor reach, flat.
COPIED = {
    "blockwise_mxmclr.py",
    "buckets_mxmclr.py",
    "configuration_mxmclr.py",
    "contrast_mxmclr.py",
    "distributed_mxmclr.py",
    "folds_mxmclr.py",
    "mfh_mxmclr.py",
    "modeling_mxmclr.py",
    "multiview_objectives_mxmclr.py",
    "objectives_mxmclr.py",
    "pixels_mxmclr.py",
    "pmrl_mxmclr.py",
    "processing_mxmclr.py",
    "queries_mxmclr.py",
    "relation_mxmclr.py",
    "scale_mxmclr.py",
    "siglip_mxmclr.py",
    "softmax_objectives_mxmclr.py",
    "tcl_mxmclr.py",
    "terms_mxmclr.py",
    "tiles_mxmclr.py",
    "towers_mxmclr.py",
    "tuple_objectives_mxmclr.py",
    "weighted_objectives_mxmclr.py",
}
# The editable install is taken off the path, so that nothing but the checkpoint can provide the classes.
LOAD = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
sys.path = [entry for entry in sys.path if entry not in ("", {repo!r})]
try:
    import modeling_mxmclr
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package is installed here")
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor
trust = {{"trust_remote_code": True}}
assert AutoConfig.from_pretrained({folder!r}, **trust).projection_dim == 16
model = AutoModel.from_pretrained({folder!r}, **trust).eval()
AutoModelForZeroShotImageClassification.from_pretrained({folder!r}, **trust)
processor = AutoProcessor.from_pretrained({folder!r}, **trust)
batch = processor(images=[[Image.open({image!r})]], text=[["red chair", "a table"]], instance_ids=["a"])
output = model(**batch)
save_file({{"image_embeds": output.image_embeds, "text_embeds": output.text_embeds, "loss": output.loss[None]}},
          {result!r})
"""


@pytest.fixture
def checkpoint(tmp_path):
    model, processor = tiny_model(), tiny_processor()
    model.save_pretrained(tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    return tmp_path / "run", model, processor


def test_checkpoint_carries_exactly_the_source_that_it_needs(checkpoint):
    folder, _, _ = checkpoint
    assert {file.name for file in folder.glob("*.py")} == COPIED
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", "AutoModel", "AutoModelForZeroShotImageClassification"}


def test_embeddings_are_equal_where_the_package_is_not_installed(checkpoint, tmp_path):
    folder, model, processor = checkpoint
    picture().save(tmp_path / "view.png")
    paths = {"folder": str(folder), "image": str(tmp_path / "view.png"), "result": str(tmp_path / "out.safetensors")}
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment.pop("PYTHONPATH", None)
    run = subprocess.run(
        [sys.executable, "-c", LOAD.format(repo=os.getcwd(), **paths)],
        cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    batch = processor(images=[[picture()]], text=[["red chair", "a table"]], instance_ids=["a"])
    expected = model(**batch)
    loaded = load_file(tmp_path / "out.safetensors")
    torch.testing.assert_close(loaded["image_embeds"], expected.image_embeds, rtol=0, atol=0)
    torch.testing.assert_close(loaded["text_embeds"], expected.text_embeds, rtol=0, atol=0)
    torch.testing.assert_close(loaded["loss"][0], expected.loss, rtol=0, atol=0)
