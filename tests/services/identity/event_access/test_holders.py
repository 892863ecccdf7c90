"""Event credentials end: with their holder, unless an Owner takes them over, and after 400 days."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp
from nats.aio.client import Client

from contract.access import Role
from deploy.postgres import roles
from evergreen.v1 import identity_pb2 as pb
from servicekit.data import migrate
from servicekit.ids import now
from servicekit.security.tokens import secret_hash
from tests.support.callers import Metadata
from tests.support.identity import OWNER, Identity, identity, refused
from tests.support.integrators import Integrators, create, read
from tests.support.servers import Servers
from tests.support.stack import PATIENCE

__all__ = ["identity"]


@pytest_asyncio.fixture
async def integrators(servers: Servers) -> AsyncIterator[Integrators]:
    found = Integrators([servers.nats_url])
    yield found
    await found.close()


async def _cut(client: Client) -> None:
    async with asyncio.timeout(PATIENCE):
        while client.is_connected:
            await asyncio.sleep(0.05)


async def _listed(identity: Identity, by: Metadata, credential_id: str) -> pb.EventCredential:
    found = await identity.credentials.ListEventCredentials(
        pb.ListEventCredentialsRequest(), metadata=by
    )
    return next(c for c in found.credentials if c.id == credential_id)


async def _deactivate(identity: Identity, by: Metadata, user: pb.User) -> None:
    await identity.users.DeactivateUser(pb.DeactivateUserRequest(id=user.id), metadata=by)


async def _take_over(
    identity: Identity, by: Metadata, credential: pb.EventCredential
) -> pb.EventCredential:
    return await identity.credentials.TakeOverEventCredential(
        pb.TakeOverEventCredentialRequest(id=credential.id), metadata=by
    )


async def test_a_credential_lives_for_a_year_and_400_days_at_most(identity: Identity) -> None:
    """Whatever was asked for."""
    owner = await identity.as_user()
    life = (await create(identity, owner)).expires_at.ToDatetime(UTC) - now()
    assert timedelta(days=364) < life <= timedelta(days=365)
    for days, accepted in ((399, True), (401, False), (36_500, False)):
        until = Timestamp()
        until.FromDatetime(now() + timedelta(days=days))
        if accepted:
            assert (await create(identity, owner, expires_at=until)).status == "active"
            continue
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await create(identity, owner, expires_at=until)
        assert refused(error)["message"] == "expiresAt: must be at most 400 days away"


async def test_a_credential_ends_with_its_holder_and_an_owner_takes_it_over(
    identity: Identity, integrators: Integrators
) -> None:
    """Cut within seconds, and refused; taken over, it goes on where it was."""
    owner = await identity.as_user()
    org = await identity.org(owner, "School")
    admin, as_admin = await identity.user(owner, Role.ADMIN, org.id)
    made = await create(identity, as_admin)
    stays = await create(identity, owner, org.id)
    assert (made.held_by, made.status) == (admin.email, "active")
    client = await integrators.connect(made.id, made.secret)
    other = await integrators.connect(stays.id, stays.secret)
    await read(client, made.id, 1)

    await _deactivate(identity, owner, admin)
    await _cut(client)
    assert await integrators.refused(made.id, made.secret)
    assert other.is_connected
    assert (await _listed(identity, owner, made.id)).status == "orphaned"

    _, as_owner = await identity.user(owner, Role.OWNER, org.id)
    taken = await _take_over(identity, as_owner, made)
    assert (taken.status, taken.created_by) == ("active", admin.email)
    assert taken.held_by != admin.email
    assert not taken.HasField("secret")
    again = await integrators.connect(made.id, made.secret)
    await read(again, made.id, 1)
    # Once more changes nothing, and leaves no entry.
    assert (await _take_over(identity, as_owner, made)).held_by == taken.held_by
    events = [e for e in await identity.events() if made.id in e["data"].get("resource", "")]
    assert [e["data"]["action"].removeprefix("identity.event_credential_") for e in events] == [
        "created",
        "orphaned",
        "taken_over",
    ]
    assert [e["data"]["after"]["heldBy"] for e in events] == [
        admin.email,
        admin.email,
        taken.held_by,
    ]


async def test_a_credential_that_was_taken_over_outlives_its_maker(
    identity: Identity, integrators: Integrators
) -> None:
    """An Owner may do it before the maker leaves: nothing is cut."""
    owner = await identity.as_user()
    admin, as_admin = await identity.user(owner, Role.ADMIN)
    made = await create(identity, as_admin)
    client = await integrators.connect(made.id, made.secret)
    assert (await _take_over(identity, owner, made)).held_by == OWNER
    await _deactivate(identity, owner, admin)
    # Another one's end shows that the gatekeeper has looked since.
    witness, as_witness = await identity.user(owner, Role.ADMIN)
    watched = await create(identity, as_witness)
    second = await integrators.connect(watched.id, watched.secret)
    await _deactivate(identity, owner, witness)
    await _cut(second)
    assert client.is_connected


async def test_what_has_ended_is_not_taken_over(identity: Identity) -> None:
    """Neither one that was revoked nor one that has expired; nor by another organisation."""
    owner = await identity.as_user()
    org = await identity.org(owner, "Other")
    _, stranger = await identity.user(owner, Role.OWNER, org.id)
    gone, old = await create(identity, owner), await create(identity, owner)
    await identity.credentials.RevokeEventCredential(
        pb.RevokeEventCredentialRequest(id=gone.id), metadata=owner
    )
    connection = await identity.database.superuser()
    await connection.execute(
        "UPDATE identity.event_credential SET expires_at = now() WHERE id = $1", old.id
    )
    await connection.close()
    _, second = await identity.user(owner, Role.OWNER)
    for credential, by, status in (
        (gone, second, "FAILED_PRECONDITION"),
        (old, second, "FAILED_PRECONDITION"),
        (old, stranger, "NOT_FOUND"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await _take_over(identity, by, credential)
        assert refused(error)["status"] == status


_AS_BEFORE = (
    "INSERT INTO identity.event_credential (id, tenant_id, name, secret_hash, created_at,"
    " created_by) SELECT $1, t.id, 'SIEM', $2, now() - interval '500 days', $3"
    " FROM identity.tenant t WHERE t.kind = 'root'"
)


async def test_credentials_of_the_last_release_end_too(
    identity: Identity, integrators: Integrators
) -> None:
    """Those that it made before the migration, and those that it makes beside this release."""
    owner = await identity.as_user()
    admin, _ = await identity.user(owner, Role.ADMIN)
    left, _ = await identity.user(owner, Role.ADMIN)
    await _deactivate(identity, owner, left)
    ids = {email: uuid4() for email in (admin.email, left.email, "service", "late")}
    (holders,) = [m for m in migrate.migrations_of("identity") if m.name == "credential_holders"]
    connection = await identity.database.superuser()
    try:
        await connection.execute(
            "ALTER TABLE identity.event_credential DROP COLUMN holder_id, DROP COLUMN held_by,"
            " DROP COLUMN orphaned_at"
        )
        for email in (admin.email, left.email, "service"):
            await connection.execute(_AS_BEFORE, ids[email], secret_hash("s"), email)
        await connection.execute(f"ALTER TABLE identity.event_credential OWNER TO {roles.MIGRATOR}")
        async with connection.transaction():
            await connection.execute(f"SET LOCAL ROLE {roles.MIGRATOR}")
            await connection.execute(holders.sql)
        # Made since, by a replica of the last release.
        await connection.execute(_AS_BEFORE, ids["late"], secret_hash("s"), admin.email)
        await connection.execute(
            "UPDATE identity.event_credential SET created_at = now() WHERE id = $1", ids["late"]
        )
        for email, works in ((admin.email, True), ("service", True), (left.email, False)):
            assert await integrators.refused(str(ids[email]), "s") is not works, email
        shown = {email: await _listed(identity, owner, str(id_)) for email, id_ in ids.items()}
        assert {email: c.status for email, c in shown.items()} == {
            admin.email: "active",
            "service": "active",
            "late": "active",
            left.email: "orphaned",
        }
        for credential in shown.values():
            life = credential.expires_at.ToDatetime(UTC) - datetime.now(UTC)
            assert timedelta(days=399) < life <= timedelta(days=400)
        # The last release deactivates without a word about credentials.
        await connection.execute(
            "UPDATE identity.account SET status = 'disabled' WHERE email = $1", admin.email
        )
        for email in (admin.email, "late"):
            assert await integrators.refused(str(ids[email]), "s"), email
    finally:
        await connection.close()
