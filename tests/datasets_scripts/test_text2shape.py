import csv
import gzip
import json
import os
import pickle
import shutil
import threading
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets_scripts.loading import load_multifold
from datasets_scripts.read_pickle import main as read_pickle
from datasets_scripts.schema import RowError, split_of
from datasets_scripts.text2shape import Text2Shape
from datasets_scripts.text2shape_captions import normalised, read_captions

SAMPLES = Path(__file__).resolve().parents[3] / "shared/data/text2shape_samples"
CHAIR, TABLE = "03001627", "04379243"
IDS = {
    "a": "52b667b2014bdf0482db9fca4b68095",
    "b": "0177c1102dd46badce958df2e8332e31",
    "c": "u1e22cc04-7c4d-4ed5-bda3",
}
CSV = f"""id,modelId,description,category,topLevelSynsetId,subSynsetId
00118462,{IDS["a"]},"A stylish chiar, blueish.",Chair,{CHAIR},02738535
118461,{IDS["b"]},THE TABLE IS BLACK.IT HAS 4 LEGS.  ,Table,{TABLE},{TABLE}
118459,{IDS["c"]},"a ""tin"" chair
with  two legs",Chair,{CHAIR},20000020
23213,{IDS["a"]},Confortable é chair,Chair,{CHAIR},02738535
7,9999,of no split,Chair,{CHAIR},{CHAIR}
"""
CAPTIONS = {
    IDS["a"]: ["A stylish chiar, blueish.", "Confortable é chair"],
    IDS["b"]: ["THE TABLE IS BLACK.IT HAS 4 LEGS.  "],
    IDS["c"]: ['a "tin" chair\nwith  two legs'],
}
SYNSETS = {IDS["a"]: CHAIR, IDS["b"]: TABLE, IDS["c"]: CHAIR}
OBJ = (
    "mtllib model_normalized.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nusemtl red\nf 1 2 3\nf 1 2 4\nf 1 3 4\nf 2 3 4\n"
)
MTL = "newmtl red\nKd 1 0 0\n"
SMALL = {"image_size": 16, "num_views": 2}


def nrrd_of(grid):
    x, y, z, _ = grid.shape
    header = f"NRRD0004\ntype: uint8\ndimension: 4\nsizes: 4  {y}  {z}  {x}\nencoding: gzip\nendian: little\n\n"
    return header.encode() + gzip.compress(grid.transpose(0, 2, 1, 3).tobytes())


def cube(colour=(255, 0, 0)):
    grid = np.zeros((3, 3, 3, 4), dtype=np.uint8)
    grid[:, 0] = (*colour, 255)
    return grid


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_views(folder, numbers=(0, 1, 2, 10)):
    folder.mkdir(parents=True)
    for number in numbers:
        Image.new("RGB", (8 + number, 8)).save(folder / f"{number}.jpg")


def write_pictures(root, kind):
    for model_id, synset in SYNSETS.items():
        if kind == "views":
            write_views(root / "chair_table/preprocessed/multiview_imgs" / synset / model_id)
        elif kind == "meshes":
            folder = root / "ShapeNetCore.v2" / synset / model_id / "models"
            write(folder / "model_normalized.obj", OBJ)
            write(folder / "model_normalized.mtl", MTL)
        else:
            write(root / "nrrd_256_filter_div_32_solid" / model_id / f"{model_id}.nrrd", nrrd_of(cube()))


def write_lists(root, train=(IDS["a"], IDS["c"]), val=(IDS["b"],), test=()):
    for name, ids in (("train", train), ("val", val), ("test", test)):
        write(root / f"{name}.txt", "\n".join(ids))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    write(path / "captions.tablechair.csv", CSV)
    return path


@pytest.fixture
def load(tmp_path, folder):
    def load_folder(config="tricolo", **settings):
        settings = {"data_dir": str(folder), "cache_dir": tmp_path / "cache"} | SMALL | settings
        return load_multifold("text2shape", config=config, **settings)

    return load_folder


def test_ids_and_texts_are_kept_as_they_are_written(folder):
    models = read_captions(folder / "captions.tablechair.csv")
    assert list(models) == [*IDS.values(), "9999"]
    assert {model_id: models[model_id].captions for model_id in CAPTIONS} == CAPTIONS
    assert [models[IDS["a"]].synset_id, models[IDS["a"]].sub_synset_id] == [CHAIR, "02738535"]


