"""Events and devices as files: JSON and CSV.

A file that broke off ends like a whole one over HTTP. So a JSON file is whole when its bracket is
closed, and a CSV file when its last line is `end` with the number of rows.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from services.telemetry.domain.events import metadata_text
from services.telemetry.domain.times import format_time
from services.telemetry.domain.views import DeviceSummary, StoredEvent

EVENT_COLUMNS: Final = (
    "id",
    "occurredAt",
    "receivedAt",
    "orgId",
    "deviceId",
    "action",
    "severity",
    "message",
    "metadata",
)
DEVICE_COLUMNS: Final = (
    "id",
    "hostname",
    "model",
    "policyVersion",
    "health",
    "orgId",
    "lastSeen",
    "status",
    "osVersion",
)
_FORMULA: Final = (*"=+-@\t\r\n", *"\uff1d\uff0b\uff0d\uff20")
"""What a spreadsheet takes for the beginning of a formula (OWASP, "CSV Injection").

The last four are the full-width forms of the first four.
"""


def event_json(event: StoredEvent) -> str:
    """An event as one JSON object; the payload's text is as the device wrote it."""
    head = json.dumps(
        {
            "id": str(event.id),
            "occurredAt": format_time(event.occurred_at),
            "actor": f"device:{event.device_id}",
            "action": event.type,
            "severity": event.severity,
            "deviceId": str(event.device_id),
            "orgId": str(event.tenant_id),
            "message": event.message,
            "receivedAt": format_time(event.received_at),
        },
        separators=(",", ":"),
        ensure_ascii=False,
    )
    return f'{head[:-1]},"metadata":{metadata_text(event.payload)}}}'


def event_row(event: StoredEvent) -> tuple[str, ...]:
    """An event as the values of `EVENT_COLUMNS`."""
    return (
        str(event.id),
        format_time(event.occurred_at),
        format_time(event.received_at),
        str(event.tenant_id),
        str(event.device_id),
        _harmless(event.type),
        event.severity,
        _harmless(event.message),
        # Begins with a brace, always.
        metadata_text(event.payload),
    )


def device_json(device: DeviceSummary, online_since: datetime) -> str:
    """A device as one JSON object, as in lists."""
    values = dict(zip(DEVICE_COLUMNS, _device_values(device, online_since), strict=True))
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False)


def device_row(device: DeviceSummary, online_since: datetime) -> tuple[str, ...]:
    """A device as the values of `DEVICE_COLUMNS`."""
    return tuple(map(_harmless, _device_values(device, online_since)))


def _device_values(device: DeviceSummary, online_since: datetime) -> tuple[str, ...]:
    return (
        str(device.id),
        device.name,
        device.model,
        device.policy_version,
        device.health,
        str(device.tenant_id),
        format_time(device.last_seen),
        device.status(online_since),
        # Released agents do not report their version; lists have the field all the same.
        "",
    )


def csv_text(rows: Iterable[Iterable[str]]) -> str:
    """Lines of CSV (RFC 4180). The values must be harmless in a spreadsheet."""
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
