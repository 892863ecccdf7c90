"""Calls at a steady rate, of which none may fail."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Load:
    """What became of the calls."""

    calls: int = 0
    failures: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, failure: str | None) -> None:
        """Counts a call."""
        with self._lock:
            self.calls += 1
            if failure is not None:
                self.failures.append(failure)


@contextmanager
def load(works: Sequence[Callable[[], object]], per_second: float) -> Iterator[Load]:
    """Makes calls in the background: each work in a thread of its own, at its share of the rate.

    A work that raises has failed.
    """
    found, stop = Load(), threading.Event()
    pause = len(works) / per_second

    def repeat(number: int, work: Callable[[], object]) -> None:
        began = time.monotonic() + pause * number / len(works)
        for turn in itertools.count():
            if stop.wait(max(began + turn * pause - time.monotonic(), 0)):
                return
            at = time.strftime("%H:%M:%S")
            try:
                work()
            except Exception as error:
                found.note(f"{at} {type(error).__name__}: {str(error)[:200]}")
            else:
                found.note(None)

    threads = [
        threading.Thread(target=repeat, args=(number, work)) for number, work in enumerate(works)
    ]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        stop.set()
        for thread in threads:
            thread.join()
