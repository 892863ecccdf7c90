"""What a restore has to repair in policy's schema."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from servicekit.data.backup import Connection, Recorded
from services.policy import restore
from services.policy.restore import LOST_VERSIONS, Known
from tests.support.backups import ORG, repairing, seed
from tests.support.servers import TestDatabase


async def version(connection: Connection) -> int:
    found: int = await connection.fetchval(
        "SELECT last_version FROM policy.version_counters WHERE tenant_id = $1", ORG
    )
    return found


async def test_versions_go_on_above_all_that_may_have_been_published(
    database: TestDatabase,
) -> None:
    """By the backup, by the replaced database or the audit log, whichever knows more."""
    await seed(database)
    async with repairing(database) as connection:
        await restore.repair(connection, Known(), [ORG])
        assert await version(connection) == 7 + LOST_VERSIONS
        await connection.execute("UPDATE policy.version_counters SET last_version = 5000")
        known = Known()
        await known.read(connection)
        await connection.execute("UPDATE policy.version_counters SET last_version = 7")
        known.learn(
            Recorded(
                ORG,
                datetime(2026, 11, 1, tzinfo=UTC),
                "policy.published",
                "policies",
                str(uuid4()),
                {"version": 4999},
            )
        )
        await restore.repair(connection, known, [ORG])
        assert await version(connection) == 5000 + LOST_VERSIONS


async def test_an_organisation_that_had_published_nothing(database: TestDatabase) -> None:
    """What it published since the backup has versions too, which must not come again."""
    await seed(database)
    for known in (Known(versions={ORG: 3}), Known()):
        async with repairing(database) as connection:
            await connection.execute("DELETE FROM policy.version_counters")
            await restore.repair(connection, known, [ORG])
            assert await version(connection) == known.versions.get(ORG, 0) + LOST_VERSIONS


async def test_rollouts_come_back_paused(database: TestDatabase) -> None:
    """All that would give a version to devices; one that nobody let begin goes on waiting."""
    await seed(database)
    ids = [uuid4() for _ in range(4)]
    rows = (
        ("RUNNING", 0, True),
        # Waits for its next batch, and serves devices of the first one meanwhile.
        ("AWAITING_APPROVAL", 0, True),
        ("SCHEDULED", -1, False),
        ("AWAITING_APPROVAL", -1, False),
    )
    async with repairing(database) as connection:
        # No version matters here.
        await connection.execute(
            "ALTER TABLE policy.rollout DROP CONSTRAINT rollout_version_exists"
        )
        for rollout_id, (state, batch, serves) in zip(ids, rows, strict=True):
            await connection.execute(
                "INSERT INTO policy.rollout (id, tenant_id, policy_id, version, group_ids,"
                " device_ids, base, plan, urgent, salt, state, batch, serves, live, serving_since,"
                " created_at, created_by, created_by_name, starts_at) VALUES ($1, $2, $1, 1, '{}',"
                " '{}', '', '{}', false, $3, $4, $5, $6, $6, now(), now(), $1, 'anna', now())",
                rollout_id,
                ORG,
                bytes(16),
                state,
                batch,
                serves,
            )
        await restore.repair(connection, Known(), [ORG])
        found = await connection.fetch(
            "SELECT state, serves FROM policy.rollout WHERE id = ANY ($1) ORDER BY created_at,"
            " array_position($1, id)",
            ids,
        )
    assert [tuple(row) for row in found] == [
        ("PAUSED", False),
        ("PAUSED", False),
        ("PAUSED", False),
        ("AWAITING_APPROVAL", False),
    ]


async def put_key(connection: Connection, name: str, state: str, **more: Any) -> UUID:
    """A key with an entry in the log."""
    row_id = uuid4()
    row = {
        "id": name,
        "row_id": row_id,
        "public_key": name.encode().ljust(32),
        "sealed_seed": None if state == "retired" else b"sealed",
        "signs": False,
        "state": state,
        "created_at": datetime(2026, 11, int(name[-1]), tzinfo=UTC),
        "is_first": name in {"key1", "fresh9"},
    } | more
    places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
    await connection.execute(
        f"INSERT INTO policy.signing_keys ({', '.join(row)}) VALUES ({places})", *row.values()
    )
    await connection.execute(
        "INSERT INTO policy.key_log SELECT count(*) + 1, 'add', '{}', $1 FROM policy.key_log", name
    )
    return row_id


async def keys_in(connection: Connection) -> dict[str, tuple[str, bool, bool]]:
    """State, whether it signs what is stored, and whether it can sign; by name."""
    rows = await connection.fetch("SELECT id, state, signs, sealed_seed FROM policy.signing_keys")
    return {row["id"]: (row["state"], row["signs"], row["sealed_seed"] is not None) for row in rows}


async def test_keys_that_devices_pin_since_the_backup_stay(database: TestDatabase) -> None:
    """From the replaced database; what was ended since stays ended, and the log goes on."""
    await seed(database)
    async with repairing(database) as connection:
        await connection.execute("DELETE FROM policy.signing_keys")
        await put_key(connection, "key1", "retired")
        await put_key(connection, "key2", "retiring", compromised_at=datetime.now(UTC))
        await put_key(connection, "key3", "active", signs=True)
        known = Known()
        await known.read(connection)
        later = await keys_in(connection)
        # The backup: of before the second key was replaced.
        await connection.execute("DELETE FROM policy.signing_keys")
        await connection.execute("DELETE FROM policy.key_log")
        await put_key(connection, "key1", "retiring", signs=True)
        await put_key(connection, "key2", "active")
        await restore.repair(connection, known, [ORG])
        assert await keys_in(connection) == later
        assert await connection.fetchval("SELECT count(*) FROM policy.key_log") == 3
        assert await connection.fetchval(
            "SELECT compromised_at NOTNULL FROM policy.signing_keys WHERE id = 'key2'"
        )


async def test_keys_of_another_installation_stay_out(database: TestDatabase) -> None:
    """A backup that comes to a new installation brings its own keys, and the audit log says which
    of them have ended since."""
    await seed(database)
    async with repairing(database) as connection:
        await connection.execute("DELETE FROM policy.signing_keys")
        await put_key(connection, "fresh9", "active", signs=True)
        known = Known()
        await known.read(connection)
        await connection.execute("DELETE FROM policy.signing_keys")
        await connection.execute("DELETE FROM policy.key_log")
        await put_key(connection, "key1", "active", signs=True)
        ended = await put_key(connection, "key2", "retiring")
        stolen = await put_key(connection, "key3", "retiring")
        for action, key_id in (("retired", ended), ("compromised", stolen)):
            known.learn(
                Recorded(
                    ORG,
                    datetime(2026, 11, 5, tzinfo=UTC),
                    f"policy.key_{action}",
                    "policy-keys",
                    str(key_id),
                    {},
                )
            )
        await restore.repair(connection, known, [ORG])
        assert await keys_in(connection) == {
            "key1": ("active", True, True),
            "key2": ("retired", False, False),
            "key3": ("retiring", False, True),
        }
        assert await connection.fetchval(
            "SELECT compromised_at FROM policy.signing_keys WHERE id = 'key3'"
        ) == datetime(2026, 11, 5, tzinfo=UTC)
