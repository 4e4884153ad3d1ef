import time
from functools import partial

import pytest

from benchmarks.side_by_side import (
    machine,
    peak_elsewhere,
    peak_megabytes,
    ratio,
    seconds_of,
    spread,
    take_turns,
    verdict,
)


def test_the_interval_of_a_median_narrows_with_the_rounds():
    few, many = (spread([1.0, 2.0, 3.0, 4.0, 5.0] * times) for times in (1, 40))
    assert few.median == many.median == 3.0
    assert few.low <= many.low <= 3.0 <= many.high <= few.high
    assert many.high - many.low < few.high - few.low


def test_measurements_without_spread_have_an_interval_without_width():
    assert spread([2.0, 2.0, 2.0])[:3] == (2.0, 2.0, 2.0)


def test_no_measurement_has_no_median():
    with pytest.raises(ValueError, match="`values` must hold a measurement, got none"):
        spread([])


def test_what_slows_both_sides_of_a_round_does_not_move_their_ratio():
    assert ratio([2.0, 20.0, 8.0], [1.0, 10.0, 4.0])[:3] == (2.0, 2.0, 2.0)


def test_a_ratio_needs_as_many_of_both():
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0, 2.0], [1.0])


def test_turns_go_back_and_forth_and_the_first_does_not_count():
    called = []

    def measure(name):
        called.append(name)
        return float(len(called))

    found = take_turns({name: partial(measure, name) for name in "ab"}, rounds=2)
    assert "".join(called) == "baabba"
    assert found == {"a": [3.0, 6.0], "b": [4.0, 5.0]}


def test_the_clock_of_the_process_does_not_count_waiting():
    wait = partial(time.sleep, 0.05)
    assert seconds_of(wait) >= 0.05
    assert seconds_of(wait, "cpu") < 0.04


def test_a_peak_is_seen_after_the_memory_was_given_back():
    assert 60 < peak_megabytes(lambda: len(bytes(range(256)) * 2**18)) < 200


def test_the_peak_of_a_process_is_what_it_prints_last(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint('so many:', 2 * float(sys.argv[1]))")
    assert peak_elsewhere(str(script), "21") == 42


def test_the_process_gets_variables_beside_those_that_there_are(tmp_path, monkeypatch):
    monkeypatch.setenv("ONE", "40")
    script = tmp_path / "script.py"
    script.write_text("import os\nprint(int(os.environ['ONE']) + int(os.environ['OTHER']))")
    assert peak_elsewhere(str(script), variables={"OTHER": "2"}) == 42


def test_a_process_that_fails_says_why(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('no such form')")
    with pytest.raises(RuntimeError, match=r"(?s)`script.py 21` failed.*no such form"):
        peak_elsewhere(str(script), "21")


@pytest.mark.parametrize(("value", "at_least", "kept"), [(2, False, True), (2, True, False), (4, True, True)])
def test_a_verdict_says_whether_the_bar_was_kept(value, at_least, kept):
    assert verdict("time", value, 3, at_least=at_least).endswith("met" if kept else "MISSED")


def test_the_machine_is_named_with_its_load_and_versions():
    assert all(word in machine("numpy") for word in ("cores of", "threads", "load", "torch 2.", "numpy "))
