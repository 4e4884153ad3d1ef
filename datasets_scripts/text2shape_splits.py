"""The published splits of Text2Shape, from plain lists of model ids; two protocols that are never mixed."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .raw_files import check_inside
from .raw_text import MAX_ROWS, JSONCursor, read_lines, read_text, shortened
from .schema import RowError

SPLIT_FILE_NAMES = {"train": "train", "validation": "val", "test": "test"}
SYNSETS = ("03001627", "04379243")  # chairs and tables
MODEL_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,199}", re.ASCII)
LISTED_ID = re.compile(r"(?:[0-9]{8}/)?(?P<model_id>[^/]*?)(?:\.nrrd)?", re.ASCII)
PICKLE_SUFFIXES = (".p", ".pickle", ".pkl")
CONVERSION = "python -m datasets_scripts.read_pickle {pickle} {list} --model_ids"


class SplitFiles(NamedTuple):
    """One form in which a protocol's split comes: the files of each split, all of which must be there."""

    files: dict[str, tuple[str, ...]]
    source: str


PLAIN_LISTS = [
    SplitFiles(
        {split: (f"{name}{suffix}",) for split, name in SPLIT_FILE_NAMES.items()}, "your own lists of model ids"
    )
    for suffix in (".txt", ".json")
]
PROTOCOLS = {
    "tricolo": [
        SplitFiles(
            {split: (f"{name}_map.json",) for split, name in SPLIT_FILE_NAMES.items()},
            "`data/preprocess_all_data.py` of https://github.com/3dlg-hcvc/tricolo",
        ),
        *PLAIN_LISTS,
    ],
    "parts2words": [
        SplitFiles(
            {split: tuple(f"{split}_{synset}.txt" for synset in SYNSETS) for split in ("train", "test")},
            "`split_shape_captioner` of https://github.com/JLUtangchuan/Parts2Words",
        )
    ],
    "primitives": PLAIN_LISTS,
}


def find_lists(protocol: str, folders: Sequence[Path]) -> dict[str, list[Path]] | None:
    """The protocol's list files by split, from the first folder that has any; None if none has.

    Raises:
        RowError: If a folder has some of them only, or two forms of them.
    """
    for folder in folders:
        forms = [form for form in PROTOCOLS[protocol] if any(present(form, folder))]
        if len(forms) > 1:
            raise RowError(
                f"'{folder}' must hold the '{protocol}' split in one form, got {names_of(forms[0])} as well as "
                f"{names_of(forms[1])}; move one of them away."
            )
        for form in forms:
            return complete(form, folder)
    return None


def present(form: SplitFiles, folder: Path) -> Iterator[Path]:
    """The files of a form that are there."""
    return (folder / name for names in form.files.values() for name in names if (folder / name).exists())


def names_of(form: SplitFiles) -> list[str]:
    """The names of a form's files."""
    return [name for names in form.files.values() for name in names]


def complete(form: SplitFiles, folder: Path) -> dict[str, list[Path]]:
    """All files of a form.

    Raises:
        RowError: If one is missing, or a link out of the folder.
    """
    missing = sorted(set(names_of(form)) - {path.name for path in present(form, folder)})
    if missing:
        raise RowError(f"'{folder}' lacks {missing} of {names_of(form)}; get them from {form.source}.")
    for path in present(form, folder):
        check_inside(path, folder)
    return {split: [folder / name for name in names] for split, names in form.files.items()}


def check_lists_found(lists: dict[str, list[Path]] | None, protocol: str, folders: Sequence[Path]) -> None:
    """Raise RowError if there are no lists; where others or pickles are, it says what they are good for."""
    if lists is not None:
        return
    forms = [f"{names_of(form)} ({form.source})" for form in PROTOCOLS[protocol]]
    hints = [*pickle_hints(folders), *other_protocols(protocol, folders)]
    raise RowError(
        f"The split '{protocol}' was looked for in {[str(folder) for folder in folders]}, as one of "
        f"{'; or '.join(forms)}, got none; put one there, or name its folder with `splits_dir`.{''.join(hints)}"
    )


def pickle_hints(folders: Sequence[Path]) -> Iterator[str]:
    """How to convert the pickles that lie there in place of lists."""
    for folder in folders:
        for name in SPLIT_FILE_NAMES.values():
            if (folder / f"processed_captions_{name}.p").exists():
                yield f" {pickle_advice(folder / f'processed_captions_{name}.p', folder / f'{name}.json')}"


def pickle_advice(pickle: Path, converted: Path) -> str:
    """How to get a list out of a pickle."""
    command = CONVERSION.format(pickle=pickle, list=converted)
    return f"'{pickle}' is a pickle, which could run code and is never read; convert it: `{command}`."


def other_protocols(protocol: str, folders: Sequence[Path]) -> Iterator[str]:
    """What else lies there: results on another split don't compare."""
    for other in sorted(set(PROTOCOLS) - {protocol, "primitives"}):
        if any(path for folder in folders for form in PROTOCOLS[other] for path in present(form, folder)):
            yield f" There is the split '{other}', which gives other results: choose it with `config='{other}'`."


def read_splits(lists: dict[str, list[Path]]) -> dict[str, str]:
    """The split of each listed model.

    Raises:
        RowError: If a list is broken, or two splits have the same model.
    """
    splits: dict[str, str] = {}
    for split, paths in lists.items():
        for path in paths:
            for place, model_id in read_ids(path):
                if splits.setdefault(model_id, split) != split:
                    raise RowError(
                        f"{place}: model `{model_id}` is in '{split}' and '{splits[model_id]}', and must be in one split "
                        "only; repair the lists."
                    )
    return splits


def read_ids(path: Path) -> Iterator[tuple[str, str]]:
    """The place and the model id of each entry of a list: a line each, or JSON as TriCoLo or `read_pickle` write it.

    Raises:
        RowError: If it is anything else, or a pickle.
    """
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise RowError(pickle_advice(path, path.with_suffix(".json")))
    if path.suffix.lower() == ".json":
        entries = parse_id_json(read_text(path), path.name)
    else:
        entries = ((place, line.strip()) for place, line in read_lines(path))
    for place, entry in entries:
        if entry and not entry.startswith("#"):
            yield place, checked_id(entry, place)


def parse_id_json(text: str, name: str) -> Iterator[tuple[str, str]]:
    """The place and the id of each item of a JSON list of ids, or of objects with `model_id` (or `model`)."""
    for number, item in enumerate(JSONCursor(text, name).items()):
        place = f"{name}, item {number}"
        if number >= MAX_ROWS:
            raise RowError(f"{place}: expected at most {MAX_ROWS} items, got more; is it the right file?")
        entry = item.get("model_id", item.get("model")) if isinstance(item, dict) else item
        if not isinstance(entry, str) or not entry:
            raise RowError(f"{place}: expected a model id or an object with `model_id`, got {shortened(repr(item))}.")
        yield place, entry


def checked_id(entry: str, place: str) -> str:
    """The model id in a list's entry, which may also be SYNSET/ID or ID.nrrd.

    Raises:
        RowError: If it could be anything but the name of a folder.
    """
    found = LISTED_ID.fullmatch(entry)
    return check_id(found["model_id"] if found else entry, place)


def check_id(model_id: str, place: str) -> str:
    """The id itself.

    Raises:
        RowError: If it could lead out of a folder, or is no name of one.
    """
    if not MODEL_ID.fullmatch(model_id):
        raise RowError(
            f"{place}: a model id must be letters, digits, '-', '_' and single dots, got {shortened(model_id)}; repair it."
        )
    return model_id
