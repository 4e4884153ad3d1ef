import json
import os
import zipfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from datasets_scripts.loading import load_multifold
from datasets_scripts.schema import RowError

# Their captions keep what the files have: blanks before full stops, quotes, bars, tabs, blanks at the end.
IMAGES = {
    "1000092795": [
        "Two young guys with shaggy hair look at their hands .", 'A "man" , in a blue shirt .', "Two | men .",
        "A man\tin blue .", "Two friends enjoy time spent together . ",
    ],
    "10002456": [f"Several men in hard hats {number} ." for number in range(5)],
    "2199200615": [*(f"A dog {number} ." for number in range(4)), "A dog runs across the grass ."],
    "36979": [f"A café {number} ." for number in range(5)],
}  # fmt: skip
KARPATHY = {"1000092795": "train", "10002456": "validation", "2199200615": "test"}
ENTITIES = {"1000092795": "test", "10002456": "train", "2199200615": "train", "36979": "validation"}
WRITTEN = {"train": "train", "validation": "val", "test": "test"}


def jpeg(shade):
    buffer = BytesIO()
    Image.new("RGB", (5, 4), (shade, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


PICTURES = {f"{name}.jpg": jpeg(40 * number) for number, name in enumerate(IMAGES)}


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def csv_line(*cells):
    return ",".join('"' + cell.replace('"', '""') + '"' if set(cell) & set(',"') else cell for cell in cells) + "\n"


def token(images=IMAGES, suffix=".jpg"):
    return "".join(f"{name}{suffix}#{n}\t{text}\n" for name, fold in images.items() for n, text in enumerate(fold))


def results_csv():
    """Kaggle's: a bar and a blank between cells, no quotes, and one row without its second bar."""
    lines = [f"{name}.jpg| {n}| {text}\n" for name, fold in IMAGES.items() for n, text in enumerate(fold)]
    lines = [line.replace("2199200615.jpg| 4| ", "2199200615.jpg| 4   ") for line in lines]
    return "image_name| comment_number| comment\n" + "".join(lines)


def karpathy_json():
    images = [
        {
            "sentids": list(range(5)), "imgid": number, "split": WRITTEN[split], "filename": f"{name}.jpg",
            "sentences": [{"tokens": text.split(), "raw": text, "imgid": number, "sentid": 0} for text in IMAGES[name]],
        }
        for number, (name, split) in enumerate(KARPATHY.items())
    ]  # fmt: skip
    return json.dumps({"images": images, "dataset": "flickr30k"})


def nlphuji_csv():
    rows = (
        csv_line(json.dumps(IMAGES[name]), "[0, 1, 2, 3, 4]", WRITTEN[split], f"{name}.jpg", str(number))
        for number, (name, split) in enumerate(KARPATHY.items())
    )
    return "raw,sentids,split,filename,img_id\n" + "".join(rows)


def albef_json():
    """One caption an item in train, all five in the others."""
    files = {}
    for split, written in WRITTEN.items():
        chosen = [name for name, of in KARPATHY.items() if of == split]
        items = [{"image": f"flickr30k-images/{name}.jpg", "caption": IMAGES[name]} for name in chosen]
        if split == "train":
            items = [
                {"image": item["image"], "caption": text, "image_id": f"flickr30k_{number}"}
                for item in items
                for number, text in enumerate(item["caption"])
            ]
        files[f"flickr30k_{written}.json"] = json.dumps(items)
    return files


def entities_lists():
    return {
        f"{written}.txt": "".join(f"{name}\n" for name, of in ENTITIES.items() if of == split)
        for split, written in WRITTEN.items()
    }


def put_images(folder, inner="flickr30k-images"):
    write(folder, **{f"{inner}/{name}": content for name, content in PICTURES.items()})


@pytest.fixture
def folder(tmp_path, caplog):
    caplog.set_level("CRITICAL", logger="datasets_scripts")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def rows_of(folder, config="karpathy", **settings):
    streams = load_multifold("flickr30k", data_dir=str(folder), config=config, streaming=True, **settings)
    return {row["instance_id"]: (split, row["captions"]) for split, rows in streams.items() for row in rows}


def expected(splits):
    return {name: (split, IMAGES[name]) for name, split in splits.items()}


@pytest.mark.parametrize(
    "files",
    [
        {"dataset_flickr30k.json": karpathy_json()},
        {"annotations/dataset_flickr30k.json": "\ufeff" + karpathy_json()},
        {"flickr_annotations_30k.csv": nlphuji_csv()},
        albef_json(),
    ],
    ids=["karpathy", "karpathy in a folder, with a byte order mark", "nlphuji", "albef"],
)
def test_karpathys_split_is_read_in_every_form(folder, files):
    put_images(folder)
    write(folder, **files)
    assert rows_of(folder) == expected(KARPATHY)


@pytest.mark.parametrize(
    "files",
    [
        {"results_20130124.token": token()},
        {"results_20130124.token": token().replace("\n", "\r\n")},
        {"results.csv": results_csv()},
        {"flickr30k_images/results.csv": results_csv()},
        {
            "captions.txt": "image_name,comment_number,comment\n"
            + "".join(
                csv_line(f"{name}.jpg", str(n), text) for name, fold in IMAGES.items() for n, text in enumerate(fold)
            )
        },
    ],
    ids=["token", "token with CRLF", "results.csv", "results.csv in Kaggle's folder", "captions.txt"],
)
def test_entities_split_is_read_with_every_form_of_captions(folder, files):
    put_images(folder)
    write(folder, **entities_lists(), **files)
    assert rows_of(folder, "entities") == expected(ENTITIES)


def test_captions_come_in_the_order_of_their_numbers(folder):
    put_images(folder)
    write(folder, **entities_lists(), **{"results.token": "".join(sorted(token().splitlines(keepends=True))[::-1])})
    assert rows_of(folder, "entities") == expected(ENTITIES)


def test_the_protocols_are_never_mixed(folder):
    put_images(folder)
    write(folder, **entities_lists(), **{"results.csv": results_csv(), "dataset_flickr30k.json": karpathy_json()})
    assert rows_of(folder, "karpathy") == expected(KARPATHY)
    assert rows_of(folder, "entities") == expected(ENTITIES)


def test_captions_of_another_file_can_be_asked_for(folder):
    put_images(folder)
    lower = {name: [text.lower() for text in fold] for name, fold in IMAGES.items()}
    write(folder, **{"results.token": token(lower), "dataset_flickr30k.json": karpathy_json()})
    rows = rows_of(folder, captions_from="token")
    assert rows == {name: (split, lower[name]) for name, split in KARPATHY.items()}
    with pytest.raises(ValueError, match=r"`captions_from` must be one of \['albef', .*\] or None, got 'lemma'"):
        rows_of(folder, captions_from="lemma")


@pytest.mark.parametrize(
    "inner",
    [
        "flickr30k-images", "flickr30k_images", "flickr30k_images/flickr30k_images", "Images", "Flicker8k_Dataset",
        "Flickr8k_Dataset/Flicker8k_Dataset", ".",
    ],
)  # fmt: skip
def test_images_lie_in_any_of_the_known_folders(folder, inner):
    put_images(folder, inner)
    write(folder, **{"dataset_flickr30k.json": karpathy_json()})
    assert rows_of(folder) == expected(KARPATHY)


def test_images_are_stored_as_the_bytes_they_are(tmp_path, folder):
    put_images(folder)
    write(folder, **{"dataset_flickr30k.json": karpathy_json()})
    rows = load_multifold("flickr30k", data_dir=str(folder), split="test", cache_dir=tmp_path / "cache")
    (image,) = rows.with_format("arrow")[0].to_pylist()[0]["images"]
    assert image == {"bytes": PICTURES["2199200615.jpg"], "path": "2199200615.jpg"}
    assert rows.info.config_name == "karpathy"
    np.testing.assert_array_equal(rows[0]["images"][0], Image.open(BytesIO(PICTURES["2199200615.jpg"])))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_images_can_stay_in_their_zip(tmp_path, folder, compression):
    write(folder, **{"dataset_flickr30k.json": karpathy_json()})
    with zipfile.ZipFile(folder / "flickr30k-images.zip", "w", compression) as archive:
        for name, content in PICTURES.items():
            archive.writestr(f"flickr30k-images/{name}", content)
            archive.writestr(f"__MACOSX/flickr30k-images/._{name}", b"\0")
    rows = load_multifold("flickr30k", data_dir=str(folder), split="train", streaming=True).decode(False)
    assert next(iter(rows))["images"][0]["bytes"] == PICTURES["1000092795.jpg"]
    assert sorted(os.listdir(folder)) == ["dataset_flickr30k.json", "flickr30k-images.zip"]


IMAGES_8K = dict.fromkeys(("1_a", "2_b", "3_c", "2258277193_586949ec62"), IMAGES["10002456"])


def lists_8k():
    names = {"train": "1_a", "dev": "2_b", "test": "3_c"}
    return {f"Flickr_8k.{split}Images.txt": f"{name}.jpg\n" for split, name in names.items()}


@pytest.mark.parametrize(
    "captions",
    [
        # One image of the token file has another ending, and is neither on disk nor in a split.
        {"Flickr8k_text/Flickr8k.token.txt": token(IMAGES_8K).replace("2c62.jpg#", "2c62.jpg.1#")},
        {
            "captions.txt": "image,caption\n"
            + "".join(csv_line(f"{name}.jpg", text) for name, fold in IMAGES_8K.items() for text in fold)
        },
    ],
    ids=["token", "Kaggle"],
)
def test_flickr8k_is_read_by_the_same_builder(folder, captions):
    write(folder, **lists_8k(), **captions, **{f"Images/{name}.jpg": jpeg(9) for name in ("1_a", "2_b", "3_c")})
    rows = rows_of(folder, "flickr8k")
    assert rows == {
        "1_a": ("train", IMAGES_8K["1_a"]),
        "2_b": ("validation", IMAGES_8K["1_a"]),
        "3_c": ("test", IMAGES_8K["1_a"]),
    }


def test_a_split_of_another_size_than_published_is_warned_of(folder, monkeypatch):
    put_images(folder)
    write(folder, **{"dataset_flickr30k.json": karpathy_json()})
    warnings = []
    monkeypatch.setattr(
        "datasets_scripts.flickr30k.logger.warning", lambda text, *words: warnings.append(text % words)
    )
    rows_of(folder)
    assert warnings[0] == "'karpathy' has 1 images in train, the published split 29000."


@pytest.mark.parametrize(
    ("config", "files", "message"),
    [
        ("karpathy", {}, r"must hold captions for 'karpathy'; looked in '.*' and its folders .* for "
         r"dataset_flickr30k.json \(from https://cs.stanford.edu.*; or flickr_annotations_30k.csv \(from https://hugg"),
        ("karpathy", {"flickr30k_val.json": "[]"}, "flickr30k_train.json and flickr30k_val.json and flickr30k_test"),
        ("entities", entities_lists(), r"captions for 'entities'; .*results_20130124.token .*https://shannon.*results.csv"),
        ("entities", {"results.csv": results_csv()}, "split lists .*found no 'train.txt'; get it from https://github.com"),
        ("flickr8k", {"captions.txt": "image,caption\n"}, r"found no 'Flickr_8k.trainImages.txt'; get it from .*Flickr8k"),
        ("karpathy", {"dataset_flickr30k.json": karpathy_json()}, r"must hold the images; looked in '.*' for "
         r"'1000092795.jpg' in the folders \['flickr30k-images'.*found it in none; get them .*https://shannon.*kaggle"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_where_to_get_it(folder, config, files, message):
    write(folder, **files)
    with pytest.raises(RowError, match=message):
        rows_of(folder, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("36979.jpg#4\t", "36979.jpg#4 "),
            r"token:20: expected `name.jpg#0<TAB>caption`, got",
        ),
        (
            lambda text: text.replace("36979.jpg#4\t", "36979.jpg#3\t"),
            r"token:20: '36979.jpg' has a caption #3 already",
        ),
        (lambda text: text.rpartition("36979.jpg#4")[0], r"token:16: '36979.jpg' must have 5 captions, got 4"),
        (lambda text: text.partition("36979.jpg")[0], "'36979.jpg' is in a split, but has no captions"),
        (lambda text: text.replace("36979.jpg#4\tA café 4 .", "36979.jpg#4\t "), "non-blank string, got ' '"),
        (lambda text: text.replace("36979.jpg#4", "36979.jpg#x"), "token:20: expected a caption's number, got 'x'"),
        (lambda text: text.encode("latin-1"), "token:16: expected UTF-8, got .*save it as UTF-8"),
        (lambda text: text.replace("Several", "\0"), "token:6: expected text, got a NUL byte"),
        (lambda text: text.replace("36979.jpg#4", "..#4"), "token:20: expected the name of an image, got '..'"),
    ],
)
def test_broken_captions_are_named(folder, change, message):
    put_images(folder)
    write(folder, **entities_lists(), **{"results.token": change(token())})
    with pytest.raises(RowError, match=message):
        rows_of(folder, "entities")


def test_any_number_of_captions_can_be_allowed(folder):
    put_images(folder)
    write(folder, **entities_lists(), **{"results.token": token().rpartition("36979.jpg#4")[0]})
    assert len(rows_of(folder, "entities", captions_per_image=0)["36979"][1]) == 4


def test_an_image_in_two_splits_is_named(folder):
    put_images(folder)
    write(folder, **(entities_lists() | {"val.txt": "36979\n1000092795\n"}), **{"results.csv": results_csv()})
    with pytest.raises(RowError, match=r"test.txt:1: '1000092795.jpg' is already listed in validation"):
        rows_of(folder, "entities")


def test_a_missing_or_broken_image_is_named(folder):
    put_images(folder)
    write(folder, **{"dataset_flickr30k.json": karpathy_json(), "flickr30k-images/10002456.jpg": b"<html>"})
    with pytest.raises(RowError, match=r"json, item 1: image '10002456.jpg' doesn't decode"):
        rows_of(folder)
    (folder / "flickr30k-images" / "10002456.jpg").unlink()
    with pytest.raises(RowError, match=r"json, item 1: image '10002456.jpg' isn't in '.*images'"):
        rows_of(folder)
