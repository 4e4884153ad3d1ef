"""Any multifold data set, built into a folder of Parquet files with a data card, and pushed to the Hub."""

import argparse
import hashlib
import json
import os
import shlex
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from math import ceil
from pathlib import Path

from datasets import BuilderConfig, DatasetDict, DatasetInfo, IterableDataset, IterableDatasetDict
from datasets.utils import logging
from huggingface_hub import HfApi

from .data_card import CARD_FILES, Built, write_card
from .loading import BUILDERS, load_multifold
from .multifold_folder import MultifoldFolder, is_multifold_folder
from .parquet_shards import PARTIAL, instance_ids, plan_shards, write_shards
from .schema import check_unique

FORMAT = 1  # raise it whenever the same rows begin to be stored in another way: old builds then start over
ROWS_PER_SHARD = 500
MANIFEST = "build.json"
DATA = "data"
PUSHED = [*CARD_FILES, f"{DATA}/*.parquet"]

EXAMPLES = """\
examples:
  python -m datasets_scripts.build shapes --num_shapes 200 --output built/shapes --num_proc 2
      the embedded shapes; every setting of a data set is a flag, and DATASET --help lists them

  python -m datasets_scripts.build path/to/folder --output built/mine --license cc-by-4.0 --push_to_hub me/mine
      a folder of your own, published; load_dataset("me/mine") then gives anyone its rows

The folder gets data/*.parquet, README.md (the data card), fold_sizes.png and samples.png. Look at the pictures before
you push. An interrupted build goes on where it stopped when the same command runs again; with another setting, or
after a change of the raw data, it starts over and says so. The raw data is never changed.
"""

logger = logging.get_logger(__name__)


def build(
    dataset: str,
    output: str | Path,
    *,
    config: str | None = None,
    num_proc: int = 1,
    rows_per_shard: int = ROWS_PER_SHARD,
    license: str | None = None,
    **settings: object,
) -> Path:
    """Build a data set into a folder that `datasets.load_dataset` reads, or go on with what was interrupted there.

    Args:
        dataset: What `load_multifold` takes.
        output: The folder: new, empty or of an earlier build.
        config: The configuration of that name.
        num_proc: Processes to build with.
        rows_per_shard: Rows of a file, at most. A file is the unit of work, and the most that an interruption loses.
        license: The licence, an id of the Hub, in place of what the data set itself states.
        **settings: Settings of the builder.

    Returns:
        The folder.

    Raises:
        ValueError: If a setting can't be, the folder holds something else, or the data set is broken (`RowError`).
    """
    folder = Path(output)
    check_counts(num_proc=num_proc, rows_per_shard=rows_per_shard)
    check_output(folder)
    splits = load_streams(dataset, config, rows_per_shard, settings)
    if not splits:
        raise ValueError(f"`dataset` must have rows, '{dataset}' has none with these settings; change them.")
    recipe = {"dataset": dataset, "config": config, "settings": settings, "rows_per_shard": rows_per_shard}
    prepare_output(folder, identity_of(recipe, splits, folder))
    shards = plan_shards(splits, folder / DATA, rows_per_shard)
    write_shards(shards, num_proc)
    check_unique(instance_ids(shard.path for shard in shards))
    paths = {split: sorted((folder / DATA).glob(f"{split}-*.parquet")) for split in splits}
    write_card(folder, Built(dataset, config, settings, info_of(splits), shards[0].features, license, paths))
    return folder


def load_streams(
    dataset: str, config: str | None, rows_per_shard: int, settings: Mapping[str, object]
) -> Mapping[str, IterableDataset]:
    """The data set's splits, to be read row by row.

    Where rows are grouped by an id they are first loaded whole: a stream would need those of an instance together.
    """
    options = typing.cast("dict[str, typing.Any]", settings)
    if "instance_column" not in settings:
        return typing.cast(IterableDatasetDict, load_multifold(dataset, config=config, streaming=True, **options))
    loaded = typing.cast(DatasetDict, load_multifold(dataset, config=config, **options))
    return {
        split: rows.to_iterable_dataset(num_shards=ceil(len(rows) / rows_per_shard)) for split, rows in loaded.items()
    }


def check_counts(**counts: int) -> None:
    """Raise ValueError unless all are whole numbers from 1."""
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"`{name}` must be a whole number from 1, got {count!r}.")


