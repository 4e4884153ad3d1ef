import base64
import hashlib
import json
import random
import string
import zlib
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from shutil import copytree

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import BertTokenizer

from datasets_scripts import load_multifold
from datasets_scripts.doctor.__main__ import main
from datasets_scripts.doctor.diagnosis import diagnose, open_source
from datasets_scripts.doctor.findings import KINDS, Place
from datasets_scripts.schema import split_of
from datasets_scripts.shapes import ShapesConfig, build_row

NUM_SHAPES, TOKEN_LIMIT = 60, 60
DATA_SET_KINDS = {"false_negatives", "missing_category", "unlisted_file"}  # one finding for the whole data set
RELATIONS = ("near_repeated_", "near_shared_", "near_leaked_", "repeated_", "shared_", "leaked_", "generic_")


class WordTokenizer:
    """A token a word."""

    model_max_length = TOKEN_LIMIT

    def __call__(self, text, *, verbose):
        return {"input_ids": [list(range(len(caption.split()))) for caption in text]}


class Copy:
    """A copy of the data set to plant faults in; what was planted stands in `planted`."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
        self.free = self.rng.sample(range(len(self.lines)), len(self.lines))
        self.planted: list[tuple[str, Place | str]] = []
        (folder / "planted").mkdir()

    def row(self, split: str | None = None) -> int:
        """A row that nothing else is planted in."""
        row = next(row for row in self.free if split in (None, self.lines[row]["split"]))
        self.free.remove(row)
        return row

    def text(self, num_words: int = 6) -> str:
        """A caption unlike any other."""
        return " ".join("".join(self.rng.choices(string.ascii_lowercase, k=8)) for _ in range(num_words))

    def name(self, suffix: str = ".png") -> str:
        return f"planted/{self.rng.getrandbits(40):010x}{suffix}"

    def picture(self, size: tuple[int, int] = (32, 32)) -> Image.Image:
        """A picture unlike any other."""
        levels = np.random.default_rng(self.rng.getrandbits(32)).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        return Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC)

    def save(self, image: Image.Image, suffix: str = ".png", **options: object) -> str:
        name = self.name(suffix)
        image.save(self.folder / name, **options)
        return name

    def add(self, row: int, fold: str, value: object) -> Place:
        """Add an observation to a row."""
        self.lines[row][fold].append(value)
        return Place(row, fold, len(self.lines[row][fold]) - 1)

    def new_row(self, **values: object) -> int:
        row = {"instance_id": self.text(1), "images": [self.save(self.picture())], "captions": [self.text()]}
        self.lines.append(row | {"category": "chair", "split": "train"} | values)
        return len(self.lines) - 1

    def write(self) -> None:
        lines = [line if isinstance(line, str) else json.dumps(line) for line in self.lines]
        (self.folder / "metadata.jsonl").write_text("\n".join(lines))


FAULTS: dict[str, Callable[[Copy], Place | str]] = {}


def fault(plant: Callable[[Copy], Place | str]) -> Callable[[Copy], Place | str]:
    FAULTS[plant.__name__] = plant
    return plant


@fault
def broken_row(copy):
    row = copy.row()
    copy.lines[row] = json.dumps(copy.lines[row])[:-20]
    return Place(row)


@fault
def missing_column(copy):
    row = copy.row()
    del copy.lines[row]["captions"]
    return Place(row)


@fault
def wrong_type(copy):
    row = copy.row()
    copy.lines[row]["captions"] = copy.text()
    return Place(row)


@fault
def bad_id(copy):
    row = copy.row()
    copy.lines[row]["instance_id"] = copy.rng.choice([None, " ", 1234, ["a"]])
    return Place(row)


@fault
def repeated_id(copy):
    row = copy.row()
    return Place(copy.new_row(instance_id=copy.lines[row]["instance_id"], split=copy.lines[row]["split"]))


@fault
def leaked_id(copy):
    return Place(copy.new_row(instance_id=copy.lines[copy.row("test")]["instance_id"], split="train"))


@fault
def alike_id(copy):
    row = copy.row()
    return Place(copy.new_row(instance_id=f"{copy.lines[row]['instance_id'].upper()} "))


@fault
def unknown_split(copy):
    row = copy.row()
    copy.lines[row]["split"] = {"train": "Training", "validation": "eval", "test": "Test"}[copy.lines[row]["split"]]
    return Place(row)


@fault
def missing_split(copy):
    row = copy.row()
    del copy.lines[row]["split"]
    return Place(row)


@fault
def empty_instance(copy):
    row = copy.row()
    copy.lines[row] |= {"images": [], "captions": []}
    return Place(row)


@fault
def no_images(copy):
    row = copy.row()
    copy.lines[row]["images"] = []
    return Place(row)


@fault
def no_captions(copy):
    row = copy.row()
    copy.lines[row]["captions"] = []
    return Place(row)


@fault
def outsized_fold(copy):
    row = copy.row()
    copy.lines[row]["captions"] += [copy.text() for _ in range(40)]
    return Place(row)


@fault
def missing_image(copy):
    return copy.add(copy.row(), "images", copy.name())


@fault
def outside_image(copy):
    return copy.add(copy.row(), "images", copy.rng.choice(["../secret.png", "/etc/secret.png"]))


@fault
def broken_image(copy):
    name = copy.name(copy.rng.choice([".png", ".jpg"]))
    (copy.folder / name).write_bytes(copy.rng.choice([b"", b"<html>", bytes(1000)]))
    return copy.add(copy.row(), "images", name)


@fault
def truncated_image(copy):
    buffer, format = BytesIO(), copy.rng.choice(["PNG", "JPEG"])
    copy.picture((48, 48)).save(buffer, format)
    name = copy.name()
    (copy.folder / name).write_bytes(buffer.getvalue()[: len(buffer.getvalue()) * 3 // 4])
    return copy.add(copy.row(), "images", name)


@fault
def huge_image(copy):
    name = copy.save(copy.picture())
    content, side = bytearray((copy.folder / name).read_bytes()), copy.rng.choice([9000, 200_000])
    content[16:24] = (
        side.to_bytes(4, "big") * 2
    )  # in a PNG, width and height, and after nine more bytes their checksum
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (copy.folder / name).write_bytes(content)
    return copy.add(copy.row(), "images", name)


@fault
def tiny_image(copy):
    return copy.add(copy.row(), "images", copy.save(copy.picture((40, 3))))


@fault
def blank_image(copy):
    image = copy.rng.choice(
        [Image.new("RGB", (32, 32), "white"), Image.new("RGBA", (32, 32)), Image.new("L", (32, 32), 7)]
    )
    return copy.add(copy.row(), "images", copy.save(image))


@fault
def stretched_image(copy):
    return copy.add(copy.row(), "images", copy.save(copy.picture((200, 20))))


@fault
def unlisted_file(copy):
    return copy.save(copy.picture())


def pictures_in(copy, first, second, **lossy):
    """One picture in two rows, in the second perhaps as a lossy copy."""
    picture = copy.picture((64, 64))
    copy.add(first, "images", copy.save(picture, ".bmp"))
    suffix = ".jpg" if lossy else ".png"
    return copy.add(second, "images", copy.save(picture.resize((48, 48)) if lossy else picture, suffix, **lossy))


@fault
def repeated_image(copy):
    row = copy.row()
    return pictures_in(copy, row, row)


@fault
def near_repeated_image(copy):
    row = copy.row()
    return pictures_in(copy, row, row, quality=80)


@fault
def shared_image(copy):
    return pictures_in(copy, copy.row("train"), copy.row("train"))


@fault
def near_shared_image(copy):
    return pictures_in(copy, copy.row("train"), copy.row("train"), quality=80)


@fault
def leaked_image(copy):
    return pictures_in(copy, copy.row("train"), copy.row("test"))


@fault
def near_leaked_image(copy):
    return pictures_in(copy, copy.row("train"), copy.row("test"), quality=80)


@fault
def bad_caption(copy):
    return copy.add(copy.row(), "captions", copy.rng.choice([None, 7, ["nested"], "half \ud83d"]))


@fault
def blank_caption(copy):
    return copy.add(copy.row(), "captions", copy.rng.choice(["", " ", "\n\t"]))


@fault
def wordless_caption(copy):
    return copy.add(copy.row(), "captions", copy.rng.choice(["...", "?!", "- - -"]))


@fault
def placeholder_caption(copy):
    return copy.add(copy.row(), "captions", copy.rng.choice(["n/a", "None", "NaN", "No caption.", "IMG_0042.JPG"]))


@fault
def garbled_caption(copy):
    spoilt = copy.rng.choice(
        ["<b>{}</b>", "{} &amp; so on", "{} https://a.example", "{} cafÃ©", "{} \ufffd", "{}\x07"]
    )
    return copy.add(copy.row(), "captions", spoilt.format(copy.text(4)))


@fault
def repeated_caption(copy):
    row, text = copy.row(), copy.text()
    copy.add(row, "captions", text)
    return copy.add(row, "captions", f"{text.capitalize()}.")


def texts_in(copy, first, second, change=str):
    text = copy.text()
    copy.add(first, "captions", text)
    return copy.add(second, "captions", change(text))


def with_typo(text):
    return text[:-2] + text[-1]


@fault
def shared_caption(copy):
    return texts_in(copy, copy.row("train"), copy.row("train"), str.upper)


@fault
def leaked_caption(copy):
    return texts_in(copy, copy.row("train"), copy.row("test"))


@fault
def near_shared_caption(copy):
    return texts_in(copy, copy.row("train"), copy.row("train"), with_typo)


@fault
def near_leaked_caption(copy):
    return texts_in(copy, copy.row("train"), copy.row("test"), lambda text: " ".join(reversed(text.split())))


@fault
def generic_caption(copy):
    word = copy.text(1)
    rows = [copy.new_row(captions=[copy.text(), f"it is a {word}"]) for _ in range(12)]
    return Place(rows[0], "captions", 1)


@fault
def long_caption(copy):
    return copy.add(copy.row(), "captions", copy.text(TOKEN_LIMIT + 1))


@fault
def missing_category(copy):
    row = copy.row()
    copy.lines[row]["category"] = None
    return Place(row)


@fault
def rare_category(copy):
    row = copy.row("train")
    copy.lines[row]["category"] = copy.text(1)
    return Place(row)


@fault
def unseen_category(copy):
    category = copy.text(1)
    rows = [copy.new_row(category=category, split="test") for _ in range(3)]
    return Place(rows[0])


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """60 shapes of three views as a folder with metadata."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "images").mkdir()
    config, lines = ShapesConfig(num_shapes=NUM_SHAPES, image_size=32, num_views=3, seed=3), []
    for number in range(NUM_SHAPES):
        row = build_row(config, number)
        for image in row["images"]:
            (folder / "images" / image["path"]).write_bytes(image["bytes"])
        names = [f"images/{image['path']}" for image in row["images"]]
        lines.append(json.dumps(row | {"images": names, "split": split_of(row["instance_id"])}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def sound(clean):
    """The findings of the clean copy."""
    return diagnose(open_source(str(clean)), tokenizer=WordTokenizer()).findings


def planted_copy(clean, folder, seed, kinds):
    copy = Copy(Path(copytree(clean, folder)), seed)
    for kind in kinds:
        copy.planted.append((kind, FAULTS[kind](copy)))
    copy.write()
    return copy


def is_found(kind, place, findings):
    named = [finding for finding in findings if finding.kind == kind]
    if isinstance(place, str):
        return any(place in finding.message for finding in named)
    return any(place in finding.places for finding in named)


def family(kind):
    return next((kind.removeprefix(relation) for relation in RELATIONS if kind.startswith(relation)), kind)


def is_new(finding, sound):
    """Whether no finding of the clean copy says as much: of the same places, which other faults may have made fewer."""
    alike = [known for known in sound if family(known.kind) == family(finding.kind)]
    if finding.kind in DATA_SET_KINDS:
        return not alike
    return not any(set(finding.places) <= set(known.places) for known in alike)


def is_planted(finding, planted):
    if finding.kind == "false_negatives":  # what the faults amount to that make instances alike
        return any(kind.startswith(("shared_", "near_shared_", "generic_")) for kind, _ in planted)
    return any(kind == finding.kind and is_found(kind, place, [finding]) for kind, place in planted)


GROUPS = [list(FAULTS)[start::3] for start in range(3)]  # so that each fault has rows of its own


def measure(clean, tmp_path, sound, seed, repeats):
    planted, found, new, explained = Counter(), Counter(), [], []
    for part, kinds in enumerate(GROUPS):
        copy = planted_copy(clean, tmp_path / f"{seed}-{part}", seed, kinds * repeats)
        findings = diagnose(open_source(str(copy.folder)), tokenizer=WordTokenizer()).findings
        planted.update(kind for kind, _ in copy.planted)
        found.update(kind for kind, place in copy.planted if is_found(kind, place, findings))
        fresh = [finding for finding in findings if is_new(finding, sound)]
        new += fresh
        explained += [finding for finding in fresh if is_planted(finding, copy.planted)]
    return planted, found, new, explained


def test_planted_faults_are_found_and_little_else(clean, tmp_path, sound):
    planted, found, new, explained = Counter(), Counter(), [], []
    for seed in range(2):
        parts = measure(clean, tmp_path, sound, seed, repeats=2)
        planted, found = planted + parts[0], found + parts[1]
        new, explained = new + parts[2], explained + parts[3]
    assert len(planted) >= 40
    assert found.total() >= 0.95 * planted.total(), planted - found
    others = [(finding.kind, finding.message) for finding in new if finding not in explained]
    assert len(explained) >= 0.95 * len(new), others


@pytest.mark.parametrize("kinds", GROUPS)
def test_the_cleaned_copy_has_no_errors_and_the_source_is_untouched(clean, tmp_path, kinds, capsys):
    copy = planted_copy(clean, tmp_path / "data", 5, kinds)
    before = state(copy.folder)
    assert main([str(copy.folder), "--fix", str(tmp_path / "cleaned"), "--output", str(tmp_path / "report")]) == 1
    assert state(copy.folder) == before
    assert main([str(tmp_path / "cleaned")]) == 0
    assert "0 errors" in capsys.readouterr().out
    rows = [row for split in load_multifold(str(tmp_path / "cleaned"), cache_dir=tmp_path).values() for row in split]
    entries = [json.loads(line) for line in (tmp_path / "cleaned" / "dropped.jsonl").read_text().splitlines()]
    dropped_rows = {entry["row"] for entry in entries if entry["action"] == "dropped" and "observation" not in entry}
    assert len(rows) == len(copy.lines) - len(dropped_rows)
    errors = {kind for kind, _ in copy.planted if KINDS[kind].severity == "error"}
    assert errors <= {entry["kind"] for entry in entries}
    assert len(rows) > 0.8 * NUM_SHAPES


def state(folder):
    return {
        path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_clean_folder_is_copied_whole(clean, tmp_path):
    assert main([str(clean), "--fix", str(tmp_path / "same")]) == 0
    rows = {name: [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
            for name, folder in {"source": clean, "copy": tmp_path / "same"}.items()}  # fmt: skip
    assert rows["copy"] == rows["source"]
    assert (tmp_path / "same" / "dropped.jsonl").read_text() == ""
    for row in rows["copy"]:
        for name in row["images"]:
            assert (tmp_path / "same" / name).read_bytes() == (clean / name).read_bytes()


def test_parquet_data_sets_are_examined_and_cleaned_alike(clean, tmp_path):
    splits = load_multifold(str(clean), cache_dir=tmp_path / "cache")
    (tmp_path / "data").mkdir()
    train = [split_row(splits["train"], number) for number in range(10)]
    test = [split_row(splits["test"], number) for number in range(3)]
    train[1]["instance_id"] = train[0]["instance_id"]
    train[2]["images"][0]["bytes"] = b"GIF89a"
    train[3]["captions"].append(" ")
    train[4]["images"][0] = test[0]["images"][0]
    train[5] |= {"captions": None, "images": []}
    test[1]["instance_id"] = train[6]["instance_id"]
    for name, rows in {"train": train, "test": test}.items():
        table = datasets.Dataset.from_list(rows, features=splits["train"].features)
        table.to_parquet(tmp_path / "data" / f"{name}.parquet")
    report = diagnose(open_source(str(tmp_path / "data")))
    kinds = Counter(finding.kind for finding in report.findings if finding.severity == "error")
    assert kinds == {"repeated_id": 1, "broken_image": 1, "blank_caption": 1, "leaked_image": 1, "wrong_type": 1,
                     "empty_instance": 1, "leaked_id": 1}  # fmt: skip
    assert main([str(tmp_path / "data"), "--fix", str(tmp_path / "cleaned")]) == 1
    cleaned = load_multifold(str(tmp_path / "cleaned"), cache_dir=tmp_path / "cache")
    assert {name: len(rows) for name, rows in cleaned.items()} == {"train": 7, "test": 3}
    assert not diagnose(open_source(str(tmp_path / "cleaned"))).has_errors
    assert cleaned["test"][2]["images"][0].tobytes() == splits["test"][2]["images"][0].tobytes()


def split_row(table, number):
    raw = table.with_format("arrow")[number : number + 1].to_pylist()[0]
    return {name: raw[name] for name in table.column_names}


def test_a_category_that_is_nearly_all_is_named(clean, tmp_path):
    copy = Copy(Path(copytree(clean, tmp_path / "data")), 0)
    for row in copy.lines:
        row["category"] = "chair"
    copy.lines[0]["category"] = "table"
    copy.write()
    (found,) = (one for one in diagnose(open_source(str(copy.folder))).findings if one.kind == "dominant_category")
    assert "'chair' has 59 of 60" in found.message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.parquet", b"PAR1 not"),
        ("train.parquet", b"PAR1 not"),
        ("metadata.jsonl", b"\n"),
        ("metadata.csv", b""),
    ],
)
def test_what_cannot_be_read_at_all_is_an_error(tmp_path, capsys, name, content):
    (tmp_path / name).write_bytes(content)
    assert main([str(tmp_path), "--fix", str(tmp_path.with_name("cleaned"))]) == 1
    text = capsys.readouterr().out
    assert "unreadable (1)" in text
    assert "There is no cleaned copy" in text


def test_wrong_columns_are_an_error(tmp_path, capsys):
    datasets.Dataset.from_dict({"image": ["a"]}).to_parquet(tmp_path / "train.parquet")
    assert main([str(tmp_path)]) == 1
    assert "lacks the columns ['instance_id', 'images', 'captions'], it has ['image']" in capsys.readouterr().out


def test_embedded_data_sets_are_examined_with_their_settings(tmp_path, capsys):
    settings = {"num_shapes": 6, "image_size": 16, "num_views": 2, "cache_dir": str(tmp_path)}
    assert main(["shapes", "--settings", json.dumps(settings), "--batch_size", "4"]) == 0
    assert "instances" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_size", "0"], "`batch_size` must be at least 1, got 0"),
        (["--min_side", "0"], "`min_side` must be at least 1, got 0"),
        (["--max_pixels", "0"], "`max_pixels` must lie within 1"),
        (["--settings", "[1]"], "`settings` must be a JSON object"),
        (["--config", "small"], "`config` must be left out for the folder"),
        (["--tokenizer", "/no/such/folder"], "`tokenizer` must be a checkpoint with one, got '/no/such/folder'"),
        (["--fix", "DATA/cleaned"], "`fix` must lie outside the data set"),
        (["--fix", "DATA/images"], "`fix` must be a new or empty folder"),
        (["--output", "DATA"], "`output` must lie outside the data set"),
    ],
)
def test_flags_that_cannot_be_used_are_refused(clean, capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        main([str(clean), *(flag.replace("DATA", str(clean)) for flag in flags)])
    assert message in capsys.readouterr().err


def test_a_data_set_that_is_not_there_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "none")])
    assert "`dataset` must be one of" in capsys.readouterr().err


