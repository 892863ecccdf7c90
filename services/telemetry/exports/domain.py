"""Events and devices as they stand in files: JSON and CSV."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Final

from servicekit.spreadsheet import harmless_json
from servicekit.times import format_rfc3339
from services.telemetry.events.domain import StoredEvent
from services.telemetry.inventory.domain import DeviceSummary
from services.telemetry.reports.events import metadata_text

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
    "clockOff",
)
DEVICE_COLUMNS: Final = (
    "serialNumber",
    "id",
    "hostname",
    "model",
    "policyVersion",
    "health",
    "orgId",
    "lastSeen",
    "status",
    "osVersion",
    "healthDetail",
    "neverSeen",
    "attestationVerdict",
    "attestedAt",
    "labels",
    "groupIds",
    "fallsShort",
    "restricted",
)


def event_json(event: StoredEvent) -> str:
    """An event as one JSON object; the payload's text is as the device wrote it."""
    head = json.dumps(
        {
            "id": str(event.id),
            "occurredAt": (occurred_at := format_rfc3339(event.occurred_at)),
            "timestamp": occurred_at,
            "actor": f"device:{event.device_id}",
            "action": event.type,
            "actionType": event.type,
            "severity": event.severity,
            "deviceId": str(event.device_id),
            "orgId": str(event.tenant_id),
            "message": event.message,
            "receivedAt": format_rfc3339(event.received_at),
            "clockOff": event.clock_off,
        },
        separators=(",", ":"),
        ensure_ascii=False,
    )
    return f'{head[:-1]},"metadata":{metadata_text(event.payload)}}}'


def event_row(event: StoredEvent) -> tuple[str, ...]:
    """An event as the values of `EVENT_COLUMNS`."""
    return (
        str(event.id),
        format_rfc3339(event.occurred_at),
        format_rfc3339(event.received_at),
        str(event.tenant_id),
        str(event.device_id),
        event.type,
        event.severity,
        event.message,
        harmless_json(metadata_text(event.payload)),
        "true" if event.clock_off else "false",
    )


def device_json(device: DeviceSummary, online_since: datetime) -> str:
    """A device as one JSON object, as in lists."""
    values: dict[str, object] = dict(
        zip(DEVICE_COLUMNS, device_row(device, online_since), strict=True)
    )
    values["neverSeen"] = device.never_seen
    values["labels"] = dict(device.labels)
    values["groupIds"] = [str(id_) for id_ in device.group_ids]
    values["fallsShort"] = device.falls_short
    values["restricted"] = device.restricted
    if not values["attestedAt"]:
        del values["attestedAt"]
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False)


def device_row(device: DeviceSummary, online_since: datetime) -> tuple[str, ...]:
    """A device as the values of `DEVICE_COLUMNS`."""
    return (
        device.serial,
        str(device.id),
        device.name,
        device.model,
        device.policy_version,
        device.health,
        str(device.tenant_id),
        format_rfc3339(device.last_seen),
        device.status(online_since),
        # Released agents do not report their version; lists have the field all the same.
        "",
        device.health_detail,
        "true" if device.never_seen else "false",
        device.attestation_verdict,
        format_rfc3339(device.attested_at) if device.attested_at else "",
        harmless_json(json.dumps(dict(device.labels), ensure_ascii=False)),
        " ".join(map(str, device.group_ids)),
        "true" if device.falls_short else "false",
        "true" if device.restricted else "false",
    )
