"""Times that nobody could carry, and rows that nobody can read: all others go on."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID, uuid4

import grpc
import pytest
from prometheus_client import REGISTRY

from cli.doctor import database as doctor
from cli.doctor.database import Login
from cli.doctor.finding import findings
from contract.subjects import TELEMETRY
from deploy.launcher.home import password
from deploy.launcher.postgres import MIGRATOR_SECRET
from deploy.postgres import roles
from evergreen.v1 import device_pb2, telemetry_pb2
from servicekit.ids import now
from services.telemetry.retention.service import Maintenance
from tests.support.servers import Servers
from tests.support.stack import PATIENCE
from tests.support.streams import end_of, read_stream
from tests.support.telemetry import ORG, STRANGER, Admin, World, event, eventually, world
from tests.support.zones import ZONES, time_zone

__all__ = ["world"]

_INSERT = (
    "INSERT INTO telemetry.event (device_id, tenant_id, id, event_id, type, severity, message,"
    " payload, occurred_at, received_at) VALUES"
)

BAD_TIMES = [
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:01Z",
    "1969-12-31T23:59:59Z",
    "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59.999999999Z",
    "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+23:59",
    "2026-11-24T06:00:00+24:00",
    "2026-11-24T06:00:00",
]


@pytest.fixture(params=ZONES)
def zone(request: pytest.FixtureRequest) -> Iterator[str]:
    """The time zone of the service's process."""
    with time_zone(request.param) as name:
        yield name


def counted(where: str) -> float:
    return REGISTRY.get_sample_value("evergreen_rows_quarantined_total", {"where": where}) or 0.0


async def now_on(servers: Servers) -> int:
    """Where the stream ends."""
    client = await servers.operator()
    try:
        return await end_of(client.jetstream(), TELEMETRY.name)
    finally:
        await client.close()


async def published(servers: Servers, org: UUID, behind: int) -> set[str]:
    """The devices' own ids of the events that integrators of an organisation can read, but for what
    was on the stream before."""
    client = await servers.operator()
    try:
        messages = await read_stream(
            client.jetstream(),
            TELEMETRY.name,
            f"evergreen.v1.{org}.telemetry.device_events",
            behind=behind,
        )
    finally:
        await client.close()
    return {e["eventId"] for m in messages for e in m["data"]["events"]}


@pytest.mark.usefixtures("zone")
async def test_a_bad_time_is_quarantined_and_stops_nobody(world: World, servers: Servers) -> None:
    """Each one, in every time zone: other organisations' events are published, lists and files are
    whole, and the event is in quarantine with the rule."""
    behind = await now_on(servers)
    ours, theirs = world.device(), world.device(STRANGER.id)
    bad = [event(f"{n}-{uuid4()}", timestamp=text) for n, text in enumerate(BAD_TIMES)]
    good, other = event(f"good-{uuid4()}"), event(f"other-{uuid4()}")
    leap = event(f"leap-{uuid4()}", timestamp="2016-12-31T23:59:60Z")
    answer = await ours.events([bad[0], good, *bad[1:], leap])
    assert answer.json() == {"accepted": 2, "duplicates": 0, "quarantined": len(bad)}
    for seconds in (-62135596800, -1, 253402300799, 1 << 60):
        request = device_pb2.ReportEventsRequest(device_id=str(ours.id))
        sent = request.events.add(id=f"grpc-{seconds}", type="t")
        sent.timestamp.seconds = seconds
        told = await ours.grpc.ReportEvents(request, metadata=ours.metadata, timeout=PATIENCE)
        assert (told.accepted, told.quarantined) == (0, 1)
        state = device_pb2.ReportStateRequest(device_id=str(ours.id))
        state.state.timestamp.seconds = seconds
        await ours.grpc.ReportState(state, metadata=ours.metadata, timeout=PATIENCE)
    for text in BAD_TIMES:
        assert (await ours.state(timestamp=text)).status_code == 200
    assert (await theirs.events([other])).status_code == 200

    async def others_are_published() -> bool:
        return other["id"] in await published(servers, STRANGER.id, behind) and {
            good["id"],
            leap["id"],
        } <= await published(servers, ORG.id, behind)

    await eventually(others_are_published, PATIENCE)
    found = await world.admin.quarantined()
    reasons = {e.reason for e in found.quarantined_events}
    assert len(found.quarantined_events) == len(bad) + 4
    assert reasons == {
        "timestamp: must be a time from 1970 to 9999",
        "timestamp: must be a time in RFC 3339",
    }
    assert len((await world.admin.events()).events) == 2
    for file_format in ("csv", "json"):
        _, parts = await world.admin.export(format=file_format)
        file = b"".join(part.data for part in parts).decode()
        assert file.endswith("\r\n" if file_format == "csv" else "\n]\n")


async def test_a_filter_out_of_range_is_refused_by_name(world: World) -> None:
    """Lists and files alike: the field, and the rule."""
    for field in ("occurred_after", "occurred_before"):
        for seconds in (-1, -62135596800, 253402300799):
            request = telemetry_pb2.ListEventsRequest()
            getattr(request, field).seconds = seconds
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await world.admin.event_service.ListEvents(
                    request, metadata=world.admin.metadata, timeout=PATIENCE
                )
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            words = field.split("_")
            name = words[0] + words[1].capitalize()
            assert f"{name}: must be a time from 1970 to 9999" in (refused.value.details() or "")


