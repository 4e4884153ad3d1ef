"""Bombs of full size, all in one process of their own, so that its memory is theirs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, os, resource, subprocess, sys, tarfile, time, zipfile
from io import BytesIO
from pathlib import Path

import pyarrow, pyarrow.parquet
from PIL import Image

from datasets_scripts import RowError, load_multifold

TOKEN = "".join(f"1.jpg#{n}\\tx\\n" for n in range(5))
LISTS = {"train.txt": "1\\n", "val.txt": "", "test.txt": ""}
IMAGE = BytesIO()
Image.new("L", (4, 3)).save(IMAGE, "JPEG")
ENDLESS = {"metadata.csv": "instance_id,images,captions\\n", "results.csv": "image_name| comment_number| comment\\n"}
ROWS = {"metadata.csv": 'a,[],"[""x"",""y""]"', "results.csv": "1.jpg| 0| x"}


def pour(folder, name, row):
    os.mkfifo(folder / name)
    command = 'printf "%s" "$1"; exec yes "$2"'
    return subprocess.Popen(["sh", "-c", f'({command}) > "$0"', folder / name, ENDLESS[name], row])


def put(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def sparse(folder, name, head, size):
    put(folder, {name: head})
    os.truncate(folder / name, size)


def tar(folder, size, kind=tarfile.REGTYPE):
    member = tarfile.TarInfo("a.png")
    member.size, member.type = size, kind
    put(folder, {"0.tar": member.tobuf(tarfile.GNU_FORMAT)})
    os.truncate(folder / "0.tar", 2**36)


def zip_bomb(folder):
    put(folder, {"dataset_flickr30k.json": json.dumps({"images": [
        {"filename": "1.jpg", "split": "train", "sentences": [{"raw": "x"}] * 5}]})})
    with zipfile.ZipFile(folder / "flickr30k-images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("1.jpg", "w", force_zip64=True) as file:
            for _ in range(300):
                file.write(bytes(2**20))


def picture(folder, side):
    buffer = BytesIO()
    Image.new("1", (1, 1)).save(buffer, "BMP")
    content = bytearray(buffer.getvalue())
    content[18:26] = side.to_bytes(4, "little") * 2
    put(folder, {"x/view.bmp": bytes(content), "x/captions.txt": "x"})


def parquet(folder):
    text = pyarrow.array(["x" * 2**20]).dictionary_encode()
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 400_000, pyarrow.int32()), text.dictionary)
    table = pyarrow.table({"instance_id": column, "images": [[]] * 400_000, "captions": [["x"]] * 400_000})
    pyarrow.parquet.write_table(table, folder / "metadata.parquet", compression="zstd")


def load(folder):
    load_multifold(str(folder), cache_dir=folder.parent / "cache")


def flickr(config):
    return lambda folder: load_multifold("flickr30k", config=config, data_dir=str(folder), cache_dir=folder.parent / "cache")


CASES = {
    "endless metadata.csv": (lambda folder: pour(folder, "metadata.csv", ROWS["metadata.csv"]), load),
    "endless results.csv": (lambda folder: pour(folder, "results.csv", ROWS["results.csv"]), flickr("entities")),
    "endless line": (lambda folder: sparse(folder, "metadata.jsonl", b"{", 2**36), load),
    "field bomb": (lambda folder: put(folder, {"metadata.csv": 'a,b\\n"' + "x\\n" * 10**7}), load),
    "json of empty lists": (
        lambda folder: put(folder, {"dataset_flickr30k.json": '{"images": [[' + "[]," * 40_000_000 + "[]]]}"}),
        flickr("karpathy"),
    ),
    "rows of empty lists": (
        lambda folder: put(folder, {"metadata.jsonl": ('{"instance_id": "a", "images": [], "captions": ["a"], "x": ['
                                                       + "[]," * 300_000 + "[]]}\\n") * 200}), load),
    "tar member of a terabyte": (lambda folder: tar(folder, 2**40), load),
    "tar member of zeros": (lambda folder: tar(folder, 2**35), load),
    "tar header of gigabytes": (lambda folder: tar(folder, 2**32, tarfile.GNUTYPE_LONGNAME), load),
    "tar header of pax gigabytes": (lambda folder: tar(folder, 2**32, tarfile.XHDTYPE), load),
    "zip of zeros": (zip_bomb, flickr("karpathy")),
    "picture of 400 million pixels": (lambda folder: picture(folder, 20_000), load),
    "picture file of gigabytes": (
        lambda folder: (put(folder, {"x/captions.txt": "x"}), sparse(folder, "x/view.bmp", b"BM", 2**36)), load),
    "parquet of long texts": (parquet, load),
}
base = Path(sys.argv[1])
for number, (name, (prepare, run)) in enumerate(CASES.items()):
    folder = base / str(number)
    folder.mkdir()
    put(folder, LISTS)
    process = prepare(folder)
    start, cpu = time.perf_counter(), time.process_time()
    try:
        run(folder)
        message = None
    except RowError as error:
        message = str(error)
    if isinstance(process, subprocess.Popen):
        process.kill()
        process.wait()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps([name, time.perf_counter() - start, time.process_time() - cpu, memory, message]), flush=True)
"""


@pytest.mark.slow
def test_bombs_are_refused_within_seconds_and_a_gigabyte(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=900, check=True
    )
    cases = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(cases) == 14
    for name, _, seconds, megabytes, message in cases:
        assert message is not None, name
        assert seconds < 30, (name, seconds)
        assert megabytes < 1024, (name, megabytes)
