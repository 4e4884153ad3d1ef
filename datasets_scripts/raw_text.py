"""Text, JSON and CSV that nobody vouches for: read within limits, and every fault is a `RowError` that says where."""

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from json import JSONDecoder
from pathlib import Path
from typing import cast

from .schema import RowError, check_text

MAX_ROWS = 500_000  # Flickr30K has 158,915 captions
TEXT_PER_ROW = 512  # bytes in memory, on average: `max_rows` limits a file's text as well
MAX_LINE = 2**20  # bytes
ITEM_WINDOWS = (2**12, 2**16, 2**20)  # characters to look for the end of a JSON item in; the last is its limit
MAX_BRACKETS = 20_000  # of a JSON item: a megabyte of empty lists takes 20 of memory, and seconds to collect
BROKEN_CHARS = 60
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BLANKS = re.compile(r"[ \t\r\n]*")

RawRow = tuple[str, dict[str, object]]  # its place in the raw data, and what stands there


def read_lines(path: Path, max_rows: int = MAX_ROWS) -> Iterator[tuple[str, str]]:
    """The place and the text of each line of a UTF-8 file or pipe, line ends kept, a byte order mark left out.

    Raises:
        RowError: If the file can't be read, a line is too long or not UTF-8 or holds a NUL, or there are too many.
    """
    try:
        with path.open("rb") as file:
            yield from limited_lines(iter(lambda: file.readline(MAX_LINE + 1), b""), path, max_rows)
    except OSError as error:
        raise RowError(f"'{path}' can't be read ({error}); check the file.") from error


def read_text(path: Path, max_rows: int = MAX_ROWS) -> str:
    """A whole UTF-8 file, of at most the size of `max_rows` average rows.

    Raises:
        RowError: If it can't be read, is larger, not UTF-8, or holds a NUL.
    """
    limit = max_rows * TEXT_PER_ROW // 2
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise RowError(f"'{path}' can't be read ({error}); check the file.") from error
    if len(content) > limit:
        raise RowError(f"{path.name}: expected at most {limit} bytes, got more; raise `max_rows` (now {max_rows}).")
    return decode(content.removeprefix(BYTE_ORDER_MARK), path.name)


def limited_lines(lines: Iterator[bytes], path: Path, max_rows: int) -> Iterator[tuple[str, str]]:
    """The lines, decoded, as long as they keep the limits."""
    memory = 0
    for number, line in enumerate(lines, start=1):
        place = f"{path.name}:{number}"
        if len(line) > MAX_LINE:
            raise RowError(f"{place}: a line may have {MAX_LINE} bytes, got more; break it up.")
        text = decode(line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line, place)
        memory += sys.getsizeof(text)
        if number > max_rows or memory > max_rows * TEXT_PER_ROW:
            raise RowError(
                f"{place}: expected at most `max_rows`={max_rows} rows of {TEXT_PER_ROW} bytes on average, "
                "got more; raise `max_rows` if the file is meant to be so long."
            )
        yield place, text


