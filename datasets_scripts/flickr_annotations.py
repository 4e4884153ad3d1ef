"""The annotation files of Flickr30K and Flickr8k, each in the form that people have it."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from .raw_text import RawRow, parse_csv, parse_json, read_csv, read_json_items, read_lines, shortened, strings_of
from .schema import SPLIT_NAMES, RowError

KAGGLE = "https://www.kaggle.com/datasets"
# One row of Kaggle's results.csv lacks the separator behind the number.
JOINED = re.compile(r"([0-9])\s+(\S.*)", re.DOTALL)


class Annotation(NamedTuple):
    """What one line or item of a file says of an image."""

    place: str
    image: str  # its file's name
    captions: list[str]
    number: int | None = None  # of the caption, where the file numbers them
    split: str | None = None


@dataclass
class Annotated:
    """What a file says of an image altogether."""

    place: str
    split: str | None
    captions: dict[int, str] = field(default_factory=dict)  # by number


class Source(NamedTuple):
    """A kind of annotation: what its files are called (any of these, or all), who reads one, and who has them."""

    files: tuple[str, ...]
    read: Callable[[Path, int], Iterator[Annotation]]
    origin: str
    needs_all: bool = False


def gather(source: Source, paths: Iterable[Path], max_rows: int) -> dict[str, Annotated]:
    """What the files say of each image, by the name of its file, in their order.

    Raises:
        RowError: If they can't be read, or contradict themselves.
    """
    images: dict[str, Annotated] = {}
    for found in chain.from_iterable(source.read(path, max_rows) for path in paths):
        name = file_name(found.image, found.place)
        image = images.setdefault(name, Annotated(found.place, found.split))
        if image.split != found.split:
            raise RowError(
                f"'{name}' must be in one split, is in others at {image.place} and {found.place}; drop one."
            )
        for number, caption in enumerate(
            found.captions, len(image.captions) if found.number is None else found.number
        ):
            if number in image.captions:
                raise RowError(f"{found.place}: '{name}' has a caption #{number} already; drop one.")
            image.captions[number] = caption
    return images


def file_name(name: str, place: str) -> str:
    """The name without the folders before it, as ALBEF writes them.

    Raises:
        RowError: If there is none.
    """
    last = name.strip().rpartition("/")[2]
    if last in ("", ".", ".."):
        raise RowError(f"{place}: expected the name of an image, got {shortened(name)}; mend the line.")
    return last


def read_token(path: Path, max_rows: int) -> Iterator[Annotation]:
    """`1000092795.jpg#0<TAB>caption`, one a line."""
    for place, line in read_lines(path, max_rows):
        key, tab, caption = line.rstrip("\r\n").partition("\t")
        image, mark, number = key.rpartition("#")
        if tab and mark:
            yield Annotation(place, image, [caption], number_of(number, place))
        elif line.strip():
            raise RowError(f"{place}: expected `name.jpg#0<TAB>caption`, got {shortened(line)}; get the file again.")


def read_kaggle(path: Path, max_rows: int) -> Iterator[Annotation]:
    """`results.csv`, separated by a pipe and a space, or `captions.txt`, separated by commas."""
    lines = read_lines(path, max_rows)
    header = next(lines, ("", ""))
    return read_piped(lines) if "|" in header[1] else read_commas(parse_csv(chain([header], lines), path.name))


def read_piped(lines: Iterable[tuple[str, str]]) -> Iterator[Annotation]:
    """`1000092795.jpg| 0| caption`, without quotes; the header has been read."""
    for place, line in lines:
        image, *rest = line.rstrip("\r\n").split("|", 2)
        joined = JOINED.fullmatch(rest[0].strip()) if len(rest) == 1 else None
        number, *captions = joined.groups() if joined else rest or [""]
        if captions:
            yield Annotation(place, image, [captions[0].removeprefix(" ")], number_of(number, place))
        elif line.strip():
            raise RowError(f"{place}: expected `name.jpg| 0| caption`, got {shortened(line)}; put the bars in.")


def read_commas(rows: Iterable[RawRow]) -> Iterator[Annotation]:
    """CSV with `image,caption` (Flickr8k) or `image_name,comment_number,comment` (copies of Flickr30K)."""
    for place, row in rows:
        cells = [str(cell) for cell in row.values()]
        if tuple(row) == ("image", "caption"):
            yield Annotation(place, cells[0], [cells[1]])
        elif tuple(row) == ("image_name", "comment_number", "comment"):
            yield Annotation(place, cells[0], [cells[2]], number_of(cells[1], place))
        else:
            raise RowError(
                f"{place}: expected the header `image,caption` or `image_name,comment_number,comment`, got "
                f"{shortened(','.join(row))}; name the columns so."
            )


def read_karpathy(path: Path, max_rows: int) -> Iterator[Annotation]:
    """`{"images": [{"filename", "split", "sentences": [{"raw"}]}]}`."""
    for place, item in read_json_items(path, "images", max_rows):
        sentences = item.get("sentences")
        if not isinstance(sentences, list) or not all(isinstance(sentence, dict) for sentence in sentences):
            raise RowError(f"{place}: `sentences` must be a list of objects, got {shortened(str(sentences))}.")
        captions = strings_of([sentence.get("raw") for sentence in sentences], f"{place}: `raw` of `sentences`")
        yield annotation(place, item.get("filename"), captions, item.get("split"))


def read_nlphuji(path: Path, max_rows: int) -> Iterator[Annotation]:
    """CSV with the columns `raw` (a JSON list), `split` and `filename`."""
    for place, row in read_csv(path, max_rows):
        lacking = sorted({"raw", "split", "filename"} - set(row))
        if lacking:
            raise RowError(f"{place}: expected the columns `raw`, `split` and `filename`, got none called {lacking}.")
        captions = parse_json(str(row["raw"]), f"{place}, `raw`", 'a JSON list such as ["a", "b"]')
        yield annotation(place, row["filename"], captions, row["split"])


def read_albef(path: Path, max_rows: int) -> Iterator[Annotation]:
    """`[{"image", "caption"}]` with one caption (train) or all of them (val, test); the file's name tells the split."""
    split = path.stem.rpartition("_")[2]
    for place, item in read_json_items(path, None, max_rows):
        yield annotation(place, item.get("image"), item.get("caption"), split)


