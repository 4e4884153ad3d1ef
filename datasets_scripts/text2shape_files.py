"""Where the files of Text2Shape lie, in the folders of its archives and of TriCoLo."""

import re
from pathlib import Path
from typing import NamedTuple

from .raw_files import check_inside
from .raw_images import ImageRef
from .rendering import MAX_VIEWS
from .schema import RowError
from .text2shape_captions import Described
from .text2shape_splits import check_id

PROJECT = "http://text2shape.stanford.edu"
CAPTIONS_FILE = "captions.tablechair.csv"

# Where the archives put things when they are unpacked, and TriCoLo its own.
BASES = ("", "chair_table", "shapenet", "text2shape-data", "text2shape-data/chair_table", "text2shape-data/shapenet")
SPLIT_FOLDERS = ("", "preprocessed/exp_data", "split_shape_captioner")
PRIMITIVE_FOLDERS = (
    "primitives.v2",
    "primitives/primitives.v2",
    "text2shape-data/primitives/primitives.v2",
    "primitives",
    "",
)
VIEW_NAME = re.compile(r"([0-9]{1,4})\.(jpe?g|png)", re.ASCII)


class PictureSource(NamedTuple):
    """One kind of file that a model's views come from."""

    folders: tuple[str, ...]
    layouts: tuple[str, ...]  # of a model in the folder, the first that exists
    origin: str


SOURCES = {
    "views": PictureSource(
        ("preprocessed/multiview_imgs", "multiview_imgs"),
        ("{synset}/{model_id}",),
        "`data/preprocess_all_data.py` of https://github.com/3dlg-hcvc/tricolo, which renders them",
    ),
    "meshes": PictureSource(
        ("ShapeNetCore.v2", "ShapeNetCore.v1"),
        (
            "{synset}/{model_id}/models/model_normalized.obj",
            "{synset}/{model_id}/model.obj",
            "{category}/{model_id}.obj",
            "{model_id}.obj",
        ),
        "https://huggingface.co/datasets/ShapeNet/ShapeNetCore",
    ),
    "voxels": PictureSource(
        tuple(f"nrrd_256_filter_div_{side}_solid" for side in (32, 64, 128)),
        ("{model_id}/{model_id}.nrrd", "{model_id}.nrrd"),
        PROJECT,
    ),
}


def find_captions(folder: Path, chosen: str | None) -> Path:
    """The captions' file, the chosen one or where the archives have it.

    Raises:
        RowError: If it isn't there, or a link out of the folder.
    """
    if chosen:
        return existing(folder / chosen, "captions_file", "a CSV file of captions", PROJECT)
    places = [folder / base / CAPTIONS_FILE for base in BASES]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise RowError(
            f"`{CAPTIONS_FILE}` was looked for in {[str(place.parent) for place in places]}, got none; get it from "
            f"{PROJECT}, or name it with `captions_file`."
        )
    check_inside(found, folder)
    return found


def existing(path: Path, setting: str, what: str, origin: str) -> Path:
    """The path that a setting names.

    Raises:
        RowError: If there is nothing.
    """
    if not path.exists():
        raise RowError(f"`{setting}` must be {what}, got '{path}', which isn't there; get it from {origin}.")
    return path


def find_pictures(folder: Path, chosen: str | None, chosen_dir: str | None) -> tuple[str, Path]:
    """Which pictures there are, and in which folder: the chosen ones, or those that are there.

    Raises:
        RowError: If there are none.
    """
    if chosen and chosen_dir:
        return chosen, existing(folder / chosen_dir, "pictures_dir", "a folder", SOURCES[chosen].origin)
    wanted = {chosen: SOURCES[chosen]} if chosen else SOURCES
    for name, source in wanted.items():
        for place in (folder / base / path for path in source.folders for base in BASES):
            if place.is_dir():
                return name, place
    looked_for = "; ".join(f"{name}: {list(source.folders)}, from {source.origin}" for name, source in wanted.items())
    raise RowError(
        f"Pictures were looked for in '{folder}' and its folders {list(BASES[1:])}, got none ({looked_for}); put one kind "
        "there, or name its folder with `pictures` and `pictures_dir`."
    )


def files_of(source: str, root: Path, model: Described) -> list[ImageRef]:
    """The files that a model's views come from: all views, or the mesh and its materials, or the grid.

    Raises:
        RowError: If one is a link out of the folder.
    """
    names = {"synset": model.synset_id.zfill(8), "model_id": model.model_id, "category": model.category.lower()}
    paths = (root / layout.format(**names) for layout in SOURCES[source].layouts)
    found = next((path for path in paths if path.exists()), None)
    if found is None:
        return []
    files = view_files(found) if source == "views" else [found]
    if source == "meshes":
        files += sorted(found.parent.glob("*.mtl"))
    for path in files:
        check_inside(path, root)
    return [ImageRef(str(path), path.relative_to(root).as_posix()) for path in files]


def view_files(folder: Path) -> list[Path]:
    """A model's views in the order of their numbers."""
    numbered = [(int(found[1]), path) for path in folder.glob("*") if (found := VIEW_NAME.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)[:MAX_VIEWS] if path.is_file()]


def primitive_folders(folder: Path, chosen_dir: str | None) -> list[Path]:
    """The folders of primitives, in the chosen folder or where the archive has them.

    Raises:
        RowError: If there are none.
    """
    places = [folder / chosen_dir] if chosen_dir else [folder / name for name in PRIMITIVE_FOLDERS]
    for root in places:
        kinds = sorted(path for path in root.glob("*") if path.is_dir() and any(path.glob("*.nrrd")))
        for kind in kinds:
            check_inside(kind, root)
            check_id(kind.name, f"'{kind}'")
        if kinds:
            return kinds
    raise RowError(
        f"Folders of primitives, with `*.nrrd` and one `*.txt` each, were looked for in {[str(place) for place in places]}, "
        f"got none; get `primitives` from {PROJECT}, or name their folder with `pictures_dir` and `pictures='voxels'`."
    )


def description_file(kind: Path) -> Path:
    """The one text file in a folder of primitives.

    Raises:
        RowError: If there is another number of them.
    """
    found = sorted(kind.glob("*.txt"))
    if len(found) != 1:
        raise RowError(
            f"'{kind}' must hold one `*.txt` of descriptions, got {[path.name for path in found]}; get it from {PROJECT}."
        )
    check_inside(found[0], kind)
    return found[0]


def by_number(path: Path) -> tuple[int, str]:
    """An order in which file 2 comes before file 10."""
    return len(path.name), path.name
