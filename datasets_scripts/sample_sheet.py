"""A picture of some rows of a data set: python -m datasets_scripts.sample_sheet shapes --output sheet.png."""

import argparse
import textwrap
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .loading import load_multifold
from .pictures import white_square
from .schema import Row

GAP, LINE, TEXT_COLUMNS = 8, 17, 72
TEXT_WIDTH = TEXT_COLUMNS * 7


def sample_sheet(rows: Iterable[Row], path: str | Path, num_views: int = 6, view_size: int = 96) -> None:
    """Write a PNG with one line a row: some views from all around, and beside them its id, category and captions.

    Raises:
        ValueError: If there are no rows.
    """
    strips = [draw_row(row, num_views, view_size) for row in rows]
    if not strips:
        raise ValueError("`rows` must hold at least one row to draw, got none.")
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    sheet.save(path, format="PNG")


def draw_row(row: Row, num_views: int, view_size: int) -> Image.Image:
    """One line of the sheet."""
    lines = [f"{row['instance_id']}  {row.get('category') or ''}", *caption_lines(row["captions"])]
    height = max(view_size, LINE * len(lines)) + GAP
    strip = Image.new("RGB", (num_views * (view_size + GAP) + TEXT_WIDTH, height), "white")
    step = max(1, len(row["images"]) // num_views)
    for place, view in enumerate(row["images"][::step][:num_views]):
        strip.paste(white_square(view, view_size), (place * (view_size + GAP), 0))
    left = num_views * (view_size + GAP) + GAP
    ImageDraw.Draw(strip).multiline_text(
        (left, 0), "\n".join(lines), fill="black", font=ImageFont.load_default(12), spacing=LINE - 14
    )
    return strip


def caption_lines(captions: Sequence[str]) -> list[str]:
    """The captions, a dash before each, broken into lines."""
    return [
        line
        for caption in captions
        for line in textwrap.wrap(caption, TEXT_COLUMNS, initial_indent="- ", subsequent_indent="  ")
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the first rows of a data set."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("dataset", help="What `load_multifold` takes: shapes, a folder, an id on the Hub.")
    parser.add_argument("--config", help="Configuration of the data set.")
    parser.add_argument("--split", default="train", help="Split to draw from.")
    parser.add_argument("--num-rows", type=int, default=12, help="Instances to draw.")
    parser.add_argument("--num-views", type=int, default=6, help="Views of each.")
    parser.add_argument("--view-size", type=int, default=96, help="Pixels of each view.")
    parser.add_argument("--output", type=Path, default=Path("sheet.png"), help="Picture to write.")
    chosen = parser.parse_args(arguments)
    rows = load_multifold(chosen.dataset, config=chosen.config, split=chosen.split, streaming=True)
    sample_sheet(islice(rows, chosen.num_rows), chosen.output, chosen.num_views, chosen.view_size)


if __name__ == "__main__":
    main()
