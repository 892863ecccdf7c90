"""How telemetry reads what devices send, and what it makes of it."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from contract.events.base import JsonText
from contract.events.telemetry import ReportedEvent
from servicekit.errors import DomainError
from servicekit.spreadsheet import csv_line
from servicekit.times import parse_rfc3339
from services.telemetry.events.domain import StoredEvent
from services.telemetry.events.presentable import presentable
from services.telemetry.exports.domain import EVENT_COLUMNS, event_json, event_row
from services.telemetry.relay.domain import MAX_BYTES, announcements
from services.telemetry.reports.events import (
    MAX_PAYLOAD,
    BadEvent,
    Batch,
    NewEvent,
    ReadEvent,
    quarantine,
)
from services.telemetry.reports.state import (
    NO_TIME,
    Health,
    State,
    StateReport,
    is_newer,
    newest_per_device,
    parse_state,
)

NOW = datetime(2026, 11, 24, 6, 0, tzinfo=UTC)
DEVICE = UUID(int=1)
TIME = "2026-11-24T06:00:00.123456789Z"
GOOD = {"id": "1", "type": "app.installed", "timestamp": TIME, "payload": {"a": 1}}


def read(body: bytes | dict[str, Any]) -> list[ReadEvent]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    batch = Batch(raw, lambda _: None)
    try:
        for _ in batch.check():
            pass
    except DomainError:
        with pytest.raises(DomainError):
            list(batch.read())
        raise
    return [event for part in batch.read() for event in part]


def read_one(event: Any) -> ReadEvent:
    raw = event if isinstance(event, bytes) else json.dumps(event).encode()
    (found,) = read(b'{"device_id":"d","events":[' + raw + b"]}")
    return found


def good(event: Any) -> NewEvent:
    found = read_one(event)
    assert isinstance(found, NewEvent), found
    return found


def reason(event: Any) -> str:
    found = read_one(event)
    assert isinstance(found, BadEvent), found
    return found.reason


# Events: the body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"nonsense",
        b'{"device_id":"d"',
        b'{"device_id":"d","events":[]}x',
        b'{"device_id":"d","events":[{}}',
        b'{"device_id":"d","events":[{"id":}]}',
        b'{"device_id":"d","events":[{"id":"1",}]}',
        b'{"device_id":"d","events":[NaN]}',
        b'{"device_id":"d","events":[{"payload":Infinity}]}',
        b'{"device_id":"d",events:[]}',
        b"\xef\xbb\xbf{}",
        b'{"device_id":"\xff","events":[]}',
        b'{"device_id":"d","events":[' + b"[" * 2000,
    ],
)
def test_a_body_that_is_not_json_is_refused_as_a_whole(body: bytes) -> None:
    """Nothing of it can be trusted."""
    with pytest.raises(DomainError, match="body"):
        read(body)


@pytest.mark.parametrize("events", [{}, "x", 1, True])
def test_events_must_be_a_list(events: Any) -> None:
    """The field is named."""
    with pytest.raises(DomainError, match="events: must be a list"):
        read({"device_id": "d", "events": events})


def test_what_must_be_there_is_named() -> None:
    """Without a device or without events there is no batch."""
    with pytest.raises(DomainError, match="device_id: is required"):
        read({"events": []})
    with pytest.raises(DomainError, match="events: is required"):
        read({"device_id": "d"})
    with pytest.raises(DomainError, match="events: is given twice"):
        read(b'{"device_id":"d","events":[],"events":[]}')


@pytest.mark.parametrize("events", [None, []])
def test_no_events_are_fine(events: Any) -> None:
    """Go writes an empty list as null at times."""
    assert read({"device_id": "d", "events": events, "more": {"x": [1]}}) == []


def test_white_space_and_the_order_of_fields_do_not_matter() -> None:
    """JSON is JSON."""
    body = json.dumps({"events": [GOOD, GOOD], "x": [], "device_id": "d"}, indent=2).encode()
    assert [type(event) for event in read(b"\r\n " + body + b"\t\n")] == [NewEvent, NewEvent]


def test_the_device_is_checked_before_the_events_are_read() -> None:
    """A body for another device costs nothing."""

    def refuse(device_id: Any) -> None:
        raise PermissionError(device_id)

    with pytest.raises(PermissionError, match="other"):
        next(Batch(b'{"device_id":"other","events":[{"id":', refuse).read())


# Events: one of them


def test_an_event_keeps_the_exact_text_of_its_payload() -> None:
    """Numbers of any size, the order of keys, spelling and white space are the device's."""
    payload = '{ "z":18446744073709551615, "a":1.10,"a":1e400, "t":"h\u00e9 \U0001f600\\u00e9" }'
    event = good(f'{{"id":"1","type":"t","timestamp":"{TIME}","payload":{payload}}}'.encode())
    assert event.payload == payload
    assert event.occurred_at == datetime(2026, 11, 24, 6, 0, 0, 123456, tzinfo=UTC)


