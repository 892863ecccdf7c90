"""Integrators at NATS: what a credential opens, what it does not, and when it stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import nats
import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp
from nats.aio.client import Client
from nats.errors import TimeoutError as NatsTimeout

from evergreen.v1 import identity_pb2 as pb
from servicekit.access import Role
from servicekit.ids import now
from servicekit.streams import DOMAIN, EVENTS, STREAMS, TELEMETRY
from services.identity.service.event_credentials import MOST
from tests.callers import Metadata
from tests.integration.identity import Identity, identity, refused
from tests.servers import Servers
from tests.stack import PATIENCE

__all__ = ["identity"]


class Integrators:
    """Programs that connect with credentials."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self.clients: list[Client] = []
        self.errors: list[str] = []

    async def connect(self, user: str, secret: str, **more: Any) -> Client:
        async def keep(error: Exception) -> None:
            self.errors.append(str(error))

        client = await nats.connect(
            self._servers.nats_url,
            **{
                "user": user,
                "password": secret,
                "inbox_prefix": f"_INBOX_{user}",
                "error_cb": keep,
                "allow_reconnect": False,
                "connect_timeout": PATIENCE,
                **more,
            },
        )
        self.clients.append(client)
        return client

    async def refused(self, user: str, secret: str) -> bool:
        try:
            await self.connect(user, secret)
        except (nats.errors.Error, OSError):
            return True
        return False


@pytest_asyncio.fixture
async def integrators(servers: Servers) -> AsyncIterator[Integrators]:
    found = Integrators(servers)
    yield found
    for client in found.clients:
        await client.close()


async def create(
    identity: Identity, by: Metadata, tenant_id: str = "", **more: Any
) -> pb.EventCredential:
    return await identity.credentials.CreateEventCredential(
        pb.CreateEventCredentialRequest(tenant_id=tenant_id, name="SIEM", **more), metadata=by
    )


async def read(client: Client, user: str, count: int, stream: str = EVENTS.name) -> list[Any]:
    """The next messages of the credential's consumer, in order, acknowledged."""
    found: list[Any] = []
    async with asyncio.timeout(PATIENCE):
        while len(found) < count:
            # The consumer is there a moment after the credential.
            with contextlib.suppress(NatsTimeout, nats.js.errors.Error, nats.errors.Error):
                reader = await client.jetstream(domain=DOMAIN).pull_subscribe_bind(user, stream)
                try:
                    messages = await reader.fetch(100, timeout=0.5)
                finally:
                    await reader.unsubscribe()
                for message in messages:
                    await message.ack_sync()
                found += messages
    return found


async def nothing_more(client: Client, user: str) -> bool:
    reader = await client.jetstream(domain=DOMAIN).pull_subscribe_bind(user, EVENTS.name)
    try:
        await reader.fetch(1, timeout=0.5)
    except NatsTimeout:
        return True
    return False


def actions(messages: list[Any]) -> list[str]:
    return [json.loads(message.data)["data"]["action"] for message in messages]


async def rename(identity: Identity, by: Metadata, tenant_id: str, name: str) -> None:
    await identity.tenants.UpdateTenant(
        pb.UpdateTenantRequest(id=tenant_id, name=name), metadata=by
    )


async def test_a_credential_reads_its_tenants_events_and_no_others(
    identity: Identity, integrators: Integrators
) -> None:
    """An organisation its own, a reseller its subtree's, also of organisations made later."""
    owner = await identity.as_user()
    reseller = await identity.org(owner, "Reseller", reseller=True)
    below = await identity.org(owner, "Below", parent_id=reseller.id)
    beside = await identity.org(owner, "Beside")
    one = await create(identity, owner, below.id)
    all_below = await create(identity, owner, reseller.id)
    assert one.secret
    assert one.tenant_id == below.id

    client = await integrators.connect(one.id, one.secret)
    await rename(identity, owner, beside.id, "Beside 2")
    messages = await read(client, one.id, 2)
    assert actions(messages) == ["identity.tenant_created", "identity.event_credential_created"]
    assert {m.subject.split(".")[2] for m in messages} == {below.id}
    assert await nothing_more(client, one.id)

    subtree = await integrators.connect(all_below.id, all_below.secret)
    messages = await read(subtree, all_below.id, 4)
    assert {m.subject.split(".")[2] for m in messages} == {reseller.id, below.id}
    late = await identity.org(owner, "Late", parent_id=reseller.id)
    # What was made a moment ago may have to be read once more, so that nothing is missed.
    subject = f"evergreen.v1.{late.id}.identity.tenant_created"
    async with asyncio.timeout(PATIENCE):
        while subject not in {m.subject for m in await read(subtree, all_below.id, 1)}:
            pass


async def test_a_reader_goes_on_where_it_was(identity: Identity, integrators: Integrators) -> None:
    """What was acknowledged does not come again to the next connection; what follows does."""
    owner = await identity.as_user()
    org = await identity.org(owner, "School")
    made = await create(identity, owner, org.id)
    client = await integrators.connect(made.id, made.secret)
    await read(client, made.id, 2)
    await client.close()
    await rename(identity, owner, org.id, "School 2")
    again = await integrators.connect(made.id, made.secret)
    assert actions(await read(again, made.id, 1)) == ["identity.tenant_updated"]


