"""Backup and restore of databases: what is kept, what is made anew, what has to change."""

from __future__ import annotations

import json
from uuid import uuid4

import asyncpg
import pyrage
import pytest

from cli.backup import catalog
from cli.backup.create import create
from cli.backup.crypt import Key
from cli.backup.facts import Facts
from cli.backup.keys import MASTER_KEY, MissingKeyError
from cli.backup.places import Directories
from cli.backup.procedure import Wanted, into_database
from cli.backup.restore import NotEmptyError
from cli.backup.verify import verify
from cli.errors import CliError
from deploy.launcher.home import master_key, password
from deploy.postgres import roles
from servicekit import migrate
from servicekit.access import CONTEXTS
from servicekit.auditexport import EXPORT_FORMAT
from tests.integration.backups import (
    EVENTS,
    KEY,
    LEAVES,
    LOCK,
    ORG,
    STAYS,
    World,
    contents,
    event,
    owner,
    seed,
    superuser,
    target,
    world,
)

__all__ = ["world"]


CHANGED = {
    "identity.session": ("ended_at", "changed_xid"),
    "policy.version_counters": ("last_version",),
    "telemetry.event": ("xid", "id_day"),
}


async def test_all_rows_come_back(world: World) -> None:
    """But for what a restore has to change; into a database of another server, as it were."""
    await seed(world.first)
    await world.back_up()
    found = verify(world.archive, KEY)
    assert (found.keys, found.entries, found.chains) == (4, 9, 1)
    await world.restore()
    for name, rows in found.rows.items():
        if name in {"identity.signing_key", "audit.outbox"}:
            continue
        without = CHANGED.get(name, ("changed_xid",))
        before = await contents(world.first, name, *without)
        assert await contents(world.second, name, *without) == before, name
        assert len(before) == rows
    async with superuser(world.second) as connection:
        assert await connection.fetchval("SELECT last_version FROM policy.version_counters") == 1007
        assert await connection.fetchval("SELECT ended_at FROM identity.session") is not None
        purposes = await connection.fetch("SELECT purpose FROM identity.signing_key")
        assert [row["purpose"] for row in purposes] == ["devices"]
        for position in ("policy.device_access_cursor", "policy.outbox_stream"):
            assert await connection.fetchval(f"SELECT count(*) FROM {position}") == 0
        # What feeds and relays go by is of this server, and over for every reader.
        for column in ("enrollment.device.changed_xid", "telemetry.event.xid"):
            table, name = column.rsplit(".", 1)
            assert await connection.fetchval(
                f"SELECT count(DISTINCT {name}) = 1"
                f" AND bool_and({name} < pg_snapshot_xmin(pg_current_snapshot())) FROM {table}"
            )
        assert await connection.fetchval(
            "SELECT bool_and(id_day = telemetry.event_day(event_id)) FROM telemetry.event"
        )
        (told,) = await connection.fetch("SELECT payload FROM audit.outbox")
        forced = await connection.fetchval(
            "SELECT bool_and(relforcerowsecurity) FROM pg_class WHERE relname = ANY ($1)",
            ["tenant", "policies", "entry"],
        )
        assert forced
    data = json.loads(told["payload"])["data"]
    assert data["action"] == "audit.restored"
    assert data["after"]["sequence"] == 9
    secret = world.place.secrets / "master_key"
    assert secret.read_bytes() == (world.keys.secrets / "master_key").read_bytes()
    assert secret.stat().st_mode & 0o777 == 0o600


async def test_restored_services_may_do_what_they_could(world: World) -> None:
    """Rights and walls are those of a new installation."""
    await seed(world.first)
    await world.back_up()
    await world.restore()
    rights = (
        "SELECT table_schema, table_name, grantee, privilege_type"
        " FROM information_schema.role_table_grants WHERE table_schema = ANY ($1)"
        " AND grantee LIKE 'evergreen%' AND table_name NOT LIKE 'event\\_2%' ORDER BY 1, 2, 3, 4"
    )
    found = []
    for database in (world.first, world.second):
        async with superuser(database) as connection:
            found.append(await connection.fetch(rights, list(CONTEXTS)))
    assert found[0] == found[1]
    assert found[0]