def check_output(folder: Path) -> None:
    """Raise ValueError if the folder holds anything but a build."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`output` must be a folder, got the file '{folder}'.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise ValueError(f"`output` must be new, empty or a build's, '{folder}' holds other files; name another.")


def prepare_output(folder: Path, identity: dict[str, object]) -> None:
    """Make the folder ready: files of the same build stay, those of another go.

    The manifest is written before the first file and names what that file belongs to.
    """
    manifest, data = folder / MANIFEST, folder / DATA
    data.mkdir(parents=True, exist_ok=True)
    stale = list(data.glob(f"*{PARTIAL}"))
    if manifest.is_file() and read_manifest(manifest) != identity:
        logger.warning("The settings or the raw data have changed since '%s' was built; it starts over.", folder)
        stale += data.glob("*.parquet")
    for path in stale:
        path.unlink()
    half = manifest.with_name(MANIFEST + PARTIAL)
    half.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
    half.replace(manifest)


def read_manifest(manifest: Path) -> object:
    """What a manifest holds; None where it is broken."""
    try:
        return json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        return None


def identity_of(
    recipe: Mapping[str, object], splits: Mapping[str, IterableDataset], output: Path
) -> dict[str, object]:
    """All that decides what the files hold, as JSON: the settings, the builder's version, the state of the raw data."""
    info = info_of(splits)
    builder = [info.builder_name, info.config_name, str(info.version)]
    settings = typing.cast("Mapping[str, object]", recipe["settings"])
    states = list(raw_data_states(str(recipe["dataset"]), settings, output))
    identity = {"format": FORMAT, **recipe, "builder": builder, "raw_data": states}
    return typing.cast("dict[str, object]", json.loads(json.dumps(identity, default=str)))


def info_of(splits: Mapping[str, IterableDataset]) -> DatasetInfo:
    """What a data set says of itself, the same in all its splits."""
    return typing.cast(DatasetInfo, next(iter(splits.values())).info)


def raw_data_states(dataset: str, settings: Mapping[str, object], output: Path) -> Iterator[str]:
    """A hash of every file or folder that the data set is read from, and the commit of one that the Hub has."""
    places = [str(value) for value in settings.values() if isinstance(value, str | Path)]
    if dataset not in BUILDERS and not Path(dataset).exists():
        yield str(HfApi().dataset_info(dataset, revision=typing.cast("str | None", settings.get("revision"))).sha)
    elif dataset not in BUILDERS:
        places.append(dataset)
    for place in sorted(places):
        if Path(place).exists():
            yield state_of(Path(place), output)


def state_of(place: Path, output: Path) -> str:
    """A hash of the names, sizes and times of all files in a folder, or of one file, but of those in `output`."""
    state = hashlib.sha256()
    for path in [place] if place.is_file() else sorted(files_below(place, output.resolve())):
        file = path.stat()
        state.update(f"{path.relative_to(place.parent)} {file.st_size} {file.st_mtime_ns}\n".encode(errors="replace"))
    return state.hexdigest()


def files_below(folder: Path, left_out: Path) -> Iterator[Path]:
    """All files in a folder and the folders in it."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if (Path(parent) / name).resolve() != left_out]
        yield from (path for name in files if (path := Path(parent) / name).exists())


def push(folder: Path, repo_id: str, private: bool = False) -> str:
    """Upload a built folder to the Hub, as whoever is logged in there, and return the address of the commit.

    Files of an earlier build that are there are removed in the same commit.
    """
    api = HfApi()
    repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
    commit = api.upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=folder,
        allow_patterns=PUSHED,
        delete_patterns=[f"{DATA}/*.parquet"],
        commit_message="Upload the data set",
    )
    return str(commit.commit_url)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, object]]:
    """The command line: what holds for every data set, and the settings of this one."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets_scripts.build",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    known = ", ".join(sorted(BUILDERS))
    parser.add_argument("dataset", help=f"One of {known}; a folder of your own; or an id on the Hub.")
    parser.add_argument("--config", help="Configuration of the data set, where it has several.")
    parser.add_argument(
        "--output", type=Path, required=True, help="Folder to build into: new, or of an earlier build."
    )
    parser.add_argument("--num_proc", type=int, default=1, help="Processes to build with. Default: 1.")
    parser.add_argument(
        "--rows_per_shard", type=int, default=ROWS_PER_SHARD, help=f"Rows of a file. Default: {ROWS_PER_SHARD}."
    )
    parser.add_argument("--license", help="Its licence as the Hub calls it, such as cc-by-4.0, for the data card.")
    parser.add_argument("--push_to_hub", metavar="ORG/NAME", help="Upload it there once it is built; log in first.")
    parser.add_argument("--private", action="store_true", help="Make a new repository on the Hub a private one.")
    dataset = dataset_in(arguments)
    flags = setting_flags(dataset)
    group = parser.add_argument_group(
        f"settings of {dataset}" if flags else "settings: name a data set to see its own"
    )
    for field in flags:
        add_flag(group, field)
    names = [field.name for field in flags]
    if dataset not in BUILDERS:
        names += add_column_flags(parser)
    chosen = parser.parse_args(arguments)
    return chosen, {name: getattr(chosen, name) for name in names if hasattr(chosen, name)}


