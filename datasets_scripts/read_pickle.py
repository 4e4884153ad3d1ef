"""A pickle of plain values to JSON, running nothing: python -m datasets_scripts.read_pickle list.p list.json."""

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from .pickle_machine import Array, Leaf, PickleMachine
from .raw_files import read_limited
from .schema import RowError, check_text

MAX_BYTES = 2**26
MAX_VALUES = 8_000_000
MAX_TEXT = 2**26  # characters, of all strings together
MAX_DEPTH = 50

Plain: TypeAlias = "Leaf | list[Plain] | dict[str, Plain]"


class Size(NamedTuple):
    """How much a value comes to, written out."""

    values: int
    text: int  # characters
    levels: int


def size_of(value: object, known: dict[int, Size], level: int = 0) -> Size:
    """The size of a value, found without writing out what is in it several times.

    Raises:
        RowError: If it is over a limit: a few bytes of pickle can stand for a list of lists without end.
    """
    if id(value) in known:
        return known[id(value)]
    size = Size(1, len(value) if isinstance(value, str | bytes) else 0, 0)
    if isinstance(value, Array):
        size = Size(1 + value.count, 0, 0)
    elif isinstance(value, list | dict) and level <= MAX_DEPTH:
        items = value if isinstance(value, list) else [*value, *value.values()]
        sizes = [size_of(item, known, level + 1) for item in items]
        size = Size(
            1 + sum(size.values for size in sizes),
            sum(size.text for size in sizes),
            1 + max((size.levels for size in sizes), default=0),
        )
    if size.values > MAX_VALUES or size.text > MAX_TEXT or max(size.levels, level) > MAX_DEPTH:
        raise RowError(f"it holds over {MAX_VALUES} values or {MAX_TEXT} characters, or over {MAX_DEPTH} levels")
    if isinstance(value, list | dict):
        known[id(value)] = size
    return size


def plain(value: object) -> Plain:
    """The value with everything in it, as JSON can hold it."""
    if isinstance(value, Array):
        return [number_of(item) for item in value.element.values(value.content, value.count)]
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {text_of(key): plain(item) for key, item in value.items()}
    return text_of(value) if isinstance(value, bytes | str) else number_of(value)


def text_of(value: bytes | str) -> str:
    """A text that a file can hold."""
    text = value.decode() if isinstance(value, bytes) else value
    check_text(text, "it")
    return text


def number_of(value: object) -> Leaf:
    """The value if it is a number that JSON readers take, a truth or nothing."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise RowError(f"it holds {type(value).__name__} that JSON can't")


def read_pickle(path: Path) -> Plain:
    """The content of a pickle file, as JSON can hold it: arrays, tuples and sets as lists, bytes and keys as text.

    Raises:
        RowError: If it holds anything but plain values, or more than the limits.
    """
    return parse_pickle(read_limited(path, MAX_BYTES), f"'{path}'")


def parse_pickle(content: bytes, where: str) -> Plain:
    """The content of a pickle's bytes, as `read_pickle` gives it; `where` is its place, for messages.

    Raises:
        RowError: If it holds anything but plain values, or more than the limits.
    """
    try:
        value = PickleMachine().run(content)
        size_of(value, {})
        return plain(value)
    except (RowError, ValueError, LookupError, TypeError, ArithmeticError, UnicodeError) as error:
        raise RowError(
            f"{where} can't be read as a pickle of plain values ({error}); ask its maker for the list as text."
        ) from error


def model_ids(value: Plain, where: str) -> list[str]:
    """The model ids in what a Text2Shape pickle holds: a list of them, or the keys of its `caption_matches`.

    Raises:
        RowError: If it is neither.
    """
    found = value.get("caption_matches") if isinstance(value, dict) else value
    ids: Iterable[object] = found if isinstance(found, dict | list) else ()
    texts = [model_id for model_id in ids if isinstance(model_id, str)]
    if not found or len(texts) != len(list(ids)):
        raise RowError(
            f"{where} must hold a list of model ids or `caption_matches`; leave out `--model_ids` and look."
        )
    return texts


def main(arguments: Sequence[str] | None = None) -> None:
    """Write what a pickle of plain values holds as JSON; nothing in the pickle is run."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("pickle", type=Path, help="Pickle to read.")
    parser.add_argument("json", type=Path, help="JSON file to write.")
    parser.add_argument(
        "--model_ids",
        action="store_true",
        help="Write only the list of model ids, as the Text2Shape builder reads it.",
    )
    chosen = parser.parse_args(arguments)
    value = read_pickle(chosen.pickle)
    if chosen.model_ids:
        value = [*model_ids(value, f"'{chosen.pickle}'")]
    with chosen.json.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, allow_nan=False)  # `dumps` would take a gigabyte of memory


if __name__ == "__main__":
    main()