@pytest.mark.parametrize("kind", ["views", "meshes", "voxels"])
def test_each_kind_of_picture_gives_the_models_of_the_lists_with_all_their_captions(folder, load, kind):
    write_lists(folder)
    write_pictures(folder, kind)
    splits = load()
    rows = {row["instance_id"]: row for part in splits.values() for row in part}
    assert {split: list(part["instance_id"]) for split, part in splits.items()} == {
        "train": [IDS["a"], IDS["c"]],
        "validation": [IDS["b"]],
    }
    assert {model_id: row["captions"] for model_id, row in rows.items()} == CAPTIONS
    table = rows[IDS["b"]]
    assert {name: table[name] for name in ("category", "model_id", "synset_id", "sub_synset_id", "source")} == {
        "category": "Table", "model_id": IDS["b"], "synset_id": TABLE, "sub_synset_id": TABLE, "source": kind,
    }  # fmt: skip
    if kind == "views":
        assert [image.size for image in table["images"]] == [(8, 8), (9, 8), (10, 8), (18, 8)]
    else:
        views = np.stack([np.asarray(image) for image in table["images"]]).reshape(2, -1, 3).astype(int)
        assert views.shape == (2, 256, 3)
        assert ((views[..., 0] > 80) & (views[..., 1] < 5)).any(axis=1).all(), "red must be seen in each view"


def test_views_come_before_meshes_and_these_before_voxels_unless_one_is_chosen(folder, load):
    write_lists(folder)
    for kind in ("voxels", "meshes", "views"):
        write_pictures(folder, kind)
        assert set(load(split="train")["source"]) == {kind}
    assert set(load(split="train", pictures="voxels")["source"]) == {"voxels"}


def test_two_processes_and_streaming_give_the_same_rows(tmp_path, folder, load):
    write_lists(folder)
    write_pictures(folder, "voxels")
    one = [row["captions"] for row in load(split="train")]
    streamed = [row["captions"] for row in load(split="train", streaming=True)]
    assert streamed == one == [row["captions"] for row in load(split="train", num_proc=2, cache_dir=tmp_path / "two")]


def test_the_normaliser_is_off_by_default(folder, load):
    write_lists(folder)
    write_pictures(folder, "voxels")
    assert load(split="validation", normalise_captions=True)["captions"][0] == ["the table is black. it has 4 legs."]
    assert normalised("Legs 4.5 cm.It  has\tTWO … ﬁne") == "legs 4.5 cm. it has two ... fine"


def map_json(ids):
    return json.dumps(
        [{"model_id": i, "category": SYNSETS[i], "caption": "a chair", "tokens": [3, 0]} for i in ids], indent=2
    )


def write_tricolo(root, train, val, test):
    for name, ids in (("train", train), ("val", val), ("test", test)):
        write(
            root / f"chair_table/preprocessed/exp_data/{name}_map.json", map_json([i for i in ids for _ in range(2)])
        )


def write_ids(root, train, val, test):
    for name, ids in (("train", train), ("val", val), ("test", test)):
        write(root / f"{name}.json", json.dumps(ids))


def write_decorated(root, train, val, test):
    for name, ids in (("train", train), ("val", val), ("test", test)):
        write(
            root / f"{name}.txt", "\ufeff# made by hand\r\n\r\n" + "".join(f"{SYNSETS[i]}/{i}.nrrd \r\n" for i in ids)
        )


@pytest.mark.parametrize("write_split", [write_tricolo, write_ids, write_decorated])
def test_every_form_of_a_list_gives_the_same_split(folder, load, write_split):
    write_split(folder, [IDS["a"]], [IDS["c"]], [IDS["b"]])
    write_pictures(folder, "voxels")
    assert {split: list(part["instance_id"]) for split, part in load().items()} == {
        "train": [IDS["a"]], "validation": [IDS["c"]], "test": [IDS["b"]],
    }  # fmt: skip