@pytest.mark.parametrize("payload", [None, 1, "text", [1, 2], True, {}])
def test_a_payload_is_any_json(payload: Any) -> None:
    """Also none at all."""
    assert json.loads(good({**GOOD, "payload": payload}).payload or "") == payload
    without = {key: value for key, value in GOOD.items() if key != "payload"}
    assert good(without).payload is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": ""}, "id: is required"),
        ({"id": None}, "id: is required"),
        ({"id": 5}, "id: must be a string"),
        ({"id": "x" * 129}, "id: must have at most 128"),
        ({"id": "a\0b"}, "id: must not contain the character NUL"),
        ({"id": "\ud800"}, "id: must not contain half of a surrogate pair"),
        ({"type": ""}, "type: is required"),
        ({"type": ["x"]}, "type: must be a string"),
        ({"type": "x" * 257}, "type: must have at most 256"),
        ({"timestamp": None}, "timestamp: is required"),
        ({"timestamp": 5}, "timestamp: must be a time"),
        ({"timestamp": "yesterday"}, "timestamp: must be a time"),
        ({"timestamp": "2026-11-24"}, "timestamp: must be a time"),
        ({"timestamp": "2026-11-24T06:00:00"}, "timestamp: must be a time"),
        ({"timestamp": "2026-13-24T06:00:00Z"}, "timestamp: must be a time"),
        ({"timestamp": "0001-01-01T00:00:00+01:00"}, "timestamp: must be a time"),
        ({"timestamp": "\u0662026-11-24T06:00:00Z"}, "timestamp: must be a time"),
        ({"payload": "x" * MAX_PAYLOAD}, "payload: must have at most 65536 bytes"),
        ({"payload": {"a": ["\0"]}}, "payload: must not contain the character NUL"),
        ({"payload": {"a\0": 1}}, "payload: must not contain the character NUL"),
        ({"payload": ["\udfff"]}, "payload: must not contain half of a surrogate pair"),
    ],
)
def test_a_bad_event_is_set_aside_with_the_field_that_is_wrong(
    change: dict[str, Any], field: str
) -> None:
    """The reason names the field, so that a person can find the defect."""
    assert reason({**GOOD, **change}).startswith(field)


@pytest.mark.parametrize("missing", ["id", "type", "timestamp"])
def test_a_missing_field_is_named(missing: str) -> None:
    """As a wrong one is."""
    event = {key: value for key, value in GOOD.items() if key != missing}
    assert reason(event) == f"{missing}: is required"


@pytest.mark.parametrize("event", [1, None, "x", [], [GOOD], True])
def test_what_is_not_an_object_is_quarantined(event: Any) -> None:
    """Whatever else it is."""
    assert reason(event) == "event: must be an object"


def test_what_python_itself_cannot_read_is_quarantined() -> None:
    """Deep nesting and endless numbers end neither the service nor the batch."""
    event = f'{{"id":"1","type":"t","timestamp":"{TIME}","payload":%s}}'
    deep = "[" * 5000 + '"]"' + "]" * 5000
    body = f'{{"device_id":"d","events":[{event % deep},{event % ("1" * 5000)},{event % "1"}]}}'
    reasons = [e.reason if isinstance(e, BadEvent) else "" for e in read(body.encode())]
    assert reasons == [
        "payload: is nested too deeply",
        "payload: holds a number with too many digits",
        "",
    ]
    assert reason((event % ("[" * 501 + "]" * 501)).encode()) == "payload: is nested too deeply"
    assert good((event % ("[" * 500 + "]" * 500)).encode())


