"""Device events: how a batch is read, what is stored of an event, and what is quarantined."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar
from uuid import UUID

from servicekit.errors import invalid_field
from servicekit.ids import new_id
from servicekit.security.digests import sha256
from servicekit.times import parse_rfc3339
from services.telemetry.reports.json_text import (
    MAX_MEMBERS,
    JsonText,
    Member,
    NotJsonError,
    Unreadable,
    UnreadableError,
    broken_body,
)
from services.telemetry.reports.messages import message_of
from services.telemetry.reports.state import text_rule

MAX_EVENTS: Final = 100_000
MAX_PAYLOAD: Final = 64 << 10
MAX_CONTENT: Final = 16 << 20
"""Bytes of an event that are kept in quarantine."""
MAX_DEPTH: Final = 500
SLICE: Final = 200
"""Events between two pauses: a few milliseconds of reading."""
BYTES_OF_A_SLICE: Final = 256 << 10
CLOCK_AHEAD: Final = timedelta(minutes=15)
"""An event that is further ahead of its receipt comes from a device with a wrong clock."""
CLOCK_UNSET: Final = datetime(2020, 1, 1, tzinfo=UTC)
"""So does one from before the first agent: the clock of a machine with an empty battery."""
_MAX_ID: Final = 128
_MAX_TYPE: Final = 256

_SEVERITY: Final = {
    **dict.fromkeys(("info", "information", "informational", "debug", "notice", "trace"), "info"),
    **dict.fromkeys(("warning", "warn"), "warning"),
    **dict.fromkeys(
        ("error", "err", "critical", "crit", "fatal", "alert", "emergency", "emerg", "panic"),
        "error",
    ),
}
_FAILED: Final = re.compile(r"(?:failed|failure|error)\Z", re.IGNORECASE)
_WARNED: Final = re.compile(r"warn(?:ing)?\Z", re.IGNORECASE)
_AGENTS_FORM: Final = re.compile(
    r'\{"id":"(?P<id>[ !#-\[\]-~]*)","type":"(?P<type>[ !#-\[\]-~]*)",'
    r'"timestamp":"(?P<timestamp>[ !#-\[\]-~]*)","payload":(?=[^ \t\n\r])'
).match
"""How the released agent writes nearly every event: read at once, in half the time."""
_FIELDS: Final = frozenset(("id", "type", "timestamp", "payload"))
_ESCAPED_UNSTORABLE: Final = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_BRACKET_OR_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')


class NewEvent(NamedTuple):
    """An event that can be stored; `payload` is JSON text, exactly as the device wrote it."""

    id: UUID
    event_id: str
    type: str
    severity: str
    message: str
    payload: str | None
    occurred_at: datetime


class BadEvent(NamedTuple):
    """An event that breaks a rule: which one, and what was sent."""

    id: UUID
    digest: bytes
    """SHA-256 of the event as it was sent: the same event again is known by it."""
    reason: str
    content: str


ReadEvent: TypeAlias = NewEvent | BadEvent
_EventsReader: TypeAlias = Callable[[JsonText, int], Generator[list[ReadEvent], None, int]]
"""Reads the list at a position and answers where it ends."""
T = TypeVar("T")


class BrokenRuleError(ValueError):
    """An event breaks a rule; the text names the field."""


class Batch:
    """The body of a report of events.

    `check_device` gets the value of `device_id` as soon as it is read, and raises.
    """

    def __init__(self, body: bytes, check_device: Callable[[Any], None]) -> None:
        self._text = JsonText(body)
        self._check_device = check_device

    def check(self) -> Iterator[object]:
        """Looks whether `read` would come to its end, much quicker than that; stops to pause.

        Raises:
            DomainError: as `read`.
        """
        return self._read(_pass_events)

    def read(self) -> Iterator[list[ReadEvent]]:
        """Reads the events, a slice at a time, so that the reader can pause; it may be empty.

        The body may turn out not to be JSON at its very end.

        Raises:
            DomainError: INVALID_ARGUMENT when the body as a whole cannot be taken.
        """
        return self._read(_read_events)

    def _read(self, events: _EventsReader) -> Iterator[list[ReadEvent]]:
        try:
            yield from _read_body(self._text, self._check_device, events)
        except NotJsonError as broken:
            raise broken_body() from broken
        except UnicodeDecodeError as broken:
            raise broken_body("must be JSON in UTF-8") from broken
        except UnreadableError as unreadable:
            raise broken_body(unreadable.rule) from unreadable


def _read_body(
    text: JsonText, check_device: Callable[[Any], None], read_events: _EventsReader
) -> Iterator[list[ReadEvent]]:
    at = text.skip_blank(0)
    if not text.text.startswith("{", at):
        yield from _pauses(text.any_value(at))
        raise broken_body("must be a JSON object")
    seen: set[str] = set()
    count = 0
    more, at = text.begin(at, "{")
    while more:
        count += 1
        if count > MAX_MEMBERS:
            raise broken_body(f"must have at most {MAX_MEMBERS} members")
        key, at = text.key(at)
        if key == "events" and text.text.startswith("[", at):
            if key in seen:
                raise invalid_field("events", "is given twice")
            at = yield from read_events(text, at)
        else:
            member = yield from _pauses(text.any_value(at))
            at = member.end
            if key == "device_id":
                check_device(text.exact(member))
            elif key == "events" and member.value is not None:
                raise invalid_field("events", "must be a list")
        seen.add(key)
        more, at = text.more(at, "}")
    if text.skip_blank(at) != len(text.text):
        raise NotJsonError(at)
    if "device_id" not in seen:
        raise invalid_field("device_id", "is required")
    if "events" not in seen:
        raise invalid_field("events", "is required")


def _pauses(steps: Generator[None, None, T]) -> Generator[list[ReadEvent], None, T]:
    """Steps whose pauses are empty slices."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        yield []