def write_parts2words(root, train=(IDS["a"], IDS["b"]), test=(IDS["c"],)):
    for split, ids in (("train", train), ("test", test)):
        for synset in (CHAIR, TABLE):
            write(
                root / f"split_shape_captioner/{split}_{synset}.txt", "\n".join(i for i in ids if SYNSETS[i] == synset)
            )


def test_each_protocol_reads_its_own_lists_only(folder, load):
    write_parts2words(folder)
    write_pictures(folder, "voxels")
    with pytest.raises(
        RowError, match=r"'tricolo' was looked for .*There is the split 'parts2words', which gives other"
    ):
        load()
    assert {split: len(part) for split, part in load("parts2words").items()} == {"train": 2, "test": 1}
    write_tricolo(folder, [IDS["b"]], [IDS["c"]], [IDS["a"]])
    assert list(load(split="train")["instance_id"]) == [IDS["b"]]
    assert list(load("parts2words", split="test")["instance_id"]) == [IDS["c"]]
    shutil.rmtree(folder / "split_shape_captioner")
    with pytest.raises(RowError, match=r"train_03001627.*Parts2Words\).*There is the split 'tricolo'"):
        load("parts2words")


def test_a_pickle_is_never_read_but_can_be_converted(folder, load):
    write_pictures(folder, "voxels")
    for name, key in (("train", "a"), ("val", "b"), ("test", "c")):
        write(folder / f"processed_captions_{name}.p", pickle.dumps({"caption_matches": {IDS[key]: [0]}}))
    with pytest.raises(RowError, match=r"is a pickle, which could run code and is never read") as caught:
        load()
    commands = [part.split() for part in str(caught.value).split("`") if part.startswith("python -m")]
    assert len(commands) == 3
    for command in commands:
        assert command[:3] == ["python", "-m", "datasets_scripts.read_pickle"]
        read_pickle(command[3:])
    assert list(load(split="test")["instance_id"]) == [IDS["c"]]
    with pytest.raises(RowError, match=r"bad.p' is a pickle, .* convert it: `python -m"):
        load(ignored_models="bad.p")


def test_ignored_models_are_left_out(folder, load):
    write_lists(folder)
    write_pictures(folder, "voxels")
    write(folder / "ignored.txt", f"{CHAIR}/{IDS['a']}\n")
    for ignored in ([f"{CHAIR}/{IDS['a']}"], (IDS["a"],), "ignored.txt"):
        assert list(load(split="train", ignored_models=ignored)["instance_id"]) == [IDS["c"]]
    with pytest.raises(RowError, match=r"`ignored_models` must be ids or a file that lists them, got '.*none.txt'"):
        load(ignored_models="none.txt")


def test_an_edited_list_or_picture_is_read_again(folder, load):
    write_lists(folder)
    write_pictures(folder, "meshes")
    first = np.asarray(load(split="train")[0]["images"][0])
    materials = folder / "ShapeNetCore.v2" / CHAIR / IDS["a"] / "models/model_normalized.mtl"
    write(materials, "newmtl red\nKd 0 0 1.0\n")
    assert (np.asarray(load(split="train")[0]["images"][0]) != first).any()
    write_lists(folder, train=[IDS["c"]])
    assert list(load(split="train")["instance_id"]) == [IDS["c"]]


def test_the_one_material_file_beside_a_mesh_serves_under_another_name(folder, load):
    write_lists(folder)
    for model_id in SYNSETS:
        write(folder / "mine" / f"{'table' if model_id == IDS['b'] else 'chair'}/{model_id}.obj", OBJ)
        write(folder / "mine" / f"{'table' if model_id == IDS['b'] else 'chair'}/{model_id}.mtl", MTL)
    for row in load(split="train", pictures="meshes", pictures_dir="mine"):
        assert (np.asarray(row["images"][0])[..., 1] < 5).any()
    shutil.move(folder / "mine/chair" / f"{IDS['a']}.mtl", folder / "mine/chair/x.mtl")
    with pytest.raises(RowError, match=rf"instance `{IDS['a']}`: .*names the materials 'model_normalized.mtl', which"):
        load(pictures="meshes", pictures_dir="mine")