@pytest.mark.parametrize("field", ["id", "type", "timestamp", "payload"])
@pytest.mark.parametrize("depth", [400, *range(900, 1000, 3), 5000])
def test_a_field_may_be_any_abyss(field: str, depth: int) -> None:
    """However deep, and with text that is read a second time."""
    rest = {key: value for key, value in GOOD.items() if key != field}
    abyss = "[" * depth + '"\u00e9"' + "]" * depth
    event = f'{{"{field}":{abyss},{json.dumps(rest)[1:]}'.encode()
    found = read_one(event)
    if isinstance(found, BadEvent):
        assert found.reason.startswith(field)
    else:
        assert (field, depth) == ("payload", 400)


def test_an_escaped_backslash_is_no_escape() -> None:
    """`\\\\u0000` is a backslash and some letters."""
    assert good({**GOOD, "payload": {"\\u0000": "\\ud800", "emoji": "\U0001f600"}})


def test_white_space_before_the_payload_is_no_fault() -> None:
    """Also where all else is as compact as the agent writes it."""
    event = b'{"id":"1","type":"t","timestamp":"' + TIME.encode() + b'","payload": {"a": 1}}'
    assert good(event).payload == '{"a": 1}'


def test_broken_utf8_is_an_event_s_own_fault() -> None:
    """Its neighbours are stored."""
    bad = f'{{"id":"1","type":"t","timestamp":"{TIME}","payload":"'.encode() + b'\xff"}'
    found = read(b'{"device_id":"d","events":[' + bad + b"," + json.dumps(GOOD).encode() + b"]}")
    assert isinstance(found[0], BadEvent)
    assert found[0].reason == "payload: must be in UTF-8"
    assert isinstance(found[1], NewEvent)


@given(st.binary(max_size=40), st.sampled_from([0, 400, 1100, 3000]))
@example(b"\0", 3000)
@example(b"\xed\xa0\x80", 1100)
@example(b'"\\u0000', 1100)
@example(b"\\", 3000)
@example(b"1}\\", 3000)
def test_what_is_set_aside_can_be_stored(noise: bytes, depth: int) -> None:
    """Whatever bytes are in an event, also where no reader looks at them."""
    payload = b"[" * depth + noise + b"]" * depth
    event = b'{"id":"1","type":"t","timestamp":"' + TIME.encode() + b'","payload":' + payload + b"}"
    try:
        found = read_one(event)
    except DomainError:
        return
    for text in (found.content, found.reason) if isinstance(found, BadEvent) else found[1:6]:
        assert "\0" not in (text or "")
        assert (text or "").encode() is not None


def test_a_bad_event_is_kept_whole() -> None:
    """However large its payload is; the same event has the same digest."""
    event = {"id": "1", "payload": "\U0001f600" * 50_000}
    first, second = (read_one(event) for _ in range(2))
    assert isinstance(first, BadEvent)
    assert isinstance(second, BadEvent)
    assert json.loads(first.content) == event
    assert first.digest == second.digest
    assert first.id != second.id


def test_what_is_kept_of_a_bad_event_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it says so where something is missing."""
    monkeypatch.setattr("services.telemetry.reports.events.MAX_CONTENT", 1000)
    for sent in (b"x" * 2000, b"\xff" * 900, "\U0001f600".encode() * 251, b"\0" * 400):
        kept = quarantine(sent, "odd")
        assert 997 <= len(kept.content.encode()) <= 1000
        assert kept.reason == f"odd (of {len(sent)} bytes the first 1000 are kept)"
    whole = quarantine(b"x" * 1000, "odd")
    assert (whole.content, whole.reason) == ("x" * 1000, "odd")


@pytest.mark.parametrize(
    ("type_", "payload", "severity", "message"),
    [
        ("app.installed", None, "info", "app.installed"),
        ("app.install_failed", {}, "error", "app.install_failed"),
        ("update.error", [], "error", "update.error"),
        ("disk.warning", "x", "warning", "disk.warning"),
        ("x.failed", {"severity": "INFO", "message": " all well "}, "info", "all well"),
        ("x", {"level": "warn", "msg": "hm"}, "warning", "hm"),
        ("x", {"severity": "critical"}, "error", "x"),
        ("x", {"severity": "purple", "message": ""}, "info", "x"),
        ("x.error", {"severity": 5, "message": ["a"]}, "error", "x.error"),
        ("x", {"message": "m" * 2000}, "info", "m" * 1024),
        ("x", {"message": "h\u00e9 \U0001f600"}, "info", "h\u00e9 \U0001f600"),
    ],
)
def test_severity_and_message_come_from_the_payload_or_the_type(
    type_: str, payload: Any, severity: str, message: str
) -> None:
    """What a person reads in the console."""
    raw = json.dumps({**GOOD, "type": type_, "payload": payload}, ensure_ascii=False).encode()
    event = good(raw)
    assert (event.severity, event.message) == (severity, message)


@pytest.fixture
def tiny_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies of more than 200 bytes are large ones."""
    monkeypatch.setattr("services.telemetry.reports.json_text.WINDOW", 200)
    monkeypatch.setattr("services.telemetry.reports.json_text.LARGEST", 100)
    monkeypatch.setattr("services.telemetry.reports.json_skip._SHORTEST", 7)
    monkeypatch.setattr("services.telemetry.reports.json_skip._LONGEST", 30)


