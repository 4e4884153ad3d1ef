"""A small multifold folder, made on the spot: squares of colours with captions that name them."""

import json
from pathlib import Path

from PIL import Image

COLOURS = ["red", "green", "blue", "white", "black", "yellow", "purple", "orange", "pink", "brown"]
SIZES = ["small", "large"]


def write_corpus(folder: Path, splits=(("train", 12), ("validation", 4), ("test", 4)), size: int = 16) -> Path:
    """Write `metadata.jsonl` and its images; instances have one to three views and one to two captions."""
    folder.mkdir(parents=True)
    lines, number = [], 0
    for split, count in splits:
        for _ in range(count):
            colour, extent = COLOURS[number % 10], SIZES[number // 10 % 2]
            images = []
            for view in range(1 + number % 3):
                image = Image.new("RGB", (size, size), "grey")
                side = size - 4 * (extent == "small") - view
                image.paste(Image.new("RGB", (side, side), colour), (0, 0))
                images.append(f"{number}-{view}.png")
                image.save(folder / images[-1])
            captions = [f"a {extent} {colour} square", f"{colour} {extent}"][: 1 + number % 2]
            row = {"instance_id": f"square-{number}", "images": images, "captions": captions, "split": split}
            lines.append(json.dumps(row | {"category": extent}))
            number += 1
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