def dataset_in(arguments: Sequence[str]) -> str:
    """The data set that a command line names, wherever: its first word that is neither a flag nor a flag's value."""
    for former, argument in zip(["", *arguments], arguments, strict=False):
        if not argument.startswith("-") and (former == "--private" or not former.startswith("-")):
            return argument
    return ""


def add_column_flags(parser: argparse.ArgumentParser) -> list[str]:
    """Add the flags that make a data set with other columns one of ours, and return their names."""
    group = parser.add_argument_group("a data set with other columns")
    group.add_argument(
        "--instance_column", default=argparse.SUPPRESS, help="Rows that share the value here become one instance."
    )
    for kind in ("image", "caption"):
        group.add_argument(
            f"--{kind}_columns", nargs="+", default=argparse.SUPPRESS, help=f"Columns with its {kind}s, one or a list."
        )
    return ["instance_column", "image_columns", "caption_columns"]


def setting_flags(dataset: str) -> list[Field[object]]:
    """The settings of a data set's builder that a command line can give."""
    if dataset in BUILDERS:
        builder = BUILDERS[dataset]
    elif is_multifold_folder(Path(dataset)):
        builder = MultifoldFolder
    else:
        return []
    taken = {field.name for field in fields(BuilderConfig)} - {"data_dir"}
    taken |= {"data_dir"} if builder is MultifoldFolder else set()  # it is the data set's name
    settings = fields(builder.BUILDER_CONFIG_CLASS)
    return [field for field in settings if field.init and field.name not in taken and flag_type(field)]


def flag_type(field: Field[object]) -> type[bool | int | float | str] | None:
    """What a flag's value is, or each value of it: the scalar of `int`, `str | None`, `tuple[str, ...]`; else None."""
    options = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
    (option, *others) = [option for option in options if option is not type(None)]
    if typing.get_origin(option) is tuple:
        option = typing.get_args(option)[0]
    return option if not others and option in (int, float, str, bool) else None


def add_flag(group: argparse._ArgumentGroup, field: Field[object]) -> None:
    """Add the flag of a setting; where it isn't given, the builder's own default holds."""
    default = None if field.default is MISSING else field.default
    text = f"{field.metadata.get('help', '')} Default: {default}.".strip().replace("%", "%%")
    kind = flag_type(field)
    if kind is None or kind is bool:
        group.add_argument(
            f"--{field.name}", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
        )
        return
    nargs = "+" if typing.get_origin(field.type) is tuple else None
    group.add_argument(f"--{field.name}", type=kind, nargs=nargs, default=argparse.SUPPRESS, help=text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build a data set, and push it where that was asked for."""
    chosen, settings = parse(sys.argv[1:] if arguments is None else arguments)
    options = {name: getattr(chosen, name) for name in ("config", "num_proc", "rows_per_shard", "license")}
    try:
        folder = build(chosen.dataset, chosen.output, **typing.cast("dict[str, typing.Any]", options | settings))
    except ValueError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    sys.stdout.write(f"Built '{folder}'; read {shlex.quote(str(folder / 'README.md'))} and look at its pictures.\n")
    if chosen.push_to_hub:
        sys.stdout.write(f"Pushed: {push(folder, chosen.push_to_hub, chosen.private)}\n")


if __name__ == "__main__":
    main()
