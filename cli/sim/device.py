"""A virtual device: the released agent's memory and what it does with an answer.

One object of some hundred bytes plus the device's token. What it does when, is for the traffic to
say; what it sends, what it keeps, and what counts as a success is said here, as in the agent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from cli.sim.bodies import events_body, poll_body, state_body
from cli.sim.http import Answer

POLL: Final = 0
STATE: Final = 1
EVENTS: Final = 2
ENROLL: Final = 3
QUEUED_STATE: Final = 4
KINDS: Final = ("poll", "state", "events", "enroll", "queued state")
"""The names of the kinds of calls, by their number. A state that has waited in its device's
queue is sent like any other, and counted by itself: it tells of the past."""
_WAITED_NS: Final = 60_000_000_000
PATHS: Final = (
    b"/api/v1/devices/policy",
    b"/api/v1/devices/state",
    b"/api/v1/devices/events",
    b"/api/v1/devices/enroll",
)
QUEUE: Final = 50_000
"""The agent's queues hold so many entries; more are not taken up."""

DECODE: Final = "decode"
SIGNATURE: Final = "signature"
OLDER: Final = "older policy"

Check = Callable[[dict[str, Any]], bool]
"""Whether the signature of an ENVELOPE is good."""


class Device:
    """A device that has enrolled.

    Args:
        index: its number in the fleet, 0 and up.
        id: its device id.
        token: its token.
        version: of the policy that it has applied; empty without any.
        serial: what it enrolled with.
        states: times of the states that are not acknowledged yet, in nanoseconds.
        events: ids of the events that are not acknowledged yet.
    """

    __slots__ = (
        "_last_event", "_sending", "_state_at", "applies", "busy", "events", "failures", "id",
        "index", "next_batch", "repeated", "serial", "states", "token", "version",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        id: str,  # noqa: A002  # its name everywhere
        token: str,
        version: str = "",
        serial: str = "",
        states: Sequence[int] = (),
        events: Sequence[int] = (),
    ) -> None:
        self.index = index
        self.id = id
        self.token = token
        self.version = version
        self.applies = True
        """Whether it applies what it gets; else it asks again with what it has."""
        self.serial = serial
        # Most queues of most devices are empty: `()` is one object for all of them.
        self.states: Sequence[int] = states
        self.events: Sequence[int] = events
        self.busy = 0
        """The kinds that are in flight, one bit each."""
        self.failures = (0, 0, 0)
        """How often a kind has failed since it last succeeded."""
        self.repeated = 0
        """States that were acknowledged and had to be sent once more all the same."""
        self.next_batch = 0.0
        """When its next events happen; the traffic's clock."""
        self._last_event = events[-1] if events else 0
        self._state_at = 0
        self._sending = 0

    def poll(self) -> bytes:
        """The body of a policy call."""
        return poll_body(self.version)

    def note_state(self, time_ns: int) -> None:
        """Puts the state of now into the queue."""
        if len(self.states) < QUEUE:
            self.states = (*self.states, time_ns)

    def note_events(self, first_ns: int, count: int) -> None:
        """Puts new events into the queue; ids go up, whatever the clock does."""
        count = min(count, QUEUE - len(self.events))
        if count <= 0:
            return
        first_ns = max(first_ns, self._last_event + 1)
        # Some microseconds apart, as they come when one thing leads to another.
        new = tuple(range(first_ns, first_ns + count * 7001, 7001))
        self._last_event = new[-1]
        self.events = (*self.events, *new) if self.events else new

    def counted_as(self, kind: int, now_ns: int) -> int:
        """The kind as which the call that is in flight counts."""
        if kind == STATE and self.states[self._state_at] < now_ns - _WAITED_NS:
            return QUEUED_STATE
        return kind

    def state(self) -> bytes:
        """The body of the next state call; the queue is not empty."""
        return state_body(self.id, self.index, self.states[self._state_at])

    def batch(self) -> bytes:
        """The body of an events call: the whole queue, which is not empty."""
        self._sending = len(self.events)
        return events_body(self.id, self.events)

    def body(self, kind: int) -> bytes:
        """The body of a call of a kind."""
        return self.poll() if kind == POLL else self.state() if kind == STATE else self.batch()

    def settle(self, kind: int, answer: Answer, check: Check | None) -> tuple[str, Sequence[int]]:
        """Takes an answer in.

        Args:
            kind: of the call.
            answer: what came.
            check: looks at the signature of a new policy, if it should be looked at.

        Returns:
            what went wrong (empty when nothing did: a status, or a word), and which states or
            events are acknowledged by it.
        """
        status = answer.status
        if status == 0 or status >= 400:
            if kind == STATE:
                # After a failure the queue is sent again as a whole.
                self.repeated += self._state_at
                self._state_at = 0
            return answer.fault or str(status), ()
        if kind == POLL:
            return ("" if status == 304 else self._take(answer.body, check)), ()
        if kind == STATE:
            told = self.states[self._state_at]
            self._state_at += 1
            if self._state_at == len(self.states):
                self.states = ()
                self._state_at = 0
            return "", (told,)
        acknowledged = self.events[: self._sending]
        self.events = self.events[self._sending :]
        return "", acknowledged

    def _take(self, body: bytes, check: Check | None) -> str:
        """Applies a policy answer."""
        try:
            envelope = json.loads(body)
            version, token = envelope["version"], envelope.get("device_token") or self.token
            if not isinstance(version, str) or not isinstance(token, str):
                return DECODE
        except (ValueError, KeyError, TypeError, AttributeError):
            return DECODE
        if check is not None and not check(envelope):
            return SIGNATURE
        if _number(version) < _number(self.version):
            return OLDER
        if self.applies:
            self.version = version
        self.token = token
        return ""


def _number(version: str) -> int:
    return int(version) if version.isdecimal() else -1
