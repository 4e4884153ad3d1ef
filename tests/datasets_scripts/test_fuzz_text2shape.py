"""Thousands of broken files and a few bombs: each parser reads them or raises `RowError`, and nothing else."""

import gzip
import json
import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from datasets_scripts.meshes import load_mesh, voxels_to_mesh
from datasets_scripts.nrrd import parse_nrrd
from datasets_scripts.read_pickle import parse_pickle
from datasets_scripts.rendering import render_views
from datasets_scripts.schema import RowError
from datasets_scripts.text2shape_captions import read_captions, read_descriptions
from datasets_scripts.text2shape_splits import read_splits

pytestmark = pytest.mark.filterwarnings("ignore")  # outside of tests numpy and trimesh warn and go on

CSV = b"""id,modelId,description,category,topLevelSynsetId,subSynsetId
118462,e702f89ce87a0b6579368d1198f406e7,"the ""table"" is round, it
rotates",Table,04379243,04379243
118461,52b667b2014bdf0482db9fca4b68095,A CHIAR,Chair,03001627,04331277
118460,e702f89ce87a0b6579368d1198f406e7,caf\xc3\xa9 table,Table,04379243,03092883
"""
LIST = b"# train\n03001627/52b667b2014bdf0482db9fca4b68095\ne702f89ce87a0b6579368d1198f406e7.nrrd\r\nu1e22cc04-7c4d\n"
MAP = json.dumps(
    [{"model_id": f"{n:x}{'a' * 31}", "category": "03001627", "tokens": [n, 0]} for n in range(4)], indent=2
)
GRID = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 4), dtype=np.uint8)
HEADER = (
    b"NRRD0004\n# writer\ntype: uint8\ndimension: 4\nsizes: 4  4  4  4\nencoding: gzip\nendian: little\ncontent: a\n\n"
)
OBJ = b"""mtllib a.mtl
v 0 0 0
v 1.5 0 0
v 0 1 -2e-1
v 0 0 1
vt 0.5 0.5
vn 0 0 1
usemtl red
f 1/1/1 2/1/1 3/1/1
f 1 2 4
usemtl blue
f 1//1 3//1 -1//1
f 1 2 3 4
"""
MTL = b"newmtl red\nKd 1 0 0\nillum 2\nmap_Kd a.png\nnewmtl blue\nKd 0 0.5 1\nd 1\nNs 10\n"
PICKLED = {
    "caption_tuples": [(np.arange(3, dtype=np.int32), "03001627", "ab")],
    "caption_matches": {"ab": [0]},
    "s": {1.5},
}
TOKENS = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b'""', b",", b"\n", b"\r\n\r\n", b"-1", b"0", b"99999999999999999999",
    b"1e400", b"nan", b"../..", b"/etc/passwd", b"[[[[", b"{", b"}]", b"\\u0000", b"\\ud800", b"f 0 0 0\n", b"f 1 2\n",
    b"v 1 2\n", b"sizes: 4 9 9 9\n", b"data file: x\n", b"raw", b"cos\nsystem\n", b"R", b"b", b"t", b"a", b"u", b"(", b".",
)  # fmt: skip


def mutated(content, rng):
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        first, last = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        if rng.random() < 0.6:
            last = min(last, first + rng.randrange(1, 9))
        replacement = rng.choice(
            (
                rng.choice(TOKENS),
                content[first:last] * rng.choice((0, 2, 50)),
                rng.randbytes(last - first),
                content[last:first:-1],
                bytes(byte ^ (1 << rng.randrange(8)) for byte in content[first:last]),
            )
        )
        content = (content[:first] + replacement + content[last:])[:100_000]
    return content


def seen(mesh):
    try:
        render_views(mesh, num_views=1, size=8)
    except ValueError as error:
        raise RowError(str(error)) from error


def fuzz_csv(rng, folder):
    (folder / "a.csv").write_bytes(mutated(CSV, rng))
    read_captions(folder / "a.csv")


def fuzz_list(rng, folder):
    (folder / "a.txt").write_bytes(mutated(LIST, rng))
    read_splits({"train": [folder / "a.txt"]})
    read_descriptions(folder / "a.txt")


def fuzz_map(rng, folder):
    (folder / "a.json").write_bytes(mutated(MAP.encode(), rng))
    read_splits({"train": [folder / "a.json"]})


def fuzz_nrrd(rng, folder):
    header, data = HEADER, GRID.tobytes()
    if rng.random() < 0.3:
        data = mutated(data, rng)
    if rng.random() < 0.7:
        header = mutated(header, rng)
    packed = gzip.compress(data, mtime=0)
    grid = parse_nrrd(header + (mutated(packed, rng) if rng.random() < 0.4 else packed), "a")
    try:
        seen(voxels_to_mesh(grid))
    except ValueError as error:
        raise RowError(str(error)) from error


