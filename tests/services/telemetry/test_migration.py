"""An installation that has events: its table becomes a partition; nothing is lost or doubled."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from deploy.launcher.home import password
from deploy.launcher.postgres import MIGRATOR_SECRET
from deploy.postgres import roles
from servicekit.data import migrate
from servicekit.ids import now
from services.telemetry.reports import store as reports
from services.telemetry.reports.events import make_event
from tests.conftest import MakeKit
from tests.support.servers import TestDatabase

DEVICE, TENANT = UUID(int=7), UUID(int=3)
SENT = '{"b":1, "a":2}'
_OLD_INSERT = (
    "INSERT INTO telemetry.event (device_id, event_id, id, tenant_id, type, severity, message,"
    " payload, occurred_at, received_at) SELECT $1, e, gen_random_uuid(), $2, 't', 'info', 'm',"
    f" '{SENT}', now(), now() FROM unnest($3::text[]) AS e"
)


def nanoseconds(time: datetime) -> str:
    return f"{int(time.timestamp() * 1_000_000)}000"


async def _old_schema(superuser: asyncpg.Connection[asyncpg.Record], name: str) -> None:
    """As it was before there were partitions."""
    files = migrate.migrations_of("telemetry")[:2]
    await superuser.execute(
        f"ALTER DATABASE {name} OWNER TO {roles.MIGRATOR}; DROP SCHEMA telemetry CASCADE;"
        "DELETE FROM evergreen.schema_migrations WHERE schema_name = 'telemetry' AND version > 2;"
        f"SET ROLE {roles.MIGRATOR}; CREATE SCHEMA telemetry;"
        f"GRANT USAGE ON SCHEMA telemetry TO {roles.service_role('telemetry')};"
        f"{files[0].sql}; {files[1].sql}; RESET ROLE"
    )


async def test_events_of_before_are_kept_and_known(
    make_kit: MakeKit, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the service of before goes on storing, and with clocks that are ahead."""
    dsn = database.servers.postgres.dsn(roles.MIGRATOR, database.name)
    secret = database.servers.home.secret(MIGRATOR_SECRET, password)
    everything = migrate.all_migrations()
    today = now()
    ahead = [nanoseconds(today + timedelta(days=days)) for days in (3, 9, 400)]
    ids = ["1", "x", nanoseconds(today), nanoseconds(today - timedelta(days=60)), *ahead[:2]]
    superuser = await database.superuser()
    try:
        await _old_schema(superuser, database.name)
        await superuser.execute(_OLD_INSERT, DEVICE, TENANT, ids)
        monkeypatch.setattr(
            migrate,
            "all_migrations",
            lambda: [m for m in everything if m.schema != "telemetry" or m.version <= 4],
        )
        await migrate.up(dsn, secret)
        # Between the steps.
        meanwhile = [ahead[2], "meanwhile"]
        await superuser.execute(_OLD_INSERT, DEVICE, TENANT, meanwhile)
        before = await superuser.fetch(
            "SELECT event_id, id, xid::text, payload::text, occurred_at, received_at"
            " FROM telemetry.event ORDER BY event_id"
        )
        monkeypatch.undo()
        await migrate.up(dsn, secret)
        assert before == await superuser.fetch(
            "SELECT event_id, id, xid::text, payload::text, occurred_at, received_at"
            " FROM telemetry.event ORDER BY event_id"
        )
        places = dict(
            await superuser.fetch(
                "SELECT event_id, tableoid::regclass::text FROM telemetry.event ORDER BY event_id"
            )
        )
        weeks = {
            row[0] for row in await superuser.fetch("SELECT partition FROM telemetry.event_week")
        }
        begins = await superuser.fetchval("SELECT telemetry.events_begin()")
    finally:
        await superuser.close()
    assert begins > today.date()
    undated = {i for i, place in places.items() if place == "telemetry.event_undated"}
    assert undated == {*ids, *meanwhile} - {*ahead}
    assert {places[i].removeprefix("telemetry.") for i in ahead[:2]} <= weeks
    assert places[ahead[2]] == "telemetry.event_astray"

    # Devices send all of it again, with whatever time, and go on.
    kit = await make_kit("telemetry", tenants=[])
    again = [
        (DEVICE, TENANT, make_event(event_id=i, type_="t", occurred_at=t, payload=SENT, value={}))
        for i in (*ids, *meanwhile)
        for t in (today, datetime(1970, 1, 1, tzinfo=UTC))
    ]
    async with kit.database.system_transaction("a test works on all rows") as connection:
        assert not await reports.store_events(connection, again, (), now())
        new = make_event(
            event_id=nanoseconds(today + timedelta(days=2)),
            type_="t",
            occurred_at=today,
            payload=None,
            value=None,
        )
        assert len(await reports.store_events(connection, [(DEVICE, TENANT, new)], (), now())) == 1
