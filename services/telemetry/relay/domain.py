"""What integrators receive of device events: one CloudEvent with many of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid5

from contract.events.telemetry import DeviceEvents, ReportedEvent
from servicekit.messaging.encoding import writer
from servicekit.times import RULE, format_rfc3339, is_usable

MAX_BYTES: Final = 512 << 10
"""A message holds no more, but for a single event that is larger (its payload has 64 KiB)."""
_written: Final = writer(ReportedEvent)
_NAMESPACE: Final = UUID("7c1f0a56-58c5-5d0b-9d7a-3f2f3fd5f3a1")


@dataclass(frozen=True, slots=True)
class Announcement:
    """A message. The same events always have the same id."""

    id: UUID
    tenant_id: UUID
    payload: bytes
    events: Sequence[ReportedEvent]


def announcements(
    root: str,
    tenant_id: UUID,
    events: Iterable[ReportedEvent],
    left_out: Callable[[ReportedEvent, Exception], None],
) -> Iterator[Announcement]:
    """Messages with a tenant's events, in order.

    Args:
        root: what event types begin with.
        tenant_id: the tenant.
        events: what to tell.
        left_out: is called with an event that cannot be told, and why.
    """
    told: list[ReportedEvent] = []
    texts: list[bytes] = []
    size = 0
    for event in events:
        try:
            text = _text(event).encode()
        except (ValueError, TypeError) as error:
            left_out(event, error)
            continue
        if texts and size + len(text) > MAX_BYTES:
            yield _announcement(root, tenant_id, told, texts)
            told, texts, size = [], [], 0
        told.append(event)
        texts.append(text)
        size += len(text)
    if texts:
        yield _announcement(root, tenant_id, told, texts)


def _announcement(
    root: str, tenant_id: UUID, told: Sequence[ReportedEvent], texts: list[bytes]
) -> Announcement:
    first, last = told[0], told[-1]
    message_id = uuid5(_NAMESPACE, f"{first.id}/{last.id}/{len(texts)}")
    head = json.dumps(
        {
            "specversion": "1.0",
            "id": str(message_id),
            "source": "/evergreen/telemetry",
            "type": f"{root}.{DeviceEvents.NAME}",
            "time": format_rfc3339(last.received_at),
            "datacontenttype": "application/json",
            "tenantid": str(tenant_id),
        },
        separators=(",", ":"),
    )
    payload = b'%s,"data":{"events":[%s]}}' % (head[:-1].encode(), b",".join(texts))
    return Announcement(message_id, tenant_id, payload, told)


def _text(event: ReportedEvent) -> str:
    if not is_usable(event.occurred_at):
        # Stored before such times were refused; `null` or another time would be a lie.
        raise ValueError(f"occurredAt: {RULE}")
    return _written(event)