@pytest.mark.usefixtures("tiny_window")
@pytest.mark.parametrize("indent", [None, 1])
def test_values_that_a_window_cannot_hold_are_quarantined(indent: int | None) -> None:
    """Wherever they stand; what is beside them is read as in a small body."""
    payloads = [
        "x" * 500,
        ['["\\]}'] * 100,
        {"a": [{}] * 90},
        10**400,
        [[[7]] * 30] * 9,
        "\\" * 150,
    ]
    events = [{**GOOD, "id": str(n), "payload": p} for n, p in enumerate([1, *payloads, 2])]
    body = {"more": payloads, "device_id": "d", "events": [*events, *payloads, "x" * 80]}
    for escaped in (True, False):
        found = read(json.dumps(body, indent=indent, ensure_ascii=escaped).encode())
        reasons = [e.reason if isinstance(e, BadEvent) else e.event_id for e in found]
        large = ["payload: is too large"] * 6
        no_object = ["event: must be an object"] * 7
        no_object[2] = "timestamp: is required"
        assert reasons == ["0", *large, "7", *no_object]
        for event, sent in zip(found[1:7], events[1:7], strict=True):
            assert isinstance(event, BadEvent)
            assert json.loads(event.content) == sent


@pytest.mark.usefixtures("tiny_window")
@pytest.mark.parametrize(
    "value", [b"{a:1}", b"tru", b"[1,]", b"NaN", b'"\n"', b"[" * 300, b'"' + b"x" * 300]
)
def test_what_is_not_json_is_refused_in_a_large_body_too(value: bytes) -> None:
    """As far as it is looked at."""
    for before in (0, 50, 150, 190, 300):
        event = b'{"id":"1","payload":' + value + b"}"
        body = b'{"device_id":"d","x":"' + b" " * before + b'","events":[' + event
        with pytest.raises(DomainError, match="body"):
            read(body + b"," + json.dumps([GOOD] * 3).encode()[1:] + b"}")


