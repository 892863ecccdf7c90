"""Backup and restore of databases: what is kept, what is made anew, what has to change."""

from __future__ import annotations

import base64
import json
from datetime import datetime, timedelta
from uuid import uuid4

import asyncpg
import pyrage
import pytest

from auditlog.export import EXPORT_FORMAT
from cli.backup import catalog
from cli.backup.create import create
from cli.backup.crypt import Key
from cli.backup.facts import Facts, read_audit_export
from cli.backup.keys import MASTER_KEY, MissingKeyError, SealedKeys
from cli.backup.places import Directories
from cli.backup.procedure import Wanted, into_database
from cli.backup.restore import NotEmptyError
from cli.backup.verify import verify
from cli.errors import CliError
from contract.contexts import CONTEXTS
from deploy.launcher.home import master_key, password
from deploy.postgres import roles
from servicekit.data import key_check, migrate
from servicekit.security import mode
from servicekit.security.sealing import Sealer, approved_check_value, check_value
from services.policy.vault import PURPOSE, Vault, of_document, of_policy, of_variable
from tests.support.backups import (
    AT,
    CLIENT_SECRET,
    DIRECTORY_PASSWORD,
    EVENTS,
    FORWARDER_SECRETS,
    KEY,
    LEAVES,
    LOCK,
    ORG,
    STAYS,
    World,
    contents,
    owner,
    seed,
    superuser,
    target,
    world,
)

__all__ = ["world"]


