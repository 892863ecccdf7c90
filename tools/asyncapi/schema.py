"""JSON Schemas (draft 7, as AsyncAPI has it) of typed events, and their examples as JSON."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Final, Literal, Union, get_args, get_origin
from uuid import UUID

from contract.access import Role
from contract.events.base import (
    Action,
    Event,
    JsonText,
    Member,
    Outcome,
    description_of,
    members_of,
    summary_of,
)
from servicekit.messaging.encoding import name_of, reason_of, sides, writer

Schema = Mapping[str, Any]

_SCALARS: Final[Mapping[Any, Schema]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    UUID: {"type": "string", "format": "uuid"},
    datetime: {"type": "string", "format": "date-time"},
    JsonText: {},
    object: {},
    types.NoneType: {"type": "null"},
}
_ROLES: Final = {"enum": ["", *(role.value for role in Role)]}


@dataclass(frozen=True, slots=True)
class Described:
    """An event as documents show it."""

    name: str
    context: str
    summary: str
    data: Schema
    """The schema of the CloudEvent's `data`."""
    example: Mapping[str, Any]
    """An example of the CloudEvent's `data`."""


def described(example: Event) -> Described:
    """An event's description, made from its type and its example."""
    event = type(example)
    return Described(
        name=event.NAME,
        context=event.context(),
        summary=summary_of(event),
        data=_data(event),
        example=_example(example),
    )


def schema_of(kind: Any) -> Schema:
    """The schema of a type as it is annotated in an event.

    Raises:
        TypeError: the type has no form in JSON.
    """
    if kind in _SCALARS:
        return _SCALARS[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return {"oneOf": [schema_of(argument) for argument in arguments]}
    if origin is tuple:
        return {"type": "array", "items": schema_of(arguments[0])}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is Mapping or kind is Mapping:
        return {"type": "object"}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"enum": [member.value for member in kind]}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _object(description_of(kind), members_of(kind))
    raise TypeError(f"{kind} has no form in events")


def _data(event: type[Event]) -> Schema:
    if not issubclass(event, Action):
        return schema_of(event)
    sides = {member.attribute: schema_of(member.type) for member in members_of(event)}
    text = {"type": "string"}
    members = {
        "action": {"const": event.NAME},
        "resource": {**text, "description": f"`{event.RESOURCE}`"},
        "actor": {
            **text,
            "description": "An e-mail address, `device:<id>`, `system` or `anonymous`.",
        },
        "actorId": text,
        "actorRole": _ROLES,
        "sourceIp": text,
        "requestId": text,
        "before": sides.get("before", {"type": "null"}),
        "after": sides.get("after", {"type": "null"}),
    }
    # Events of earlier releases are without them.
    later = {
        "outcome": {"enum": list(get_args(Outcome)), "description": "How it went."},
        "reason": {**text, "description": "Why it failed or was refused; empty for a success."},
        "resourceName": {
            **text,
            "description": "How people name the resource, as it was then: an e-mail address, a"
            " serial number, a name; may be empty.",
        },
        "actorKind": {"enum": ["user", "device", "system", "anonymous"]},
        "sessionId": {**text, "description": "The session of a user; else empty."},
        "userAgent": {
            **text,
            "description": "What the user's program says of itself, at most 256 characters.",
        },
        "related": {
            "type": "array",
            "items": text,
            "description": "What else it concerns, for example `devices/<id>`; absent for nothing.",
        },
    }
    return {
        "type": "object",
        "description": "Who did what.",
        "properties": {**members, **later},
        "required": list(members),
    }


def _example(event: Event) -> Mapping[str, Any]:
    if not isinstance(event, Action):
        kind: Any = type(event)
        plain: dict[str, Any] = json.loads(writer(kind)(event))
        return plain
    before, after = sides(event)
    return {
        "action": event.NAME,
        "resource": event.resource,
        "actor": "admin@school.example",
        "actorId": "01936d2e-5a70-7c31-9d0e-3f6f1a8b2c01",
        "actorRole": "Admin",
        "sourceIp": "192.0.2.17",
        "requestId": "6f0e1a52-64a8-4f8e-9b39-0d1f5b7a9c11",
        "before": json.loads(before),
        "after": json.loads(after),
        "outcome": event.OUTCOME,
        "reason": reason_of(event),
        "resourceName": name_of(event),
        "actorKind": "user",
        "sessionId": "01936d2e-7b1f-7d40-8f02-0c9e8a7b6c5d",
        "userAgent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/145.0",
        **({"related": list(event.related)} if event.related else {}),
    }


def _object(about: str, members: Sequence[Member]) -> Schema:
    """An object with exactly these members known; further ones may come."""
    return {
        "type": "object",
        "description": about,
        "properties": {member.name: _described(member) for member in members},
        "required": [member.name for member in members if member.required],
    }


def _described(member: Member) -> Schema:
    schema = dict(schema_of(member.type))
    if member.about:
        schema["description"] = member.about
    if member.at_least:
        schema["minItems"] = member.at_least
    return schema