def _read_events(text: JsonText, at: int) -> Generator[list[ReadEvent], None, int]:
    total = 0
    events: list[ReadEvent] = []
    more, at = text.begin(at, "[")
    begun = at
    while more:
        if (found := _read_at_once(text, at)) is None:
            found = yield from _pauses(_read_event(text, at))
        event, at = found
        events.append(event)
        more, at = text.more(at, "]")
        total += 1
        _check_number(total)
        if len(events) == SLICE or at - begun > BYTES_OF_A_SLICE:
            yield events
            events, begun = [], at
    yield events
    return at


def _pass_events(text: JsonText, at: int) -> Generator[list[ReadEvent], None, int]:
    total = 0
    more, at = text.begin(at, "[")
    begun = at
    while more:
        at = (yield from _pauses(text.any_value(at))).end
        more, at = text.more(at, "]")
        total += 1
        _check_number(total)
        if at - begun > BYTES_OF_A_SLICE:
            yield []
            begun = at
    return at


def _check_number(total: int) -> None:
    if total > MAX_EVENTS:
        raise invalid_field("events", f"must have at most {MAX_EVENTS} items")


def _read_at_once(text: JsonText, start: int) -> tuple[ReadEvent, int] | None:
    """Reads an event in the agent's form; `None` when it has another one, or is unreadable."""
    if (form := _AGENTS_FORM(text.text, start)) is None:
        return None
    try:
        payload = text.value(form.end())
    except UnreadableError:
        return None
    if not text.text.startswith("}", payload.end):
        return None
    end = payload.end + 1
    return _checked(text, start, end, payload, form.group), end


def _read_event(text: JsonText, start: int) -> Generator[None, None, tuple[ReadEvent, int]]:
    if not text.text.startswith("{", start):
        end = (yield from text.any_value(start)).end
        return _quarantine(text, start, end, "event: must be an object"), end
    try:
        members, end = yield from text.members(start, _FIELDS)
    except UnreadableError as error:
        end = yield from text.skip(start, error.rule)
        return _quarantine(text, start, end, f"event: {error.rule}"), end

    def field(name: str) -> Any:
        return _field(text, name, members.get(name))

    return _checked(text, start, end, members.get("payload"), field), end


def _checked(
    text: JsonText, start: int, end: int, payload: Member | None, field: Callable[[str], Any]
) -> ReadEvent:
    try:
        raw, value = _payload(text, payload)
        return make_event(
            event_id=field("id"),
            type_=field("type"),
            occurred_at=_time(field("timestamp")),
            payload=raw,
            value=value,
        )
    except BrokenRuleError as broken:
        return _quarantine(text, start, end, str(broken))


def _field(text: JsonText, name: str, member: Member | None) -> Any:
    if member is None:
        return None
    try:
        value = text.exact(member)
    except UnicodeDecodeError as broken:
        raise BrokenRuleError(f"{name}: must be in UTF-8") from broken
    if isinstance(value, Unreadable):
        raise BrokenRuleError(f"{name}: {value.rule}")
    return value