async def test_an_older_schema_is_restored_and_upgraded(world: World) -> None:
    """Events from before they had partitions land in those of the new installation."""
    old = [m for m in migrate.all_migrations() if m.schema != "telemetry" or m.version <= 2]
    async with superuser(world.first) as connection:
        await connection.execute(f"SET ROLE {roles.MIGRATOR}")
        async with connection.transaction():
            for schema in catalog.SCHEMAS:
                await connection.execute(f"DROP SCHEMA {schema} CASCADE")
            await migrate.make(connection, old)
    await seed(world.first)
    await world.back_up()
    header = verify(world.archive, KEY).header
    assert header.migrations["telemetry"].keys() == {"1", "2"}
    await world.restore()
    status = await migrate.status(target(world.second).dsn, target(world.second).password)
    assert all(item.applied_at for item in status)
    without = ("xid", "id_day")
    assert len(await contents(world.second, "telemetry.event", *without)) == EVENTS
    assert await contents(world.second, "telemetry.event", *without) == await contents(
        world.first, "telemetry.event", *without
    )


async def test_what_was_decided_since_holds(world: World) -> None:
    """The replaced database still knows who was retired, who came, and how far versions went."""
    await seed(world.first)
    await world.back_up()
    comes = uuid4()
    async with superuser(world.first) as connection:
        await connection.execute("SET evergreen.scope = '*'")
        await connection.execute(
            f"UPDATE enrollment.device SET status = 'decommissioned' WHERE id = '{LEAVES}';"
            f"INSERT INTO enrollment.device (id, tenant_id, serial, model, cpu_model, cpu_count,"
            f" total_ram_bytes, has_tpm, status, token_version, created_at) VALUES ('{comes}',"
            f" '{ORG}', 'NEW', 'M', '', 4, 1, true, 'active', 2, now());"
            "UPDATE policy.version_counters SET last_version = 5000;"
            "UPDATE identity.account SET status = 'disabled';"
            "UPDATE enrollment.token SET revoked_at = now()"
        )
    with pytest.raises(NotEmptyError):
        await into_database(world.wanted(), world.keys, target(world.first))
    outcome, _ = await into_database(
        world.wanted(replace=True), Directories(world.directory), target(world.first)
    )
    assert (outcome.carried, outcome.retired) == (2, 1)
    async with superuser(world.first) as connection:
        rows = await connection.fetch(
            "SELECT id, status, token_version FROM enrollment.device ORDER BY id"
        )
        found = {row["id"]: (row["status"], row["token_version"]) for row in rows}
        assert found == {
            STAYS: ("active", 1),
            LEAVES: ("decommissioned", 1),
            comes: ("active", 2),
        }
        assert await connection.fetchval("SELECT last_version FROM policy.version_counters") == 6000
        assert await connection.fetchval("SELECT status FROM identity.account") == "disabled"
        assert await connection.fetchval("SELECT revoked_at FROM enrollment.token") is not None
    # Unless it is wanted gone.
    outcome, _ = await into_database(
        world.wanted(replace=True, carry=False), Directories(world.directory), target(world.first)
    )
    assert outcome.carried == 0


@pytest.mark.parametrize("carry", [True, False])
async def test_an_organisation_that_had_published_nothing(world: World, carry: bool) -> None:
    """What it published since the backup has versions too, which must not come again."""
    await seed(world.first)
    async with superuser(world.first) as connection:
        await connection.execute("DELETE FROM policy.version_counters")
    await world.back_up()
    async with superuser(world.first) as connection:
        await connection.execute(f"INSERT INTO policy.version_counters VALUES ('{ORG}', 3)")
    await into_database(
        world.wanted(replace=True, carry=carry), Directories(world.directory), target(world.first)
    )
    async with superuser(world.first) as connection:
        rows = await connection.fetch("SELECT tenant_id, last_version FROM policy.version_counters")
    assert [tuple(row) for row in rows] == [(ORG, 1003 if carry else 1000)]