def test_a_missing_file_says_what_was_looked_for_where_and_where_to_get_it(folder, load):
    with pytest.raises(RowError, match=r"'tricolo' was looked for in .*train_map.json.*github.com/3dlg-hcvc/tricolo"):
        load()
    write_lists(folder)
    with pytest.raises(
        RowError, match=r"Pictures were looked for in '.*data'.*multiview_imgs.*ShapeNetCore.*stanford"
    ):
        load()
    write_pictures(folder, "meshes")
    shutil.rmtree(folder / "ShapeNetCore.v2" / CHAIR / IDS["c"])
    with pytest.raises(
        RowError, match=rf"1 of 3 models have no meshes in .*{IDS['c']}; get them from https.*skip_missing"
    ):
        load()
    assert list(load(split="train", skip_missing=True)["instance_id"]) == [IDS["a"]]
    (folder / "val.txt").unlink()
    with pytest.raises(
        RowError, match=r"lacks \['val.txt'\] of \['train.txt', 'val.txt', 'test.txt'\]; get them from"
    ):
        load()
    (folder / "captions.tablechair.csv").unlink()
    with pytest.raises(RowError, match=r"`captions.tablechair.csv` was looked for in .*get it from http://text2shape"):
        load()
    with pytest.raises(RowError, match=r"`captions_file` must be a CSV file of captions, got '.*no.csv'"):
        load(captions_file="no.csv")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pictures": "clouds"}, "`pictures` must be None or one of"),
        ({"pictures_dir": "mine"}, "`pictures` must say what `pictures_dir` holds"),
        ({"image_size": 0}, "`image_size` must be a whole number within 1 and 2048, got 0"),
        ({"num_views": 2.5}, "`num_views` must be a whole number within 1 and 1000, got 2.5"),
    ],
)
def test_impossible_settings_are_named(load, settings, message):
    with pytest.raises(ValueError, match=message):
        load(**settings)


def test_the_protocol_must_be_named():
    with pytest.raises(ValueError, match=r"`config` must be one of \['tricolo', 'parts2words', 'primitives'\]"):
        Text2Shape(data_dir=".")


def row_of(**changes):
    row = {"id": "1", "modelId": IDS["a"], "description": "a chair", "category": "Chair", "topLevelSynsetId": CHAIR}
    out = StringIO()
    csv.writer(out).writerow((row | {"subSynsetId": CHAIR} | changes).values())
    return CSV.splitlines()[0] + "\n" + out.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (row_of(modelId="../../etc"), r"csv:2: a model id must be letters, .* got '../../etc'"),
        (row_of(modelId="a..b"), "a model id must be letters"),
        (row_of(modelId="/etc/passwd"), "a model id must be letters"),
        (row_of(modelId=""), "a model id must be letters"),
        (row_of(modelId="a" * 300), "a model id must be letters"),
        (row_of(category="../x"), "expected a category such as Chair .* got '../x'"),
        (row_of(topLevelSynsetId=".."), r"synset id of 8 digits, got 'Chair' and '\.\.'"),
        (row_of() + "1,b,c,Chair,03001627,1\n", "csv:3: caption `1` is already at .*csv:2"),
        (row_of() + f"2,{IDS['a']},c,Table,{TABLE},1\n", "csv:3: model `52.*` is a Table of synset .*csv:2 a Chair"),
        (row_of() + "2,b,c\n", "csv:3: expected 6 cells as in the header, got 3"),
        ("id,text\n1,a\n", r"expected the columns \['id', 'modelId'.*none named \['modelId'"),
        ("", "has no captions; get it again"),
        (row_of(description="a\0b"), "csv:2: expected text, got a NUL byte"),
        (row_of().encode() + b"2,b,\xff,Chair,03001627,1\n", "csv:3: expected UTF-8"),
        (row_of(description="x" * 200_000), r"csv:.*(field larger than field limit|a line may have)"),
        (row_of(description="x\n" * 200_000), "csv:.*field larger than field limit"),
        (row_of() + '2,b,"open,Chair,03001627,1\n', "csv:3: expected CSV"),
        (b"x" * 3_000_000, "csv:1: a line may have 1048576 bytes"),
    ],
)
def test_broken_or_hostile_captions_are_named(tmp_path, content, message):
    write(tmp_path / "captions.csv", content)
    with pytest.raises(RowError, match=message):
        read_captions(tmp_path / "captions.csv")