async def test_what_is_in_the_database_already_stops_nobody(world: World, servers: Servers) -> None:
    """Infinities and years that Python does not have, as only SQL or a former release could store
    them: the relay goes on and says what it left out, lists and files have all, retention runs."""
    behind = await now_on(servers)
    device, theirs = world.device(), world.device(STRANGER.id)
    times = ["-infinity", "0044-03-15 00:00:00+00 BC", "20000-01-01 00:00:00+00", "infinity"]
    before = counted("telemetry.event_relay")
    connection = await world.database.superuser()
    ids = [f"bad-{uuid4()}" for _ in times]
    try:
        for event_id, text in zip(ids, times, strict=True):
            await connection.execute(
                f"{_INSERT} ($1, $2, gen_random_uuid(), $3, 't', 'info', 'm', '{{}}', '{text}',"
                " now())",
                device.id,
                ORG.id,
                event_id,
            )
        # What no list can show: half of a pair of surrogates.
        hidden = uuid4()
        await connection.execute(
            f"{_INSERT} ($1, $2, $3, 'hidden', 't', 'info',"
            " 'm', '{\"a\": \"\\ud800\"}', now(), now())",
            device.id,
            ORG.id,
            hidden,
        )
        good = event(f"good-{uuid4()}")
        other = event(f"other-{uuid4()}")
        assert (await device.events([good])).status_code == 200
        assert (await theirs.events([other])).status_code == 200

        async def others_are_published() -> bool:
            return other["id"] in await published(servers, STRANGER.id, behind) and good[
                "id"
            ] in await published(servers, ORG.id, behind)

        await eventually(others_are_published, PATIENCE)
        assert counted("telemetry.event_relay") == before + len(times)
        # Lists and files.
        pages, token = [], ""
        for _ in range(10):
            page = await world.admin.events(page_size=1, page_token=token)
            pages += page.events
            if not (token := page.next_page_token):
                break
        assert not token
        shown = [e.occurred_at.ToJsonString() for e in pages]
        assert shown[0] == "9999-12-31T23:59:59.999999Z"
        assert shown[-1] == "0001-01-01T00:00:00Z"
        assert len({e.id for e in pages}) >= 4
        headers, parts = await world.admin.export(format="csv")
        rows = list(csv.reader(io.StringIO(b"".join(p.data for p in parts).decode())))
        assert len(rows) == 7
        assert headers["evergreen-rows"] == "6"
        _, parts = await world.admin.export(format="json")
        assert len(json.loads(b"".join(p.data for p in parts))) == 6
        # Devices.
        await connection.execute(
            "UPDATE telemetry.device SET contact_at = 'infinity', registered_at = '-infinity',"
            " state_received_at = '20000-01-01', observed_at = '-infinity',"
            " installed_apps = '[{\"name\": 1}, 2]'"
            " WHERE id = $1",
            device.id,
        )
        await connection.execute(
            "UPDATE telemetry.event SET received_at = '-infinity' WHERE event_id = 'hidden'"
        )
        world.registry.tell(device.id)
        listed = await world.admin.devices()
        assert [d.id for d in listed.devices] == [str(device.id)]
        assert list((await world.admin.device(device.id)).installed_apps) == []
        await world.admin.export_devices(format="csv")
        assert (await device.state()).status_code == 200
        # Retention.
        await connection.execute("SELECT set_config('evergreen.scope', '*', false)")
        await connection.execute(
            "INSERT INTO telemetry.quarantined_event (device_id, tenant_id, id, digest, reason,"
            " content, received_at) VALUES ($1, $2, gen_random_uuid(), sha256('1'), 'r', 'c',"
            " '-infinity')",
            device.id,
            ORG.id,
        )
        for never in ("-infinity", "infinity"):
            await connection.execute(f"UPDATE telemetry.retention_cursor SET reached = '{never}'")
            await Maintenance(world.kit.database, 90, now).once(timedelta(days=1))
            assert await connection.fetchval(
                "SELECT reached BETWEEN '2026-11-01' AND now() FROM telemetry.retention_cursor"
            )
        assert await world.count("quarantined_event") == 0

        # What was left out is told.
        async def noted() -> bool:
            rows = await connection.fetch("SELECT place FROM telemetry.quarantined_row")
            places = {row["place"] for row in rows}
            return {
                "telemetry.event_relay",
                "telemetry.list_events",
                "telemetry.device_apps",
            } <= places

        await eventually(noted, PATIENCE)
        login = Login(
            servers.postgres.dsn(roles.MIGRATOR, world.database.name),
            servers.home.secret(MIGRATOR_SECRET, password),
        )
        told = [
            f.what for f in findings(await doctor.checks(login)) if f.code == "ROWS_QUARANTINED"
        ]
        assert any("4 rows" in what and "event_relay" in what for what in told), told
    finally:
        await connection.close()


async def test_a_bad_change_of_a_feed_stops_no_other(world: World) -> None:
    """One that is no change, and one that cannot be stored: the devices behind them are seen."""
    good, last = uuid4(), uuid4()
    before = counted("telemetry.follow_devices")
    world.registry.tell(uuid4(), serial="with \0 in it")
    world.registry.tell(good)
    world.registry.tell(uuid4())
    world.registry.changes[-1].device_id = "no uuid"
    world.registry.tell(last)
    root = Admin(world.channel, ORG.id)

    async def seen() -> bool:
        return {d.id for d in (await root.devices()).devices} == {str(good), str(last)}

    await eventually(seen, PATIENCE)
    assert counted("telemetry.follow_devices") == before + 2
    async with world.kit.database.system_transaction("a test works on all rows") as connection:
        cursor = await connection.fetchval(
            "SELECT cursor FROM telemetry.feed_cursor WHERE feed LIKE 'devices and%'"
        )
    assert cursor == "4"