ACCOUNT = "SELECT role, status, password_hash, invitation_hash FROM identity.account WHERE id = $1"


async def test_users_are_what_they_were_last(world: World) -> None:
    """Who is an Auditor now is no Owner again; old passwords and used tokens open nothing."""
    await seed(world.first)
    async with superuser(world.first) as connection:
        await connection.execute(
            "UPDATE identity.account SET role = 'Owner', password_hash = 'old';"
            "UPDATE enrollment.token SET max_uses = 1"
        )
    await world.back_up()
    async with superuser(world.first) as connection:
        await connection.execute(
            "UPDATE identity.account SET role = 'Auditor', password_hash = 'new';"
            "UPDATE enrollment.token SET uses = 1"
        )
    outcome, _ = await into_database(
        world.wanted(replace=True), Directories(world.directory), target(world.first)
    )
    assert not outcome.has_owner
    async with superuser(world.first) as connection:
        assert tuple(await connection.fetchrow(ACCOUNT, STAYS) or ()) == (
            "Auditor",
            "active",
            "new",
            None,
        )
        assert await connection.fetchval("SELECT uses FROM enrollment.token") == 1


@pytest.mark.parametrize(
    ("later", "account"),
    [
        ({"user_updated": ("Auditor", "active")}, ("Auditor", "active", "old", None)),
        ({"user_deactivated": ("Owner", "disabled")}, ("Owner", "disabled", "old", None)),
        ({"user_invited": ("Owner", "invited")}, ("Owner", "invited", None, None)),
        (
            {
                "user_invited": ("Owner", "invited"),
                "invitation_accepted": None,
                "user_updated": ("Admin", "active"),
            },
            ("Admin", "invited", None, None),
        ),
    ],
)
async def test_an_export_tells_what_users_lost(
    world: World,
    later: dict[str, tuple[str, str] | None],
    account: tuple[str | None, ...],
) -> None:
    """It knows no password: where one was ended since, the user has to be invited again."""
    await seed(world.first)
    async with superuser(world.first) as connection:
        await connection.execute(
            "UPDATE identity.account SET role = 'Owner', password_hash = 'old'"
        )
    await world.back_up()
    export = world.directory / "audit.jsonl"
    lines: list[dict[str, object]] = [{"format": EXPORT_FORMAT}]
    for number, (name, state) in enumerate(later.items(), start=100):
        record = json.loads(event(number)[1])
        record["data"] |= {
            "action": f"identity.{name}",
            "resource": f"users/{STAYS}",
            "after": {"role": state[0], "status": state[1]} if state else {"email": "a"},
        }
        entry = {"tenantId": str(ORG), "sequence": number, "record": json.dumps(record)}
        lines.append({"entry": entry})
    export.write_text("".join(json.dumps(line) + "\n" for line in lines))
    wanted = Wanted(world.archive, KEY, Facts(), (export,))
    await into_database(wanted, world.place, target(world.second))
    async with superuser(world.second) as connection:
        assert tuple(await connection.fetchrow(ACCOUNT, STAYS) or ()) == account


async def test_a_list_retires_devices_that_nothing_is_known_of(world: World) -> None:
    await seed(world.first)
    await world.back_up()
    unknown = uuid4()
    wanted = world.wanted()
    wanted.facts.retired.update({unknown, LEAVES})
    outcome, _ = await into_database(wanted, world.place, target(world.second))
    assert outcome.retired == 2
    async with superuser(world.second) as connection:
        rows = await connection.fetch(
            "SELECT id, status FROM enrollment.device WHERE status <> 'active' ORDER BY id"
        )
    assert {row["id"] for row in rows} == {unknown, LEAVES}
    assert {row["status"] for row in rows} == {"decommissioned"}


