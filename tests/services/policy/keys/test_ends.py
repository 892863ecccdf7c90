"""The ends of keys of tenants that are deleted: in memory after they are stored, and in the log."""

from __future__ import annotations

import pytest

from servicekit.data.postgres import Scope
from servicekit.ids import now
from servicekit.security.sealing import Sealer
from services.policy.keys.service import PURPOSE, KeyRing
from tests.services.policy.keys.test_keys import Owner
from tests.support.policy import ORG, World, world

__all__ = ["world"]


async def _ring(world: World) -> KeyRing:
    sealer = Sealer.from_file(world.kit.settings.master_key_file, PURPOSE)
    ring = KeyRing(world.kit.database, sealer, now)
    await ring.load()
    return ring


async def test_a_key_signs_until_its_end_is_stored(world: World) -> None:
    """A transaction that fails ends nothing."""
    key = await Owner(world, ORG.id).rotate(ORG.id)
    ring = await _ring(world)
    scope = Scope.of(ORG.id)
    with pytest.raises(RuntimeError):
        async with world.kit.database.transaction(scope) as connection:
            assert await ring.end_of_tenant(connection, ORG) == 1
            raise RuntimeError
    assert ring.signer_of(key.key_id) is not None
    for ended in (1, 0):
        async with world.kit.database.transaction(scope) as connection:
            assert await ring.end_of_tenant(connection, ORG) == ended
    assert ring.signer_of(key.key_id) is None


async def test_it_is_said_when_an_end_cannot_be_entered(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    """The key of the installation is in wrong hands, and nobody rotated it."""
    key = await Owner(world, ORG.id).rotate(ORG.id)
    connection = await world.database.superuser()
    await connection.execute(
        "UPDATE policy.signing_keys SET compromised_at = now() WHERE tenant_id IS NULL"
    )
    await connection.close()
    ring = await _ring(world)
    capfd.readouterr()
    async with world.kit.database.transaction(Scope.of(ORG.id)) as opened:
        assert await ring.end_of_tenant(opened, ORG) == 1
    logged = capfd.readouterr().out
    assert "ends of policy keys not entered" in logged
    assert key.key_id in logged
