"""Folders with one folder an instance: its images, and `captions.txt` with one caption a line."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from .raw_files import check_inside
from .raw_images import IMAGE_SUFFIXES
from .raw_text import MAX_ROWS, RawRow, read_lines
from .schema import SPLIT_NAMES, RowError

CAPTIONS = "captions.txt"


def is_one(folder: Path) -> bool:
    """Whether the folder holds instance folders, by itself or in folders called like splits."""
    return folder.is_dir() and any(
        os.path.lexists(inner / CAPTIONS)
        for root in (folder, *(folder / split for split in SPLIT_NAMES))
        for inner in subfolders(root)
    )


def list_instances(folder: Path, max_rows: int = MAX_ROWS) -> Iterator[RawRow]:
    """One instance for each `<id>/` or `<split>/<id>/`; the id is the folder's name.

    The images are in natural order (`view2.png` before `view10.png`). Either side of an instance may be missing. Hidden
    files and files of other kinds are passed over, other text files refused: they may be captions under a wrong name.

    Raises:
        RowError: If a folder has neither images nor captions, or a link in it leads elsewhere.
    """
    names = [inner.name for inner in subfolders(folder)]
    by_split = names and all(name in SPLIT_NAMES for name in names)
    roots = [(split, folder / split) for split in names] if by_split else [(None, folder)]
    for split, root in roots:
        for inner in subfolders(root):
            row = read_instance(inner, folder, max_rows)
            yield str(inner.relative_to(folder)), row if split is None else row | {"split": SPLIT_NAMES[split]}


def read_instance(inner: Path, folder: Path, max_rows: int) -> dict[str, object]:
    """The row of an instance's folder."""
    place = str(inner.relative_to(folder))
    check_inside(inner, folder)
    names = sorted((name for name in os.listdir(inner) if not name.startswith(".")), key=natural_order)
    strays = [name for name in names if name.lower().endswith(".txt") and name != CAPTIONS]
    if strays:
        raise RowError(f"{place}: captions must stand in `{CAPTIONS}`, got '{strays[0]}' as well; rename or move it.")
    images = [f"{place}/{name}" for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    captions = read_captions(inner / CAPTIONS, folder, max_rows) if CAPTIONS in names else []
    return {"instance_id": inner.name, "images": images, "captions": captions}


def read_captions(path: Path, folder: Path, max_rows: int) -> list[str]:
    """The lines of a captions file that aren't blank, without their ends."""
    check_inside(path, folder)
    if not path.is_file():
        raise RowError(f"'{path}' must be a file with one caption a line; put one there.")
    return [line.rstrip("\r\n") for _, line in read_lines(path, max_rows) if line.strip()]


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that aren't hidden, in order of their names."""
    if not folder.is_dir():
        return []
    return sorted(inner for inner in folder.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def natural_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts numbers in names by their size.

    Example:
        >>> sorted(["view10.png", "view9.png", "front.png"], key=natural_order)
        ['front.png', 'view9.png', 'view10.png']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]{1,18})", name)]
