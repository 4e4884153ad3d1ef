"""Keep one embedding an instance in a data set of 🤗 Datasets, and search it through its FAISS index.

Usage:
    python examples/faiss_index.py --checkpoint runs/shapes_cpu --dataset shapes --query "a round red table"
"""

import argparse

import torch
from transformers import AutoModel, AutoProcessor

import modeling_mxmclr  # noqa: F401 - registers MXM-CLR with the Auto classes
from datasets_scripts import load_multifold

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--checkpoint", default="runs/shapes_cpu")
parser.add_argument("--dataset", default="shapes", help="What `load_multifold` takes, such as a folder of yours.")
parser.add_argument("--split", default="test")
parser.add_argument("--query", default="a round red table")
parser.add_argument("--save", help="File to keep the index in; `load_faiss_index` reads it.")
chosen = parser.parse_args()

model = AutoModel.from_pretrained(chosen.checkpoint).requires_grad_(False)
processor = AutoProcessor.from_pretrained(chosen.checkpoint)


def embed(batch):
    """One unit vector an instance, of all its views; an instance without views can't be in a gallery."""
    views = processor(images=batch["images"])
    rows = model.get_instance_features(model.get_image_features(views.pixel_values), views.image_group_ids)
    return {"embeds": rows.numpy()}


rows = load_multifold(chosen.dataset, split=chosen.split).filter(len, input_columns="images")
rows = rows.map(embed, batched=True, batch_size=16)
rows.add_faiss_index("embeds", metric_type=0)  # inner products: of unit vectors, cosines
if chosen.save:
    rows.save_faiss_index("embeds", chosen.save)

query = processor(text=[[chosen.query]])
with torch.no_grad():
    vector = model.get_text_features(query.input_ids, query.attention_mask)[0].numpy()
scores, found = rows.get_nearest_examples("embeds", vector, k=3)
for score, name, captions in zip(scores, found["instance_id"], found["captions"], strict=True):
    print(f"{score:.3f}  {name}: {captions[0] if captions else '(no caption)'}")
