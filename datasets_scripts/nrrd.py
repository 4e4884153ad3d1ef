"""Voxel grids from NRRD files as Text2Shape has them: RGBA, uint8, attached data, raw or gzip."""

import re
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .raw_files import read_limited
from .schema import RowError

MAX_SIDE = 256
MAX_VALUES = 4 * 128**3
MAX_HEADER_BYTES = 65_536
MAX_FILE_BYTES = MAX_HEADER_BYTES + MAX_VALUES + 2**16  # data that gzip could not shrink, and gzip's own

MAGIC = re.compile(rb"NRRD000[1-5]$")
UINT8_NAMES = ("uchar", "unsigned char", "uint8", "uint8_t")
GZIP_NAMES = ("gz", "gzip")
# All that such a file may hold; any other field could change where or how the data lies.
FIELDS = {
    "block size", "blocksize", "centerings", "centers", "content", "dimension", "encoding", "endian", "kinds", "labels",
    "max", "measurement frame", "min", "number", "old max", "old min", "oldmax", "oldmin", "sample units",
    "sampleunits", "sizes", "space", "space dimension", "space directions", "space origin", "space units", "spacings",
    "thicknesses", "type", "units", "axis maxs", "axismaxs", "axis mins", "axismins",
}  # fmt: skip


def read_nrrd(path: Path) -> NDArray[np.uint8]:
    """The grid of a file, `(x, y, z, 4)` with y up.

    Raises:
        RowError: If it isn't such a file.
    """
    return parse_nrrd(read_limited(path, MAX_FILE_BYTES), f"'{path}'")


def parse_nrrd(content: bytes, where: str) -> NDArray[np.uint8]:
    """The grid of a file's content, `(x, y, z, 4)` with y up; `where` is its place, for messages.

    The file's axes are RGBA, y, z, x, the first running fastest.

    Raises:
        RowError: If it isn't such a file, or its data is not of the size that its header says.
    """
    header, data = split_header(content, where)
    sizes = grid_sizes(header, where)
    values = decode_data(data, header.get("encoding", ""), int(np.prod(sizes)), where)
    y, z, x = sizes[1:]
    return np.frombuffer(values, dtype=np.uint8).reshape(x, z, y, 4).transpose(0, 2, 1, 3)


def split_header(content: bytes, where: str) -> tuple[dict[str, str], bytes]:
    """The header's fields by their names in lower case, and the data behind the blank line."""
    head = re.search(rb"\r?\n\r?\n", content[:MAX_HEADER_BYTES])
    if head is None:
        raise RowError(f"{where}: expected an NRRD header that ends in a blank line; download the file again.")
    magic, *lines = content[: head.start()].splitlines() or [b""]
    if not MAGIC.match(magic):
        raise RowError(f"{where}: expected an NRRD file, one that begins with NRRD0004, got {magic[:20]!r}.")
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.decode("latin-1").partition(":")
        name = name.strip().lower()
        if line.startswith(b"#") or value.startswith("="):  # a comment, or somebody's own key
            continue
        if not colon or name not in FIELDS or name in fields:
            raise RowError(f"{where}: expected each NRRD field once and the data attached, got {line[:60]!r}.")
        fields[name] = value.strip()
    return fields, content[head.end() :]


def grid_sizes(header: dict[str, str], where: str) -> list[int]:
    """The sizes of the four axes as they stand in the header."""
    if header.get("type", "").lower() not in UINT8_NAMES or header.get("dimension") != "4":
        raise RowError(
            f"{where}: expected four axes of uint8, got `type` {header.get('type')!r} and `dimension` "
            f"{header.get('dimension')!r}; use the solid colour voxels of Text2Shape."
        )
    sizes = header.get("sizes", "")
    if not re.fullmatch(r"4(\s+[1-9][0-9]{0,2}){3}", sizes, re.ASCII):
        raise RowError(f"{where}: expected `sizes` such as '4 32 32 32', got {sizes[:60]!r}.")
    found = [int(size) for size in sizes.split()]
    if max(found) > MAX_SIDE or np.prod(found) > MAX_VALUES:
        raise RowError(
            f"{where}: `sizes` may have at most {MAX_VALUES} values in all, got {sizes!r}; use a coarser grid."
        )
    return found


def decode_data(data: bytes, encoding: str, size: int, where: str) -> bytes:
    """The data, unpacked to exactly `size` bytes and no further."""
    if encoding.lower() not in (*GZIP_NAMES, "raw"):
        raise RowError(f"{where}: `encoding` must be gzip or raw, got {encoding[:60]!r}; save it as gzip.")
    if encoding.lower() in GZIP_NAMES:
        unpacker = zlib.decompressobj(wbits=31)
        try:
            data = unpacker.decompress(data, size + 1)
        except zlib.error as error:
            raise RowError(f"{where}: the data can't be unpacked ({error}); download the file again.") from error
        if len(data) == size and not unpacker.eof and not finishes(unpacker):
            raise RowError(f"{where}: the data breaks off before its checksum; download the file again.")
    if len(data) != size:
        held = f"more than {size}" if len(data) > size else str(len(data))
        raise RowError(f"{where}: `sizes` promises {size} bytes of data, got {held}; download the file again.")
    return data


def finishes(unpacker: "zlib._Decompress") -> bool:
    """Whether nothing but a good checksum follows."""
    try:
        return not unpacker.decompress(unpacker.unconsumed_tail, 1) and unpacker.eof
    except zlib.error:
        return False
