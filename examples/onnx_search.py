"""Search with the exported towers: onnxruntime, a tokenizer and an image processor, and no model of ours in memory.

Usage:
    python training/export_onnx.py runs/shapes_cpu --output runs/shapes_cpu/onnx --int8
    python examples/onnx_search.py --exported runs/shapes_cpu/onnx --query "a round red table"
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from transformers import AutoImageProcessor, AutoTokenizer

from datasets_scripts import load_multifold

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--exported", default="runs/shapes_cpu/onnx", help="Folder that `training/export_onnx.py` wrote.")
parser.add_argument("--text", default="text.onnx", help="Or text.int8.onnx (default: %(default)s).")
parser.add_argument("--dataset", default="shapes", help="What `load_multifold` takes, such as a folder of yours.")
parser.add_argument("--instances", type=int, default=50)
parser.add_argument("--query", default="a round red table")
chosen = parser.parse_args()

text_tower = onnxruntime.InferenceSession(f"{chosen.exported}/{chosen.text}", providers=["CPUExecutionProvider"])
image_tower = onnxruntime.InferenceSession(f"{chosen.exported}/image.onnx", providers=["CPUExecutionProvider"])
tokenizer = AutoTokenizer.from_pretrained(chosen.exported)
image_processor = AutoImageProcessor.from_pretrained(chosen.exported, backend="pil")
padding = json.loads((Path(chosen.exported) / "processor_config.json").read_text())["text_padding"]


def embed_instance(views):
    """The unit vector of an instance: the mean over its views, of norm 1 again."""
    pixels = image_processor([view.convert("RGB") for view in views], return_tensors="np")["pixel_values"]
    mean = image_tower.run(None, {"pixel_values": pixels.astype(np.float32)})[0].mean(axis=0)
    return mean / np.linalg.norm(mean)


def embed_text(text):
    """The unit vector of a text."""
    tokens = tokenizer([text], padding=padding, truncation=True, return_tensors="np")
    return text_tower.run(None, {name: tokens[name] for name in ("input_ids", "attention_mask")})[0][0]


rows = list(load_multifold(chosen.dataset, split="test", streaming=True).take(chosen.instances))
gallery = np.stack([embed_instance(row["images"]) for row in rows])
scores = gallery @ embed_text(chosen.query)
for place in (-scores).argsort()[:3]:
    print(f"{scores[place]:.3f}  {rows[place]['captions'][0]}")
