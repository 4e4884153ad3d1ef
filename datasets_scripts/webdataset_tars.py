"""WebDataset tar files: the files of a sample share a key, and one sample is one instance."""

import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from itertools import chain, groupby, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from .nested_folder import natural_order
from .raw_images import IMAGE_SUFFIXES, CappedFile, ImageRef
from .raw_text import BROKEN_CHARS, MAX_LINE, RawRow, decode, parse_object
from .schema import SPLIT_NAMES, RowError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
KEY = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)", re.DOTALL)
SUFFIXES = (*IMAGE_SUFFIXES, ".json", ".txt")
MAX_HEADER = 2**20  # bytes of long names and the like
MAX_FOLD = 10_000  # files of a sample


class Member(NamedTuple):
    """A file in a tar, and where its bytes lie."""

    key: str  # its path up to the first dot
    field: str  # the rest: `jpg`, `view0.jpg`, `txt`, `json`
    tar: str
    start: int
    size: int


def is_one(folder: Path) -> bool:
    """Whether the folder holds tar files, by itself or in folders called like splits, and no Parquet files as well."""
    return bool(tars_in(folder)) and not any(chain(folder.glob("*.parquet"), folder.glob("data/*.parquet")))


def tars_in(folder: Path) -> list[Path]:
    """The tar files of a folder, in order of their names; also compressed ones, which are refused with a reason."""
    roots = [folder, *(folder / split for split in SPLIT_NAMES)]
    files = (root / name for root in roots if root.is_dir() for name in sorted(os.listdir(root)))
    return [file for file in files if file.name.endswith((".tar", *COMPRESSED)) and not file.name.startswith(".")]


def list_instances(folder: Path) -> Iterator[RawRow]:
    """One instance for each sample of the folder's tar files.

    A sample is a run of files with the same path up to the first dot, its key. `key.jpg`, `key.view0.jpg` and the like
    are images, in natural order; `key.txt` (or `key.left.txt`) holds one caption a line. `key.json` is an object that
    may have `captions` (which go before the lines of `key.txt`), `caption` (which stands back behind them),
    `instance_id` (instead of the key), `category`, `split`, and further columns, which pass through. The split is else
    that which the file's name begins with (`train-0000.tar`), or its folder's name. Members of other kinds are passed
    over. Nothing is extracted: images are read where they lie.

    Raises:
        RowError: If a tar is broken or compressed, or a member is a link, or climbs out, or lies about its size.
    """
    for tar in tars_in(folder):
        split = split_of_tar(tar)
        name = str(tar.relative_to(folder))
        for key, members in groupby(members_of(tar, name), key=lambda member: member.key):
            place = f"{name}, `{key}`"
            some = sorted(islice(members, MAX_FOLD + 1), key=lambda member: natural_order(member.field))
            row = read_sample(key, some, place)
            yield place, row if split is None else {"split": split} | row


def split_of_tar(tar: Path) -> str | None:
    """The split that a tar's name or folder says, if one does."""
    words = (re.split(r"[-_.0-9{]", tar.name)[0], tar.parent.name)
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def members_of(tar: Path, name: str) -> Iterator[Member]:
    """The files in a tar, by their headers.

    Raises:
        RowError: If one of them is not to be trusted, or the tar can't be read.
    """
    if tar.name.endswith(COMPRESSED):
        raise RowError(f"{name}: tar files must not be compressed, since images are read where they lie; unpack it.")
    try:
        with open(tar, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            yield from checked_members(
                tarfile.TarFile(fileobj=cast("BinaryIO", CappedFile(file, MAX_HEADER))), str(tar), name, size
            )
    except RowError:
        raise
    except Exception as error:  # besides its own errors `tarfile` lets many others out
        raise RowError(f"{name} can't be read as tar ({error}); get it again.") from error


def checked_members(tar: tarfile.TarFile, path: str, name: str, size: int) -> Iterator[Member]:
    """The members that belong to samples, after checks of all."""
    last = -1
    while (found := tar.next()) is not None:
        vars(tar)["members"].clear()  # `tarfile` would keep them all
        check_member(found, f"{name}, member '{found.name[:BROKEN_CHARS]}'", last, size)
        last = found.offset
        parts = KEY.fullmatch(found.name.removeprefix("./"))
        if found.isreg() and parts and f".{parts[2].lower()}".endswith(SUFFIXES):
            yield Member(parts[1], parts[2].lower(), path, found.offset_data, found.size)
    check_end(tar, name)


def check_member(member: tarfile.TarInfo, where: str, last: int, size: int) -> None:
    """Raise RowError unless a member is a plain file or folder that keeps inside its tar, and what it unpacks to."""
    if member.issparse() or not (member.isreg() or member.isdir()):
        raise RowError(f"{where} must be a plain file, got a link or a special file; pack the file itself.")
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise RowError(
            f"{where} must have a path that stays inside, got one that climbs out; this tar isn't to trust."
        )
    if member.size < 0 or member.offset <= last or member.offset_data + member.size > size:
        raise RowError(f"{where} says that it has {member.size} bytes, which the tar hasn't; get the file again.")


def check_end(tar: tarfile.TarFile, name: str) -> None:
    """Raise RowError unless the tar ends where its members do: `tarfile` takes a broken header for the end."""
    file = cast("BinaryIO", tar.fileobj)
    file.seek(tar.offset)
    if any(file.read(tarfile.BLOCKSIZE)):
        raise RowError(f"{name}: expected a member's header at byte {tar.offset}, got none; get the file again.")


def read_sample(key: str, members: Iterable[Member], place: str) -> dict[str, object]:
    """The row of a sample."""
    images: list[ImageRef] = []
    lines: list[str] = []
    described: dict[str, object] = {}
    for number, member in enumerate(members):
        if number == MAX_FOLD:
            raise RowError(f"{place}: a sample may have {MAX_FOLD} members, got more; give each its own key.")
        if f".{member.field}".endswith(IMAGE_SUFFIXES):
            images.append(ImageRef(member.tar, f"{key}.{member.field}", member.start, member.size))
        elif member.field.endswith("txt"):
            lines += [line.rstrip("\r") for line in read_member(member, place).split("\n") if line.strip()]
        else:
            described |= parse_object(read_member(member, place), place, "one JSON object")
    caption = described.pop("caption", None)
    captions = described.pop("captions", [])
    if isinstance(captions, list):
        captions = [*captions, *(line for line in lines if line not in captions)]
        captions = captions or (caption if isinstance(caption, list) else [caption] if caption else [])
    return {"instance_id": key} | described | {"images": images, "captions": captions}


def read_member(member: Member, place: str) -> str:
    """The text of a member."""
    if member.size > MAX_LINE:
        raise RowError(f"{place}: '{member.field}' may have {MAX_LINE} bytes, got {member.size}; shorten it.")
    with open(member.tar, "rb") as file:
        file.seek(member.start)
        return decode(file.read(member.size), f"{place}, '{member.field}'")
