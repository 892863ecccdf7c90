"""Deleted devices: what they sent at the last moment brings nothing of them back."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from uuid import uuid4

from evergreen.v1 import enrollment_pb2, telemetry_pb2
from tests.conftest import MakeKit, ServeService
from tests.support import callers
from tests.support.servers import TestDatabase
from tests.support.six import Device, Six, eventually, running

_DEVICES = 4
_MAY_NAME_IT = ("device_access.device_id", "deleted_device.device_id", "outbox.payload")


async def _call_on(six: Six, device: Device) -> None:
    """Reports and polls with a new version each time, until the device is refused."""
    for version in count(1):
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        event = {"id": uuid4().hex, "type": "test.event", "timestamp": now, "payload": {}}
        bodies: dict[tuple[str, str], dict[str, object]] = {
            ("policy", "policy"): {"current_version": str(10**9 + version)},
            ("telemetry", "state"): {"state": {"timestamp": now, "update_status": "idle"}},
            ("telemetry", "events"): {"events": [event, {"id": "", "type": ""}]},
        }
        answers = await asyncio.gather(
            *(
                six.agents[context].post(
                    f"/api/v1/devices/{what}",
                    content=json.dumps({"device_id": device.id, **body}).encode(),
                    headers=dict(device.metadata),
                )
                for (context, what), body in bodies.items()
            )
        )
        if {answer.status_code for answer in answers} == {401}:
            return


async def _delete(six: Six, by: callers.Metadata, device: Device) -> None:
    await six.registry.DecommissionDevice(
        enrollment_pb2.DecommissionDeviceRequest(id=device.id), metadata=by
    )
    await six.registry.DeleteDevice(enrollment_pb2.DeleteDeviceRequest(id=device.id), metadata=by)


async def _listed(six: Six, by: callers.Metadata, org_id: str) -> set[str]:
    found = await six.inventory.ListDevices(
        telemetry_pb2.ListDevicesRequest(org_id=org_id), metadata=by
    )
    return {device.id for device in found.devices}


async def test_late_reports_bring_no_deleted_device_back(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase, tmp_path: Path
) -> None:
    """Devices that report and poll while they are deleted leave no row. One that is let in again is
    listed, and what it reports then is stored."""
    async with running(make_kit, serve, database, tmp_path) as six:
        root = await six.login()
        org = await six.org(root)
        devices = [await six.device(org) for _ in range(_DEVICES)]
        calls = [asyncio.create_task(_call_on(six, one)) for one in devices for _ in range(3)]
        await asyncio.gather(*(_delete(six, root, device) for device in devices))
        await asyncio.gather(*calls)
        # One that goes on is written behind those before it.
        last = await six.device(org)

        async def written() -> bool:
            rows = await six.sql(
                "SELECT FROM telemetry.device WHERE id::text = $1 AND policy_version IS NOT NULL",
                last.id,
            )
            return bool(rows)

        await eventually(written)

        async def gone() -> bool:
            rows = [(await six.rows_of(device.id)).keys() for device in devices]
            left = {
                name
                for names in rows
                for name in names
                if name.startswith(("policy.", "telemetry.")) and not name.endswith(_MAY_NAME_IT)
            }
            return not left

        await eventually(gone)
        assert await _listed(six, root, org.id) == {last.id}

        back = devices[0]
        await six.registry.AllowReenrollment(
            enrollment_pb2.AllowReenrollmentRequest(id=back.id), metadata=root
        )
        answer = await six.enroll(six.keys[org.id], back.serial)
        assert answer.status_code == 200, answer.text
        again = Device(answer.json()["device_id"], org.id, back.serial, version=2)

        stored = 0

        async def works() -> bool:
            # Each service lets it in at its own time, and stores what it has acknowledged.
            nonlocal stored
            answers = await six.works(again)
            stored += answers["telemetry"] == 200
            return answers == {"policy": 304, "telemetry": 200}

        await eventually(works)
        events = await six.events.ListEvents(
            telemetry_pb2.ListEventsRequest(device_id=again.id), metadata=root
        )
        assert len(events.events) == stored >= 1
        assert await _listed(six, root, org.id) == {last.id, again.id}
