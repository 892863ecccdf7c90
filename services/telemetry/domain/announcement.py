"""What integrators receive of device events: one CloudEvent with many of them."""

from __future__ import annotations

import json.encoder
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid5

from services.telemetry.domain.times import format_time
from services.telemetry.domain.views import StoredEvent

NAME: Final = "telemetry.device_events"
MAX_BYTES: Final = 512 << 10
"""A message holds no more, but for a single event that is larger (its payload has 64 KiB)."""
_quoted: Final = json.encoder.encode_basestring
_NAMESPACE: Final = UUID("7c1f0a56-58c5-5d0b-9d7a-3f2f3fd5f3a1")


@dataclass(frozen=True, slots=True)
class Announcement:
    """A message. The same events always have the same id."""

    id: UUID
    tenant_id: UUID
    payload: bytes


def announcements(
    root: str, tenant_id: UUID, events: Sequence[tuple[StoredEvent, str]]
) -> Iterator[Announcement]:
    """Messages with a tenant's events (each with the id that its device gave it), in order.

    `root` is what event types begin with.
    """
    texts: list[bytes] = []
    first = last = None
    size = 0
    for event, event_id in events:
        text = _event_text(event, event_id).encode()
        if texts and size + len(text) > MAX_BYTES:
            assert first is not None
            assert last is not None
            yield _announcement(root, tenant_id, first, last, texts)
            texts, first, size = [], None, 0
        first = first or event
        last = event
        texts.append(text)
        size += len(text)
    if first is not None and last is not None:
        yield _announcement(root, tenant_id, first, last, texts)


def _announcement(
    root: str, tenant_id: UUID, first: StoredEvent, last: StoredEvent, texts: list[bytes]
) -> Announcement:
    message_id = uuid5(_NAMESPACE, f"{first.id}/{last.id}/{len(texts)}")
    head = json.dumps(
        {
            "specversion": "1.0",
            "id": str(message_id),
            "source": "/evergreen/telemetry",
            "type": f"{root}.{NAME}",
            "time": format_time(last.received_at),
            "datacontenttype": "application/json",
            "tenantid": str(tenant_id),
        },
        separators=(",", ":"),
    )
    payload = b'%s,"data":{"events":[%s]}}' % (head[:-1].encode(), b",".join(texts))
    return Announcement(message_id, tenant_id, payload)


def _event_text(event: StoredEvent, event_id: str) -> str:
    return (
        f'{{"id":"{event.id}","deviceId":"{event.device_id}","eventId":{_quoted(event_id)}'
        f',"type":{_quoted(event.type)},"severity":{_quoted(event.severity)}'
        f',"message":{_quoted(event.message)},"occurredAt":"{format_time(event.occurred_at)}"'
        f',"receivedAt":"{format_time(event.received_at)}","payload":{event.payload or "null"}}}'
    )
