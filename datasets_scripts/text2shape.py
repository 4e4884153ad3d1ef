"""Text2Shape: captions of ShapeNet's chairs and tables, joined with views, meshes or voxels; and its primitives."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import Features

from .listed_rows import Listed, ListedBuilder, ListedConfig, listed_row, row_of
from .meshes import ColouredMesh, load_mesh, voxels_to_mesh
from .nrrd import read_nrrd
from .raw_files import check_inside
from .raw_images import ImageRef
from .raw_text import RawRow
from .rendering import MAX_SIZE, MAX_VIEWS, render_views
from .schema import RowError, split_of
from .shapes import png
from .text2shape_captions import Described, normalised, read_captions, read_descriptions
from .text2shape_files import (
    BASES,
    PROJECT,
    SOURCES,
    SPLIT_FOLDERS,
    by_number,
    description_file,
    existing,
    files_of,
    find_captions,
    find_pictures,
    primitive_folders,
)
from .text2shape_splits import (
    PICKLE_SUFFIXES,
    PROTOCOLS,
    check_id,
    check_lists_found,
    checked_id,
    find_lists,
    read_ids,
    read_splits,
)

VERSION = "1.0.0"
MAX_OBJ_BYTES = 3 * 2**23  # which takes up to 0.7 GB of memory to read
MAX_NAMED = 10  # of the models that lack something


@dataclass
class Text2ShapeConfig(ListedConfig):
    """Settings of `Text2Shape`; paths are relative to `data_dir`."""

    version: str = VERSION
    captions_file: str | None = None  # where it isn't called `captions.tablechair.csv`
    splits_dir: str | None = None  # the folder of the split lists, where it isn't found
    ignored_models: str | Iterable[str] = ()  # ids, or a file that lists them
    pictures: str | None = None  # views, meshes or voxels; None takes the first of them that is there
    pictures_dir: str | None = None  # their folder, where it isn't found
    skip_missing: bool = False  # leave out models without pictures rather than stop
    image_size: int = 128  # of rendered views; views that are there stay as they are
    num_views: int = 12  # likewise
    normalise_captions: bool = False

    def create_config_id(self, config_kwargs: dict[str, object], custom_features: Features | None = None) -> str:
        """The cache's name."""
        if self.name not in PROTOCOLS:  # `datasets` takes any name once there are settings
            raise ValueError(f"`config` must be one of {list(PROTOCOLS)}, the protocol to follow, got {self.name!r}.")
        for name, most in (("image_size", MAX_SIZE), ("num_views", MAX_VIEWS)):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"`{name}` must be a whole number within 1 and {most}, got {value!r}.")
        if self.pictures not in (None, *SOURCES):
            raise ValueError(f"`pictures` must be None or one of {list(SOURCES)}, got {self.pictures!r}.")
        if self.pictures_dir and not self.pictures:
            raise ValueError(f"`pictures` must say what `pictures_dir` holds, one of {list(SOURCES)}, got None.")
        return super().create_config_id(config_kwargs, custom_features)

    def list_folder(self, folder: Path) -> Iterator[Listed]:
        """The data set's instances."""
        list_rows = list_primitives if self.name == "primitives" else list_models
        return (listed_row(raw, folder) for raw in list_rows(self, folder))


class Text2Shape(ListedBuilder):
    """Text2Shape from the files of its archives, by one of two protocols, or its primitives.

    - `tricolo`: the split of the Text2Shape paper, which TriCoLo uses. Lists: TriCoLo's `{train,val,test}_map.json`, or
      `{train,val,test}.txt` or `.json` with the model ids.
    - `parts2words`: the split of Parts2Words, COM3D and SCA3D, `{train,test}_{03001627,04379243}.txt`.
    - `primitives`: each NRRD file with the descriptions that its folder shares. Lists as of `tricolo`, of folders or of
      files; without them, the split is `split_of` the folder.

    Models that no list has, and listed models without captions, are left out, as both protocols do. Further columns:
    `model_id`, `synset_id`, `sub_synset_id`, and `source`, which says what the images were made from.
    """

    BUILDER_CONFIG_CLASS = Text2ShapeConfig
    BUILDER_CONFIGS = [  # noqa: RUF012 (the base class declares it so)
        Text2ShapeConfig(name="tricolo", description="Chairs and tables of Text2Shape, split as by TriCoLo."),
        Text2ShapeConfig(name="parts2words", description="Chairs and tables of Text2Shape, split as by Parts2Words."),
        Text2ShapeConfig(name="primitives", description="The primitives of Text2Shape."),
    ]

    def _generate_examples(self, listed: list[Listed]) -> Iterator[tuple[str, dict[str, object]]]:
        for instance in listed:
            read = MESH_READERS.get(str(instance.extra["source"]))
            images = [] if read else instance.images
            row = row_of(instance._replace(images=images), self.info.features, self.config.max_pixels)
            yield instance.instance_id, row | ({"images": self._render(instance, read)} if read else {})

    def _render(self, instance: Listed, read: Callable[[Path], ColouredMesh]) -> list[dict[str, object]]:
        """The views of an instance's shape, as PNG files."""
        try:
            views = render_views(read(Path(instance.images[0].file)), self.config.num_views, self.config.image_size)
        except ValueError as error:
            raise RowError(
                f"{instance.place}, instance `{instance.instance_id}`: {error} Or put it on `ignored_models`."
            ) from error
        name = instance.instance_id.replace("/", "-")
        return [{"bytes": png(view), "path": f"{name}-{place:02d}.png"} for place, view in enumerate(views)]


