"""Search instances by text with `sentence_transformers`: captions, images, and several views of one instance.

Usage:
    python examples/sentence_transformers_search.py --checkpoint runs/shapes_cpu --query "a round red table"
"""

import argparse

from sentence_transformers import SentenceTransformer, util

from datasets_scripts import load_multifold
from modeling_mxmclr.sentence_transformers_mxmclr import MXMCLRModule

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--checkpoint", default="runs/shapes_cpu")
parser.add_argument("--dataset", default="shapes", help="What `load_multifold` takes, such as a folder of yours.")
parser.add_argument("--instances", type=int, default=50)
parser.add_argument("--query", default="a round red table")
chosen = parser.parse_args()

model = SentenceTransformer(modules=[MXMCLRModule.load(chosen.checkpoint)])
rows = list(load_multifold(chosen.dataset, split="test", streaming=True).take(chosen.instances))
gallery = model.encode([row["images"] for row in rows], convert_to_tensor=True)  # a list of views is one instance
query = model.encode(chosen.query, convert_to_tensor=True)
for hit in util.semantic_search(query, gallery, top_k=3)[0]:
    print(f"{hit['score']:.3f}  {rows[hit['corpus_id']]['captions'][0]}")

one_view = model.encode(rows[0]["images"][0])
print(
    f"the first view of the first instance, to all of its views: {model.similarity(one_view, gallery[0].cpu()).item():.3f}"
)