def test_a_hostile_body_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of lists would take thirty times the room of its text."""
    monkeypatch.setattr("services.telemetry.reports.json_text.WINDOW", 1 << 16)
    monkeypatch.setattr("services.telemetry.reports.json_text.LARGEST", 1 << 12)
    event = b'{"id":"1","type":"t","timestamp":"' + TIME.encode() + b'","payload":['
    body = b'{"device_id":"d","events":[' + event + b"[]," * 100_000 + b"0]}]}"
    tracemalloc.start()
    try:
        (found,) = read(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(found, BadEvent)
    assert found.content.encode() == body[len(b'{"device_id":"d","events":[') : -2]
    assert peak < 12 * len(body)


any_text = st.text(st.characters(codec=None), max_size=20)
any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=20,
)
event_like = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=140) | any_json,
        "type": st.text(max_size=260) | any_json,
        "timestamp": st.just(TIME) | st.datetimes().map(lambda t: t.isoformat() + "Z") | any_json,
        "payload": any_json,
    },
)


@given(st.lists(event_like | any_json, max_size=6), st.booleans())
def test_every_event_is_either_stored_or_quarantined(events: list[Any], escaped: bool) -> None:
    """Whatever JSON the list holds, each of its items is counted once and nothing raises."""
    text = json.dumps({"device_id": "d", "events": events}, ensure_ascii=escaped)
    found = read(text.encode("utf-8", "surrogatepass"))
    assert len(found) == len(events)
    for event, sent in zip(found, events, strict=True):
        if isinstance(event, NewEvent):
            assert (event.event_id, event.type) == (sent["id"], sent["type"])
            # PostgreSQL takes it: no NUL, no half of a surrogate pair.
            for value in event:
                assert not isinstance(value, str) or ("\0" not in value and value.encode())
            if "payload" in sent:
                assert json.loads(event.payload or "") == sent["payload"]
        else:
            assert event.content.encode() is not None


@given(st.tuples(*[st.text(max_size=8) | st.just(TIME) | any_json] * 4), st.booleans())
def test_the_form_of_an_event_does_not_matter(values: tuple[Any, ...], escaped: bool) -> None:
    """The agent's own, which is read in one go, and others, which are read member by member."""
    sent = dict(zip(("id", "type", "timestamp", "payload"), values, strict=True))

    def outcome(**form: Any) -> tuple[Any, ...]:
        text = json.dumps(form.pop("event", sent), ensure_ascii=escaped, **form)
        found = read_one(text.encode("utf-8", "surrogatepass"))
        if isinstance(found, BadEvent):
            return (found.reason,)
        return (*found[1:5], json.loads(found.payload or ""), found.occurred_at)

    agents = outcome(separators=(",", ":"))
    assert agents == outcome(indent=1)
    assert agents == outcome(event=dict(reversed(sent.items())), separators=(",", ":"))
    assert agents == outcome(event={**sent, "more": [None]}, separators=(",", ":"))


@pytest.mark.usefixtures("tiny_window")
@settings(suppress_health_check=list(HealthCheck))
@given(st.lists(event_like | any_json, max_size=12), st.booleans(), st.sampled_from([None, 1]))
def test_a_window_changes_nothing_that_it_can_hold(
    events: list[Any], escaped: bool, indent: int | None
) -> None:
    """An event is what it would be in a small body, or one of its fields is too large."""
    body = {"device_id": "d", "events": [*events, *[GOOD] * 3]}
    text = json.dumps(body, ensure_ascii=escaped, indent=indent)
    found = read(text.encode("utf-8", "surrogatepass"))
    for event, sent in zip(found, body["events"], strict=True):
        alone = json.dumps(sent, ensure_ascii=escaped, indent=indent)
        fields = sent.values() if isinstance(sent, dict) else [sent]
        sizes = [len(json.dumps(f, ensure_ascii=False, indent=9)) * 4 for f in fields]
        small = read_one(alone.encode("utf-8", "surrogatepass")) if len(alone) < 150 else None
        if isinstance(event, NewEvent):
            assert event.event_id == sent["id"]
            assert json.loads(event.payload or "null") == sent.get("payload")
        elif small is not None and max(sizes, default=0) < 100:
            assert isinstance(small, BadEvent)
            assert small.reason == event.reason


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_refused_or_read(noise: bytes) -> None:
    """Only the one kind of error comes out of the reader."""
    for body in (noise, b'{"device_id":"d","events":[' + noise + b"]}"):
        try:
            read(body)
        except DomainError as error:
            assert error.code == 3


# State

STATE = {
    "timestamp": TIME,
    "installed_apps": [{"id": "org.gnome.Maps", "version": "47", "branch": "stable"}],
    "update_status": "idle",
    "disk_total_bytes": 2**64 - 1,
    "disk_free_bytes": 2**63,
    "battery_percent": 87.5,
    "last_error": "",
}


def test_a_state_is_read_as_the_agent_writes_it() -> None:
    """Nanoseconds, whole uint64 range."""
    state = parse_state(STATE)
    assert state.observed_at == datetime(2026, 11, 24, 6, 0, 0, 123456, tzinfo=UTC)
    assert (state.disk_total_bytes, state.disk_free_bytes) == (2**64 - 1, 2**63)
    assert json.loads(state.installed_apps or "") == STATE["installed_apps"]


