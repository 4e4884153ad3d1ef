import json
import random
import tarfile
import zipfile
from io import BytesIO

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from datasets_scripts.flickr30k import Flickr30kConfig
from datasets_scripts.listed_rows import check_listing, extra_features, row_of
from datasets_scripts.loading import load_multifold
from datasets_scripts.multifold_folder import list_folder
from datasets_scripts.raw_images import ImageRef, read_image
from datasets_scripts.schema import FEATURES, RowError

NAMES = ("1000092795.jpg", "10002456.jpg", "1000268201.jpg")
CAPTIONS = [f'Two "men", number {number} .' for number in range(5)]
# What parsers have been known to fall over.
MORSELS = [
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", b'"', b'""', b"\\", b"\\ud800", b"\\u0000", b"\r", b"\n", b"\n\n", b"\t", b"|", b",",
    b"[", b"]", b"{", b"}", b":", b"null", b"true", b"-1", b"1e999", b"NaN", b"9" * 5000, b"[" * 3000, b'{"a":' * 2000,
    b"../", b"/etc/passwd", b"#", b"#0\t", b"=", b" " * 40, b"a" * 5000, b"\xf0\x9f\x98\x80", b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff", b"\x80\0\0\0", b"00000000000", b"77777777777\0", b"PK\3\4", b"PK\1\2", b"x" * 200_000,
]  # fmt: skip