def mesh_of_model(path: Path) -> ColouredMesh:
    """The mesh of an OBJ file; its materials and textures may lie anywhere in the model's folder."""
    in_shapenet = path.parent.name == "models"
    return load_mesh(path, folder=path.parent.parent if in_shapenet else path.parent, max_bytes=MAX_OBJ_BYTES)


def mesh_of_voxels(path: Path) -> ColouredMesh:
    """The cubes of an NRRD file."""
    return voxels_to_mesh(read_nrrd(path))


MESH_READERS: dict[str, Callable[[Path], ColouredMesh]] = {"meshes": mesh_of_model, "voxels": mesh_of_voxels}


def list_models(config: Text2ShapeConfig, folder: Path) -> Iterator[RawRow]:
    """The place and the row of each chair and table that the protocol's lists have."""
    captions = find_captions(folder, config.captions_file)
    models = read_captions(captions, config.max_rows)
    splits, ignored = find_splits(config, folder), ignored_ids(config, folder)
    chosen = [model for id_, model in models.items() if id_ in splits and id_ not in ignored and model.captions]
    if not chosen:
        raise RowError(
            f"None of the {len(splits)} models on the split's lists has a caption in '{captions}'; use both whole."
        )
    source, root = find_pictures(folder, config.pictures, config.pictures_dir)
    files = {model.model_id: files_of(source, root, model) for model in chosen}
    check_missing([model_id for model_id, found in files.items() if not found], len(chosen), source, root, config)
    for model in chosen:
        if files[model.model_id]:
            row = model_row(model, splits[model.model_id], source, files[model.model_id])
            yield model.place, row | {"captions": worded(model.captions, config)}


def check_missing(missing: list[str], total: int, source: str, root: Path, config: Text2ShapeConfig) -> None:
    """Raise RowError if models lack pictures, unless these shall be left out and others remain."""
    if missing and (not config.skip_missing or len(missing) == total):
        raise RowError(
            f"{len(missing)} of {total} models have no {source} in '{root}', looked for as {list(SOURCES[source].layouts)}: "
            f"{', '.join(missing[:MAX_NAMED])}{' …' * (len(missing) > MAX_NAMED)}; get them from {SOURCES[source].origin}, "
            "put them on `ignored_models`, or leave them out with `skip_missing=True`."
        )


def worded(captions: list[str], config: Text2ShapeConfig) -> list[str]:
    """The captions as they are written, or normalised if that is asked for."""
    return [normalised(caption) for caption in captions] if config.normalise_captions else captions


def model_row(model: Described, split: str, source: str, files: list[ImageRef]) -> dict[str, object]:
    """The row of a chair or table."""
    return {
        "instance_id": model.model_id,
        "images": files,
        "category": model.category,
        "split": split,
        "model_id": model.model_id,
        "synset_id": model.synset_id,
        "sub_synset_id": model.sub_synset_id,
        "source": source,
    }


def find_splits(config: Text2ShapeConfig, folder: Path) -> dict[str, str]:
    """The split of each model that the protocol's lists have; empty for primitives without lists.

    Raises:
        RowError: If a protocol's lists aren't there, or broken.
    """
    folders = [folder / base / name for base in BASES for name in SPLIT_FOLDERS]
    if config.splits_dir:
        folders = [existing(folder / config.splits_dir, "splits_dir", "a folder of split lists", PROJECT)]
    lists = find_lists(config.name, folders)
    if config.name != "primitives":
        check_lists_found(lists, config.name, folders)
    return read_splits(lists or {})


def ignored_ids(config: Text2ShapeConfig, folder: Path) -> set[str]:
    """The models to leave out."""
    if not isinstance(config.ignored_models, str):
        return {checked_id(str(model_id), "`ignored_models`") for model_id in config.ignored_models}
    path = folder / config.ignored_models
    if path.suffix.lower() not in PICKLE_SUFFIXES:
        existing(
            path, "ignored_models", "ids or a file that lists them", "whoever published the results to compare with"
        )
    return {model_id for _, model_id in read_ids(path)}


def list_primitives(config: Text2ShapeConfig, folder: Path) -> Iterator[RawRow]:
    """The place and the row of each primitive."""
    splits, ignored = find_splits(config, folder), ignored_ids(config, folder)
    for kind in primitive_folders(folder, config.pictures_dir):
        captions = worded(read_descriptions(description_file(kind), config.max_rows), config)
        for path in sorted(kind.glob("*.nrrd"), key=by_number):
            check_inside(path, kind)
            model_id, category = check_id(path.stem, f"'{path}'"), kind.name
            split = splits.get(model_id, splits.get(category)) if splits else split_of(category)
            if split and not ignored & {model_id, category}:
                yield f"'{path}'", primitive_row(path, model_id, category, captions, split)


def primitive_row(path: Path, model_id: str, category: str, captions: list[str], split: str) -> dict[str, object]:
    """The row of a primitive."""
    return {
        "instance_id": f"{category}/{model_id}",
        "images": [ImageRef(str(path), f"{category}/{path.name}")],
        "captions": captions,
        "category": category,
        "split": split,
        "model_id": model_id,
        "source": "voxels",
    }
