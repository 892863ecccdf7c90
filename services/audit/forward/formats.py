"""What is sent of an entry: CloudEvents, lines for Splunk's collector, OCSF.

A CloudEvent is the record itself with a few members more, which begin with `audit`: without them,
and with sorted keys, it is what the log has hashed. Times are the record's own text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from auditlog.entries import Entry
from contract.subjects import SUBJECT_ROOT
from servicekit.security.digests import sha256_hex
from servicekit.times import format_rfc3339
from services.audit.forward.domain import Format
from services.audit.forward.ocsf import ocsf_event

LONGEST: Final = 256 << 10
"""Bytes of an entry in a webhook's message."""
_SIDES: Final = ("before", "after")
_CLOUDEVENT: Final = "application/cloudevents+json"
_CLOUDEVENTS: Final = "application/cloudevents-batch+json"
_JSON: Final = "application/json"


def _redacted(entry: Entry) -> dict[str, Any]:
    """What is left of an entry, in the form of an event; its hash is made of the digest."""
    action = entry.columns.action
    return {
        "specversion": "1.0",
        "id": entry.columns.id,
        "source": f"/evergreen/{action.partition('.')[0]}",
        "type": f"{SUBJECT_ROOT}.{action}",
        "time": format_rfc3339(entry.columns.occurred_at),
        "datacontenttype": "application/json",
        "tenantid": entry.tenant_id,
        "data": {
            "action": action,
            "resource": "",
            "actor": "",
            "actorId": "",
            "before": None,
            "after": None,
        },
        "auditredacted": True,
        "auditsequence": entry.sequence,
        "auditprevious": entry.previous_hash,
        "audithash": entry.hash,
        **({"auditdigest": entry.digest} if entry.digest else {}),
    }


class UnreadableError(Exception):
    """No message can be made of an entry."""


@dataclass(frozen=True, slots=True)
class Item:
    """An entry, or a test, that is to be sent."""

    id: str
    sequence: int
    record: Mapping[str, Any]
    """With the members that begin with `audit`."""

    @classmethod
    def of(cls, entry: Entry) -> Item:
        """An entry.

        Raises:
            UnreadableError: its record is damaged.
        """
        if entry.redacted:
            return cls(entry.columns.id, entry.sequence, _redacted(entry))
        try:
            record = json.loads(entry.record)
        except (ValueError, RecursionError) as broken:
            raise UnreadableError("the record is no JSON") from broken
        if not isinstance(record, dict) or not isinstance(record.get("data"), dict):
            raise UnreadableError("the record is no event")
        record["auditsequence"] = entry.sequence
        record["auditprevious"] = entry.previous_hash
        record["audithash"] = entry.hash
        if entry.salt:
            record["auditsalt"] = entry.salt
        return cls(entry.columns.id, entry.sequence, record)

    @classmethod
    def test(cls, event_id: UUID, payload: str) -> Item:
        """An event that the log does not have."""
        return cls(str(event_id), 0, json.loads(payload))

    @property
    def data(self) -> Mapping[str, Any]:
        """What people read."""
        found: Mapping[str, Any] = self.record["data"]
        return found

    def within(self, most: int) -> Mapping[str, Any]:
        """The record, in which `before` and `after` give way to digests if it is too long.

        Raises:
            UnreadableError: it is too long even so.
        """
        if len(compact(self.record)) <= most:
            return self.record
        data = dict(self.data)
        for side in _SIDES:
            if data.get(side) is not None:
                text = compact(data[side])
                data[side] = {"sha256": sha256_hex(text), "bytes": len(text)}
        shorter = {**self.record, "data": data, "audittruncated": True}
        if len(compact(shorter)) > most:
            raise UnreadableError("the record is too long")
        return shorter


def compact(value: Any) -> bytes:
    """JSON without blanks."""
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    except (ValueError, RecursionError) as broken:
        raise UnreadableError("the record is no Unicode") from broken


@dataclass(frozen=True, slots=True)
class Body:
    """What is posted."""

    id: str
    """The same at each attempt."""
    media_type: str
    content: bytes


class Bodies:
    """Makes the bodies of a webhook's messages.

    Args:
        form: in which form.
        host: the public name of the installation.
    """

    def __init__(self, form: Format, host: str) -> None:
        self._form = form
        self._host = host

    def piece(self, item: Item) -> bytes:
        """What a body has of an entry.

        Raises:
            UnreadableError: it cannot be made.
        """
        record = item.within(LONGEST)
        try:
            if self._form is Format.OCSF:
                return compact(ocsf_event(record, self._host))
            if self._form is Format.SPLUNK_HEC:
                return compact(
                    {
                        "time": seconds_of(record),
                        "host": self._host,
                        "source": "evergreen",
                        "sourcetype": "evergreen:audit",
                        "event": record,
                    }
                )
        except (ValueError, TypeError, KeyError, LookupError) as broken:
            raise UnreadableError(f"no {self._form} can be made of it") from broken
        return compact(record)

    def body(self, items: Sequence[Item], pieces: Sequence[bytes], *, many: bool) -> Body:
        """A body of entries whose pieces were made.

        Args:
            items: the entries.
            pieces: of each one.
            many: whether it has the form for several, whatever their number is.
        """
        ids = [item.id for item in items]
        message_id = ids[0] if len(ids) == 1 else f"batch-{sha256_hex(','.join(ids).encode())}"
        if self._form is Format.SPLUNK_HEC:
            return Body(message_id, _JSON, b"\n".join(pieces))
        content = b"[" + b",".join(pieces) + b"]" if many else pieces[0]
        if self._form is Format.OCSF:
            return Body(message_id, _JSON, content)
        return Body(message_id, _CLOUDEVENTS if many else _CLOUDEVENT, content)


def seconds_of(record: Mapping[str, Any]) -> float:
    """When it happened, in seconds since 1970.

    Raises:
        ValueError: the record's time is none.
    """
    return round(datetime.fromisoformat(str(record["time"])).timestamp(), 6)
