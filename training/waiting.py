"""How much of a run's time goes into waiting for its batches."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Batch = TypeVar("Batch")

WINDOW = 10.0  # seconds that a share has to stand for before it means anything


class WaitingClock:
    """Tells the time in which batches are waited for from that in which they are used."""

    def __init__(self) -> None:
        self.restart()
        self.is_paused = True  # the first batch waits for the loader's processes to start

    def restart(self) -> None:
        """Forget what was counted."""
        self.waited = self.used = 0.0

    def pause(self) -> None:
        """Count neither what happens until the next batch is asked for, nor the wait for it."""
        self.is_paused = True

    def time(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, timed."""
        source = iter(batches)
        handed_out = time.monotonic()
        while True:
            asked = time.monotonic()
            is_counted, self.is_paused = not self.is_paused, False
            try:
                batch = next(source)
            except StopIteration:
                return
            got = time.monotonic()
            if is_counted:
                self.used += asked - handed_out
                self.waited += got - asked
            handed_out = got
            yield batch

    @property
    def share(self) -> float:
        """Share of the counted time that was waited for batches, 0 before any was counted."""
        total = self.waited + self.used
        return self.waited / total if total else 0.0

    @property
    def is_worth_judging(self) -> bool:
        """Whether enough was counted."""
        return self.waited + self.used >= WINDOW