def image_bytes(kind="JPEG", size=(6, 5)):
    buffer = BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def mutate(content, rng):
    """The content after one to four seeded changes."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        change = rng.randrange(7)
        if change == 0 and content:
            content[place % len(content)] = rng.randrange(256)
        elif change == 1 and content:
            content[place % len(content)] ^= 1 << rng.randrange(8)
        elif change == 2:
            content[place:place] = rng.choice(MORSELS)
        elif change == 3:
            content[place : place + rng.randint(1, 8)] = rng.choice(MORSELS)
        elif change == 4:
            del content[place : min(end, place + rng.choice((1, 8, 64, 4096)))]
        elif change == 5:
            content[place:place] = content[place:end][:4096]
        elif rng.random() < 0.2:
            del content[place:]
    return bytes(content)


def metadata_rows():
    return [
        {"instance_id": f"i{n}", "images": ["a.jpg"], "captions": CAPTIONS[:2], "n": n, "extra": {"x": [n]}}
        for n in range(3)
    ]


def csv_cells(row):
    return ",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\r\n"


def metadata_csv():
    rows = [[row["instance_id"], json.dumps(row["images"]), json.dumps(row["captions"])] for row in metadata_rows()]
    return csv_cells(["instance_id", "images", "captions"]) + "".join(map(csv_cells, rows))


def parquet_bytes():
    buffer = BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(metadata_rows()), buffer)
    return buffer.getvalue()


def tar_bytes(form=tarfile.PAX_FORMAT):
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        described = json.dumps({"instance_id": "x", "captions": CAPTIONS, "n": 1}).encode()
        files = {"a.view0.jpg": image_bytes(), "a.txt": b"one\ntwo", "b.png": image_bytes("PNG"), "b.json": described}
        files |= {"f" * 120 + "/ä.jpg": image_bytes()}
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    return buffer.getvalue()


def zip_bytes():
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in NAMES:
            archive.writestr(f"flickr30k-images/{name}", image_bytes())
        archive.writestr("__MACOSX/._x.jpg", b"x", zipfile.ZIP_STORED)
    return buffer.getvalue()


def karpathy():
    images = [
        {"sentids": [0], "imgid": 0, "split": split, "filename": name,
         "sentences": [{"tokens": ["two"], "raw": caption, "imgid": 0, "sentid": 0} for caption in CAPTIONS]}
        for name, split in zip(NAMES, ("train", "val", "test"), strict=True)
    ]  # fmt: skip
    return json.dumps({"images": images, "dataset": "flickr30k"})


def nlphuji():
    rows = [[json.dumps(CAPTIONS), "[0, 1]", "train", name, "0"] for name in NAMES]
    return csv_cells(["raw", "sentids", "split", "filename", "img_id"]) + "".join(map(csv_cells, rows))


TOKEN = "".join(f"{name}#{n}\t{caption}\n" for name in NAMES for n, caption in enumerate(CAPTIONS))
PIPED = "image_name| comment_number| comment\n" + "".join(
    f"{name}| {n}| {caption}\n" for name in NAMES for n, caption in enumerate(CAPTIONS)
)
COMMAS = "image,caption\n" + "".join(csv_cells([name, caption]) for name in NAMES for caption in CAPTIONS)
ALBEF = json.dumps([{"image": f"flickr30k-images/{name}", "caption": CAPTIONS} for name in NAMES])
LISTS = {name: f"{image[:-4]}\n" for name, image in zip(("train.txt", "val.txt", "test.txt"), NAMES, strict=True)}
FLICKR_IMAGES = {f"flickr30k-images/{name}": image_bytes() for name in NAMES}


def flickr(name, **settings):
    return lambda folder: Flickr30kConfig(name=name, **settings).list_folder(folder)


def one_image(folder):
    read_image(ImageRef(str(folder / "image"), "image"), "image")
    return []


# What is mutated, what else lies there, and who reads it.
TARGETS = {
    "metadata.jsonl": ("\n".join(map(json.dumps, metadata_rows())), {"a.jpg": image_bytes()}, list_folder),
    "metadata.csv": (metadata_csv(), {"a.jpg": image_bytes()}, list_folder),
    "metadata.parquet": (parquet_bytes(), {"a.jpg": image_bytes()}, list_folder),
    "x1/captions.txt": ("\n".join(CAPTIONS), {"x1/view.png": image_bytes("PNG")}, list_folder),
    "train-0.tar": (tar_bytes(), {}, list_folder),
    "gnu.tar": (tar_bytes(tarfile.GNU_FORMAT), {}, list_folder),
    "flickr30k-images.zip": (zip_bytes(), {"dataset_flickr30k.json": karpathy()}, flickr("karpathy")),
    "dataset_flickr30k.json": (karpathy(), FLICKR_IMAGES, flickr("karpathy")),
    "flickr_annotations_30k.csv": (nlphuji(), FLICKR_IMAGES, flickr("karpathy")),
    "flickr30k_train.json": (
        ALBEF, FLICKR_IMAGES | {"flickr30k_val.json": "[]", "flickr30k_test.json": "[]"}, flickr("karpathy"),
    ),
    "results_20130124.token": (TOKEN, FLICKR_IMAGES | LISTS, flickr("entities")),
    "results.csv": (PIPED, FLICKR_IMAGES | LISTS, flickr("entities")),
    "captions.txt": (COMMAS, FLICKR_IMAGES | LISTS, flickr("entities", captions_per_image=0)),
    "train.txt": (LISTS["train.txt"], FLICKR_IMAGES | LISTS | {"results.csv": PIPED}, flickr("entities")),
}  # fmt: skip
IMAGE_KINDS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA")


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def rows_of(folder, list_instances):
    listed = check_listing(list_instances(folder), str(folder))
    features = FEATURES | extra_features(listed)
    rows = [row_of(instance, type(FEATURES)(features)) for instance in listed]
    pyarrow.Table.from_pylist(rows, schema=type(FEATURES)(features).arrow_schema)  # what a builder writes
    return len(rows)


def fuzz(folder, name, content, list_instances, number, seed=0):
    """How many of the mutated inputs were refused; whatever but `RowError` escapes."""
    rng, refused = random.Random(f"{seed} {name}"), 0
    content = content if isinstance(content, bytes) else content.encode()
    for turn in range(number):
        mutated = mutate(content, rng)
        (folder / name).write_bytes(mutated)
        try:
            rows_of(folder, list_instances)
        except RowError:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"{name}, turn {turn}: {error!r} from {mutated[:2000]!r}") from error
    return refused


@pytest.fixture(autouse=True)
def _silent(caplog):
    caplog.set_level("CRITICAL", logger="datasets_scripts")


@pytest.mark.parametrize("name", TARGETS)
def test_the_targets_are_sound_before_they_are_mutated(tmp_path, name):
    content, others, list_instances = TARGETS[name]
    write(tmp_path, others | {name: content})
    assert rows_of(tmp_path, list_instances) > 0


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_files_give_rows_or_our_own_error(tmp_path, name):
    content, others, list_instances = TARGETS[name]
    write(tmp_path, others | {name: content})
    assert fuzz(tmp_path, name, content, list_instances, number=25) > 0


def fuzz_images(folder, number, seed=0):
    rng, refused = random.Random(seed), 0
    contents = [image_bytes(kind, (40, 30)) for kind in IMAGE_KINDS]
    for turn in range(number):
        (folder / "image").write_bytes(mutate(contents[turn % len(contents)], rng))
        try:
            one_image(folder)
        except RowError:
            refused += 1
    return refused


def test_mutated_images_are_read_or_refused(tmp_path):
    assert 10 < fuzz_images(tmp_path, number=200) < 200


@pytest.mark.slow
def test_mutated_parquet_is_grouped_or_refused(tmp_path):
    """The rest is between `datasets` and Arrow; a column's name that mutates is no longer one that was chosen."""
    rng, columns = random.Random(2), {"instance_column": "instance_id", "caption_columns": ["captions"]}
    for turn in range(200):
        folder = tmp_path / str(turn)
        write(folder, {"train.parquet": mutate(parquet_bytes(), rng)})
        try:
            load_multifold(str(folder), cache_dir=tmp_path / "cache", **columns)
        except ValueError as error:
            if type(error) not in (RowError, ValueError):
                raise


@pytest.mark.slow
def test_many_mutated_inputs_give_rows_or_our_own_error(tmp_path):
    refused = {"images": fuzz_images(tmp_path, number=2000, seed=1)}
    for number, (name, (content, others, list_instances)) in enumerate(TARGETS.items()):
        folder = tmp_path / str(number)
        write(folder, others | {name: content})
        refused[name] = fuzz(folder, name, content, list_instances, number=1000, seed=1)
    assert all(100 < number < 2000 for number in refused.values()), refused
