import pytest

from training import waiting
from training.waiting import WaitingClock


@pytest.fixture
def now(monkeypatch):
    """A clock that a test moves."""
    time = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: time[0])
    return time


def slow(batches, seconds, now):
    for batch in batches:
        now[0] += seconds
        yield batch


def test_the_share_is_the_time_before_a_batch_of_the_time_until_the_next(now):
    clock = WaitingClock()
    for _ in clock.time(slow(range(5), 1.0, now)):
        now[0] += 3.0
    assert (clock.waited, clock.used) == (4.0, 12.0)  # the first batch starts the loader, and doesn't count
    assert clock.share == 0.25


def test_a_pause_counts_neither_what_is_done_in_it_nor_the_batch_after_it(now):
    clock = WaitingClock()
    for batch in clock.time(slow(range(4), 1.0, now)):
        now[0] += 1.0
        if batch == 1:
            clock.pause()
            now[0] += 100.0
    assert (clock.waited, clock.used) == (2.0, 2.0)


def test_a_restart_forgets(now):
    clock = WaitingClock()
    assert clock.share == 0
    for _ in clock.time(slow(range(30), 1.0, now)):
        pass
    assert clock.is_worth_judging
    clock.restart()
    assert (clock.share, clock.is_worth_judging) == (0, False)


def test_batches_come_as_they_are():
    assert list(WaitingClock().time("abc")) == ["a", "b", "c"]