def _time(value: Any) -> datetime:
    if value is None:
        raise BrokenRuleError("timestamp: is required")
    try:
        return parse_rfc3339(value)
    except ValueError as broken:
        raise BrokenRuleError(f"timestamp: {broken}") from broken


def _payload(text: JsonText, member: Member | None) -> tuple[str | None, Any]:
    if member is None:
        return None, None
    if member.end - member.start > MAX_PAYLOAD:
        raise BrokenRuleError(f"payload: must have at most {MAX_PAYLOAD} bytes")
    if isinstance(member.value, Unreadable):
        raise BrokenRuleError(f"payload: {member.value.rule}")
    try:
        raw = text.raw(member.start, member.end)
        check_payload_depth(raw)
        value = text.exact(member)
    except UnicodeDecodeError as broken:
        raise BrokenRuleError("payload: must be in UTF-8") from broken
    if _ESCAPED_UNSTORABLE.search(raw) is not None:
        check_payload_text(value)
    return raw, value


def check_payload_depth(raw: str) -> None:
    """Refuses a payload that is nested deeper than every reader of it can follow.

    Raises:
        BrokenRuleError: it is.
    """
    if raw.count("[") + raw.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for found in _BRACKET_OR_STRING.finditer(raw):
        if found[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise BrokenRuleError("payload: is nested too deeply")
        elif found[0] in "]}":
            depth -= 1


def check_payload_text(value: Any) -> None:
    """Refuses text in a payload that PostgreSQL could not give out again.

    Raises:
        BrokenRuleError: a string or a key holds NUL or half of a surrogate pair.
    """
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if (rule := text_rule(item, MAX_PAYLOAD)) is not None:
                raise BrokenRuleError(f"payload: {rule}")
        elif isinstance(item, dict):
            waiting.extend(item)
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def make_event(
    *, event_id: Any, type_: Any, occurred_at: datetime, payload: str | None, value: Any
) -> NewEvent:
    """Checks an event's fields and derives what administrators see of it.

    `value` is what the JSON text `payload` says.

    Raises:
        BrokenRuleError: a field breaks a rule.
    """
    _check_text("id", event_id, _MAX_ID)
    _check_text("type", type_, _MAX_TYPE)
    severity, message = _describe(type_, value)
    return NewEvent(new_id(), event_id, type_, severity, message, payload, occurred_at)


def _check_text(name: str, value: Any, most: int) -> None:
    if value is None or value == "":
        raise BrokenRuleError(f"{name}: is required")
    if (rule := text_rule(value, most)) is not None:
        raise BrokenRuleError(f"{name}: {rule}")


def _describe(type_: str, value: Any) -> tuple[str, str]:
    """Severity and message: what the payload says of them, else what the type suggests."""
    severity = _severity_of(type_)
    if isinstance(value, dict):
        said = value.get("severity", value.get("level"))
        if isinstance(said, str):
            severity = _SEVERITY.get(said.strip().lower(), severity)
    return severity, message_of(type_, value)


@lru_cache(maxsize=1024)
def _severity_of(type_: str) -> str:
    if _FAILED.search(type_) is not None:
        return "error"
    return "warning" if _WARNED.search(type_) is not None else "info"


def _quarantine(text: JsonText, start: int, end: int, reason: str) -> BadEvent:
    return quarantine(memoryview(text.body)[start:end], reason)


def quarantine(sent: bytes | memoryview, reason: str, shown: str | None = None) -> BadEvent:
    """What is kept of an event that breaks a rule; `shown` when `sent` is not what people read."""
    whole = sent if shown is None else shown.encode()
    # Anything may be in there; what PostgreSQL stores is UTF-8 without NUL.
    content = str(whole[:MAX_CONTENT], "utf-8", "replace").replace("\0", "\ufffd")
    # What replaces a byte is longer than the byte.
    kept = content.encode()[:MAX_CONTENT].decode("utf-8", "ignore")
    if len(whole) > MAX_CONTENT or len(kept) < len(content):
        reason += f" (of {len(whole)} bytes the first {MAX_CONTENT} are kept)"
    return BadEvent(new_id(), sha256(sent), reason, kept)


def metadata_text(payload: str | None) -> str:
    """The JSON object that is shown as an event's metadata: the payload, or one that holds it."""
    if payload is None:
        return "{}"
    return payload if payload.startswith("{") else f'{{"value":{payload}}}'


def metadata(payload: str | None) -> dict[str, Any]:
    """The object behind `metadata_text`."""
    value: dict[str, Any] = json.loads(metadata_text(payload))
    return value
