"""Etags: whether a call that changes something knows what it changes (RFC 9110, section 13.1.1).

A resource that can be changed has the field `etag`. It is answered in the header `ETag` too, and a
call gives it back in `If-Match` or in its own field `etag`. The pipeline reads what the call
expects, and the use case compares it (`check_etag`) when it has the row locked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import Message

from servicekit.errors import Code, DomainError, invalid_field
from servicekit.security.digests import sha256_hex

H_ETAG: Final = "etag"
H_IF_MATCH: Final = "if-match"
_FIELD: Final = "etag"
_TAG: Final = re.compile(r'\s*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*(?:,|$)')
_MOST: Final = 1024
_PRECONDITION_FAILED: Final = 412


@dataclass(frozen=True, slots=True)
class Expected:
    """What a call expects of the resource that it changes."""

    tags: frozenset[str]
    """Its etag is one of these."""
    anything: bool = False
    """It exists: `If-Match: *`."""
    by_header: bool = False

    def check(self, etag: str) -> None:
        """Refuses the call unless the resource is what it expects.

        Raises:
            DomainError: ABORTED; over HTTP 412 for `If-Match` and 409 for the field.
        """
        if self.anything or etag in self.tags:
            return
        raise DomainError(
            Code.ABORTED,
            "ETAG_MISMATCH",
            "it was changed since you read it; read it again"
            if self.tags
            else "If-Match: a weak etag (W/) never matches; send the etag without W/",
            http_status=_PRECONDITION_FAILED if self.by_header else None,
        )


_expected: ContextVar[Expected | None] = ContextVar("expected", default=None)


def etag_of(*shown: object) -> str:
    """An etag for what is shown of a resource: another one as soon as any of it is another.

    Args:
        shown: texts, numbers, times, ids and lists of them.
    """
    text = json.dumps(shown, default=str, separators=(",", ":"))
    return sha256_hex(text.encode())[:20]


def check_etag(etag: str) -> None:
    """Refuses the running call unless the resource's etag is what it expects, if it says so.

    Raises:
        DomainError: ABORTED.
    """
    expected = _expected.get()
    if expected is not None:
        expected.check(etag)


def expect(if_match: Iterable[str], request: Message, *, writes: bool) -> Expected | None:
    """What a call expects, by its header and by the field of its request; sets it for the call.

    Args:
        if_match: the values of `If-Match`, one for each time that it was sent.
        request: what the call takes.
        writes: whether it changes something.

    Raises:
        DomainError: INVALID_ARGUMENT when the header is none, when it and the field name two
            etags, or when the call would change something and cannot take it.
    """
    has_field = _FIELD in request.DESCRIPTOR.fields_by_name
    field = str(getattr(request, _FIELD)) if has_field else ""
    values = list(if_match)
    found = _parsed(", ".join(values)) if values else None
    if found is not None and writes and not has_field:
        raise invalid_field("If-Match", "this call does not take it; send it without")
    if field:
        if found is None:
            found = Expected(frozenset({field}))
        elif found.anything or field in found.tags:
            found = Expected(frozenset({field}), by_header=True)
        else:
            raise invalid_field("etag", "must be the etag in If-Match; give one of them")
    _expected.set(found)
    return found


def _parsed(header: str) -> Expected:
    """Reads `If-Match`. A weak etag is well-formed and matches nothing, as RFC 9110 has it."""
    if header.strip() == "*":
        return Expected(frozenset(), anything=True, by_header=True)
    tags, at = set(), 0
    while not at or at < len(header):
        tag = _TAG.match(header, at)
        if tag is None or len(header) > _MOST:
            raise invalid_field(
                "If-Match", 'must be * or etags in quotation marks, such as "12", as ETag has them'
            )
        if tag[1] is None:
            tags.add(tag[2])
        at = tag.end()
    return Expected(frozenset(tags), by_header=True)
