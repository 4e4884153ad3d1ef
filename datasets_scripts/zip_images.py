"""Images in a zip file, read where they lie: nothing is extracted."""

import os
import stat
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO, cast

from .raw_images import IMAGE_SUFFIXES, CappedFile, ImageRef
from .raw_text import BROKEN_CHARS
from .schema import RowError

MAX_DIRECTORY = 2**24  # bytes; that of Flickr30K has a fifth
LOCAL_HEADER = struct.Struct("<4s22xHH")
ENCRYPTED = 1


def list_zip(path: Path) -> dict[str, ImageRef]:
    """Where the images of a zip lie, by file name without folders.

    Raises:
        RowError: If it is broken or encrypted, or a member is a link, or climbs out, or two have the same name.
    """
    images: dict[str, ImageRef] = {}
    try:
        with open(path, "rb") as file, zipfile.ZipFile(cast("BinaryIO", CappedFile(file, MAX_DIRECTORY))) as archive:
            for member in archive.infolist():
                check_member(member, f"{path.name}, member '{member.filename[:BROKEN_CHARS]}'")
                name = member.filename.rpartition("/")[2]
                if name.startswith(".") or not name.lower().endswith(IMAGE_SUFFIXES):
                    continue  # macOS writes `__MACOSX/._a.jpg` beside `a.jpg`
                if name in images:
                    raise RowError(f"{path.name}: images must have different names, got two '{name}'; unpack it.")
                images[name] = locate(member, file, path)
    except RowError:
        raise
    except Exception as error:  # besides its own errors `zipfile` lets others out
        raise RowError(f"'{path}' can't be read as zip ({error}); get it again.") from error
    return images


def check_member(member: zipfile.ZipInfo, where: str) -> None:
    """Raise RowError unless a member is a plain file or folder that stays inside, and can be read."""
    if stat.S_ISLNK(member.external_attr >> 16):
        raise RowError(f"{where} must be a plain file, got a link; pack the file itself.")
    if member.filename.startswith("/") or ".." in member.filename.replace("\\", "/").split("/"):
        raise RowError(
            f"{where} must have a path that stays inside, got one that climbs out; this zip isn't to trust."
        )
    if member.flag_bits & ENCRYPTED or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise RowError(f"{where} must be stored or deflated, and not encrypted; unpack the zip.")


def locate(member: zipfile.ZipInfo, file: BinaryIO, path: Path) -> ImageRef:
    """Where the bytes of a member lie."""
    file.seek(member.header_offset)
    magic, name_size, extra_size = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    start = member.header_offset + LOCAL_HEADER.size + name_size + extra_size
    if magic != b"PK\3\4" or start + member.compress_size > os.fstat(file.fileno()).st_size:
        raise RowError(f"{path.name}: '{member.filename}' isn't where the zip says; get the zip again.")
    inflated = member.file_size if member.compress_type == zipfile.ZIP_DEFLATED else None
    return ImageRef(str(path), member.filename, start, member.compress_size, inflated)
