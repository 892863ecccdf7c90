"""What a restore has to repair in enrollment's schema."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from servicekit.data.backup import Connection, Recorded, Tenants
from services.enrollment import restore
from services.enrollment.restore import Known, KnownDevice
from tests.support.backups import LEAVES, ORG, ROOT, STAYS, repairing, seed
from tests.support.servers import TestDatabase

TENANTS = Tenants(ROOT, frozenset({ORG}), frozenset({ROOT, ORG}))
AT = datetime(2026, 11, 1, tzinfo=UTC)


def device(id_: UUID, **more: object) -> KnownDevice:
    values = {
        "id": id_,
        "tenant_id": ORG,
        "serial": f"SN-{id_}",
        "model": "M",
        "status": "active",
        "token_version": 1,
        "at": AT,
    }
    return KnownDevice(**(values | more))  # type: ignore[arg-type]  # each value has its type


async def registry(connection: Connection) -> dict[UUID, tuple[str, int, UUID]]:
    rows = await connection.fetch(
        "SELECT id, status, token_version, tenant_id FROM enrollment.device"
    )
    return {row["id"]: tuple(row)[1:] for row in rows}


async def test_devices_are_what_they_were_last(database: TestDatabase) -> None:
    """Who left stays out, who came is there, and a token that was replaced stays so."""
    await seed(database)
    comes, elsewhere, gone = uuid4(), uuid4(), uuid4()
    known = Known()
    for change in (
        device(LEAVES, status="decommissioned", at=AT + timedelta(days=1)),
        device(LEAVES),  # older
        device(STAYS, token_version=3),
        device(comes),
        device(elsewhere, tenant_id=uuid4()),
        device(gone, tenant_id=uuid4(), status="decommissioned"),
    ):
        known.device(change)
    async with repairing(database) as connection:
        repaired = await restore.repair(connection, known, TENANTS)
        assert (repaired.carried, repaired.retired) == (4, 2)
        assert await registry(connection) == {
            LEAVES: ("decommissioned", 1, ORG),
            STAYS: ("active", 3, ORG),
            comes: ("active", 1, ORG),
            # Its organisation is not there: the root tenant keeps it, locked out.
            gone: ("decommissioned", 1, ROOT),
        }
        # A second time, nothing is left to do.
        repaired = await restore.repair(connection, known, TENANTS)
        assert (repaired.carried, repaired.retired) == (0, 0)


async def test_groups_are_computed_again(database: TestDatabase) -> None:
    """What a reader heard before the restore is older than all that it is told afterwards."""
    await seed(database)
    async with repairing(database) as connection:
        await connection.execute("UPDATE enrollment.device SET groups_computed_at = now()")
        (before,) = await connection.fetch(
            "SELECT max(membership_revision) AS last FROM enrollment.device"
        )
        await restore.repair(connection, Known(), TENANTS)
        rows = await connection.fetch(
            "SELECT membership_revision AS now, groups_computed_at FROM enrollment.device"
        )
        assert all(row["now"] >= before["last"] + 1_000_000 for row in rows)
        assert {row["groups_computed_at"] for row in rows} == {None}


async def test_a_list_retires_devices_that_nothing_is_known_of(database: TestDatabase) -> None:
    """They are locked out whether or not the backup has them."""
    await seed(database)
    unknown = uuid4()
    async with repairing(database) as connection:
        known = Known(retired={unknown, LEAVES})
        assert (await restore.repair(connection, known, TENANTS)).retired == 2
        found = await registry(connection)
        assert found.pop(STAYS)[0] == "active"
        assert {id_: row[0] for id_, row in found.items()} == {
            unknown: "decommissioned",
            LEAVES: "decommissioned",
        }


async def test_tokens_keep_their_uses_and_stay_revoked(database: TestDatabase) -> None:
    """Whether the replaced database or the audit log tells of it."""
    await seed(database)
    async with repairing(database) as connection:
        (token,) = await connection.fetch("SELECT id FROM enrollment.token")
        before, learned = Known(), Known()
        await connection.execute("UPDATE enrollment.token SET uses = 2, revoked_at = now()")
        await before.read(connection)
        assert before.devices.keys() == {STAYS, LEAVES}
        learned.learn(Recorded(ORG, AT, "enrollment.token_revoked", "tokens", str(token["id"]), {}))
        for known, uses in ((before, 2), (learned, 1)):
            await connection.execute("UPDATE enrollment.token SET uses = 1, revoked_at = NULL")
            await restore.repair(connection, known, TENANTS)
            row = await connection.fetchrow("SELECT uses, revoked_at FROM enrollment.token")
            assert row is not None
            assert row["uses"] == uses
            assert row["revoked_at"] is not None


def test_the_audit_log_tells_of_devices() -> None:
    """Entries about devices name their state; others are passed over."""
    known = Known()
    after = {"status": "active", "tokenVersion": 4, "serial": "SN-1"}
    known.learn(Recorded(ORG, AT, "enrollment.device_enrolled", "devices", str(STAYS), after))
    known.learn(Recorded(ORG, AT, "policy.updated", "policies", str(STAYS), {"status": "x"}))
    assert known.devices == {STAYS: device(STAYS, serial="SN-1", model="", token_version=4)}