async def test_a_stream_that_was_thrown_away_is_read_again(
    identity: Identity, integrators: Integrators, servers: Servers
) -> None:
    """All events come again, with the ids that they had."""
    owner = await identity.as_user()
    org = await identity.org(owner, "School")
    made = await create(identity, owner, org.id)
    client = await integrators.connect(made.id, made.secret)
    first = await read(client, made.id, 2)
    operator = await servers.operator()
    await operator.jetstream().delete_stream(EVENTS.name)
    await operator.close()
    again = await read(client, made.id, 2)
    assert [json.loads(m.data)["id"] for m in again] == [json.loads(m.data)["id"] for m in first]


def forbidden(own: str, other: str, tenant: str) -> list[str]:
    """Subjects that an integrator must not publish to."""
    api = f"$JS.{DOMAIN}.API"
    return [
        f"evergreen.v1.{tenant}.policy.published",
        f"{api}.CONSUMER.MSG.NEXT.{EVENTS.name}.{other}",
        f"{api}.CONSUMER.INFO.{EVENTS.name}.{other}",
        f"{api}.CONSUMER.MSG.NEXT.{EVENTS.name}.audit",
        f"$JS.ACK.{EVENTS.name}.{other}.1.1.1.1.0",
        "$SYS.REQ.SERVER.PING",
        "$SYS.REQ.USER.AUTH",
        "$SYS.REQ.ACCOUNT.PING.CONNZ",
        "_INBOX_identity.x",
        f"_INBOX_{other}.x",
        *(
            f"{prefix}.{request}"
            for prefix in ("$JS.API", api)
            for stream in STREAMS
            for request in (
                f"CONSUMER.CREATE.{stream.name}.{own}",
                f"CONSUMER.CREATE.{stream.name}.{own}.evergreen.v1.{tenant}.>",
                f"CONSUMER.CREATE.{stream.name}.{own}.evergreen.v1.>",
                f"CONSUMER.DURABLE.CREATE.{stream.name}.{own}",
                f"CONSUMER.DELETE.{stream.name}.{own}",
                f"CONSUMER.LIST.{stream.name}",
                f"STREAM.MSG.GET.{stream.name}",
                f"DIRECT.GET.{stream.name}",
                f"DIRECT.GET.{stream.name}.evergreen.v1.{tenant}.policy.published",
                f"STREAM.INFO.{stream.name}",
                f"STREAM.PURGE.{stream.name}",
                f"STREAM.DELETE.{stream.name}",
                f"STREAM.UPDATE.{stream.name}",
                f"STREAM.MSG.DELETE.{stream.name}",
                "STREAM.NAMES",
                "INFO",
            )
        ),
    ]


async def test_nothing_else_is_permitted(identity: Identity, integrators: Integrators) -> None:
    """The whole matrix, on the real server: publishing, subscribing, other readers' consumers."""
    owner = await identity.as_user()
    org = await identity.org(owner, "School")
    made = await create(identity, owner, org.id)
    other = await create(identity, owner, (await identity.org(owner, "Other")).id)
    client = await integrators.connect(made.id, made.secret)
    await read(client, made.id, 2)
    assert integrators.errors == []

    async def errors(count: int) -> set[str]:
        async with asyncio.timeout(PATIENCE):
            while len(integrators.errors) < count:
                await asyncio.sleep(0.02)
        return {error.lower() for error in integrators.errors}

    subjects = forbidden(made.id, other.id, org.id)
    for subject in subjects:
        await client.publish(subject, b"{}")
    await client.flush()
    told = await errors(len(subjects))
    for subject in subjects:
        assert any("publish" in e and f'"{subject.lower()}"' in e for e in told), subject
    integrators.errors.clear()

    listens = [
        ">",
        "evergreen.v1.>",
        f"evergreen.v1.{org.id}.>",
        f"_INBOX_{other.id}.>",
        "_INBOX_identity.>",
        "_INBOX.>",
        "$SYS.>",
        "$JS.>",
    ]
    for subject in listens:
        await client.subscribe(subject)
    await client.flush()
    told = await errors(len(listens))
    for subject in listens:
        assert any("subscription" in e and f'"{subject.lower()}"' in e for e in told), subject


