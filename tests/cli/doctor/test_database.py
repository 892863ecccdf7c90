"""What `evergreen doctor` finds in PostgreSQL."""

from __future__ import annotations

import base64
import datetime
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import asyncpg
import pytest

from cli.backup.catalog import SEALED
from cli.doctor import database as postgres
from cli.doctor import passkeys
from cli.doctor.database import Login
from cli.doctor.finding import Finding, Severity, findings
from deploy.launcher.home import master_key, password
from deploy.launcher.postgres import MIGRATOR_SECRET, SUPERUSER, SUPERUSER_SECRET
from deploy.postgres import roles
from servicekit.data import migrate, rights
from servicekit.ids import now
from servicekit.security.sealing import Sealer
from servicekit.security.signing import Signer
from tests.support.doctor import status, told
from tests.support.servers import TestDatabase


def login(database: TestDatabase, role: str, secret: str, context: str = "") -> Login:
    return Login(
        database.servers.postgres.dsn(role, database.name),
        database.servers.home.secret(secret, password),
        context,
    )


def owner(database: TestDatabase) -> Login:
    return login(database, roles.MIGRATOR, MIGRATOR_SECRET)


def service(database: TestDatabase, context: str = "policy") -> Login:
    return login(database, roles.service_role(context), f"postgres_{context}", context)


async def test_a_healthy_database(database: TestDatabase) -> None:
    assert told(await postgres.checks(owner(database))) == []
    assert told(await postgres.checks(service(database))) == []


async def test_passkeys_of_another_host(database: TestDatabase) -> None:
    """They open nothing where the public address has another host by now; no right, no word."""

    async def found(login: Login, host: str) -> list[str]:
        return [one.what async for one in passkeys.of(login, host)]

    connection = await database.superuser()
    await connection.execute(
        "WITH t AS (INSERT INTO identity.tenant (id, parent_id, kind, name, code, created_at,"
        " updated_at) VALUES (gen_random_uuid(), NULL, 'root', 'R', 'r', now(), now())"
        " RETURNING id), a AS (INSERT INTO identity.account (id, tenant_id, email, role, status,"
        " created_at, updated_at) SELECT gen_random_uuid(), id, 'a@b.example', 'Owner', 'active',"
        " now(), now() FROM t RETURNING id)"
        " INSERT INTO identity.passkey SELECT gen_random_uuid(), id, site::bytea, site, '', 0,"
        " false, gen_random_uuid(), site, now(), NULL"
        " FROM a, unnest(ARRAY['old.example', 'new.example']) AS site"
    )
    await connection.close()
    (said,) = await found(owner(database), "new.example")
    assert said.startswith("1 passkeys of 1 users are for another host, as old.example")
    assert len(await found(owner(database), "third.example")) == 1
    assert await found(service(database), "third.example") == []


async def test_a_database_that_is_away_or_refuses(database: TestDatabase, tmp_path: Path) -> None:
    away = Login(f"postgresql://x@/evergreen?host={tmp_path}", None)
    assert told(await postgres.checks(away)) == ["DATABASE_UNREACHABLE"]
    wrong = Login(owner(database).dsn, "wrong")
    assert told(await postgres.checks(wrong)) == ["DATABASE_LOGIN_REFUSED"]


