import collections
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datasets_scripts import read_pickle as module
from datasets_scripts.read_pickle import main, parse_pickle
from datasets_scripts.schema import RowError

ROOT = Path(__file__).resolve().parents[2]
# In the form of Text2Shape's `processed_captions_*.p`.
CAPTIONS = {
    "caption_tuples": [
        (np.array([3, 1, 0], np.int32), "03001627", "1abc"),
        (np.zeros(2, np.int64), "04379243", "2def"),
    ],
    "caption_matches": collections.defaultdict(list, {"1abc": [0], "2def": [1]}),
    "max_caption_length": np.int32(96),
}
READ = {
    "caption_tuples": [[[3, 1, 0], "03001627", "1abc"], [[0, 0], "04379243", "2def"]],
    "caption_matches": {"1abc": [0], "2def": [1]},
    "max_caption_length": 96,
}
PLAIN = [
    None,
    True,
    False,
    -1,
    2**40,
    1.5,
    "é",
    b"bytes",
    (),
    (1,),
    (1, 2),
    (1, 2, 3),
    (1, 2, 3, 4),
    {},
    {"a": {3: []}},
]
PLAIN_READ = [
    None,
    True,
    False,
    -1,
    2**40,
    1.5,
    "é",
    "bytes",
    [],
    [1],
    [1, 2],
    [1, 2, 3],
    [1, 2, 3, 4],
    {},
    {"a": {"3": []}},
]


@pytest.mark.parametrize("protocol", range(5))
def test_plain_values_and_arrays_of_every_protocol_are_read(protocol):
    assert parse_pickle(pickle.dumps(CAPTIONS, protocol), "f") == READ
    assert parse_pickle(pickle.dumps(PLAIN, protocol), "f") == PLAIN_READ
    assert sorted(parse_pickle(pickle.dumps({"a", "b"}, protocol), "f")) == ["a", "b"]


def test_values_that_come_twice_are_read_twice():
    word = ["a"]
    assert parse_pickle(pickle.dumps([word, word]), "f") == [["a"], ["a"]]


def test_pickles_of_python_2_are_read():
    assert parse_pickle(b"(lp0\nS'1abc'\np1\naS'2def'\np2\na.", "f") == ["1abc", "2def"]


def test_the_command_writes_json_or_a_list_of_ids(tmp_path):
    (tmp_path / "a.p").write_bytes(pickle.dumps(CAPTIONS))
    main([str(tmp_path / "a.p"), str(tmp_path / "a.json")])
    assert json.loads((tmp_path / "a.json").read_text()) == READ
    main([str(tmp_path / "a.p"), str(tmp_path / "ids.json"), "--model_ids"])
    assert json.loads((tmp_path / "ids.json").read_text()) == ["1abc", "2def"]
    (tmp_path / "b.p").write_bytes(pickle.dumps(["1abc"]))
    main([str(tmp_path / "b.p"), str(tmp_path / "ids.json"), "--model_ids"])
    assert json.loads((tmp_path / "ids.json").read_text()) == ["1abc"]
    (tmp_path / "c.p").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(RowError, match="must hold a list of model ids or `caption_matches`"):
        main([str(tmp_path / "c.p"), str(tmp_path / "ids.json"), "--model_ids"])


def test_the_usage_line_runs(tmp_path):
    (tmp_path / "list.p").write_bytes(pickle.dumps(["1abc"]))
    usage = module.__doc__.split("nothing: ")[1].strip().removesuffix(".").split()
    command = [sys.executable, *usage[1:3], *(str(tmp_path / name) for name in usage[3:])]
    subprocess.run(command, check=True, cwd=ROOT)
    assert (tmp_path / "list.json").read_text() == '["1abc"]'


class Runs:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value, value]
    return value


def array_that_says(count):
    """A pickled array of two numbers whose shape says another count."""
    honest, lie = b"K\x02\x85", pickle.dumps((count,), 3)[2:].partition(b"q")[0]
    content = pickle.dumps(np.zeros(2, np.int32), 3)
    assert content.count(honest) == 1
    return content.replace(honest, lie)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Runs(print, "run")), "it calls `builtins.print`, which could do anything"),
        (pickle.dumps(Runs(__import__("os").system, "exit 1")), r"it calls `posix.system`"),
        (b"cos\nsystem\n(S'exit 1'\ntR.", r"it calls `os.system`"),
        (b"cbuiltins\neval\n(S'1'\nto.", "eval|OBJ|which plain values don't need"),
        (b"(S'exit 1'\nios\nsystem\n.", "it holds INST"),
        (pickle.dumps(sys.exit), "it holds Name that JSON can't"),
        (pickle.dumps(Runs(exec, "a") and object()), "NEWOBJ|calls"),
        (b"\x80\x02P7\n.", "it holds PERSID"),
        (b"\x80\x02\x82\x01.", "it holds EXT1"),
        (b"\x80\x03]r\xff\xff\xff\x7fj\xfe\xff\xff\x7f.", "2147483646"),
        (pickle.dumps(nested(60)), "over 50 levels"),
        (pickle.dumps(nested(40)), "over 8000000 values"),
        (pickle.dumps(nested(60), 4)[:-1] + b"\x8c\x01a\x93.", "names a function by what isn't a text"),
        (pickle.dumps(["x" * 2**20] * 100), "67108864 characters"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab.", "can't be read as a pickle"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x0f.", "can't be read as a pickle"),
        (array_that_says(2**40), "over 8000000 values"),
        (array_that_says(3), "an array of 3 elements must have their bytes"),
        (pickle.dumps(np.zeros((2, 2), np.int32), 4), "no array of one axis"),
        (pickle.dumps(np.array([object()]), 4), "which could do anything|no array of one axis"),
        (pickle.dumps(np.array(["a"]), 4), "it calls `numpy.dtype`"),
        (pickle.dumps(np.zeros(2, ">i4"), 4), "no array of one axis|sets a state"),
        (pickle.dumps(float("nan")), "it holds float that JSON can't"),
        (pickle.dumps(2**70), "it holds int that JSON can't"),
        (pickle.dumps({(1, 2): 3}), "a dict's keys must be texts or whole numbers"),
        (pickle.dumps(b"\xff"), "can't decode byte"),
        (pickle.dumps("a\0b"), "neither NULs"),
        (pickle.dumps([1, 2])[:-3], "can't be read as a pickle"),
        (b"", "can't be read as a pickle"),
        (b"plain text\n", "can't be read as a pickle"),
        (b"0" * 100, "can't be read as a pickle"),
        (b"]]a" + b"2" * 20 + b"a" * 10 + b".", "can't be read|levels"),
        (b"I" + b"9" * 10_000 + b"\n.", "can't be read as a pickle"),
    ],
)
def test_what_isnt_plain_is_refused_and_never_run(content, message):
    with pytest.raises(RowError, match=message):
        parse_pickle(content, "'f.p'")


def test_a_list_that_holds_itself_is_refused():
    circle = []
    circle.append(circle)
    with pytest.raises(RowError, match="over 50 levels"):
        parse_pickle(pickle.dumps(circle), "f")


def test_too_many_opcodes_are_refused(monkeypatch):
    monkeypatch.setattr("datasets_scripts.pickle_machine.MAX_OPCODES", 100)
    with pytest.raises(RowError, match="more than 100 opcodes"):
        parse_pickle(b"\x80\x03" + b"]" * 1000 + b".", "f")