def test_rows_without_a_text_are_left_out_and_logged(folder, monkeypatch):
    warned = []
    monkeypatch.setattr("datasets_scripts.text2shape_captions.logger.warning", lambda *message: warned.append(message))
    write(folder / "captions.tablechair.csv", CSV + f"8,{IDS['b']}, ,Table,{TABLE},{TABLE}\n")
    assert read_captions(folder / "captions.tablechair.csv")[IDS["b"]].captions == CAPTIONS[IDS["b"]]
    assert [message[1] for message in warned] == [1]


def endless_pipe(path, line):
    os.mkfifo(path)

    def feed():
        try:
            with open(path, "wb") as pipe:
                pipe.write(CSV.splitlines()[0].encode() + b"\n")
                number = 0
                while True:
                    pipe.write(line % number)
                    number += 1
        except BrokenPipeError:
            return

    threading.Thread(target=feed, daemon=True).start()


def test_an_endless_pipe_is_stopped_by_the_row_limit(folder, load):
    write_lists(folder)
    write_pictures(folder, "voxels")
    (folder / "captions.tablechair.csv").unlink()
    endless_pipe(folder / "captions.tablechair.csv", b"%d,a,text,Chair,03001627,03001627\n")
    with pytest.raises(RowError, match=r"csv:501: expected at most `max_rows`=500 rows"):
        load(max_rows=500)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.txt", b"../../etc\n", r"train.txt:1: a model id must be letters, .*got '../../etc'"),
        ("train.txt", b"a\0b\n", "train.txt:1: expected text, got a NUL"),
        ("train.txt", b"ok\n\xff\n", "train.txt:2: expected UTF-8"),
        ("train.txt", pickle.dumps(["a"]), "train.txt:1: expected (UTF-8|text)"),
        ("val.txt", IDS["a"].encode(), rf"model `{IDS['a']}` is in 'validation' and 'train'"),
        (
            "train.json",
            b"[]",
            r"must hold the 'tricolo' split in one form, got \['train.txt'.*as well as \['train.json'",
        ),
    ],
)
def test_broken_lists_are_named(folder, load, name, content, message):
    write_lists(folder)
    write_pictures(folder, "voxels")
    write(folder / name, content)
    with pytest.raises(RowError, match=message):
        load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}', r"expected '\['"),
        (b"[1]", "item 0: expected a model id or an object with `model_id`, got '1'"),
        (b'[{"model_id": 3}]', "item 0: expected a model id"),
        (b'[{"model_id": "../x"}]', "item 0: a model id must be letters"),
        (b'["a"', "expected '[]]'"),
        (b"[" * 100_000, "expected a JSON value"),
        (b'["a", ' * 3 + b"1e999999", "expected a JSON value|expected a model id"),
    ],
)
def test_broken_json_lists_are_named(folder, load, content, message):
    write_tricolo(folder, [IDS["a"]], [], [])
    write_pictures(folder, "voxels")
    write(folder / "chair_table/preprocessed/exp_data/val_map.json", content)
    with pytest.raises(RowError, match=message):
        load()


@pytest.mark.parametrize("kind", ["views", "meshes", "voxels"])
def test_links_out_of_the_folder_are_refused_and_a_linked_folder_is_not(tmp_path, folder, load, kind):
    write_lists(folder)
    write_pictures(tmp_path / "elsewhere", kind)
    for name in os.listdir(tmp_path / "elsewhere"):
        os.symlink(tmp_path / "elsewhere" / name, folder / name)
    assert len(load(split="train")) == 2
    picture = next(path for path in (tmp_path / "elsewhere").rglob("*") if path.suffix in (".jpg", ".obj", ".nrrd"))
    picture.unlink()
    os.symlink("/dev/zero" if kind != "views" else Image.__file__, picture)
    with pytest.raises(RowError, match=r"must lie inside '.*', got a link out of it" if kind != "views" else "."):
        load()


