"""Run the towers compiled and in bfloat16: how fast on this machine, and how far the embeddings move.

Usage:
    python examples/compile_bf16.py --checkpoint runs/shapes_cpu --rounds 20

`torch.compile` needs a C++ compiler on a CPU (Triton on a GPU); without one pass `--backend eager`, which compiles
nothing. Whether bfloat16 is faster depends on the processor. Measured with `runs/shapes_cpu` on one core of an Intel
Xeon at 2.1 GHz (AMX) that others used too: 2.4 times faster compiled, 1.9 times in bfloat16, 2.6 times both; cosines to
float32 of 1.000000 and 0.99995 at least.
"""

import argparse
import shutil
import time

import torch
from transformers import AutoModel, AutoProcessor

import modeling_mxmclr  # noqa: F401 - registers MXM-CLR with the Auto classes

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--checkpoint", default="runs/shapes_cpu")
parser.add_argument("--backend", default="inductor", help="Of `torch.compile` (default: %(default)s).")
parser.add_argument("--images", type=int, default=32, help="Images of a call (default: %(default)s).")
parser.add_argument("--rounds", type=int, default=20, help="Calls to time (default: %(default)s).")
chosen = parser.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"
if chosen.backend == "inductor" and device == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
    raise SystemExit("`--backend inductor` needs a C++ compiler, found none; install g++ or pass `--backend eager`.")


def load(dtype=torch.float32, compiled=False):
    """The model, its towers compiled or not."""
    model = AutoModel.from_pretrained(chosen.checkpoint, dtype=dtype).to(device).requires_grad_(False)
    if compiled:
        model.vision_model.compile(backend=chosen.backend)
        model.text_model.compile(backend=chosen.backend, dynamic=True)  # captions differ in length
    return model


processor = AutoProcessor.from_pretrained(chosen.checkpoint)
generator = torch.Generator().manual_seed(0)
pictures = torch.randint(0, 256, (chosen.images, 3, 64, 64), generator=generator, dtype=torch.uint8)
batch = processor(images=[[*pictures]], text=[["a round red table", "a chair"]]).to(device)
models = {
    "float32": load(),
    "float32, compiled": load(compiled=True),
    "bfloat16": load(torch.bfloat16),
    "bfloat16, compiled": load(torch.bfloat16, compiled=True),
}


def embed(model):
    """The embeddings of the batch, always at least float32 and of unit norm."""
    images = model.get_image_features(batch.pixel_values.to(model.dtype))
    return torch.cat([images, model.get_text_features(batch.input_ids, batch.attention_mask)])


expected = embed(models["float32"])
cosines = {name: (embed(model) * expected).sum(dim=1).min().item() for name, model in models.items()}
seconds = {name: [] for name in models}
for _ in range(chosen.rounds):
    for name, model in models.items():  # by turns, so that a busy machine disturbs all alike
        start = time.perf_counter()
        embed(model)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds[name].append(time.perf_counter() - start)
fastest = {name: min(values) for name, values in seconds.items()}
for name, cosine in cosines.items():
    ratio = fastest["float32"] / fastest[name]
    print(f"{name:20} {1e3 * fastest[name]:7.2f} ms, {ratio:.2f} x, cosine to float32 {cosine:.6f} at least")
    limit = 1 - 1e-5 if name.startswith("float32") else 0.99
    if cosine < limit:
        raise SystemExit(f"{name} must keep a cosine of {limit}, it has {cosine}; don't use it with this checkpoint.")
