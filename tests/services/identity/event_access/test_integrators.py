"""Integrators at NATS: what a credential opens, what it does not, and when it stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
from collections.abc import AsyncIterator
from datetime import timedelta

import grpc
import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import REGISTRY

from contract.access import Role
from contract.subjects import DOMAIN, EVENTS, TELEMETRY
from evergreen.v1 import identity_pb2 as pb
from servicekit.ids import now
from services.identity.event_access import gatekeeper
from services.identity.event_access.gatekeeper import MOST_STRANGERS, strangers
from services.identity.event_access.service import MOST
from tests.support.identity import Identity, identity, refused
from tests.support.integrators import (
    Integrators,
    actions,
    check_that_nothing_else_is_permitted,
    create,
    nothing_more,
    read,
    rename,
)
from tests.support.servers import Servers
from tests.support.stack import PATIENCE

__all__ = ["identity"]


@pytest_asyncio.fixture
async def integrators(servers: Servers) -> AsyncIterator[Integrators]:
    found = Integrators([servers.nats_url])
    yield found
    await found.close()


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


async def test_nothing_else_is_permitted(identity: Identity, integrators: Integrators) -> None:
    """Neither publishing nor subscribing, nor other readers' consumers."""
    owner = await identity.as_user()
    org = await identity.org(owner, "School")
    made = await create(identity, owner, org.id)
    other = await create(identity, owner, (await identity.org(owner, "Other")).id)
    client = await integrators.connect(made.id, made.secret)
    await read(client, made.id, 2)
    await check_that_nothing_else_is_permitted(integrators, client, made.id, other.id, org.id)


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


async def test_the_first_integrator_is_looked_after_at_once(
    identity: Identity, integrators: Integrators, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there was none, nobody looks for long; one that another process revokes is cut."""
    monkeypatch.setattr(gatekeeper, "_CALM_PASSES", 0)
    monkeypatch.setattr(gatekeeper, "_CALM_SECONDS", 3600.0)
    owner = await identity.as_user()
    # By now it looks once an hour.
    await asyncio.sleep(1.5)
    made = await create(identity, owner)
    client = await integrators.connect(made.id, made.secret)
    await read(client, made.id, 1)
    connection = await identity.database.superuser()
    await connection.execute(
        "UPDATE identity.event_credential SET revoked_at = now() WHERE id = $1", made.id
    )
    await connection.close()
    async with asyncio.timeout(PATIENCE):
        while client.is_connected:
            await asyncio.sleep(0.05)


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


async def test_sockets_that_nobody_logs_in_on_keep_no_integrator_out(
    identity: Identity, integrators: Integrators
) -> None:
    """4,300 of one address: programs at others go on and get in, and most of them are cut."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    owner = await identity.as_user()
    org = await identity.org(owner, "Flooded")
    credential = await create(identity, owner, org.id)
    before = await integrators.connect(credential.id, credential.secret)
    assert before.connected_url is not None
    port = int(str(before.connected_url.port))
    cut = _cut()
    async with contextlib.AsyncExitStack() as sockets:
        for _ in range(4300):
            sock = socket.socket()
            sockets.callback(sock.close)
            sock.setblocking(False)
            sock.bind(("127.0.0.2", 0))
            with contextlib.suppress(BlockingIOError):
                sock.connect(("127.0.0.1", port))
        client = await integrators.connect(credential.id, credential.secret)
        assert client.is_connected
        async with asyncio.timeout(PATIENCE):
            while _cut() - cut < 1000:
                await asyncio.sleep(0.1)
        assert before.is_connected
        assert client.is_connected
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _cut() -> float:
    name, labels = "evergreen_event_connections_cut_total", {"why": "not logged in"}
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_of_the_connections_without_a_login_the_latest_stay() -> None:
    """64 of each address; who is logged in is not counted."""
    began = now()

    def connection(number: int, address: str, account: str) -> dict[str, object]:
        start = began + timedelta(seconds=number)
        return {"cid": number, "start": start, "address": address, "account": account}

    found = [connection(n, "192.0.2.1", "") for n in range(MOST_STRANGERS + 3)]
    found += [connection(n, "192.0.2.2", "n/a") for n in range(MOST_STRANGERS)]
    found += [connection(n, "192.0.2.1", "INTEGRATORS") for n in range(100, 300)]
    cut = [c for c, _ in strangers(found)]
    assert sorted(c["cid"] for c in cut) == [0, 1, 2]
    assert {c["address"] for c in cut} == {"192.0.2.1"}
