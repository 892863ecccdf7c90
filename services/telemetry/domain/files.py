"""Events as files: JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from typing import Final

from services.telemetry.domain.events import metadata_text
from services.telemetry.domain.times import format_time
from services.telemetry.domain.views import StoredEvent

COLUMNS: Final = (
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
_FORMULA: Final = (*"=+-@\t\r\n", *"\uff1d\uff0b\uff0d\uff20")
"""What a spreadsheet takes for the beginning of a formula (OWASP, "CSV Injection").

The last four are the full-width forms of the first four.
"""


def json_text(event: StoredEvent) -> str:
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


def csv_text(rows: Iterable[StoredEvent], *, header: bool = False) -> str:
    """Events as lines of CSV (RFC 4180), harmless in a spreadsheet."""
    out = io.StringIO()
    writer = csv.writer(out)
    if header:
        writer.writerow(COLUMNS)
    writer.writerows(
        [
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
        ]
        for event in rows
    )
    return out.getvalue()


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