def test_captions_and_lists_that_are_links_out_of_the_folder_are_refused(folder, load):
    write_lists(folder)
    write_pictures(folder, "voxels")
    for name in ("captions.tablechair.csv", "train.txt"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        os.symlink("/etc/passwd", folder / name)
        with pytest.raises(RowError, match=rf"{name}' must lie inside '.*data', got a link out of it"):
            load()
        (folder / name).unlink()
        write(folder / name, content)


@pytest.mark.parametrize(
    ("materials", "message"),
    [
        ("newmtl red\nKd 1 0 0\nmap_Kd /etc/passwd\n", "'/etc/passwd' must lie inside"),
        ("newmtl red\nmap_Kd ../../../../captions.tablechair.csv\n", "captions.tablechair.csv' must lie inside"),
        ("newmtl red\nmap_Kd pipe.png\n", "pipe.png' must be a regular file"),
        ("newmtl red\nmap_Kd bomb.png\n", "bomb.png' may have at most 16777216 pixels as a texture, got 36000000"),
    ],
)
def test_textures_from_elsewhere_and_bombs_are_refused(folder, load, materials, message):
    write_lists(folder)
    write_pictures(folder, "meshes")
    models = folder / "ShapeNetCore.v2" / CHAIR / IDS["a"] / "models"
    write(models / "model_normalized.mtl", materials)
    os.mkfifo(models / "pipe.png")
    Image.new("1", (6000, 6000)).save(models / "bomb.png")
    with pytest.raises(RowError, match=message):
        load()


def test_a_texture_may_lie_in_the_models_folder_and_a_missing_one_leaves_the_colour(folder, load):
    write_lists(folder)
    write_pictures(folder, "meshes")
    model = folder / "ShapeNetCore.v2" / CHAIR / IDS["a"]
    textured = (
        OBJ.replace("usemtl", "vt 0.5 0.5\nusemtl")
        .replace("f 1 2 3", "f 1/1 2/1 3/1")
        .replace("f 1 2 4", "f 1/1 2/1 4/1")
    )
    textured = textured.replace("f 1 3 4", "f 1/1 3/1 4/1").replace("f 2 3 4", "f 2/1 3/1 4/1")
    write(model / "models/model_normalized.obj", textured)
    write(model / "models/model_normalized.mtl", "newmtl red\nKd 1 0 0\nmap_Kd ../images/texture0.png\n")
    assert (np.asarray(load(split="train")[0]["images"][0])[..., 1] < 5).any(), "red without the texture"
    (model / "images").mkdir()
    Image.new("RGB", (2, 2), (0, 255, 0)).save(model / "images/texture0.png")
    os.utime(model / "models/model_normalized.obj", (1, 1))
    assert (np.asarray(load(split="train")[0]["images"][0])[..., 0] < 5).any(), "green with it"


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("voxels", nrrd_of(cube() * 0), "must have a filled voxel"),
        ("voxels", nrrd_of(cube())[:-30], "download the file again"),
        (
            "voxels",
            nrrd_of((np.indices((128, 128, 128)).sum(0) % 2 * 255)[..., None].repeat(4, 3).astype(np.uint8)),
            "sides",
        ),
        ("meshes", "v 0 0 0\n", "no triangles|can't be read as a mesh"),
        ("meshes", OBJ.replace("v 1 0 0", "v 1e300 0 0"), "must lie within|can't be read as a mesh"),
        ("meshes", OBJ.replace("f 1 2 3", "f 1 2 99999999999"), "can't be read as a mesh"),
        ("views", b"\xff\xd8\xff", "image '.*0.jpg' doesn't decode"),
    ],
)
def test_broken_pictures_are_named_with_their_instance(folder, load, kind, content, message):
    write_lists(folder)
    write_pictures(folder, kind)
    suffix = {"voxels": ".nrrd", "meshes": ".obj", "views": ".jpg"}[kind]
    for path in folder.rglob(f"*{suffix}"):
        if IDS["a"] in str(path):
            write(path, content)
    with pytest.raises(RowError, match=message) as caught:
        load()
    assert IDS["a"] in str(caught.value)


def write_primitives(root, kinds=("box-red-h20-r20", "cone-blue-h100-r50")):
    for number, kind in enumerate(kinds):
        for sample in (1, 2, 10):
            write(root / kind / f"{kind}-{sample}.nrrd", nrrd_of(cube((200 * number, 0, 200))))
        write(root / kind / f"{kind}.txt", f"a {kind}\n\nAN ODD  {kind}\r\n")