def test_a_state_may_lack_everything() -> None:
    """A field that is null or absent has its zero value, as in Go; only the time is missed."""
    bare = parse_state({"timestamp": TIME})
    assert bare == parse_state({**dict.fromkeys(STATE), "timestamp": TIME})
    assert (bare.installed_apps, bare.sanitised) == (None, frozenset())
    assert parse_state({"timestamp": TIME, "disk_total_bytes": 1e12}).disk_total_bytes == 10**12
    assert parse_state({"timestamp": TIME, "battery_percent": 50}).battery_percent == 50.0
    assert parse_state({}).sanitised == {"timestamp"}


APP = {"id": "a", "version": "1", "branch": "b"}


@pytest.mark.parametrize(
    ("field", "sent", "taken"),
    [
        *(
            ("timestamp", time, NO_TIME)
            for time in (None, "now", 5, "0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z",
                         "0000-01-01T00:00:00Z", "99999-01-01T00:00:00Z", "2026-11-24T25:00:00Z")
        ),
        ("installed_apps", {}, None),
        ("installed_apps", "x", None),
        ("installed_apps", [APP] * 5001, [APP] * 5000),
        ("installed_apps", ["x", APP, None, [APP], APP], [APP, APP]),
        ("installed_apps", [{**APP, "id": 5}, APP], [{**APP, "id": ""}, APP]),
        ("installed_apps", [{**APP, "branch": "x" * 257}], [{**APP, "branch": "x" * 256}]),
        ("installed_apps", [{**APP, "version": "1\0"}], [{**APP, "version": "1\ufffd"}]),
        ("update_status", 5, ""),
        ("update_status", "\U0001f600" * 1025, "\U0001f600" * 1024),
        ("disk_total_bytes", -1, 0),
        ("disk_total_bytes", 2**64, 2**64 - 1),
        ("disk_total_bytes", 1.5, 1),
        ("disk_total_bytes", 1e300, 2**64 - 1),
        ("disk_total_bytes", float("inf"), 2**64 - 1),
        ("disk_total_bytes", float("nan"), 0),
        ("disk_free_bytes", "7", 0),
        ("disk_free_bytes", True, 0),
        ("battery_percent", "full", 0.0),
        ("battery_percent", float("inf"), 0.0),
        ("battery_percent", 10**400, 0.0),
        ("battery_percent", False, 0.0),
        ("last_error", "a\0b", "a\ufffdb"),
        ("last_error", "\ud800a\udfff", "\ufffda\ufffd"),
        ("last_error", ["x"], ""),
        ("last_error", "x" * 65_537, "x" * 65_536),
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_taken_as_it_is_is_mended(field: str, sent: Any, taken: Any) -> None:
    """The agent would send it for ever, and with it hold up all that waits behind it."""
    state = parse_state({**STATE, field: sent})
    name = "observed_at" if field == "timestamp" else field
    found = getattr(state, name)
    assert (json.loads(found) if field == "installed_apps" and found else found) == taken
    assert state.sanitised == {field}
    whole = parse_state(STATE)
    assert whole.sanitised == frozenset()
    assert replace(state, **{name: getattr(whole, name)}, sanitised=frozenset()) == whole


@pytest.mark.parametrize("extra", [{}, {"unknown": 1}, {"version": None}, {"branch": "ä"}])
def test_applications_are_stored_one_way(extra: dict[str, Any]) -> None:
    """Read at once or one by one, which one odd item decides: the same text."""
    app = {"branch": "stable", "id": 'org."x"', "version": "1"}
    alone = parse_state({**STATE, "installed_apps": [app | extra]}).installed_apps
    beside = parse_state({**STATE, "installed_apps": [app | extra, {}]}).installed_apps
    empty = parse_state({**STATE, "installed_apps": [{}]}).installed_apps
    assert alone is not None
    assert empty is not None
    assert beside == f"{alone[:-1]},{empty[1:]}"
    shown = {"id": 'org."x"', "version": "1", "branch": "stable"}
    shown |= {key: value or "" for key, value in extra.items() if key in shown}
    assert list(json.loads(alone)[0].items()) == list(shown.items())


@given(st.dictionaries(st.sampled_from(list(STATE)), any_json))
def test_any_json_object_is_a_state(change: dict[str, Any]) -> None:
    """Which PostgreSQL takes."""
    state = parse_state({**STATE, **change})
    assert state.health in Health
    assert state.sanitised <= change.keys()
    assert 0 <= state.disk_free_bytes < 2**64
    for text in (state.update_status, state.last_error, state.installed_apps or ""):
        assert "\0" not in text
        assert text.encode() is not None
    assert "\\u0000" not in (state.installed_apps or "").replace("\\\\", "")


@pytest.mark.parametrize(
    ("total", "free", "battery", "error", "health"),
    [
        (100, 100, 0.0, "", Health.HEALTHY),
        (0, 0, 0.0, "", Health.HEALTHY),
        (0, 50, -1.0, "", Health.HEALTHY),
        (100, 15, 10.0, "", Health.HEALTHY),
        (1000, 149, 50.0, "", Health.WARNING),
        (100, 5, 50.0, "", Health.WARNING),
        (1000, 49, 50.0, "", Health.CRITICAL),
        (100, 0, 50.0, "x", Health.CRITICAL),
        (100, 50, 9.9, "", Health.WARNING),
        (100, 50, 0.0, "boom", Health.WARNING),
        (2**64 - 1, 2**64 - 1, 100.0, "", Health.HEALTHY),
    ],
)
def test_health_is_the_worst_of_disk_battery_and_error(
    total: int, free: int, battery: float, error: str, health: Health
) -> None:
    """A battery of 0 percent is a machine without one."""
    state = State(NOW, None, "", total, free, battery, error)
    assert state.health is health


def report(observed: timedelta, received: timedelta, device: UUID = DEVICE) -> StateReport:
    return StateReport(device, DEVICE, State(NOW + observed, None), NOW + received)


MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("stored", "sent", "replaces"),
    [
        # The usual case, and a repeated report.
        (report(0 * MINUTE, 0 * MINUTE), report(5 * MINUTE, 5 * MINUTE), True),
        (report(0 * MINUTE, 0 * MINUTE), report(0 * MINUTE, 5 * MINUTE), True),
        # A late retry of an older state.
        (report(0 * MINUTE, 0 * MINUTE), report(-5 * MINUTE, 1 * MINUTE), False),
        # The stored one is from a clock that was far ahead.
        (report(9999 * MINUTE, 0 * MINUTE), report(5 * MINUTE, 5 * MINUTE), True),
        # It gives way also to what waited in the queue behind it, and so does one without a time.
        (report(9999 * MINUTE, 0 * MINUTE), report(-5 * MINUTE, 1 * MINUTE), True),
        (report(NO_TIME - NOW, 0 * MINUTE), report(-5 * MINUTE, 1 * MINUTE), True),
        # Without a time it counts as of now, and what is of a clock a little ahead does not.
        (report(0 * MINUTE, 0 * MINUTE), report(NO_TIME - NOW, 1 * MINUTE), True),
        (report(3 * MINUTE, 0 * MINUTE), report(-5 * MINUTE, 1 * MINUTE), False),
        # The clock fell back: not at once, but soon.
        (report(0 * MINUTE, 0 * MINUTE), report(-9999 * MINUTE, 5 * MINUTE), False),
        (report(0 * MINUTE, 0 * MINUTE), report(-9999 * MINUTE, 16 * MINUTE), True),
    ],
)
def test_the_newer_state_stays(stored: StateReport, sent: StateReport, replaces: bool) -> None:
    """By the device's clock, as far as it can be trusted."""
    assert is_newer(sent, stored) is replaces


def test_of_one_device_the_newest_state_is_written() -> None:
    """Once per device, in the order of their ids, so that two writers cannot block each other."""
    other = UUID(int=0)
    newest = report(2 * MINUTE, 3 * MINUTE)
    found = newest_per_device(
        [
            report(1 * MINUTE, 3 * MINUTE),
            newest,
            report(0 * MINUTE, 3 * MINUTE),
            report(0 * MINUTE, 3 * MINUTE, other),
        ]
    )
    assert [r.device_id for r in found] == [other, DEVICE]
    assert found[1] is newest


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-24T06:00:00Z", NOW),
        ("2026-11-24T08:00:00+02:00", NOW),
        ("2026-11-24t06:00:00.000000999z", NOW),
    ],
)
def test_times_are_rfc3339(text: str, time: datetime) -> None:
    """With any offset."""
    assert parse_rfc3339(text) == time


