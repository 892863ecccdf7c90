"""Typed events as JSON: compact, the members in the order of their declaration.

The audit log hashes these bytes, so how a type is written does not change.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import json.encoder
import types
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import Enum
from operator import attrgetter
from typing import Any, Final, Literal, TypeAlias, Union, get_args, get_origin
from uuid import UUID

from contract.events.base import Action, JsonText, members_of
from servicekit.times import format_rfc3339

Writer: TypeAlias = Callable[[Any], str]
"""Writes the values of one type."""

quoted: Final = json.encoder.encode_basestring
"""A text in JSON; like all texts of events, in Unicode."""
_any: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


@functools.cache
def writer(kind: Any) -> Writer:
    """What writes a type as it is annotated in an event.

    Raises:
        TypeError: the type has no form in JSON.
    """
    if kind in _SCALARS:
        return _SCALARS[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _or_null(kind, arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _sequence(writer(arguments[0]))
    if origin is Literal and all(type(value) is str for value in arguments):
        return quoted
    if origin is Mapping or kind is Mapping:
        return _any
    if isinstance(kind, type) and issubclass(kind, Enum):
        texts = {member: quoted(member.value) for member in kind}
        return texts.__getitem__
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _object(kind)
    raise TypeError(f"{kind} has no form in events")


def sides(event: Action) -> tuple[str, str]:
    """`before` and `after` of an event."""
    kind: Any = type(event)
    before, after = _sides(kind)
    return before(event), after(event)


NAMED_BY: Final = ("email", "name", "serial", "serial_number", "hostname", "subject")
"""The members of `after` or `before` that name a resource for people, the best first."""


def name_of(event: Action) -> str:
    """How people name what an event happened to, as it was then; empty where it says no name."""
    for side in ("after", "before"):
        part = getattr(event, side, None)
        for member in NAMED_BY if part is not None else ():
            found = getattr(part, member, None)
            if isinstance(found, str) and found:
                return found
    return ""


def reason_of(event: Action) -> str:
    """Why something did not go as it was wanted; empty for what did, or where nothing says it."""
    if event.OUTCOME == "success":
        return ""
    return str(getattr(getattr(event, "after", None), "reason", ""))


@functools.cache
def _sides(kind: type[Action]) -> tuple[Writer, Writer]:
    members = {member.attribute: member.type for member in members_of(kind)}
    before, after = (_side(name, members.get(name)) for name in ("before", "after"))
    return before, after


def _side(name: str, kind: Any) -> Writer:
    if kind is None:
        return lambda _: "null"
    read, write = attrgetter(name), writer(kind)
    return lambda event: write(read(event))


def _or_null(kind: Any, arguments: tuple[Any, ...]) -> Writer:
    if len(arguments) != 2 or types.NoneType not in arguments:
        raise TypeError(f"{kind} has no form in events")
    (write,) = (writer(argument) for argument in arguments if argument is not types.NoneType)
    return lambda value: "null" if value is None else write(value)


def _sequence(write: Writer) -> Writer:
    return lambda values: f"[{','.join(map(write, values))}]"


def _object(kind: type) -> Writer:
    """Compiles `lambda v: f'{{"name":{w0(v.name)},"tenantId":"{v.tenant_id}"}}'`.

    The relay writes every event of every device with it; a loop over the members costs a fifth
    more.
    """
    names: dict[str, Writer] = {"time": format_rfc3339}
    members: list[str] = []
    for index, member in enumerate(members_of(kind)):
        value = f"v.{member.attribute}"
        if member.type is UUID:
            text = f'"{{{value}}}"'
        elif member.type is datetime:
            text = f'"{{time({value})}}"'
        else:
            names[f"w{index}"] = writer(member.type)
            text = f"{{w{index}({value})}}"
        members.append(f'"{member.name}":{text}')
    source = f"lambda v: f'{{{{{','.join(members)}}}}}'"
    write: Writer = eval(source, names)  # noqa: S307  # made of names in the contract alone
    return write


_SCALARS: Final[Mapping[Any, Writer]] = {
    str: quoted,
    bool: lambda value: "true" if value else "false",
    int: int.__repr__,
    UUID: lambda value: f'"{value}"',
    datetime: lambda value: f'"{format_rfc3339(value)}"',
    JsonText: str,
    object: _any,
}