def annotation(place: str, image: object, captions: object, split: object) -> Annotation:
    """The annotation, its parts checked."""
    (name,), (split_name,) = (
        strings_of([image], f"{place}: the image's name"),
        strings_of([split], f"{place}: `split`"),
    )
    if split_name not in SPLIT_NAMES:
        raise RowError(f"{place}: `split` must be one of {sorted(SPLIT_NAMES)}, got {shortened(split_name)}.")
    return Annotation(place, name, strings_of(captions, f"{place}: the captions"), split=SPLIT_NAMES[split_name])


def read_list(path: Path, max_rows: int) -> Iterator[tuple[str, str]]:
    """The place and the file name of each image of a split list, where `.jpg` may be left out."""
    for place, line in read_lines(path, max_rows):
        if line.strip():
            yield place, file_name(line.strip().removesuffix(".jpg") + ".jpg", place)


def number_of(text: str, place: str) -> int:
    """A caption's number.

    Raises:
        RowError: If it is none.
    """
    if not re.fullmatch(r"\s*[0-9]{1,3}\s*", text):
        raise RowError(f"{place}: expected a caption's number, got {shortened(text)}; mend the line.")
    return int(text)


SOURCES = {
    "karpathy": Source(
        ("dataset_flickr30k.json",), read_karpathy, "https://cs.stanford.edu/people/karpathy/deepimagesent"
    ),
    "nlphuji": Source(
        ("flickr_annotations_30k.csv",), read_nlphuji, "https://huggingface.co/datasets/nlphuji/flickr30k"
    ),
    "albef": Source(
        ("flickr30k_train.json", "flickr30k_val.json", "flickr30k_test.json"),
        read_albef,
        "https://github.com/salesforce/ALBEF (data.tar.gz)",
        needs_all=True,
    ),
    "token": Source(
        ("results_20130124.token", "results.token", "Flickr8k.token.txt"),
        read_token,
        "https://shannon.cs.illinois.edu/DenotationGraph, for Flickr8k "
        "https://github.com/jbrownlee/Datasets/releases/tag/Flickr8k (Flickr8k_text.zip)",
    ),
    "kaggle": Source(
        ("results.csv", "captions.txt"),
        read_kaggle,
        f"{KAGGLE}/hsankesara/flickr-image-dataset, for Flickr8k {KAGGLE}/adityajn105/flickr8k",
    ),
}
