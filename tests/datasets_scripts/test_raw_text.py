import csv
import json
import os
import threading
from contextlib import suppress

import pytest

from datasets_scripts.raw_text import MAX_LINE, read_csv, read_json_items, read_jsonl, read_lines, read_text, shortened
from datasets_scripts.schema import RowError


@pytest.fixture
def file(tmp_path):
    return tmp_path / "raw.txt"


def test_lines_keep_their_text_and_know_their_place(file):
    file.write_bytes("\ufeffa\r\n \nç\u2028d\n\x0be".encode())
    assert list(read_lines(file)) == [
        ("raw.txt:1", "a\r\n"), ("raw.txt:2", " \n"), ("raw.txt:3", "ç\u2028d\n"), ("raw.txt:4", "\x0be"),
    ]  # fmt: skip


@pytest.mark.parametrize("read", [read_lines, read_csv, read_jsonl, read_json_items])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"n\0l\n", r"raw.txt.*: expected text, got a NUL byte"),
        ("é\n".encode("latin-1"), r"raw.txt.*: expected UTF-8, got .*save it as UTF-8"),
        ("a\n".encode("utf-16"), r"raw.txt.*: expected"),
        (None, r"raw.txt' can't be read \(.*No such file"),
    ],
)
def test_what_is_no_text_is_named(file, read, content, message):
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RowError, match=message):
        list(read(file))


def test_long_lines_and_many_lines_are_refused(file):
    file.write_bytes(b"a" * MAX_LINE + b"\n")
    with pytest.raises(RowError, match=r"raw.txt:1: a line may have 1048576 bytes, got more"):
        list(read_lines(file))
    file.write_text("a\n" * 11)
    assert len(list(read_lines(file, max_rows=11))) == 11
    with pytest.raises(RowError, match=r"raw.txt:11: expected at most `max_rows`=10 rows .*; raise `max_rows`"):
        list(read_lines(file, max_rows=10))
    file.write_text("a" * 3000 + "\n" + "a" * 3000)
    with pytest.raises(RowError, match=r"raw.txt:2: expected at most `max_rows`=10 rows of 512 bytes on average"):
        list(read_lines(file, max_rows=10))
    with pytest.raises(RowError, match=r"raw.txt: expected at most 2560 bytes, got more; raise `max_rows` \(now 10\)"):
        read_text(file, max_rows=10)


def test_an_endless_pipe_is_stopped_at_the_row_limit(tmp_path):
    pipe = tmp_path / "endless.csv"
    os.mkfifo(pipe)

    def pour():
        with suppress(BrokenPipeError), pipe.open("w") as file:
            while True:
                file.write("a,b\n")

    threading.Thread(target=pour, daemon=True).start()
    with pytest.raises(RowError, match=r"endless.csv:5001: expected at most `max_rows`=5000 rows"):
        list(read_csv(pipe, max_rows=5000))


def test_csv_rows_have_the_cells_of_the_header(file):
    file.write_bytes(b'\xef\xbb\xbfa,b\r\n"x ""y"" , z","1\n2"\r\n\r\n3,\r\n')
    assert list(read_csv(file)) == [("raw.txt:3", {"a": 'x "y" , z', "b": "1\n2"}), ("raw.txt:5", {"a": "3", "b": ""})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1\n", "raw.txt:2: expected 2 cells as in the header, got 1"),
        ("a,b\n1,2,3\n", "raw.txt:2: expected 2 cells as in the header, got 3"),
        ("a,a\n1,2\n", "raw.txt:1: columns must have different names, got .*'a'.* twice"),
        ('a\n"x"y\n', "raw.txt:2: expected CSV, got .*; check the quotes"),
        ('a\n"' + "x\n" * csv.field_size_limit(), "expected CSV, got field larger than field limit"),
    ],
    ids=["few", "many", "equal", "quotes", "bomb"],
)
def test_broken_csv_is_named(file, text, message):
    file.write_text(text)
    with pytest.raises(RowError, match=message):
        list(read_csv(file))


@pytest.mark.parametrize("indent", [None, 2])
def test_json_items_are_read_one_by_one_wherever_their_list_stands(file, indent):
    items = [{"n": number, "long": "é" * number * 5000, "deep": {"x": [1.5, None]}} for number in range(4)]
    file.write_text(json.dumps(items, indent=indent), encoding="utf-8")
    assert [item for _, item in read_json_items(file)] == items
    for document in ({"images": items}, {"dataset": "x", "n": 1234, "images": items, "more": [1]}):
        file.write_text(json.dumps(document, indent=indent), encoding="utf-8")
        assert [item for _, item in read_json_items(file, "images")] == items
    assert [place for place, _ in read_json_items(file, "images")][1] == "raw.txt, item 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"raw.txt, character 0: expected '\[', got ''"),
        ("[{}", r"character 3: expected '\]', got ''; the file may be cut short"),
        ("[{} {}]", r"character 4: expected '\]', got '\{\}\]'"),
        ("[{}, 7]", "raw.txt, item 1: expected an object, got '7'"),
        ('[{"a": "b]', r"character 1: expected a JSON value of at most 1048576 characters, got '\{\"a\": \"b\]'"),
        ("[" * 9_000, "character 1: expected a JSON value .*recursion"),
        ('[{"a": ' + "9" * 5000 + "}]", "character 1: expected a JSON value .*digits"),
        ('[{"a": [' + "[]," * 30_000 + "[]]}]", "character 1: expected a JSON value .* brackets, over 20000"),
        ('[{"a": "' + "b" * MAX_LINE + '"}]', "character 1: expected a JSON value of at most 1048576 characters"),
    ],
    ids=["empty", "cut", "no comma", "number", "open", "deep", "digits", "wide", "long"],
)
def test_broken_json_is_named(file, text, message):
    file.write_text(text)
    with pytest.raises(RowError, match=message):
        list(read_json_items(file))


def test_a_missing_key_and_too_many_items_are_named(file):
    file.write_text('{"annotations": []}')
    with pytest.raises(RowError, match="expected the key 'images' in the file's object, got 'annotations' last"):
        list(read_json_items(file, "images"))
    file.write_text(json.dumps([{}] * 11))
    with pytest.raises(RowError, match="expected at most `max_rows`=10 items, got more; raise it"):
        list(read_json_items(file, max_rows=10))


def test_quotes_of_broken_text_are_short():
    assert shortened("a" * 100) == repr("a" * 60 + "…")
    assert shortened(b"\xff ok ") == "'\ufffd ok'"
