"""Typed events: who sends them, and that what is sent stays what it was."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, get_args
from uuid import UUID

import pytest

from contract import events
from contract.access import Role
from contract.contexts import CONTEXTS
from contract.events import EVENT_TYPES, EXAMPLES
from contract.events.base import ID, TENANT_ID, Action, Event, members_of
from contract.subjects import SUBJECT_ROOT
from servicekit.call import Call, Caller, CallerKind
from servicekit.messaging.encoding import writer
from servicekit.messaging.events import CloudEvent
from tests.support.events import check_event
from tools.release.record import releases

RECORDED = Path(__file__).parent / "recorded"
ACTIONS = {name: example for name, example in EXAMPLES.items() if isinstance(example, Action)}
ADMIN = Caller(CallerKind.USER, str(TENANT_ID), role=Role.ADMIN, email="admin@school.example")
CALL = Call("", ADMIN, "6f0e1a52-64a8-4f8e-9b39-0d1f5b7a9c11", "192.0.2.17")


def payload_of(action: Action) -> str:
    """What a service would send, always at the same time."""
    at = datetime(2026, 9, 1, 7, 58, 3, 221407, UTC)
    return CloudEvent(action, TENANT_ID, call=CALL, id=ID, occurred_at=at).payload()


def recorded(file: str) -> list[str]:
    return (RECORDED / file).read_text(encoding="utf-8").split("\n")[:-1]


def name_of(payload: str) -> str:
    name: str = json.loads(payload)["type"].removeprefix(f"{SUBJECT_ROOT}.")
    return name


def senders_of(context: str) -> Iterator[ModuleType]:
    """The modules of a service."""
    package = importlib.import_module(f"services.{context}")
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(found.name)


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_event_is_sent_by_its_service(context: str) -> None:
    """A module of the service imports its type; the linter allows no import without a use."""
    used = {id(value) for module in senders_of(context) for value in vars(module).values()}
    own = {event for event in EVENT_TYPES.values() if event.context() == context}
    assert {event.NAME for event in own if id(event) not in used} == set()


def test_every_event_has_an_example() -> None:
    """Without one it stands in no list, and the outbox refuses it."""
    places = [name for _, name, _ in pkgutil.walk_packages(events.__path__, f"{events.__name__}.")]
    modules = [importlib.import_module(place) for place in places]
    kinds = {kind for m in modules for kind in vars(m).values() if isinstance(kind, type)}
    named = {kind.NAME for kind in kinds if issubclass(kind, Event) and "NAME" in vars(kind)}
    assert named == set(EVENT_TYPES)


@pytest.mark.parametrize("name", sorted(EVENT_TYPES))
def test_an_event_is_made_of_what_the_contract_knows(name: str) -> None:
    """Its context exists, its docstring is a sentence, and an action has two sides at most."""
    event = EVENT_TYPES[name]
    assert name == event.NAME
    assert re.fullmatch(r"[a-z]+\.[a-z_]+", name)
    assert event.context() in CONTEXTS
    if issubclass(event, Action):
        members = [member.attribute for member in members_of(event)]
        assert [m for m in ("id", "before", "after") if m in members] == members
        assert event.RESOURCE.count("{id}") == 1


@pytest.mark.parametrize("line", recorded("sent.jsonl"), ids=name_of)
def test_what_is_sent_keeps_its_bytes(line: str) -> None:
    """The audit log hashes them; recorded when events were not typed yet."""
    sent = payload_of(ACTIONS[name_of(line)])
    # What came later stands behind it.
    assert sent.startswith(line.removesuffix("}}") + ',"outcome":"')


@pytest.mark.parametrize("file", sorted(path.name for path in RECORDED.glob("released_*.jsonl")))
def test_what_a_release_sent_satisfies_the_schema(file: str) -> None:
    """Every event of every release: as `tools.release` recorded its examples; those of 0.1.0 as its
    work days received them, too."""
    for line in recorded(file):
        check_event(json.loads(line))


def test_the_events_of_every_release_are_recorded() -> None:
    assert {path.name for path in RECORDED.glob("released_*.jsonl")} == {
        f"released_{release.version}.jsonl" for release in releases()
    }


def parts(kind: Any) -> set[type]:
    """The dataclasses that a type is made of."""
    found = {kind} if dataclasses.is_dataclass(kind) and isinstance(kind, type) else set()
    inner = [m.type for part in found for m in members_of(part)] or get_args(kind)
    return found.union(*map(parts, inner))


def test_no_member_holds_a_secret() -> None:
    """A name that sounds like one is listed here, with the reason."""
    harmless = {
        "tokenVersion",  # a number
        "enrollmentTokenId",
        "keyId",  # the thumbprint of a public key
        "policyKeyId",  # likewise
        "hash",  # of the audit log's last entry
        "ekHashPrefix",  # eight digits of a public key's digest
    }
    suspicious = re.compile(r"secret|password|passphrase|token|hash|seed|key|cookie|otp", re.I)
    names = {
        m.name for kind in EVENT_TYPES.values() for part in parts(kind) for m in members_of(part)
    }
    assert {name for name in names if suspicious.search(name)} <= harmless


@pytest.mark.parametrize("kind", [float, bytes, list[str], str | int, dict])
def test_a_type_without_a_form_is_refused(kind: Any) -> None:
    """When the first event of that type is made, so that no test misses it."""
    with pytest.raises(TypeError, match="has no form"):
        writer(kind)


def test_awkward_texts_are_sent_as_they_are() -> None:
    """Quotes, control characters and everything beyond ASCII, as `json.dumps` writes them."""
    text = 'Scho"ol \\ \x00\x1f\x7f\u2028 ä😀'
    assert writer(str)(text) == json.dumps(text, ensure_ascii=False)
    assert writer(UUID | None)(None) == "null"
    assert writer(tuple[bool, ...])((True, False)) == "[true,false]"
    assert writer(datetime)(datetime(2026, 1, 2, tzinfo=UTC)) == '"2026-01-02T00:00:00Z"'
