"""The catalogue of events, and the AsyncAPI document that is made from it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from jsonschema import Draft7Validator

from servicekit.access import CONTEXTS
from servicekit.catalogue import CATALOGUE, DEVICE_EVENTS, Kind
from servicekit.events import Event
from servicekit.streams import EVENTS, STREAMS, SUBJECT_ROOT, TELEMETRY, stream_of
from tests.events import check_event
from tools import asyncapi

ROOT = Path(__file__).resolve().parents[2]
KINDS = sorted(CATALOGUE)


def fits(subject: str, pattern: str) -> bool:
    """Whether a subject is one of a NATS pattern."""
    expression = re.escape(pattern).replace(r"\*", "[^.]+").replace(">", ".+")
    return re.fullmatch(expression, subject) is not None


def test_the_files_are_up_to_date() -> None:
    """`make gen` would write what is there."""
    document = asyncapi.document()
    assert json.loads(asyncapi.SERVED.read_text(encoding="utf-8")) == document
    assert yaml.safe_load(asyncapi.PUBLISHED.read_text(encoding="utf-8")) == document


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_described(name: str) -> None:
    """With a schema that is one, an example that satisfies it, and one stream that takes it."""
    kind = CATALOGUE[name]
    assert kind.name == name
    assert kind.context in CONTEXTS
    assert kind.summary.endswith(".")
    Draft7Validator.check_schema(asyncapi.envelope(kind))
    check_event(asyncapi.example(kind))
    subject = f"{SUBJECT_ROOT}.{uuid4()}.{name}"
    takers = [s for s in STREAMS for pattern in s.subjects if fits(subject, pattern)]
    assert takers == [stream_of(subject)]
    assert takers == [TELEMETRY if name == DEVICE_EVENTS else EVENTS]


def test_every_name_in_the_code_is_in_the_catalogue_and_the_other_way_round() -> None:
    """Whatever looks like an event's name where events are made."""
    contexts = "|".join(CONTEXTS)
    names = re.compile(rf'"((?:{contexts})\.[a-z]+(?:_[a-z]+)*)"')
    found: set[str] = set()
    for path in (ROOT / "services").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "Event(" in text or "Outcome" in text or "_tell(" in text or "NAME" in text:
            found |= set(names.findall(text))
    tables = {"telemetry.event", "telemetry.device", "telemetry.event_week"}
    assert found - set(CATALOGUE) <= tables
    restore = (ROOT / "cli" / "backup" / "aftermath.py").read_text(encoding="utf-8")
    assert found | set(names.findall(restore)) >= set(CATALOGUE)


def example_of(kind: Kind) -> dict[str, Any]:
    data = kind.example()
    event = Event(kind.name, uuid4(), data["resource"], data["before"], data["after"])
    found: dict[str, Any] = json.loads(event.payload())
    return found


@pytest.mark.parametrize("name", sorted(set(KINDS) - {DEVICE_EVENTS}))
def test_what_is_sent_fits(name: str) -> None:
    """The envelope that services make satisfies the schema, and a wrong side does not."""
    event = example_of(CATALOGUE[name])
    check_event(event)
    event["data"]["after"] = {"something": "else"}
    if CATALOGUE[name].after is not None:
        with pytest.raises(Exception, match="required"):
            check_event(event)
