"""Refuses JSON calls with names that no field has, and with types that a field does not have.

The gateway finds them before its transcoder drops or turns them (`deploy.gateway.members`), and
hands them on in one header: as `b:` (body) or `q:` (query) for a name, `tb:` or `tl:` for what has
to be true or false, or a list, and a percent-encoded path each. A native gRPC call has no such
header: its unknown fields are newer ones, which protobuf ignores by design.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from servicekit.errors import DomainError, FieldViolation, invalid, invalid_field

_INVALID: Final = "invalid"
_UNREAD: Final = "unread"
_TYPES: Final = {"tb": "must be true or false", "tl": "must be a list"}
_STEP: Final = re.compile(r"\[\d+\]")
_CUTOFF: Final = 0.6
_LISTED: Final = 12
# Names that clients know from elsewhere, and what they are called here.
_ALSO_CALLED: Final = {
    "tenantid": ("orgId", "tenantId"),
    "organisationid": ("orgId", "tenantId"),
    "organizationid": ("orgId", "tenantId"),
    "orgid": ("orgId", "tenantId"),
    "limit": ("pageSize",),
    "cursor": ("pageToken",),
}


def unknown_members(header: str, request: Message) -> DomainError:
    """What the caller is told of the names in the gateway's header.

    Args:
        header: the value of `H_UNKNOWN`.
        request: what the call takes.
    """
    if header == _INVALID:
        return invalid_field("body", "must be JSON as RFC 8259 has it")
    if header == _UNREAD:
        return invalid_field("request", "could not be read; write the address as documented")
    return invalid(*_violations(header, request))


def _violations(header: str, request: Message) -> Iterator[FieldViolation]:
    for entry in dict.fromkeys(header.split(",")):
        where, _, escaped = entry.partition(":")
        path = unquote(escaped, errors="replace")
        if where in _TYPES:
            yield FieldViolation(path, _TYPES[where])
            continue
        what = "query parameter" if where == "q" else "field"
        hint = _hint(path, request.DESCRIPTOR)  # type: ignore[arg-type]  # the stubs know two classes
        yield FieldViolation(path, f"no such {what}; {hint}")


def _hint(path: str, request: Descriptor) -> str:
    """The nearest name, or all that there are."""
    *above, name = path.split(".")
    message = _message(above, request)
    known = [field.json_name for field in message.fields] if message else []
    prefix = "".join(f"{step}." for step in above)
    if nearest := _nearest(name, known):
        return f'did you mean "{prefix}{nearest}"?'
    if not known:
        return "there are none here"
    listed = ", ".join(prefix + k for k in known[:_LISTED])
    return f"known are {listed}" + (", …" if len(known) > _LISTED else "")


def _message(path: list[str], message: Descriptor) -> Descriptor | None:
    for step in path:
        name = _STEP.sub("", step)
        field = next((f for f in message.fields if name in (f.json_name, f.name)), None)
        if field is None or field.message_type is None:
            return None
        message = field.message_type
    return message


def _nearest(name: str, known: list[str]) -> str | None:
    plain = {_plain(k): k for k in known}
    for other in (name, *_ALSO_CALLED.get(_plain(name), ())):
        if (found := plain.get(_plain(other))) is not None:
            return found
    near = difflib.get_close_matches(_plain(name)[:100], plain, n=1, cutoff=_CUTOFF)
    return plain[near[0]] if near else None


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()
