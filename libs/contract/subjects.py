"""The two streams of JetStream, made from the list of events: what the system and its admins did,
and, apart from it, what devices report, so that a flood of the latter pushes none of the former
out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from contract.contexts import CONTEXTS
from contract.events import EVENT_TYPES
from contract.events.telemetry import DeviceEvents

SUBJECT_ROOT: Final = "evergreen.v1"
"""Subjects are `evergreen.v1.<tenant>.<context>.<what_happened>`."""
KEEP: Final = timedelta(days=30)
"""How long a stream keeps messages, and an outbox what it published."""

DOMAIN: Final = "evergreen"
"""What integrators' programs call the JetStream domain."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream of JetStream."""

    name: str
    subjects: tuple[str, ...]
    keeper: str
    """The service that brings its configuration up to date."""


TELEMETRY: Final = Stream(
    "EVERGREEN_TELEMETRY", (f"{SUBJECT_ROOT}.*.{DeviceEvents.NAME}",), keeper="telemetry"
)
"""What devices report."""

EVENTS: Final = Stream(
    "EVERGREEN",
    (
        *(f"{SUBJECT_ROOT}.*.{context}.>" for context in CONTEXTS if context != "telemetry"),
        # One by one: streams must not overlap, and a pattern cannot leave something out.
        *(
            f"{SUBJECT_ROOT}.*.{name}"
            for name, event in EVENT_TYPES.items()
            if event.context() == "telemetry" and event is not DeviceEvents
        ),
    ),
    keeper="audit",
)
"""Everything else; what the audit log is made from."""

STREAMS: Final = (EVENTS, TELEMETRY)


def stream_of(subject: str) -> Stream:
    """The stream that keeps a subject's messages."""
    return TELEMETRY if subject.endswith(f".{DeviceEvents.NAME}") else EVENTS


def reader_requests(api: str, name: str = "*") -> list[str]:
    """What the reader of a durable consumer asks for: messages, its state, acknowledgements.

    Args:
        api: what requests to JetStream begin with.
        name: the consumer's.
    """
    return [
        subject
        for stream in STREAMS
        for subject in (
            f"{api}.CONSUMER.MSG.NEXT.{stream.name}.{name}",
            f"{api}.CONSUMER.INFO.{stream.name}.{name}",
            f"$JS.ACK.{stream.name}.{name}.>",
        )
    ]
