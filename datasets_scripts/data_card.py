"""The card of a built data set: metadata for the Hub, licence, schema, split sizes, fold sizes, a sample sheet."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet
from datasets import DatasetInfo, Features, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData
from PIL import Image, ImageDraw, ImageFont

from .parquet_shards import FoldSizes, fold_sizes
from .sample_sheet import sample_sheet
from .schema import Row

CARD, SHEET, HISTOGRAMS = "README.md", "samples.png", "fold_sizes.png"
CARD_FILES = (CARD, SHEET, HISTOGRAMS)
SAMPLES = 8
TAGS = ["multifold", "image-text-retrieval", "contrastive-learning"]
# What the Hub's metadata calls them; a licence that isn't here is `other` there, and by its name in the text.
HUB_LICENSES = ("apache-2.0", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "mit", "other")
SIZES = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7))
MEANING = {
    "instance_id": "the thing that is seen and described; unique in the data set",
    "images": "what it looks like, one or more times",
    "captions": "what it is called or how it is described, one or more times",
    "category": "its kind, where there is one",
}
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")
PANEL, MARGIN, MAX_BARS = (460, 260), 44, 24


class Built(NamedTuple):
    """What the card is about."""

    dataset: str
    config: str | None
    settings: Mapping[str, object]
    info: DatasetInfo
    features: Features
    license: str | None  # in place of what `info` states
    paths: Mapping[str, Sequence[Path]]  # files by split


def write_card(folder: Path, built: Built) -> None:
    """Write the card and its pictures; the card comes last, and replaces an older one whole."""
    sizes = {split: fold_sizes(paths) for split, paths in built.paths.items()}
    draw_histograms(sizes).save(folder / HISTOGRAMS, format="PNG")
    sample_sheet(islice(some_rows(built, SAMPLES), SAMPLES), folder / SHEET)
    half = folder / f"{CARD}.partial"
    half.write_text(render_card(built, sizes), encoding="utf-8")
    half.replace(folder / CARD)


def render_card(built: Built, sizes: Mapping[str, FoldSizes]) -> str:
    """The card: a metadata block, then Markdown."""
    title = title_of(built)
    blocks = [
        f"---\n{metadata(built, sizes)}\n---",
        f"# {title}",
        built.info.description or "Instances that are each seen in several images and described by several captions.",
        f"![Some instances of {title}]({SHEET})",
        "## Licence",
        license_text(built),
        "## Rows",
        "One row is one instance. How many images and captions it has differs from row to row.",
        "\n".join(["| column | type | what |", "|---|---|---|", *column_lines(built.features)]),
        "## Size",
        "\n".join(
            ["| split | instances | images | captions | MB |", "|---|---:|---:|---:|---:|", *size_lines(built, sizes)]
        ),
        f"![How many instances have how many images and captions]({HISTOGRAMS})",
        "## How it was built",
        code_block(json.dumps(recipe_of(built), indent=2, ensure_ascii=False, default=str), "json"),
    ]
    return "\n\n".join(blocks) + "\n"


def title_of(built: Built) -> str:
    """What the data set is called in the card: its name, or the name of its folder."""
    return " ".join(filter(None, (Path(built.dataset).resolve().name, built.config))).replace("\n", " ")


def metadata(built: Built, sizes: Mapping[str, FoldSizes]) -> str:
    """The YAML that the Hub and `load_dataset` read."""
    splits = SplitDict(
        {
            split: SplitInfo(split, num_bytes=bytes_of(built.paths[split]), num_examples=found.instances)
            for split, found in sizes.items()
        }
    )
    total = sum(bytes_of(paths) for paths in built.paths.values())
    info = DatasetInfo(features=built.features, splits=splits, download_size=total, dataset_size=total)
    files = [{"split": split, "path": f"data/{split}-*"} for split in built.paths]
    data = DatasetCardData(
        pretty_name=title_of(built),
        license=[hub_license(license) for license in licenses_of(built)] or None,
        size_categories=[size_category(sum(found.instances for found in sizes.values()))],
        tags=TAGS,
        configs=[{"config_name": "default", "data_files": files}],
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    return data.to_yaml()


def licenses_of(built: Built) -> list[str]:
    """The licences, each once."""
    stated = built.license or built.info.license or ""
    return list(dict.fromkeys(part.strip() for part in stated.split(",") if part.strip()))


def hub_license(license: str) -> str:
    """The Hub's id of a licence."""
    return license.lower() if license.lower() in HUB_LICENSES else "other"


def license_text(built: Built) -> str:
    """The licence in words."""
    found = licenses_of(built)
    if not found:
        return "No licence is stated. Whoever publishes this must know that they may."
    return f"{', '.join(found)}." + (" Which part is under which, the table above says." if len(found) > 1 else "")


