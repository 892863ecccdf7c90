"""Files of events and devices: whole, in parts, a bounded number at once."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from typing import Any
from uuid import UUID

import grpc
import pytest

from evergreen.v1 import telemetry_pb2
from services.telemetry.exports.service import EXPORT_PAGE
from tests.support.events import check_event
from tests.support.telemetry import ORG, SISTER, STRANGER, Admin, World, event, eventually, world

__all__ = ["world"]


def lines(file: bytes) -> list[list[str]]:
    """The lines of a complete CSV file."""
    assert file.startswith("\ufeff".encode())
    assert file.endswith(b"\r\n")
    return list(csv.reader(io.StringIO(file.decode("utf-8-sig"), newline="")))


async def test_events_as_csv(world: World) -> None:
    """A spreadsheet opens it, and takes nothing for a formula."""
    device = world.device()
    await device.events([event(1, type="=1+1", payload={"message": "@SUM(A1)\nü"}), event(2)])
    headers, parts = await world.admin.export(format="csv")
    assert headers["content-disposition"] == 'attachment; filename="evergreen-events.csv"'
    assert parts[0].content_type.startswith("text/csv")
    header, *rows = lines(b"".join(p.data for p in parts))
    found = [dict(zip(header, row, strict=True)) for row in rows]
    assert {row["action"] for row in found} == {"'=1+1", "app.installed"}
    assert {row["message"] for row in found} == {"'@SUM(A1)\nü", "app.installed"}
    assert {row["deviceId"] for row in found} == {str(device.id)}
    assert headers["trailer"] == "evergreen-rows, evergreen-rows-left-out"
    assert (headers["evergreen-rows"], headers["evergreen-rows-left-out"]) == ("2", "0")
    assert all(not part.data.endswith(b"\r\n") for part in parts[:-1])


async def test_a_file_without_events(world: World) -> None:
    """Is a file, and whole."""
    headers, parts = await world.admin.export()
    assert headers["content-disposition"].endswith('.json"')
    assert json.loads(b"".join(part.data for part in parts)) == []
    _, parts = await world.admin.export(format="csv")
    (header,) = lines(b"".join(part.data for part in parts))
    assert header[0] == "id"


async def test_a_large_file_comes_in_parts(world: World) -> None:
    """Whole, each event once, and never more than a page of them in memory."""
    device = world.device()
    total = 2 * EXPORT_PAGE + 1
    await device.events([event(n, payload={"n": 2**63 + n}) for n in range(total)])
    for request, count in (({}, total), ({"limit": EXPORT_PAGE}, EXPORT_PAGE), ({"limit": 7}, 7)):
        _, parts = await world.admin.export(**request)
        assert all(part.data.count(b'"occurredAt"') <= EXPORT_PAGE for part in parts)
        exported = json.loads(b"".join(part.data for part in parts))
        assert len({e["id"] for e in exported}) == len(exported) == count
    assert exported[0]["metadata"]["n"] >= 2**63
    headers, parts = await world.admin.export(format="csv")
    assert len(lines(b"".join(p.data for p in parts))) == total + 1
    assert headers["evergreen-rows"] == str(total)


async def test_a_file_holds_what_was_stored_when_it_began(world: World) -> None:
    """Not what comes while it is read, wherever in the order it would stand."""
    device = world.device()
    total = EXPORT_PAGE + 1
    await device.events([event(n) for n in range(total)])
    call = world.admin.event_service.ExportEvents(
        telemetry_pb2.ExportEventsRequest(), metadata=world.admin.metadata
    )
    parts = aiter(call)
    file = (await anext(parts)).data
    for time in ("2020-01-01T00:00:00Z", "2030-01-01T00:00:00Z"):
        await device.events([event(f"late {time}", timestamp=time)])
    async for part in parts:
        file += part.data
    assert len(json.loads(file)) == total


async def test_devices_as_files(world: World) -> None:
    """As in lists, with the same filters; both forms say the same."""
    for number, org in enumerate((ORG.id, ORG.id, SISTER.id, STRANGER.id), 1):
        world.registry.tell(UUID(int=number), org, serial=f"=S{number}", model="Book, 3")
    headers, file = await world.admin.export_devices()
    assert headers["content-disposition"] == 'attachment; filename="evergreen-devices.json"'
    devices = json.loads(file)
    assert [device["hostname"] for device in devices] == ["=S1", "=S2"]
    assert devices[0]["status"] == "offline"
    headers, file = await world.admin.export_devices(format="csv")
    assert headers["content-disposition"] == 'attachment; filename="evergreen-devices.csv"'
    header, *rows = lines(file)
    assert header[0] == "serialNumber"
    assert [row[0] for row in rows] == ["'=S1", "'=S2"]
    assert [{c: v.lstrip("'") for c, v in zip(header, row, strict=True)} for row in rows] == [
        # There is no time of evidence that was never sent.
        {c: v if isinstance(v, str) else json.dumps(v) for c, v in d.items()}
        | {"attestedAt": "", "groupIds": ""}
        for d in devices
    ]
    assert [column for column in header if column != "attestedAt"] == list(devices[0])
    assert headers["evergreen-rows"] == "2"
    _, file = await world.admin.export_devices(search="S2")
    assert [device["id"] for device in json.loads(file)] == [str(UUID(int=2))]
    _, file = await world.admin.export_devices(health="critical")
    assert json.loads(file) == []
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.admin.export_devices(org_id=str(STRANGER.id))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_an_export_is_in_the_audit_log(world: World) -> None:
    """Who took what out, from when it began, by one name; what was refused is not."""
    device = world.device()
    await device.events([event(1), {"id": "2"}])
    (aside,) = (await world.admin.quarantined()).quarantined_events
    await world.admin.export(format="csv", severity="info", device_id=str(device.id), limit=5)
    await world.admin.export_devices(org_id=str(ORG.id).upper(), search="x")
    await world.admin.quarantined_content(aside.id)
    for refused in (
        world.admin.export_devices(org_id=str(STRANGER.id)),
        world.admin.export(org_id=str(STRANGER.id)),
        world.admin.quarantined_content(str(device.id)),
    ):
        with pytest.raises(grpc.aio.AioRpcError):
            await refused
    rows = await world.rows("SELECT payload FROM telemetry.outbox ORDER BY id")
    told = [json.loads(row["payload"]) for row in rows]
    for entry in told:
        check_event(entry)
    assert [(e["data"]["resource"], e["data"]["after"]) for e in told] == [
        (
            f"tenants/{ORG.id}/events",
            {
                "format": "csv",
                "filter": {"deviceId": str(device.id), "severity": "info", "limit": 5},
            },
        ),
        (f"tenants/{ORG.id}/devices", {"format": "json", "filter": {"search": "x"}}),
        (f"quarantined-events/{aside.id}", {"format": "txt", "filter": {}}),
    ]
    assert {(e["tenantid"], e["data"]["actor"]) for e in told} == {
        (str(ORG.id), "admin@school.example")
    }


async def test_exports_at_once_are_bounded_and_leave_when_their_readers_leave(
    world: World,
) -> None:
    """One tenant cannot take all places; a reader that goes away gives its place back."""
    payload = {"text": "x" * 5_000}
    device = world.device()
    for begin in range(0, 8 * EXPORT_PAGE, 1_000):
        await device.events([event(n, payload=payload) for n in range(begin, begin + 1_000)])
    other = Admin(world.channel, STRANGER.id)

    async def begin(admin: Admin) -> Any:
        call = admin.event_service.ExportEvents(
            telemetry_pb2.ExportEventsRequest(), metadata=admin.metadata
        )
        return call, await call.read()

    # Parts are larger than what a connection holds, so that these exports are not over.
    begun: list[Any] = []
    refused: grpc.aio.AioRpcError | None = None
    while refused is None:
        assert len(begun) < 6
        try:
            call, _ = await begin(world.admin)
            begun.append(call)
        except grpc.aio.AioRpcError as error:
            refused = error
    assert len(begun) >= 3
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(json.loads(b"".join(p.data for p in (await other.export())[1]))) == 0
    # Lists go on meanwhile: no export holds a connection.
    await asyncio.gather(*(world.admin.events(page_size=1) for _ in range(20)))
    for call in begun:
        call.cancel()

    async def has_room() -> bool:
        try:
            _, parts = await world.admin.export(limit=1)
        except grpc.aio.AioRpcError:
            return False
        return len(parts) == 2

    await eventually(has_room, 60)