CHANGED = {
    # Groups are computed again.
    "enrollment.device": ("changed_xid", "groups_computed_at", "membership_revision"),
    # As if all had been here now.
    "identity.account": ("seen_at",),
    "identity.session": ("ended_at", "changed_xid"),
    # Its next pass is due.
    "identity.directory": ("sync_next_at",),
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
        counter = "SELECT last_version FROM policy.version_counters"
        assert await connection.fetchval(counter) == 1_000_007
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
    without = ("xid", "id_day", "device_time")
    assert len(await contents(world.second, "telemetry.event", *without)) == EVENTS
    assert await contents(world.second, "telemetry.event", *without) == await contents(
        world.first, "telemetry.event", *without
    )


async def test_what_was_decided_since_holds(world: World) -> None:
    """The replaced database still knows it; in every context at once, unless it is wanted gone."""
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
    assert (outcome.devices.carried, outcome.devices.retired) == (2, 1)
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
        counter = "SELECT last_version FROM policy.version_counters"
        assert await connection.fetchval(counter) == 1_005_000
        assert await connection.fetchval("SELECT status FROM identity.account") == "disabled"
        assert await connection.fetchval("SELECT revoked_at FROM enrollment.token") is not None
    # Unless it is wanted gone.
    outcome, _ = await into_database(
        world.wanted(replace=True, carry=False), Directories(world.directory), target(world.first)
    )
    assert outcome.devices.carried == 0


async def test_nobody_gets_days_without_a_second_factor_again(world: World) -> None:
    """Who was asked before others were is asked from the same day on: as the database that is
    replaced has it, and as the audit log lets it be known where that is gone."""
    await seed(world.first)
    first, then, since = AT, AT + timedelta(days=1), AT + timedelta(days=40)
    policy = "SELECT mfa, mfa_required_from, owners_from, admins_from FROM identity.sign_in_policy"
    asked = ("all", since, first, then)

    async def write(mfa: str, required_from: datetime, *earlier: datetime) -> None:
        async with superuser(world.first) as connection:
            await connection.execute("DELETE FROM identity.sign_in_policy")
            await connection.execute(
                "INSERT INTO identity.sign_in_policy (tenant_id, mfa, mfa_required_from,"
                " updated_at, owners_from, admins_from) VALUES ($1, $2, $3, now(), $4, $5)",
                ORG,
                mfa,
                required_from,
                *(*earlier, None, None)[:2],
            )

    async def restored(facts: Facts, *, carry: bool) -> tuple[object, ...]:
        wanted = Wanted(world.archive, KEY, facts, replace=True, carry=carry)
        await into_database(wanted, Directories(world.directory), target(world.first))
        async with superuser(world.first) as connection:
            return tuple(await connection.fetchrow(policy) or ())

    await write("owners", first)
    await world.back_up()
    await write("all", since, first, then)
    assert await restored(Facts(), carry=True) == asked
    # From the log alone: others are asked twice, and the setting of passwords changes beside it.
    path = world.directory / "export.jsonl"
    told = [("admins", then), ("all", since), ("all", since)]
    lines = [
        {
            "entry": {
                "sequence": 10 + number,
                "tenantId": str(ORG),
                "record": json.dumps(
                    {
                        "tenantid": str(ORG),
                        "time": (AT + timedelta(hours=number)).isoformat(),
                        "data": {
                            "action": "identity.sign_in_policy_updated",
                            "resource": f"tenants/{ORG}",
                            "after": {
                                "mfa": mfa,
                                "mfaRequiredFrom": at.isoformat(),
                                "localLogin": "owners-only" if number == 2 else "all",
                            },
                        },
                    }
                ),
            }
        }
        for number, (mfa, at) in enumerate(told)
    ]
    path.write_text("\n".join(map(json.dumps, ({"format": EXPORT_FORMAT}, *lines))) + "\n")
    facts = Facts()
    read_audit_export(path, {str(ORG): 9}, facts)
    assert await restored(facts, carry=False) == asked
    async with superuser(world.first) as connection:
        local_login = "SELECT local_login FROM identity.sign_in_policy"
        assert await connection.fetchval(local_login) == "owners-only"
    # And nothing is left of it where nothing of it is known.
    assert await restored(Facts(), carry=False) == ("owners", first, None, None)


async def test_nothing_is_touched_when_something_is_wrong(world: World) -> None:
    """A damaged archive, another key, no key in the target, services that run."""
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
    for broken in ("", "no key\n"):
        (world.place.secrets / "master_key").write_text(broken)
        with pytest.raises(CliError, match="the master key is not one"):
            await world.restore()
        assert (world.place.secrets / "master_key").read_text() == broken
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


async def test_the_installation_keeps_its_master_key(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restored private keys are sealed with it: rows and key belong together at each moment.
    Also from a backup of a release that keeps the check of the key, for it knows no such table."""
    await seed(world.first)
    async with superuser(world.first) as connection:
        await connection.execute(
            "INSERT INTO evergreen.approved_key_check (check_value) VALUES ($1)"
            " ON CONFLICT DO NOTHING",
            approved_check_value(bytes(32)),
        )
    with monkeypatch.context() as patch:
        anew = catalog._MADE_ANEW - {key_check.APPROVED_TABLE}
        patch.setattr(catalog, "_MADE_ANEW", anew)
        await world.back_up()
    world.place.secrets.mkdir()
    own = master_key()
    (world.place.secrets / "master_key").write_text(own)
    await world.restore()
    assert (world.place.secrets / "master_key").read_text() == own
    async with superuser(world.second) as connection:
        keys = SealedKeys(own.encode())
        for table in catalog.SEALED:
            for row in await connection.fetch(f"SELECT public_key, sealed_seed FROM {table}"):
                keys.check(table, row["public_key"], row["sealed_seed"])
        # Those of users' tokens are made anew.
        assert keys.opened == 3
        noted = await connection.fetchval("SELECT check_value FROM evergreen.key_check")
        assert noted == check_value(keys.master_key)
        noted = await connection.fetchval("SELECT check_value FROM evergreen.approved_key_check")
        assert noted == approved_check_value(keys.master_key)


def test_no_secret_is_lost_where_it_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another master key FIPS mode keeps none that it may not open; what opens in no mode
    stays as it is."""
    table = "audit.forwarder"
    theirs, own = SealedKeys(base64.b64encode(bytes(32))), SealedKeys(master_key().encode())
    sealer = Sealer(theirs.master_key, catalog.SECRETS[table])
    old, new = sealer.seal(b"secret"), sealer.seal_approved(b"secret")
    broken = new[:-1] + bytes([new[-1] ^ 1])
    opens = Sealer(own.master_key, catalog.SECRETS[table])
    for required in (False, True):
        monkeypatch.setattr(mode, "_required", required)
        assert opens.open(theirs.secrets_anew(table, new, own)) == b"secret"
        assert theirs.secrets_anew(table, broken, own) == broken
    with pytest.raises(MissingKeyError, match="restore with EVERGREEN_FIPS=off"):
        theirs.secrets_anew(table, old, own)
    monkeypatch.setattr(mode, "_required", False)
    assert opens.open(theirs.secrets_anew(table, old, own)) == b"secret"


async def test_what_is_sealed_is_known(world: World) -> None:
    """A column that the master key seals, and that a restore does not know, could not be opened."""
    async with superuser(world.first) as connection:
        rows = await connection.fetch(
            "SELECT table_schema || '.' || table_name AS name FROM information_schema.columns"
            " WHERE table_schema = ANY ($1) AND column_name LIKE 'sealed%'",
            catalog.SCHEMAS,
        )
    kept = {row["name"] for row in rows if catalog.is_kept(row["name"])}
    assert kept == set(catalog.SEALED) | set(catalog.SECRETS)


async def test_policies_with_secrets_stay_sealed(world: World) -> None:
    """No archive shows a secret; rows of several tables open with the installation's master key."""
    await seed(world.first)
    policy, digest = uuid4(), bytes(32)
    text = '{"network":{"wifi":[{"ssid":"a","passphrase":"what nobody reads"}]}}'
    file = world.first.servers.home.secret_file("master_key", master_key)
    vault = Vault(Sealer.from_file(file, PURPOSE), seals=True)
    async with superuser(world.first) as connection:
        stored = vault.stored(of_policy(ORG, policy), {"authored": text, "form_extra": None})
        await connection.execute(
            "INSERT INTO policy.policies (id, tenant_id, name, authored, sealed_secrets,"
            " created_at, updated_at) VALUES ($1, $2, 'Sealed', '', $3, now(), now())",
            policy,
            ORG,
            stored["sealed_secrets"],
        )
        stored = vault.stored(of_document(ORG, digest), {"body": text.encode()})
        await connection.execute(
            "INSERT INTO policy.documents VALUES ($1, $2, '', $3)",
            ORG,
            digest,
            stored["sealed_secrets"],
        )
        await connection.execute(
            "INSERT INTO policy.variable VALUES"
            " ($1, $2, 'wifi', true, NULL, $3, '', 1, now(), 'Anna')",
            policy,
            ORG,
            vault.seal(of_variable(ORG, policy), "what nobody reads"),
        )
    await world.back_up()
    assert b"what nobody reads" not in world.archive.read_bytes()
    world.place.secrets.mkdir()
    own = master_key()
    (world.place.secrets / "master_key").write_text(own)
    await world.restore()
    vault = Vault(Sealer(SealedKeys(own.encode()).master_key, PURPOSE), seals=True)
    async with superuser(world.second) as connection:
        row = await connection.fetchrow("SELECT * FROM policy.policies WHERE id = $1", policy)
        assert vault.opened(of_policy(ORG, policy), row, "authored")["authored"] == text
        row = await connection.fetchrow("SELECT * FROM policy.documents WHERE digest = $1", digest)
        assert vault.opened(of_document(ORG, digest), row, "body")["body"] == text.encode()
        sealed = await connection.fetchval("SELECT sealed_secrets FROM policy.variable")
    assert vault.open(of_variable(ORG, policy), sealed) == "what nobody reads"


async def test_forwarders_go_on_where_they_were(world: World) -> None:
    """Their secrets open with the installation's master key, and no archive shows them."""
    await seed(world.first)
    await world.back_up()
    assert FORWARDER_SECRETS not in world.archive.read_bytes()
    world.place.secrets.mkdir()
    own = master_key()
    (world.place.secrets / "master_key").write_text(own)
    await world.restore()
    sealer = Sealer(SealedKeys(own.encode()).master_key, catalog.SECRETS["audit.forwarder"])
    async with superuser(world.second) as connection:
        sealed = await connection.fetchval("SELECT sealed_secrets FROM audit.forwarder")
        assert sealer.open(sealed) == FORWARDER_SECRETS
        row = await connection.fetchrow("SELECT sequence, sent FROM audit.forwarder_position")
        purpose = catalog.SECRETS["identity.directory"]
        secret = await connection.fetchval("SELECT sealed_secrets FROM identity.directory")
    assert tuple(row) == (3, 5)
    assert DIRECTORY_PASSWORD not in world.archive.read_bytes()
    opened = Sealer(SealedKeys(own.encode()).master_key, purpose).open(secret)
    assert opened == DIRECTORY_PASSWORD
    async with superuser(world.second) as connection:
        purpose = catalog.SECRETS["identity.sso_provider"]
        secret = await connection.fetchval("SELECT sealed_secrets FROM identity.sso_provider")
    assert CLIENT_SECRET not in world.archive.read_bytes()
    opened = Sealer(SealedKeys(own.encode()).master_key, purpose).open(secret)
    assert opened == CLIENT_SECRET


async def test_a_ca_does_not_keep_the_key_of_another_one(world: World) -> None:
    """An archive of the chart's may have none: the next certificate would be signed with it."""
    await seed(world.first)
    for name in ("ca.crt", "server.crt", "server.key"):
        (world.directory / name).write_text("archived")
    connection = await owner(world.first)
    try:
        files = Directories(world.keys.secrets, world.directory).read()
        await create(connection, files, world.archive, LOCK, "0.1.0")
    finally:
        await connection.close()
    tls = world.directory / "tls"
    tls.mkdir()
    for name in ("ca.crt", "ca.key", "server.crt", "server.key"):
        (tls / name).write_text("the target's own")
    await world.restore()
    found = {path.name: path.read_text() for path in tls.iterdir()}
    assert found == dict.fromkeys(("ca.crt", "server.crt", "server.key"), "archived")


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
