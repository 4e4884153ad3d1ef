"""Classify an image by words of your own, with transformers' zero-shot pipeline and nothing of ours imported.

Usage:
    python examples/zero_shot_pipeline.py --checkpoint runs/shapes_cpu
    python examples/zero_shot_pipeline.py --checkpoint runs/shapes_cpu --image chair.png --labels "a chair" "a table"

A checkpoint carries its own code, which `trust_remote_code=True` runs; with `import modeling_mxmclr` before, the
installed package is taken instead, and trust is not needed.
"""

import argparse

from PIL import Image, ImageDraw
from transformers import pipeline

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--checkpoint", default="runs/shapes_cpu")
parser.add_argument("--image", help="A picture; a drawing of a table by default.")
parser.add_argument("--labels", nargs="+", default=["a red table", "a blue chair", "a green lamp", "a white sofa"])
parser.add_argument("--template", default="{}", help="Sentence around each label (default: %(default)s).")
chosen = parser.parse_args()

if chosen.image:
    image = Image.open(chosen.image)
else:
    image = Image.new("RGB", (64, 64), "white")
    for box in [(8, 24, 56, 30), (12, 30, 16, 52), (48, 30, 52, 52)]:
        ImageDraw.Draw(image).rectangle(box, fill="red")

classify = pipeline("zero-shot-image-classification", model=chosen.checkpoint, trust_remote_code=True)
for guess in classify(image, candidate_labels=chosen.labels, hypothesis_template=chosen.template):
    print(f"{guess['score']:.3f}  {guess['label']}")