async def test_events_are_delivered_to_nobody_else(
    identity: Identity, integrators: Integrators, servers: Servers
) -> None:
    """A reader names where its events go; that is never in the services' account."""
    owner = await identity.as_user()
    org = await identity.org(owner, "School")
    made = await create(identity, owner, org.id)
    operator = await servers.operator()
    seen = await operator.subscribe("_INBOX_identity.victim")
    injected = await operator.subscribe(f"evergreen.v1.{org.id}.policy.published")
    client = await integrators.connect(made.id, made.secret)
    await read(client, made.id, 1)
    request = f"$JS.{DOMAIN}.API.CONSUMER.MSG.NEXT.{EVENTS.name}.{made.id}"
    for name in ("2", "3", "4"):
        await rename(identity, owner, org.id, name)
    for reply in (
        "_INBOX_identity.victim",
        f"evergreen.v1.{org.id}.policy.published",
        f"$JS.API.STREAM.DELETE.{TELEMETRY.name}",
    ):
        await client.publish(request, b"1", reply=reply)
    await client.flush()
    # The last one has been delivered, to whomever: the next read gets what comes after it.
    await read(client, made.id, 1)
    assert seen.pending_msgs == 0
    assert injected.pending_msgs == 0
    await operator.jetstream().stream_info(TELEMETRY.name)
    await operator.close()


async def test_revocation_cuts_off(identity: Identity, integrators: Integrators) -> None:
    """The open connection ends, and no new one is opened; the consumers are gone."""
    owner = await identity.as_user()
    org = await identity.org(owner, "School")
    made = await create(identity, owner, org.id)
    stays = await create(identity, owner, org.id)
    client = await integrators.connect(made.id, made.secret)
    other = await integrators.connect(stays.id, stays.secret)
    await read(client, made.id, 1)
    revoked = await identity.credentials.RevokeEventCredential(
        pb.RevokeEventCredentialRequest(id=made.id), metadata=owner
    )
    assert revoked.HasField("revoked_at")
    assert not revoked.HasField("secret")
    assert await integrators.refused(made.id, made.secret)
    async with asyncio.timeout(PATIENCE):
        while client.is_connected:
            await asyncio.sleep(0.05)
    assert other.is_connected
    again = await identity.credentials.RevokeEventCredential(
        pb.RevokeEventCredentialRequest(id=made.id), metadata=owner
    )
    assert again.revoked_at == revoked.revoked_at
    names = [e["data"]["action"] for e in await identity.events()]
    assert names.count("identity.event_credential_revoked") == 1


async def test_wrong_credentials_are_refused(identity: Identity, integrators: Integrators) -> None:
    """An unknown user, a wrong secret, another one's, an expired one."""
    owner = await identity.as_user()
    one, two = await create(identity, owner), await create(identity, owner)
    until = Timestamp()
    until.FromDatetime(now() + timedelta(days=1))
    expired = await create(identity, owner, expires_at=until)
    connection = await identity.database.superuser()
    await connection.execute(
        "UPDATE identity.event_credential SET expires_at = now() - interval '1 second'"
        " WHERE id = $1",
        expired.id,
    )
    await connection.close()
    for user, secret in (
        (one.id, two.secret),
        (one.id, ""),
        (one.id.upper(), one.secret),
        ("", one.secret),
        ("nobody", one.secret),
        ("00000000-0000-7000-8000-000000000000", one.secret),
        (expired.id, expired.secret),
        ("identity", one.secret),
        ("gatekeeper", one.secret),
    ):
        assert await integrators.refused(user, secret), user
    await integrators.connect(one.id, one.secret)
    listed = await identity.credentials.ListEventCredentials(
        pb.ListEventCredentialsRequest(), metadata=owner
    )
    found = {c.id: c for c in listed.credentials}
    assert found[one.id].HasField("last_used_at")
    assert not found[two.id].HasField("last_used_at")
    assert not any(c.HasField("secret") for c in listed.credentials)


async def test_credentials_belong_to_their_tenant(identity: Identity) -> None:
    """Another organisation's Owner neither sees nor revokes them, nor makes one for it."""
    owner = await identity.as_user()
    mine, theirs = await identity.org(owner, "Mine"), await identity.org(owner, "Theirs")
    _, admin = await identity.user(owner, Role.ADMIN, mine.id)
    _, stranger = await identity.user(owner, Role.OWNER, theirs.id)
    made = await create(identity, admin)
    assert made.tenant_id == mine.id
    listed = await identity.credentials.ListEventCredentials(
        pb.ListEventCredentialsRequest(), metadata=stranger
    )
    assert list(listed.credentials) == []
    for call in (
        identity.credentials.RevokeEventCredential(
            pb.RevokeEventCredentialRequest(id=made.id), metadata=stranger
        ),
        create(identity, stranger, mine.id),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        assert refused(error)["status"] == "NOT_FOUND"


async def test_there_are_limits(identity: Identity) -> None:
    """So many credentials a tenant, and none that has expired already."""
    owner = await identity.as_user()
    org = await identity.org(owner, "School")
    past = Timestamp(seconds=1)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await create(identity, owner, org.id, expires_at=past)
    assert refused(error)["status"] == "INVALID_ARGUMENT"
    made = [await create(identity, owner, org.id) for _ in range(MOST)]
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await create(identity, owner, org.id)
    assert refused(error)["status"] == "FAILED_PRECONDITION"
    await identity.credentials.RevokeEventCredential(
        pb.RevokeEventCredentialRequest(id=made[0].id), metadata=owner
    )
    await create(identity, owner, org.id)
