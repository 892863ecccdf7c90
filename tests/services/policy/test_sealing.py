"""Policies with secrets lie sealed in the database: what is new, and what was there before."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from servicekit.rpc.channels import open_channel
from servicekit.security.sealing import Sealer, SealingError
from services.policy import sealing
from services.policy.__main__ import build
from services.policy.authoring.secret_values import holds_secrets as hides_something
from services.policy.authoring.stored_form import as_text, parted
from services.policy.settings import PolicySettings
from services.policy.vault import PURPOSE, Vault, holds_secrets
from tests.conftest import MakeKit, ServeService
from tests.services.policy.authoring.test_secrets_stored import DOCUMENT, SECRET
from tests.support import backups
from tests.support.neighbours import until_ready
from tests.support.policy import (
    ORG,
    RESELLER,
    TREE,
    Admin,
    Device,
    Neighbours,
    World,
    neighbours,
    verified,
)
from tests.support.servers import TestDatabase

FORM: dict[str, Any] = {
    "configuration": {
        "network": {
            "wifiNetworks": [
                {"ssid": "Pupils", "security": "wpa2", "passphrase": SECRET + " of the form"}
            ]
        }
    }
}


@dataclass
class Starts:
    """Runs the policy service, each time in another way."""

    make_kit: MakeKit
    serve: ServeService
    database: TestDatabase
    found: Neighbours | None = None

    @asynccontextmanager
    async def service(self, policy_secrets: str) -> AsyncIterator[World]:
        kit = await self.make_kit(
            "policy", PolicySettings, tenants=TREE, policy_secrets=policy_secrets
        )
        async with neighbours(kit) as found:
            running = await self.serve(kit, build)
            channel = open_channel(kit.settings.grpc_listen, "test")
            await until_ready(channel)
            yield World(kit, channel, found, Admin(channel, ORG.id), self.database)
            await channel.close()
            await running.stop(drain=0)

    async def dump(self, *, whole: bool = True) -> dict[str, list[str]]:
        """All that policy stores, with what is binary as text."""
        connection = await self.database.superuser()
        try:
            tables = await connection.fetch(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'policy'"
            )
            found = {}
            for row in tables:
                name = f"policy.{row['tablename']}"
                found[name] = sorted(
                    _readable(one) for one in await connection.fetch(f"SELECT * FROM {name}")
                )
            return found
        finally:
            await connection.close()


def _readable(row: asyncpg.Record) -> str:
    return repr(
        {
            name: value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
            for name, value in row.items()
            if name != "changed_xid"
        }
    )


@pytest.fixture
def starts(make_kit: MakeKit, serve: ServeService, database: TestDatabase) -> Starts:
    return Starts(make_kit, serve, database)


def _vault(world_kit: Any, *, seals: bool) -> Vault:
    return Vault(Sealer.from_file(world_kit.settings.master_key_file, PURPOSE), seals=seals)


async def _policies(world: World) -> list[str]:
    """A policy of each form, layers, a rollback: all in one organisation."""
    above = Admin(world.channel, RESELLER.id)
    await above.published(
        RESELLER.id,
        {
            "network": {
                "wifi": [{"ssid": "All", "security": "sae", "passphrase": SECRET + " above"}]
            }
        },
    )
    first = await world.admin.published(ORG.id, DOCUMENT)
    second = await world.admin.published(ORG.id, FORM)
    await world.admin.call("RollbackPolicy", id=first.id, version=first.version)
    draft = await world.admin.create(ORG.id, FORM, "Draft")
    plain = await world.admin.create(ORG.id, {"browser": {"homepage": "https://a.example"}}, "P")
    return [first.id, second.id, draft.id, plain.id]


async def _pulled(world: World, device: Device) -> Any:
    """What a device gets, checked as the released agent does."""
    answer = await device.pull()
    verified(await world.pem(), answer)
    return answer.json()


async def _answers(world: World, ids: list[str]) -> dict[str, Any]:
    """What people and devices are answered."""
    shown: dict[str, Any] = {}
    auditor = Admin(world.channel, ORG.id, "Auditor")
    for id_ in ids:
        shown[f"{id_} revealed"] = str(
            await world.admin.call("GetPolicy", id=id_, reveal_secrets=True)
        )
        shown[id_] = str(await world.admin.call("GetPolicy", id=id_))
        for admin in (world.admin, auditor):
            listed = await admin.call("ListPolicyVersions", policy_id=id_)
            shown[f"{id_} versions {admin is auditor}"] = str(listed)
        for version in listed.versions:
            shown[f"{id_} diff {version.version}"] = str(
                await world.admin.call("DiffPolicyVersions", policy_id=id_, version=version.version)
            )
        shown[f"{id_} simulated"] = str(await world.admin.call("SimulatePolicy", policy_id=id_))
    shown["layered"] = str(await world.admin.call("GetLayeredPolicy", org_id=str(ORG.id)))
    device = Device(world.kit, world.channel, UUID(int=0xD), ORG.id)
    shown["device"] = await _pulled(world, device)
    shown["statement"] = str((await device.pull_grpc()).statement)
    return shown


async def test_nothing_that_is_stored_shows_a_secret(starts: Starts) -> None:
    """Of either form, of layers, of drafts and of versions; devices get it all the same."""
    async with starts.service("sealed") as world:
        ids = await _policies(world)
        sealed = await _answers(world, ids)
        wifi = sealed["device"]["policy"]["network"]["wifi"]
        assert {one["passphrase"] for one in wifi} >= {SECRET + " 1", SECRET + " above"}
        again = await world.admin.call("UpdatePolicy", id=ids[0], name="Other", signed=True)
        assert again.signed
    stored = json.dumps(await starts.dump())
    assert SECRET not in stored
    assert "https://a.example" in stored


async def test_what_was_stored_before_is_sealed_and_opened_again(starts: Starts) -> None:
    """Some rows at a time, also after a run that was ended; answers stay the same throughout, and
    opening brings back each row as it was."""
    async with starts.service("open") as world:
        ids = await _policies(world)
        answers = await _answers(world, ids)
        vault = _vault(world.kit, seals=True)
        to_open = _vault(world.kit, seals=False)
    before = await starts.dump()
    assert SECRET in json.dumps(before)
    connection = await backups.owner(starts.database)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sealing, "AT_ONCE", 1)
            run = sealing.run(connection, vault)
            assert (await anext(run)).done == 1
            await run.aclose()
            left = await sealing.waiting(connection)
            assert left["policy.policies"] == 3
            told = [one async for one in sealing.run(connection, vault)]
        assert told[-1].done == told[-1].of == left["policy.documents"]
        assert set((await sealing.waiting(connection)).values()) == {0}
        assert [one async for one in sealing.run(connection, vault)] == []
        assert SECRET not in json.dumps(await starts.dump())
        # Also for a service that seals no more.
        for how in ("sealed", "open"):
            async with starts.service(how) as world:
                assert await _answers(world, ids) == answers
        await connection.execute("DELETE FROM policy.outbox")
        told = [one async for one in sealing.run(connection, to_open, to_open=True)]
        assert told
    finally:
        await connection.close()
    after = await starts.dump()
    for table in ("policy.policies", "policy.versions", "policy.documents", "policy.stamps"):
        assert after[table] == before[table], table


async def test_a_service_that_seals_no_more_goes_on(starts: Starts) -> None:
    """A version that is sealed comes into force again, and its number is chained to the last."""
    async with starts.service("sealed") as world:
        policy = await world.admin.published(ORG.id, DOCUMENT)
        await world.admin.published(ORG.id, FORM)
    async with starts.service("open") as world:
        await world.admin.call("RollbackPolicy", id=policy.id, version="1")
        device = Device(world.kit, world.channel, uuid4(), ORG.id)
        got = await _pulled(world, device)
        assert got["policy"]["network"]["wifi"][0]["passphrase"] == SECRET + " 1"
        assert (await device.pull_grpc("2")).statement.payload


async def test_a_row_opens_in_its_own_place_alone(starts: Starts) -> None:
    """Who writes into the database gives no policy the secrets of another one; a document that does
    not open leaves the others alone."""
    async with starts.service("sealed") as world:
        one = await world.admin.create(ORG.id, DOCUMENT, "One")
        other = await world.admin.create(ORG.id, FORM, "Other")
        superuser = await starts.database.superuser()
        await superuser.execute(
            "UPDATE policy.policies SET sealed_secrets ="
            " (SELECT sealed_secrets FROM policy.policies WHERE id = $1) WHERE id = $2",
            UUID(one.id),
            UUID(other.id),
        )
        await superuser.close()
        with pytest.raises(Exception, match="INTERNAL"):
            await world.admin.call("GetPolicy", id=other.id)
        assert await world.admin.call("GetPolicy", id=one.id)
        assert len((await world.admin.call("ListPolicies")).policies) == 2


async def test_what_the_release_before_writes_into_a_sealed_row_counts(starts: Starts) -> None:
    """It knows the open columns alone."""
    async with starts.service("sealed") as world:
        policy = await world.admin.create(ORG.id, DOCUMENT)
        superuser = await starts.database.superuser()
        new = '{"browser":{"homepage":"https://b.example"}}'
        await superuser.execute(
            "UPDATE policy.policies SET authored = $2 WHERE id = $1", UUID(policy.id), new
        )
        await superuser.close()
        found = await world.admin.call("GetPolicy", id=policy.id, reveal_secrets=True)
        assert "b.example" in str(found)
        await world.admin.call("UpdatePolicy", id=policy.id, name="N")
        assert "b.example" in str(await world.admin.call("GetPolicy", id=policy.id))


@pytest.mark.parametrize("bundle", [DOCUMENT, FORM, {"network": {"wifi": [{"ssid": "x"}]}}])
def test_what_is_hidden_is_what_is_sealed(bundle: Any) -> None:
    """The database's expression finds what the form of a policy has secrets in."""
    columns = parted(as_text(bundle))
    assert any(map(holds_secrets, columns)) is hides_something(bundle)


def test_a_value_opens_with_its_key_and_place_alone() -> None:
    vault = Vault(Sealer(bytes(32), PURPOSE), seals=True)
    stored = vault.stored("policies/a/b", {"authored": as_text(DOCUMENT), "form_extra": None})
    assert (stored["authored"], stored["form_extra"]) == ("", None)
    assert vault.opened("policies/a/b", stored, "authored")["authored"] == as_text(DOCUMENT)
    for other, place in (
        (vault, "policies/a/c"),
        (Vault(Sealer(bytes(31) + b"\1", PURPOSE), seals=True), "policies/a/b"),
    ):
        with pytest.raises(SealingError):
            other.opened(place, stored, "authored")