def test_captions_are_measured_by_a_real_tokenizer(clean, tmp_path, capsys):
    vocabulary = {word: number for number, word in enumerate(["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "chair"])}
    BertTokenizer(vocab=vocabulary, model_max_length=8).save_pretrained(tmp_path / "tokenizer")
    assert main([str(clean), "--tokenizer", str(tmp_path / "tokenizer"), "--output", str(tmp_path / "report")]) == 0
    capsys.readouterr()
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    tokens = report["figures"]["sizes"]["tokens of captions"]
    assert tokens["limit"] == 8
    assert tokens["over the limit"] == report["counts"]["long_caption"] > 100


HOSTILE = "<script>alert(1)</script> \" onload='x' \x1b[31m"


def test_reports_show_everything_and_obey_nothing(clean, tmp_path, capsys):
    copy = planted_copy(clean, tmp_path / "data", 1, GROUPS[1])
    copy.add(copy.row(), "captions", HOSTILE)
    copy.lines[copy.row("train")] |= {"category": HOSTILE, "instance_id": HOSTILE}
    copy.write()
    assert main([str(copy.folder), "--output", str(tmp_path / "report")]) == 1
    text = (tmp_path / "report" / "report.txt").read_text(encoding="utf-8")
    assert capsys.readouterr().out == text
    assert "\x1b" not in text
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert {kind for kind, _ in copy.planted} <= set(report["counts"])
    assert sum(report["counts"].values()) == len(report["findings"])
    page = Page((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
    assert page.opened == page.closed
    assert not {"script", "iframe", "link", "object"} & set(page.opened)
    assert all(name in Page.SAFE for name in page.attributes)
    assert "<script>alert(1)</script>" in "".join(page.texts)
    assert page.images
    for image in page.images:
        with Image.open(BytesIO(image)) as picture:
            picture.load()
            assert picture.size == (72, 72)
    for kind in report["counts"]:
        assert any(f", {kind})" in text for text in page.texts)


class Page(HTMLParser):
    """What stands in an HTML page."""

    SAFE = frozenset({"lang", "charset", "http-equiv", "content", "class", "open", "style", "src", "alt"})
    VOID = frozenset({"meta", "br", "img"})

    def __init__(self, text):
        super().__init__()
        self.opened, self.closed, self.attributes = Counter(), Counter(), set()
        self.texts, self.images = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.opened.update(() if tag in self.VOID else [tag])
        self.attributes |= {name for name, _ in attrs}
        source = dict(attrs).get("src")
        if source:
            head, _, content = source.partition(",")
            assert head == "data:image/jpeg;base64"
            self.images.append(base64.b64decode(content))

    def handle_endtag(self, tag):
        self.closed.update([tag])

    def handle_data(self, data):
        self.texts.append(data)