# What goes out


def stored(payload: str | None = "{}", **change: Any) -> StoredEvent:
    values: dict[str, Any] = {
        "id": uuid4(),
        "tenant_id": DEVICE,
        "device_id": DEVICE,
        "type": "t",
        "severity": "info",
        "message": "m",
        "payload": payload,
        "occurred_at": NOW,
        "received_at": NOW,
        "listed_at": NOW,
    }
    return StoredEvent(**{**values, **change})


def test_a_spreadsheet_takes_no_cell_for_a_formula() -> None:
    """Devices choose these texts; an administrator opens them in a spreadsheet."""
    events = [stored('"=1"', type="=cmd|' /C calc'!A0", message="+1\n2"), stored(message="@x")]
    text = "\r\n".join(map(csv_line, [EVENT_COLUMNS, *map(event_row, events)]))
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["action"] for row in rows] == ["'=cmd|' /C calc'!A0", "t"]
    assert [row["message"] for row in rows] == ["'+1\n2", "'@x"]
    assert rows[0]["metadata"] == '{"value":"=1"}'
    assert not any(cell.startswith(tuple("=+-@")) for row in rows for cell in row.values())


def test_an_exported_event_has_its_payload_as_it_was_sent() -> None:
    """Also where it is no object."""
    assert json.loads(event_json(stored('{"n":18446744073709551615}')))["metadata"] == {
        "n": 18446744073709551615
    }
    assert json.loads(event_json(stored("[1]")))["metadata"] == {"value": [1]}
    assert json.loads(event_json(stored(None)))["metadata"] == {}