def test_primitives_share_the_captions_and_the_split_of_their_folder(folder, load):
    write_primitives(folder / "primitives/primitives.v2")
    rows = [row | {"split": split} for split, part in load("primitives").items() for row in part]
    assert [row["model_id"] for row in rows if row["category"] == "box-red-h20-r20"] == [
        "box-red-h20-r20-1", "box-red-h20-r20-2", "box-red-h20-r20-10",
    ]  # fmt: skip
    for row in rows:
        kind = row["category"]
        assert row["captions"] == [f"a {kind}", f"AN ODD  {kind}"]
        assert (row["instance_id"], row["split"], len(row["images"])) == (
            f"{kind}/{row['model_id']}",
            split_of(kind),
            2,
        )


def test_primitives_follow_lists_of_folders_or_files(folder, load):
    write_primitives(folder / "primitives.v2")
    write_lists(folder, ["box-red-h20-r20"], ["cone-blue-h100-r50-2.nrrd"])
    splits = load("primitives", ignored_models=["box-red-h20-r20-1"])
    assert {split: list(part["model_id"]) for split, part in splits.items()} == {
        "train": ["box-red-h20-r20-2", "box-red-h20-r20-10"], "validation": ["cone-blue-h100-r50-2"],
    }  # fmt: skip


def test_missing_primitives_and_descriptions_are_named(folder, load):
    with pytest.raises(
        RowError, match=r"Folders of primitives, .*were looked for in .*primitives.v2.*get `primitives` from"
    ):
        load("primitives")
    write_primitives(folder / "primitives.v2")
    (folder / "primitives.v2/box-red-h20-r20/box-red-h20-r20.txt").unlink()
    with pytest.raises(RowError, match=r"box-red-h20-r20' must hold one `\*.txt` of descriptions, got \[\]"):
        load("primitives")


needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="the true files of Text2Shape can't be passed on")


@needs_samples
def test_the_true_captions_parse_verbatim():
    path = SAMPLES / "raw_csv_head/captions.tablechair.head.csv"
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    models = read_captions(path)
    assert len(rows) == 31 == sum(len(model.captions) for model in models.values())
    for model_id, model in models.items():
        assert model.captions == [row["description"] for row in rows if row["modelId"] == model_id]
        assert model.captions[0] in path.read_text(encoding="utf-8")
    assert {len(model_id) for model_id in models} == {31, 32}


@needs_samples
def test_the_true_voxels_and_meshes_build(tmp_path, folder, load):
    voxels = SAMPLES / "maxim0815_text2shape/test/test_shapes"
    shutil.copy(SAMPLES / "raw_csv_head/captions.tablechair.head.csv", folder / "captions.tablechair.csv")
    write_lists(folder, os.listdir(voxels), ())
    rows = load(split="train", pictures="voxels", pictures_dir=str(voxels), num_views=12, image_size=32)
    assert len(rows) == 11
    for row in rows:
        pictures = np.stack([np.asarray(image) for image in row["images"]])
        assert pictures.shape == (12, 32, 32, 3)
        assert ((pictures < 250).any(axis=3).mean(axis=(1, 2)) > 0.05).all(), "a shape fills some of each view"
    meshes = {"a682c4bf731e3af2ca6a405498436716": CHAIR, "8106aef3eb88f9e4578defb131c3ea1d": TABLE}
    lines = [f"{n},{i},a,{'Chair' if s == CHAIR else 'Table'},{s},{s}" for n, (i, s) in enumerate(meshes.items())]
    write(folder / "captions.tablechair.csv", "\n".join([CSV.splitlines()[0], *lines]))
    write_lists(folder, meshes, ())
    pictures_dir = str(SAMPLES / "visualizing_text2shape/input_examples")
    chair, table = load(split="train", pictures="meshes", pictures_dir=pictures_dir, num_views=12, image_size=32)
    brown, white = (np.median(inside(row["images"]), axis=0) for row in (chair, table))
    assert brown[0] > 1.5 * brown[1] > 3 * brown[2], "Kd 0.545 0.271 0.075"
    assert np.ptp(white) == 0, "Kd 1 1 1"


def inside(images):
    pixels = np.stack([np.asarray(image) for image in images]).reshape(-1, 3).astype(int)
    return pixels[(pixels < 250).all(axis=1)]
