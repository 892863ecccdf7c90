"""What `make bench BASE=…` measures: kinds of calls, as fast as they go or so many a second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench import traffic

REST: Final = "rest"
KINDS: Final = {
    "poll": traffic.POLL,
    "state": traffic.STATE,
    "events": traffic.EVENTS,
    "mix": traffic.MIX,
    "enroll": traffic.ENROLL,
    "login": traffic.LOGIN,
    "attest": traffic.ATTEST,
}
"""Kinds of calls, by the word on the command line."""
DEFAULT: Final = "poll,mix,enroll"
MOST_CONNECTIONS: Final = 64
_LOGIN_CONNECTIONS: Final = 4
"""A password costs a processor's time and memory; an installation takes few at a time."""
_SLICE_SECONDS: Final = 0.4
_MOST: Final = {traffic.ENROLL: 2_000, traffic.LOGIN: 60, traffic.ATTEST: 2_000}
"""Calls a round at most: an installation is to stay as it was, and not to become a larger one."""


@dataclass(frozen=True, slots=True)
class Section:
    """One line of the result."""

    name: str
    kind: str = ""
    """Of `bench.traffic`; empty for what is used at rest."""
    rate: float = 0.0
    """Calls a second; 0 for as many as are served."""

    @property
    def connections(self) -> int:
        """How many calls are in flight at most, when it goes as fast as it can."""
        return _LOGIN_CONNECTIONS if self.kind == traffic.LOGIN else MOST_CONNECTIONS

    def turns(self, seconds: float, per_second: float) -> tuple[int, int]:
        """How a round that goes as fast as it can is cut up.

        Args:
            seconds: about how long it is to take, both sides together.
            per_second: how many calls a side has served.

        Returns:
            how often each side has its turn, an even number, and how many calls a turn has.
        """
        calls = seconds / 2 * per_second
        calls = max(2 * self.connections, min(calls, _MOST.get(self.kind, calls)))
        turns = max(2, 2 * round(seconds / _SLICE_SECONDS / 4))
        turns = min(turns, 2 * int(calls // (2 * self.connections)))
        return turns, round(calls / turns)


def parse(text: str) -> list[Section]:
    """Reads a list like `poll,mix@200,rest`.

    Raises:
        ValueError: a section is not known, or is named twice; the message says which there are.
    """
    found: list[Section] = []
    for name in (word.strip() for word in text.split(",")):
        kind, at, rate = name.partition("@")
        if name == REST:
            found.append(Section(name))
        elif kind in KINDS and not at:
            found.append(Section(name, KINDS[kind]))
        elif kind in KINDS and rate.isdecimal() and int(rate):
            found.append(Section(name, KINDS[kind], float(rate)))
        else:
            raise ValueError(
                f"unknown section {name!r}; give {', '.join(KINDS)}, each also with a rate as in"
                f" mix@200 (calls a second), or {REST}"
            )
    names = [section.name for section in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"section {name!r} is named twice")
    return found