def decode(content: bytes, place: str) -> str:
    """The text in UTF-8 bytes, which must not hold a NUL."""
    if b"\0" in content:
        raise RowError(f"{place}: expected text, got a NUL byte; take it out, or save the file as UTF-8.")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        near = shortened(content[max(0, error.start - BROKEN_CHARS // 2) : error.end])
        raise RowError(f"{place}: expected UTF-8, got {near} ({error.reason}); save it as UTF-8.") from error


def read_csv(path: Path, max_rows: int = MAX_ROWS) -> Iterator[RawRow]:
    """The rows of a CSV file with a header, each cell a string.

    Raises:
        RowError: If the file is not CSV, or a row has more or fewer cells than the header.
    """
    yield from parse_csv(read_lines(path, max_rows), path.name)


def parse_csv(lines: Iterable[tuple[str, str]], name: str) -> Iterator[RawRow]:
    """The rows in the lines of the CSV file of that name; see `read_csv`."""
    reader = csv.reader((line for _, line in lines), strict=True)
    try:
        header = next(reader, [])
        check_header(header, f"{name}:1")
        for cells in reader:
            place = f"{name}:{reader.line_num}"
            if cells and len(cells) != len(header):
                raise RowError(
                    f"{place}: expected {len(header)} cells as in the header, got {len(cells)}; quote commas."
                )
            if cells:
                yield place, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise RowError(f"{name}:{reader.line_num}: expected CSV, got {error}; check the quotes.") from error


def check_header(header: Sequence[str], place: str) -> None:
    """Raise RowError if two columns of a CSV file have the same name."""
    twice = [column for column, count in Counter(header).items() if count > 1]
    if twice:
        raise RowError(f"{place}: columns must have different names, got {shortened(str(twice))} twice; rename them.")


def read_jsonl(path: Path, max_rows: int = MAX_ROWS) -> Iterator[RawRow]:
    """The objects of a JSON-lines file; blank lines are skipped.

    Raises:
        RowError: If a line is no JSON object.
    """
    for place, line in read_lines(path, max_rows):
        if line.strip():
            yield place, parse_object(line, place, "one JSON object a line")


def parse_object(text: str, place: str, expected: str) -> dict[str, object]:
    """The JSON object.

    Raises:
        RowError: If it isn't one, with what was expected.
    """
    value = parse_json(text, place, expected)
    if not isinstance(value, dict):
        raise RowError(f"{place}: expected {expected}, got {shortened(text)}; wrap it in braces.")
    return value


def parse_json(text: str, place: str, expected: str) -> object:
    """The JSON value.

    Raises:
        RowError: If it isn't one, with what was expected.
    """
    try:
        check_brackets(text)
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of more digits than `int` takes
        raise RowError(f"{place}: expected {expected}, got {shortened(text)} ({error}); repair it.") from error


def check_brackets(text: str) -> None:
    """Raise ValueError if JSON text may hold more lists and objects than an honest item does."""
    brackets = text.count("[") + text.count("{")
    if brackets > MAX_BRACKETS:
        raise ValueError(f"{brackets} brackets, over {MAX_BRACKETS}")


def read_json_items(path: Path, key: str | None = None, max_rows: int = MAX_ROWS) -> Iterator[RawRow]:
    """The objects of a JSON file's list, one after the other, so that memory holds the text and one object.

    Args:
        path: A file that holds a list, or an object where the list stands at `key`.
        key: The list's key; None where the file is the list.
        max_rows: The most items, and in the manner of `read_lines` the most text.

    Raises:
        RowError: If the file is anything else.
    """
    cursor = JSONCursor(read_text(path, max_rows), path.name)
    if key is not None:
        cursor.enter(key)
    for number, item in enumerate(cursor.items()):
        if number >= max_rows:
            raise RowError(f"{cursor.place}: expected at most `max_rows`={max_rows} items, got more; raise it.")
        place = f"{path.name}, item {number}"
        if not isinstance(item, dict):
            raise RowError(f"{place}: expected an object, got {shortened(repr(item))}; repair it.")
        yield place, item


class JSONCursor:
    """A place in JSON text that moves on value by value; a whole document as Python objects can take 20 times it."""

    def __init__(self, text: str, name: str) -> None:
        self.text, self.name, self.at = text, name, 0

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"{self.name}, character {self.at}"

    def skip(self, char: str) -> bool:
        """Pass blanks, and the character if it is next; whether it was."""
        self.at = cast("re.Match[str]", BLANKS.match(self.text, self.at)).end()
        found = self.text.startswith(char, self.at)
        self.at += len(char) if found else 0
        return found

    def expect(self, char: str) -> None:
        """Pass the character, or raise RowError."""
        if not self.skip(char):
            raise RowError(
                f"{self.place}: expected '{char}', got {shortened(self.text[self.at : self.at + BROKEN_CHARS + 1])}; "
                "the file may be cut short, get it again."
            )

    def value(self) -> object:
        """The next value."""
        self.skip("")
        failure: Exception | str = "it goes on"
        for size in ITEM_WINDOWS:
            window = self.text[self.at : self.at + size]
            try:
                check_brackets(window)
                value, length = JSONDecoder().raw_decode(window)
            except (ValueError, RecursionError) as error:
                failure = error
                continue
            if length < len(window) or self.at + size >= len(self.text):  # else a number might go on
                self.at += length
                return value
        expected = f"a JSON value of at most {ITEM_WINDOWS[-1]} characters"
        raise RowError(f"{self.place}: expected {expected}, got {shortened(window)} ({failure}); repair it.")

    def enter(self, key: str) -> None:
        """Go to the value at a key of the object that is next."""
        self.expect("{")
        while (found := self.value()) != key:
            self.expect(":")
            self.value()
            if not self.skip(","):
                raise RowError(f"{self.place}: expected the key '{key}' in the file's object, got {found!r} last.")
        self.expect(":")

    def items(self) -> Iterator[object]:
        """The values of the list that is next."""
        self.expect("[")
        if self.skip("]"):
            return
        yield self.value()
        while self.skip(","):
            yield self.value()
        self.expect("]")


def strings_of(value: object, where: str) -> list[str]:
    """The value if it is a list of strings that can be stored, or as one if it is such a string.

    Raises:
        RowError: If it is anything else.
    """
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        raise RowError(f"{where} must be a text or a list of texts, got {shortened(repr(value))}; repair it.")
    for string in strings:
        check_text(string, where)
    return cast("list[str]", strings)


def shortened(text: str | bytes) -> str:
    """The beginning of a text, quoted."""
    readable = text[: 4 * BROKEN_CHARS].decode(errors="replace") if isinstance(text, bytes) else text
    readable = readable.strip()
    return repr(readable if len(readable) <= BROKEN_CHARS else readable[:BROKEN_CHARS] + "…")