def test_numbers_that_json_readers_would_change_are_shown_as_text() -> None:
    """A Struct holds doubles, and its readers follow a hundred levels of messages."""
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    shown = presentable({"a": 2**53, "b": 2**53 + 1, "c": float("inf"), "d": True, "e": deep})
    assert shown["a"] == 2**53
    assert shown["b"] == str(2**53 + 1)
    assert shown["c"] == "inf"
    assert shown["d"] is True
    levels = 0
    while isinstance(shown["e"], list):
        shown["e"], levels = shown["e"][0], levels + 1
    assert levels < 20
    assert isinstance(shown["e"], str)


def reported(event_id: str, payload: str = "{}") -> ReportedEvent:
    return ReportedEvent(
        id=uuid4(),
        device_id=DEVICE,
        event_id=event_id,
        type="t",
        severity="info",
        message="m",
        occurred_at=NOW,
        received_at=NOW,
        payload=JsonText(payload),
    )


def refuse(_: object, error: Exception) -> None:
    raise error


@pytest.mark.parametrize("text", ["x" * 60_000, "\U0001f600" * 15_000])
def test_the_same_events_are_announced_with_the_same_ids(text: str) -> None:
    """A relay that was killed sends what the stream takes for the same messages; NATS counts
    their bytes."""
    payload = json.dumps(text, ensure_ascii=False)
    events = [reported(str(n), payload) for n in range(40)]
    first, second = (list(announcements("root", DEVICE, events, refuse)) for _ in range(2))
    assert first == second
    assert len({message.id for message in first}) == len(first) > 1
    assert all(len(message.payload) < MAX_BYTES + 70_000 for message in first)
    told = [e["eventId"] for m in first for e in json.loads(m.payload)["data"]["events"]]
    assert told == [str(n) for n in range(40)]
    assert list(announcements("root", DEVICE, [], refuse)) == []


def test_an_event_that_cannot_be_told_does_not_keep_the_others() -> None:
    """One that was stored with a time that no reader could take."""
    bad = replace(reported("2"), occurred_at=datetime(1, 1, 1, tzinfo=UTC))
    left_out: list[str] = []
    (message,) = announcements(
        "root",
        DEVICE,
        [reported("1"), bad, reported("3")],
        lambda event, error: left_out.append(f"{event.event_id}: {error}"),
    )
    assert [e["eventId"] for e in json.loads(message.payload)["data"]["events"]] == ["1", "3"]
    assert left_out == ["2: occurredAt: must be a time from 1970 to 9999"]
