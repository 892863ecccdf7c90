"""The AsyncAPI document, which is made from the typed events."""

from __future__ import annotations

import json
import re
from uuid import uuid4

import pytest
from jsonschema import Draft7Validator, ValidationError

from contract.contexts import CONTEXTS
from contract.events.telemetry import DeviceEvents
from contract.subjects import EVENTS, STREAMS, SUBJECT_ROOT, TELEMETRY, stream_of
from tests.support import yaml_text
from tests.support.events import check_event
from tools import asyncapi

DESCRIBED = asyncapi.described_events()


def fits(subject: str, pattern: str) -> bool:
    """Whether a subject is one of a NATS pattern."""
    expression = re.escape(pattern).replace(r"\*", "[^.]+").replace(">", ".+")
    return re.fullmatch(expression, subject) is not None


def test_the_files_are_up_to_date() -> None:
    """`make gen` would write what is there."""
    document = asyncapi.document()
    assert json.loads(asyncapi.SERVED.read_text(encoding="utf-8")) == document
    assert yaml_text.load(asyncapi.PUBLISHED.read_text(encoding="utf-8")) == document


@pytest.mark.parametrize("name", DESCRIBED)
def test_every_event_is_described(name: str) -> None:
    """With a schema that is one, an example that satisfies it, and one stream that takes it."""
    event = DESCRIBED[name]
    assert event.name == name
    assert event.context in CONTEXTS
    assert event.summary.endswith(".")
    Draft7Validator.check_schema(asyncapi.envelope(event))
    check_event(asyncapi.example(event))
    subject = f"{SUBJECT_ROOT}.{uuid4()}.{name}"
    takers = [s for s in STREAMS for pattern in s.subjects if fits(subject, pattern)]
    assert takers == [stream_of(subject)]
    assert takers == [TELEMETRY if name == DeviceEvents.NAME else EVENTS]


@pytest.mark.parametrize("name", sorted(set(DESCRIBED) - {DeviceEvents.NAME}))
def test_a_wrong_side_is_found(name: str) -> None:
    """By the schema: a member is missing, or there is something where nothing may be."""
    event = asyncapi.example(DESCRIBED[name])
    event["data"]["after"] = {"something": "else"}
    with pytest.raises(ValidationError, match=r"required|not of type"):
        check_event(event)
