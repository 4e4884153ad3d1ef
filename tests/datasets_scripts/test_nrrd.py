import gzip
import os
import zlib

import numpy as np
import pytest

from datasets_scripts.nrrd import MAX_FILE_BYTES, parse_nrrd, read_nrrd
from datasets_scripts.schema import RowError

HEADER = (
    "NRRD0004\n# a writer\ntype: uint8\ndimension: 4\nsizes: 4  {y}  {z}  {x}\nencoding: {encoding}\nendian: little\n"
)
GEOMETRY = "content: 3dw.a_rgba.vox\nspace dimension: 3\nspace directions: none (0,1,0) (0,0,1) (1,0,0)\n"


def grid_of(shape=(2, 3, 4), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 4), dtype=np.uint8)


def nrrd_of(grid, encoding="gzip", extra=GEOMETRY, pack=gzip.compress):
    x, y, z, _ = grid.shape
    fastest_first = [
        grid[i, j, k, channel] for i in range(x) for k in range(z) for j in range(y) for channel in range(4)
    ]
    header = HEADER.format(x=x, y=y, z=z, encoding=encoding) + extra
    return header.encode() + b"\n" + pack(bytes(fastest_first))


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("gz", gzip.compress), ("raw", bytes)])
def test_the_first_axis_is_colour_then_height_then_depth_then_width(encoding, pack):
    grid = grid_of()
    np.testing.assert_array_equal(parse_nrrd(nrrd_of(grid, encoding, pack=pack), "f"), grid)


def test_windows_line_ends_comments_and_own_keys_are_read(tmp_path):
    grid = grid_of()
    content = nrrd_of(grid, extra=GEOMETRY + "somebody:=ours\n# c: d\n")
    head, data = content.split(b"\n\n", 1)
    (tmp_path / "a.nrrd").write_bytes(head.replace(b"\n", b"\r\n") + b"\r\n\r\n" + data)
    np.testing.assert_array_equal(read_nrrd(tmp_path / "a.nrrd"), grid)


GOOD = nrrd_of(grid_of())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected an NRRD header that ends in a blank line"),
        (b"\x89PNG\r\n\x1a\n" * 20_000, "expected an NRRD header that ends"),
        (b"\n\n" + GOOD, "begins with NRRD0004, got b''"),
        (GOOD.replace(b"NRRD0004", b"NRRD0009"), "begins with NRRD0004, got b'NRRD0009'"),
        (GOOD.replace(b"uint8", b"float"), "four axes of uint8, got `type` 'float'"),
        (GOOD.replace(b"dimension: 4\n", b"dimension: 3\n"), "`dimension` '3'"),
        (GOOD.replace(b"sizes: 4", b"sizes: 3"), "expected `sizes` such as '4 32 32 32', got '3  3  4  2'"),
        (GOOD.replace(b"4  3  4  2", b"4  3  4  9"), "promises 432 bytes of data, got 96; download"),
        (GOOD.replace(b"4  3  4  2", b"4  3  4  1"), "promises 48 bytes of data, got more than 48"),
        (GOOD.replace(b"4  3  4  2", b"4 999 999 999"), "at most 8388608 values in all"),
        (GOOD.replace(b"4  3  4  2", b"4 -3 4 2"), "expected `sizes` such as"),
        (GOOD.replace(b"4  3  4  2", b"4 99999999999999999999 4 2"), "expected `sizes` such as"),
        (GOOD.replace(b"gzip", b"bzip2"), "`encoding` must be gzip or raw, got 'bzip2'"),
        (
            GOOD.replace(b"content:", b"data file: /etc/passwd\ncontent:"),
            "data attached, got b'data file: /etc/passwd'",
        ),
        (GOOD.replace(b"content:", b"byte skip: 9\ncontent:"), "data attached, got b'byte skip: 9'"),
        (GOOD.replace(b"content:", b"sizes: 4 1 1 1\ncontent:"), "each NRRD field once"),
        (GOOD[:-6], "breaks off before its checksum"),
        (GOOD[:-40], "the data can't be unpacked|promises 96 bytes of data, got [0-9]+;"),
        (GOOD[:-5] + bytes([GOOD[-5] ^ 1]) + GOOD[-4:], "incorrect data check"),
    ],
)
def test_what_isnt_a_colour_grid_is_refused(content, message):
    with pytest.raises(RowError, match=message):
        parse_nrrd(content, "f")


def test_a_gzip_bomb_is_unpacked_no_further_than_the_header_says(monkeypatch):
    unpacked = []

    class Watched:
        def __init__(self, wbits):
            self.inner = zlib_decompressobj(wbits=wbits)

        def decompress(self, data, most):
            unpacked.append(self.inner.decompress(data, most))
            return unpacked[-1]

        def __getattr__(self, name):
            return getattr(self.inner, name)

    zlib_decompressobj = zlib.decompressobj
    monkeypatch.setattr("datasets_scripts.nrrd.zlib.decompressobj", Watched)
    with pytest.raises(RowError, match="promises 96 bytes of data, got more than 96"):
        parse_nrrd(GOOD[: GOOD.index(b"\n\n") + 2] + gzip.compress(bytes(5_000_000)), "f")
    assert sum(map(len, unpacked)) == 97


def test_files_that_are_too_large_or_no_files_are_refused(tmp_path):
    with open(tmp_path / "large.nrrd", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    os.mkfifo(tmp_path / "pipe.nrrd")
    for name, message in (("large", "may hold at most"), ("pipe", "regular file"), ("none", "can't be read")):
        with pytest.raises(RowError, match=message):
            read_nrrd(tmp_path / f"{name}.nrrd")