def size_category(instances: int) -> str:
    """The Hub's name for a size.

    Example:
        >>> size_category(1815)
        '1K<n<10K'
    """
    return next((name for name, end in SIZES if instances < end), "n>10M")


def column_lines(features: Features) -> Iterator[str]:
    """The rows of the table of columns."""
    for name, feature in features.items():
        kind = str(feature).replace("|", "\\|")
        yield f"| `{name}` | `{kind}` | {MEANING.get(name, '')} |"


def size_lines(built: Built, sizes: Mapping[str, FoldSizes]) -> Iterator[str]:
    """The rows of the table of sizes."""
    for split, found in sizes.items():
        images, captions = (sum(size * rows for size, rows in counter.items()) for counter in found)
        megabytes = bytes_of(built.paths[split]) / 1e6
        yield f"| {split} | {found.instances:,} | {images:,} | {captions:,} | {megabytes:,.1f} |"


def recipe_of(built: Built) -> dict[str, object]:
    """What was built, by what, with which settings."""
    info = built.info
    return {
        "dataset": without_folders(built.dataset),
        "config": built.config,
        "settings": {name: without_folders(value) for name, value in built.settings.items()},
        "builder": info.builder_name,
        "builder_version": str(info.version),
    }


def without_folders(value: object) -> object:
    """A path on this machine as its last name, since the card is for others; anything else as it is."""
    return Path(value).resolve().name if isinstance(value, str | Path) and Path(value).exists() else value


def code_block(text: str, language: str) -> str:
    """Text as a fenced block, whatever fences it holds."""
    fence = "````" if "```" in text else "```"
    return f"{fence}{language}\n{text}\n{fence}"


def bytes_of(paths: Iterable[Path]) -> int:
    """The size of all files together."""
    return sum(path.stat().st_size for path in paths)


def some_rows(built: Built, count: int) -> Iterator[Row]:
    """Rows from all over the data set, their images decoded; each is the first of a row group."""
    paths = [path for paths in built.paths.values() for path in paths]
    groups = [(path, group) for path in paths for group in range(pyarrow.parquet.read_metadata(path).num_row_groups)]
    rows_of_each = -(-count // max(1, len(groups)))
    step = max(1, len(groups) // count)
    for path, group in groups[::step][:count]:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = next(file.iter_batches(batch_size=rows_of_each, row_groups=[group])).to_pylist()
        yield from (built.features.decode_example(row) for row in rows)


def draw_histograms(sizes: Mapping[str, FoldSizes]) -> Image.Image:
    """Two histograms side by side, over images and over captions, with a colour a split."""
    picture = Image.new("RGB", (2 * PANEL[0], PANEL[1]), "white")
    for place, side in enumerate(("images", "captions")):
        counts = {split: getattr(found, side) for split, found in sizes.items()}
        picture.paste(draw_panel(counts, f"{side} per instance"), (place * PANEL[0], 0))
    return picture


def draw_panel(counts: Mapping[str, Counter[int]], title: str) -> Image.Image:
    """One histogram: fold size to the right, number of instances upwards, splits on top of one another."""
    panel = Image.new("RGB", PANEL, "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(12)
    bars = bars_of(counts)
    highest = max([sum(heights) for _, heights in bars] or [1]) or 1
    left, floor = MARGIN, PANEL[1] - MARGIN
    width = (PANEL[0] - 1.5 * MARGIN) / max(1, len(bars))
    for place, (label, heights) in enumerate(bars):
        x, y = left + place * width, float(floor)
        for height, colour in zip(heights, COLOURS, strict=False):
            top = y - height / highest * (floor - MARGIN)
            draw.rectangle((x + 1, top, x + max(2, width - 2), y), fill=colour)
            y = top
        draw.text((x + width / 2, floor + 4), label, fill="black", font=font, anchor="ma")
        draw.text(
            (x + width / 2, y - 3), f"{sum(heights):,}", fill="#555555", font=ImageFont.load_default(9), anchor="ms"
        )
    draw.line((left, floor, PANEL[0] - MARGIN / 2, floor), fill="black")
    draw.text((PANEL[0] / 2, PANEL[1] - 6), title, fill="black", font=font, anchor="ms")
    for place, (split, colour) in enumerate(zip(counts, COLOURS, strict=False)):
        draw.text((left + 90 * place, 6), split, fill=colour, font=font)
    return panel


def bars_of(counts: Mapping[str, Counter[int]]) -> list[tuple[str, list[int]]]:
    """The label of each bar and its height for each split; many sizes share a bar."""
    present = {size for counter in counts.values() for size in counter}
    if not present:
        return []
    low, high = min(present), max(present)
    step = -(-(high - low + 1) // MAX_BARS)
    bars = []
    for begin in range(low, high + 1, step):
        label = str(begin) if step == 1 else f"{begin}+"
        bars.append(
            (label, [sum(counter[size] for size in range(begin, begin + step)) for counter in counts.values()])
        )
    return bars