async def test_nothing_is_touched_when_something_is_wrong(world: World) -> None:
    """A damaged archive, another key, other keys in the target, services that run."""
    await seed(world.first)
    await world.back_up()
    whole = world.archive.read_bytes()
    changed = bytes([whole[3000] ^ 1])
    for damaged in (whole[:-40], whole[:3000] + changed + whole[3001:]):
        world.archive.write_bytes(damaged)
        with pytest.raises(CliError):
            await world.restore()
    world.archive.write_bytes(whole)
    other = Key(identity=str(pyrage.x25519.Identity.generate()))
    with pytest.raises(CliError, match="another one"):
        await into_database(world.wanted(key=other), world.place, target(world.second))
    world.place.secrets.mkdir()
    (world.place.secrets / "master_key").write_text(master_key())
    with pytest.raises(CliError, match="another key"):
        await world.restore()
    (world.place.secrets / "master_key").unlink()
    servers = world.servers
    service = await asyncpg.connect(
        servers.postgres.dsn(roles.service_role("policy"), world.second.name),
        password=servers.home.secret("postgres_policy", password),
        server_settings={"application_name": "evergreen"},
    )
    try:
        with pytest.raises(CliError, match="evergreen_policy"):
            await world.restore()
    finally:
        await service.close()
    async with superuser(world.second) as connection:
        assert await connection.fetchval("SELECT count(*) FROM identity.tenant") == 0
    assert list(world.place.secrets.iterdir()) == []


async def test_a_backup_without_its_keys_is_not_made(world: World) -> None:
    await seed(world.first)
    connection = await owner(world.first)
    try:
        for files in ({}, {MASTER_KEY: master_key().encode()}):
            with pytest.raises(MissingKeyError):
                await create(connection, files, world.archive, LOCK, "0.1.0")
    finally:
        await connection.close()
    assert not world.archive.exists()


async def test_a_changed_audit_log_is_noticed_without_a_server(world: World) -> None:
    await seed(world.first)
    async with superuser(world.first) as connection:
        await connection.execute(
            "ALTER TABLE audit.entry DISABLE TRIGGER ALL;"
            "UPDATE audit.entry SET record = replace(record, 'line', 'lime') WHERE sequence = 4"
        )
    await world.back_up()
    with pytest.raises(CliError, match=r"entry 4 .* was changed"):
        verify(world.archive, KEY)


async def test_every_table_is_thought_of(world: World) -> None:
    """Transaction numbers, positions and partitions are named in the catalogue, and nothing else
    is left out: whoever adds such a table has to decide."""
    connection = await owner(world.first)
    try:
        kept = {table.name for table in await catalog.tables(connection)}
        rows = await connection.fetch(
            "SELECT n.nspname || '.' || c.relname AS name, c.relkind::text AS kind,"
            " coalesce(array_agg(a.attname::text || CASE WHEN a.atthasdef THEN '' ELSE '!' END)"
            " FILTER (WHERE a.atttypid = 'xid8'::regtype), '{}') AS xids,"
            " bool_or(a.attname IN ('cursor', 'incarnation')) AS position"
            " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0"
            " WHERE n.nspname = ANY ($1) AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
            " GROUP BY 1, 2",
            catalog.SCHEMAS,
        )
        left_out = {row["name"] for row in rows} - kept
        assert all(not catalog.is_kept(name) for name in left_out)
        for row in rows:
            if row["name"] in kept:
                assert not row["position"], f"{row['name']} says how far something was read"
                assert not [x for x in row["xids"] if x.endswith("!")], row["name"]
                assert row["kind"] == "r" or row["name"] in catalog.DERIVED, row["name"]
    finally:
        await connection.close()