def fuzz_mesh(rng, folder):
    (folder / "a.obj").write_bytes(mutated(OBJ, rng) if rng.random() < 0.7 else OBJ)
    (folder / "a.mtl").write_bytes(mutated(MTL, rng) if rng.random() < 0.5 else MTL)
    try:
        seen(load_mesh(folder / "a.obj"))
    except ValueError as error:
        raise RowError(str(error)) from error


def fuzz_pickle(rng, folder):
    value = parse_pickle(mutated(pickle.dumps(PICKLED, rng.randrange(5)), rng), "a")
    json.dumps(value, allow_nan=False).encode()


PARSERS = {fuzz_csv: 3000, fuzz_list: 2000, fuzz_map: 2000, fuzz_nrrd: 3000, fuzz_mesh: 2000, fuzz_pickle: 3000}


def run(fuzz, count, folder, seed):
    """How many inputs were refused, and the seconds of processor time that the slowest took."""
    refused, slowest = 0, 0.0
    for number in range(count):
        began = time.process_time()
        try:
            fuzz(random.Random(f"{seed}-{fuzz.__name__}-{number}"), folder)
        except RowError:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"{fuzz.__name__}, seed {seed}, input {number}: {error!r}") from error
        slowest = max(slowest, time.process_time() - began)
    return refused, slowest


@pytest.mark.parametrize("fuzz", PARSERS)
def test_broken_files_are_read_or_refused(fuzz, tmp_path):
    count = PARSERS[fuzz] // 50
    refused, _ = run(fuzz, count, tmp_path, seed=0)
    assert 0 < refused < count, "some break the format, some don't"


@pytest.mark.slow
@pytest.mark.parametrize("fuzz", PARSERS)
def test_thousands_of_broken_files_are_read_or_refused(fuzz, tmp_path, capsys):
    seed = os.environ.get("FUZZ_SEED", "1")
    refused, slowest = run(fuzz, PARSERS[fuzz], tmp_path, seed)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{fuzz.__name__}: {PARSERS[fuzz]} inputs, {refused} refused, slowest {slowest:.2f} s of processor time\n"
        )


NRRD_OF = 'b"NRRD0004\\ntype: uint8\\ndimension: 4\\nsizes: 4 128 128 128\\nencoding: gzip\\n\\n"'
HEADER_ROW = '"id,modelId,description,category,topLevelSynsetId,subSynsetId\\n"'
BOMBS = {
    "gzip of 300 MB": f"parse_nrrd({NRRD_OF} + gzip.compress(bytes(300_000_000)), 'a')",
    "a checkerboard of cubes": (
        "grid = (np.indices((128,) * 3).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(4, 3)\n"
        f"voxels_to_mesh(parse_nrrd({NRRD_OF} + gzip.compress(grid.tobytes()), 'a'))"
    ),
    "a line without an end": "read_captions(Path('/dev/zero'))",
    "rows without an end": f"path.write_text({HEADER_ROW} + ''.join(f'{{n}},m{{n}},{{n:99}},Chair,03001627,03001627\\n' "
    "for n in range(600_000)))\nread_captions(path)",
    "an open quote": f"path.write_text({HEADER_ROW} + '1,a,\"' + 'x\\n' * 20_000_000)\nread_captions(path)",
    "a list of lists": "path = path.with_suffix('.json')\npath.write_text('[' + '[],' * 40_000_000)\nlist(read_ids(path))",
    "ids without an end": "path.write_text('\\n'.join(map(str, range(5_000_000))))\nread_splits({'train': [path]})",
    "a pickle of dicts": "parse_pickle(b'\\x80\\x03' + b'}' * (2**26 - 4) + b'.', 'a')",
    "vertices": "path = path.with_suffix('.obj')\npath.write_text('v 1 2 3\\n' * (3 * 2**20 - 9) + 'f 1 2 3\\n')\n"
    "mesh_of_model(path)",
}


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_within_a_gigabyte(bomb, tmp_path):
    code = f"""if True:
        import gzip, resource
        from pathlib import Path
        import numpy as np
        from datasets_scripts.meshes import voxels_to_mesh
        from datasets_scripts.nrrd import parse_nrrd
        from datasets_scripts.read_pickle import parse_pickle
        from datasets_scripts.text2shape import mesh_of_model
        from datasets_scripts.text2shape_captions import read_captions
        from datasets_scripts.text2shape_splits import read_ids, read_splits
        path = Path({str(tmp_path / "a.csv")!r})
        try:
            exec({bomb!r})
        except ValueError:
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    """
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 10**9