async def test_a_database_that_is_too_old(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Old(NamedTuple):
        major: int

    monkeypatch.setattr(asyncpg.Connection, "get_server_version", lambda _: Old(13))
    assert told(await postgres.checks(owner(database))) == ["DATABASE_TOO_OLD"]


async def test_storage_budgets_that_are_nearly_used(database: TestDatabase) -> None:
    """Who it is, of how much; not what was stored on other days."""
    connection = await database.superuser()
    try:
        await connection.executemany(
            "INSERT INTO telemetry.storage_use VALUES ($1, $2, $3, $3, $4, 100)",
            [
                (day, what, UUID(int=subject), stored)
                for day, what, subject, stored in (
                    (datetime.date(2026, 11, 29), "device_events", 1, 79),
                    (datetime.date(2026, 11, 29), "device_events", 2, 81),
                    (datetime.date(2026, 11, 29), "device_events", 3, 101),
                    (datetime.date(2026, 11, 29), "tenant_states", 4, 85),
                    (datetime.date(2026, 11, 28), "tenant_events", 5, 500),
                )
            ],
        )
        moment = datetime.datetime(2026, 11, 29, 23, 59, tzinfo=datetime.UTC)
        found = findings(await postgres.checks(owner(database), lambda: moment))
    finally:
        await connection.close()
    used, nearly = (f for f in found if f.code.startswith("STORAGE"))
    assert (used.code, nearly.code) == ("STORAGE_BUDGET_USED", "STORAGE_BUDGET_NEARLY_USED")
    assert used.severity is nearly.severity is Severity.WARNING
    assert f"the device {UUID(int=3)}" in used.what
    assert "101 bytes of events today, of 100 that it may, and 1 more are like it" in used.what
    assert f"the organisation {UUID(int=4)}" in nearly.what


async def test_devices_with_a_policy_that_is_not_in_force(database: TestDatabase) -> None:
    """How many, and of which organisation; decommissioned ones do not count."""
    connection = await database.superuser()
    org, other = UUID(int=1), UUID(int=2)
    try:
        await connection.executemany(
            "INSERT INTO policy.assignments (id, tenant_id) VALUES ($1, $1)", [(org,), (other,)]
        )
        await connection.executemany(
            "INSERT INTO identity.tenant (id, parent_id, kind, name, code, created_at, updated_at)"
            " VALUES ($1, $2, $3, $4, $4, now(), now())",
            [(UUID(int=9), None, "root", "Root"), (org, UUID(int=9), "org", "Linden")],
        )
        for number, tenant, version, status in (
            (3, org, 1, "active"),
            (4, org, 1, "active"),
            (5, org, 0, "active"),
            (6, org, 1, "decommissioned"),
            (7, other, 1, "active"),
        ):
            device = UUID(int=number)
            await connection.execute(
                "INSERT INTO policy.devices VALUES ($1, $2, $3)", device, tenant, status
            )
            await connection.execute(
                "INSERT INTO policy.applied_versions VALUES ($1, $2, $3, 1, now())",
                device,
                tenant,
                version,
            )
    finally:
        await connection.close()
    every = findings(await postgres.checks(owner(database)))
    (found,) = [f for f in every if f.code == "POLICY_ORPHANED"]
    assert found.severity is Severity.WARNING
    assert found.what.startswith("3 devices run a policy")
    assert f"2 of the organisation Linden ({org}), the others of 1 more organisation" in found.what


async def test_devices_with_a_key_that_is_not_good(database: TestDatabase) -> None:
    """Retired, compromised, or perhaps another one than is known; with one key there is nothing to
    be seen."""
    connection = await database.superuser()
    org = UUID(int=1)

    async def key(number: int, state: str, *, compromised: bool = False) -> None:
        await connection.execute(
            "INSERT INTO policy.signing_keys (id, public_key, signs, created_at, state,"
            " compromised_at, is_first) VALUES ($1, $2, false, now() - $3 * interval '1 s', $4,"
            " CASE WHEN $5 THEN now() END, $3 = 1)",
            f"key{number}",
            bytes([number] * 32),
            number,
            state,
            compromised,
        )

    async def device(number: int, key_id: str | None, *, calls: bool) -> None:
        await connection.execute(
            "INSERT INTO policy.devices VALUES ($1, $2, 'active', now() - interval '1 h')",
            UUID(int=number),
            org,
        )
        await connection.execute(
            "INSERT INTO policy.memberships VALUES ($1, $2, '{}', 1) ", UUID(int=number), org
        )
        await connection.execute(
            "UPDATE policy.memberships SET key_id = $2 WHERE device_id = $1",
            UUID(int=number),
            key_id,
        )
        if calls:
            await connection.execute(
                "INSERT INTO policy.applied_versions VALUES ($1, $2, 1, 1, now())",
                UUID(int=number),
                org,
            )

    def told(every: list[Finding]) -> dict[str, str]:
        return {f.code: f.what for f in every if f.code.startswith("POLICY_KEY")}

    try:
        await key(1, "active")
        await device(11, None, calls=False)
        assert told(findings(await postgres.checks(owner(database)))) == {}
        await key(2, "retired")
        await key(3, "retiring", compromised=True)
        for number, pinned in ((12, "key2"), (13, "key3"), (14, "key3")):
            await device(number, pinned, calls=True)
    finally:
        await connection.close()
    found = told(findings(await postgres.checks(owner(database))))
    assert set(found) == {
        "POLICY_KEY_RETIRED",
        "POLICY_KEY_COMPROMISED",
        "POLICY_KEY_DOUBTFUL",
    }
    assert found["POLICY_KEY_COMPROMISED"].startswith("2 devices with the key key3")
    assert found["POLICY_KEY_DOUBTFUL"].startswith("1 of 1 device with the key key1")


async def test_policies_of_which_some_are_sealed(database: TestDatabase) -> None:
    """It is said how many are not; where none is, the setting is another one."""
    insert = (
        "INSERT INTO policy.policies (id, tenant_id, name, authored, sealed_secrets, created_at,"
        " updated_at) VALUES ($1, $1, '', $2, $3, now(), now())"
    )
    connection = await database.superuser()
    try:
        text = '{"network":{"wifi":[{"ssid":"a","passphrase":"b"}]}}'
        await connection.execute(insert, UUID(int=1), text, None)
        await connection.execute(insert, UUID(int=2), '{"browser":{"homepage":"b"}}', None)
        assert "POLICY_SECRETS_OPEN" not in told(await postgres.checks(owner(database)))
        await connection.execute(insert, UUID(int=3), "", b"sealed")
    finally:
        await connection.close()
    every = findings(await postgres.checks(owner(database)))
    (found,) = [f for f in every if f.code == "POLICY_SECRETS_OPEN"]
    assert found.severity is Severity.WARNING
    assert found.what.startswith("1 row of stored policies with secrets is not sealed")


async def test_policies_that_name_secrets_and_are_published_open(database: TestDatabase) -> None:
    """A secret that nobody can read lies open in what is published, until that is sealed."""
    insert = (
        "INSERT INTO policy.policies (id, tenant_id, name, authored, uses, published_version,"
        " sealed_secrets, created_at, updated_at) VALUES ($1, $1, '', '', $2, $3, $4, now(), now())"
    )

    async def said() -> list[str]:
        every = findings(await postgres.checks(owner(database)))
        return [f.what for f in every if f.code == "NAMED_SECRETS_OPEN"]

    connection = await database.superuser()
    try:
        await connection.execute(insert, UUID(int=1), ["var.x"], 1, None)
        await connection.execute(insert, UUID(int=2), ["secret.x"], None, None)
        assert await said() == []
        await connection.execute(insert, UUID(int=3), ["var.x", "secret.x"], 2, None)
        (found,) = await said()
        assert found.startswith("1 published policy names secrets")
        await connection.execute(insert, UUID(int=4), [], None, b"sealed")
        assert await said() == []
    finally:
        await connection.close()


async def test_wrong_roles(database: TestDatabase) -> None:
    """Each role does its own work only, and the superuser none."""
    superuser = login(database, SUPERUSER, SUPERUSER_SECRET)
    assert told(await postgres.checks(superuser)) == ["DATABASE_WRONG_ROLE"]
    for role, secret in ((SUPERUSER, SUPERUSER_SECRET), (roles.MIGRATOR, MIGRATOR_SECRET)):
        found = told(await postgres.checks(login(database, role, secret, "policy")))
        assert found == ["DATABASE_WRONG_ROLE"]
    other = login(database, roles.service_role("audit"), "postgres_audit", "policy")
    assert told(await postgres.checks(other)) == ["DATABASE_WRONG_ROLE"]


async def test_a_schema_that_is_behind_or_ahead(database: TestDatabase) -> None:
    connection = await database.superuser()
    try:
        await connection.execute(
            "DELETE FROM evergreen.schema_migrations WHERE schema_name = 'audit' AND version > 1"
        )
        assert told(await postgres.checks(owner(database))) == ["SCHEMA_BEHIND"]
        await connection.execute(
            "INSERT INTO evergreen.schema_migrations (schema_name, version, name, checksum)"
            " VALUES ('audit', 999, 'x', 'x')"
        )
    finally:
        await connection.close()
    assert told(await postgres.checks(owner(database))) == ["SCHEMA_AHEAD"]


async def test_a_master_key_that_does_not_fit_the_database(database: TestDatabase) -> None:
    """Every key that lies sealed there is opened; another key opens none."""
    key = master_key()
    seed = bytes(range(32))
    signer = Signer(seed)
    sealed = Sealer(base64.b64decode(key), SEALED["identity.signing_key"]).seal(seed)
    connection = await database.superuser()
    try:
        await connection.execute(
            "INSERT INTO identity.signing_key (key_id, public_key, purpose, algorithm,"
            " sealed_seed, created_at) VALUES ($1, $2, 'users', 'EdDSA', $3, now())",
            signer.public.id,
            signer.public.raw,
            sealed,
        )
    finally:
        await connection.close()
    good, other, broken = [
        await postgres.checks(replace(owner(database), master_key=text))
        for text in (key, master_key(), "no key")
    ]
    assert told(good) == []
    seen = {check.name: check.seen for check in good}
    assert seen[postgres.KEYS] == "the master key opens all 1 sealed keys"
    assert told(other) == ["MASTER_KEY_DOES_NOT_FIT"]
    assert status(broken)[postgres.KEYS] == "skipped"


async def test_a_clock_that_went_back(database: TestDatabase) -> None:
    """As after a dead battery: the database was set up in what is now the future."""
    long_ago = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    found = told(await postgres.checks(owner(database), lambda: long_ago))
    assert found == ["CLOCK_SKEW", "CLOCK_WENT_BACK"]


async def test_what_was_not_reached_is_skipped_with_the_reason(database: TestDatabase) -> None:
    """Of a database that lets nobody in."""
    checks = await postgres.checks(Login(owner(database).dsn, "wrong"))
    assert [check.name for check in checks] == [
        postgres.LOGIN, postgres.POOLER, *postgres.OWNERS
    ]  # fmt: skip
    assert {check.skipped for check in checks[1:]} == {"needs database.login"}


async def test_a_clock_that_differs_from_the_database(database: TestDatabase) -> None:
    past = now() - datetime.timedelta(minutes=3)
    found = told(await postgres.checks(owner(database), lambda: past))
    assert found == ["CLOCK_SKEW"]


async def test_a_database_that_forgets(database: TestDatabase) -> None:
    connection = await database.superuser()
    try:
        await connection.execute(
            f"ALTER ROLE {roles.MIGRATOR} IN DATABASE {database.name} SET synchronous_commit = off"
        )
    finally:
        await connection.close()
    assert told(await postgres.checks(owner(database))) == ["DATABASE_NOT_DURABLE"]


async def test_a_database_without_an_extension(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rights, "EXTENSION", "pg_none")
    assert told(await postgres.checks(owner(database))) == ["DATABASE_LACKS_EXTENSION"]


async def test_a_role_that_may_not_migrate(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each missing right, with who has to give it; migrations change nothing then."""
    connection = await database.superuser()
    try:
        await connection.execute(
            f"REVOKE CREATE ON DATABASE {database.name} FROM {roles.MIGRATOR};"
            "DROP EXTENSION pg_trgm CASCADE; CREATE SCHEMA closed;"
            "CREATE EXTENSION pg_trgm SCHEMA closed"
        )
    finally:
        await connection.close()
    monkeypatch.setattr(rights, "CONTEXTS", ("audit", "weather"))
    found = findings(await postgres.checks(owner(database)))
    assert [(finding.code, finding.fix) for finding in found] == [
        (
            "DATABASE_LACKS_RIGHTS",
            f"As the database's owner, run: GRANT CREATE ON DATABASE {database.name} TO"
            f" {roles.MIGRATOR}",
        ),
        (
            "DATABASE_LACKS_ROLES",
            "Make them by `evergreen database init`, or as docs/postgresql.md says.",
        ),
        (
            "DATABASE_LACKS_EXTENSION",
            f"As an administrator, run: GRANT USAGE ON SCHEMA closed TO {roles.MIGRATOR}",
        ),
    ]
    assert "the roles evergreen_weather are missing" in found[1].what
    login = owner(database)
    with pytest.raises(migrate.MigrationError, match="may not make schemas"):
        await migrate.up(login.dsn, login.password)


@pytest.mark.parametrize(
    ("dsn", "mode"),
    [
        ("postgresql://x@db.example/evergreen", "prefer"),
        ("postgresql://x@10.0.0.1/evergreen?sslmode=require", "require"),
        ("postgresql:///evergreen?host=db.example&sslmode=disable", "disable"),
        ("postgresql://x@db.example/evergreen?sslmode=verify-full", ""),
        ("postgresql://x@db.example/evergreen?sslmode=verify-ca", ""),
        ("postgresql://x@localhost/evergreen?sslmode=disable", ""),
        ("postgresql://x@/evergreen?host=/run/postgresql", ""),
    ],
)
def test_a_way_to_the_database_that_is_not_verified(dsn: str, mode: str) -> None:
    """A network's only; what the environment says counts where the address says nothing."""
    finding = postgres.unverified(dsn, {})
    assert (finding is not None) == bool(mode)
    if finding is not None:
        assert (finding.code, finding.severity) == ("DATABASE_NOT_VERIFIED", Severity.WARNING)
        assert f"sslmode={mode}" in finding.what
    assert postgres.unverified("postgresql://x@db/e", {"PGSSLMODE": "verify-full"}) is None
