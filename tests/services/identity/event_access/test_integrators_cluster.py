"""Integrators at three NATS servers, as the chart's production profile runs them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client

from contract.subjects import DOMAIN, EVENTS
from evergreen.v1 import identity_pb2 as pb
from services.identity.event_access.gatekeeper import MOST_CONNECTIONS
from tests.conftest import MakeKit, ServeService
from tests.support import nats_cluster
from tests.support.callers import Metadata
from tests.support.identity import Identity, running
from tests.support.integrators import (
    Integrators,
    check_that_nothing_else_is_permitted,
    create,
    nothing_more,
    read,
    rename,
)
from tests.support.nats_cluster import NatsCluster, Server, until
from tests.support.servers import TestDatabase


@pytest_asyncio.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsCluster]:
    async with nats_cluster.running(tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest_asyncio.fixture
async def identity(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
    tmp_path: Path,
    cluster: NatsCluster,
) -> AsyncIterator[Identity]:
    own = {"nats_password_file": cluster.secrets / "identity", **cluster.settings}
    async with running(make_kit, serve, database, tmp_path, **own) as found:
        yield found


@pytest_asyncio.fixture
async def integrators(cluster: NatsCluster) -> AsyncIterator[Integrators]:
    found = Integrators(cluster.urls, cluster.tls())
    yield found
    await found.close()


_AWAY = (TimeoutError, OSError, nats.errors.Error, nats.js.errors.Error)
"""What a program meets while servers are away, or nothing is new."""


class Program:
    """An integrator's program: it reads on, whatever happens to the servers."""

    def __init__(self, integrators: Integrators, made: pb.EventCredential) -> None:
        self._integrators = integrators
        self._made = made
        self.seen: dict[str, dict[str, Any]] = {}
        """Events by their ids, in the order in which they came first."""

    def names(self) -> set[str]:
        """What the tenant was called."""
        return {event["data"]["after"].get("name", "") for event in list(self.seen.values())}

    async def run(self) -> None:
        while True:
            client = None
            with contextlib.suppress(*_AWAY):
                client = await self._integrators.connect(
                    self._made.id, self._made.secret, allow_reconnect=True, connect_timeout=5
                )
                await self._read(client)
            if client is not None:
                await client.close()
            await asyncio.sleep(0.2)

    async def _read(self, client: Client) -> None:
        reader = await client.jetstream(domain=DOMAIN).pull_subscribe_bind(
            self._made.id, EVENTS.name
        )
        while client.is_connected:
            for message in await reader.fetch(100, timeout=1):
                event = json.loads(message.data)
                self.seen.setdefault(event["id"], event)
                await message.ack()


async def test_a_credential_opens_every_server(
    identity: Identity, integrators: Integrators, cluster: NatsCluster
) -> None:
    """Its tenant's events and nothing else, whichever server it asks."""
    owner = await identity.as_user()
    org, beside = await identity.org(owner, "School"), await identity.org(owner, "Beside")
    made, other = await create(identity, owner, org.id), await create(identity, owner, beside.id)
    for number, url in enumerate(cluster.urls):
        client = await integrators.connect(made.id, made.secret, servers=[url])
        assert client.discovered_servers == []
        await rename(identity, owner, beside.id, f"Beside {number}")
        await rename(identity, owner, org.id, f"School {number}")
        messages = await read(client, made.id, 1 if number else 3)
        assert {message.subject.split(".")[2] for message in messages} == {org.id}
        assert await nothing_more(client, made.id)
        await check_that_nothing_else_is_permitted(integrators, client, made.id, other.id, org.id)


LONG = pytest.mark.skipif(
    not os.environ.get("EVERGREEN_TEST_COMPOSE"), reason="takes a minute: make test-compose"
)


@pytest.mark.parametrize(
    ("fail", "count"),
    [
        (Server.kill, 1),
        pytest.param(Server.kill, 3, marks=LONG),
        pytest.param(Server.hang, 1, marks=LONG),
    ],
)
async def test_nothing_is_missed_while_servers_fail(
    identity: Identity,
    integrators: Integrators,
    cluster: NatsCluster,
    fail: Callable[[Server], None],
    count: int,
) -> None:
    """One after the other ends by `kill -9`, or hangs; the one that leads the stream first."""
    owner = await identity.as_user()
    org = await identity.org(owner, "School")
    made = await create(identity, owner, org.id)
    program = Program(integrators, made)
    reading = asyncio.create_task(program.run())
    numbers = iter(range(1, 10_000))
    written = 0

    async def write() -> None:
        nonlocal written
        for written in numbers:
            await rename(identity, owner, org.id, f"School {written}")
            await asyncio.sleep(0.05)

    async def goes_on() -> None:
        """Waits until something is read that is written from now on."""
        later = written + 2
        await until(lambda: f"School {later}" in program.names(), "nothing comes")

    async def all_seen() -> bool:
        told = {e["id"] for e in await identity.events() if e["tenantid"] == org.id}
        return told <= program.seen.keys()

    writing = asyncio.create_task(write())
    await until(lambda: len(program.seen) > 10, "nothing is read")
    leader = cluster.leader(EVENTS.name)
    assert leader is not None
    for server in sorted(cluster.servers, key=lambda server: server is not leader)[:count]:
        fail(server)
        await goes_on()
        server.kill()
        server.start()
        await cluster.until_streams_whole()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await until(all_seen, "events are missing")
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def test_connections_are_counted_on_all_servers_together(
    identity: Identity, integrators: Integrators, cluster: NatsCluster
) -> None:
    """A credential has no more of them on three servers than on one."""
    owner = await identity.as_user()
    made = await create(identity, owner)
    for url in cluster.urls * 3:
        await integrators.connect(made.id, made.secret, servers=[url])
    assert len(integrators.clients) == MOST_CONNECTIONS + 1
    await until(
        lambda: not all(client.is_connected for client in integrators.clients), "none is cut"
    )


async def revoke(identity: Identity, by: Metadata, credential_id: str) -> None:
    await identity.credentials.RevokeEventCredential(
        pb.RevokeEventCredentialRequest(id=credential_id), metadata=by
    )


async def test_revocation_reaches_every_server(
    identity: Identity, integrators: Integrators, cluster: NatsCluster
) -> None:
    """Open connections end on all three, and none of them opens a new one; others' stay."""
    owner = await identity.as_user()
    made, stays = await create(identity, owner), await create(identity, owner)
    cut = [await integrators.connect(made.id, made.secret, servers=[u]) for u in cluster.urls]
    kept = [await integrators.connect(stays.id, stays.secret, servers=[u]) for u in cluster.urls]
    await revoke(identity, owner, made.id)
    await until(lambda: not any(client.is_connected for client in cut), "a connection lives on")
    for url in cluster.urls:
        assert await integrators.refused(made.id, made.secret, servers=[url])
    assert all(client.is_connected for client in kept)


async def test_a_stream_that_was_thrown_away_is_read_again(
    identity: Identity, integrators: Integrators, cluster: NatsCluster, tmp_path: Path
) -> None:
    """By the operator's command, with the operator's files; all comes again with its ids."""
    owner = await identity.as_user()
    org = await identity.org(owner, "School")
    made = await create(identity, owner, org.id)
    client = await integrators.connect(made.id, made.secret)
    first = await read(client, made.id, 2)
    await asyncio.to_thread(cluster.rebuild, EVENTS.name, tmp_path)
    again = await read(client, made.id, 2)
    assert [json.loads(m.data)["id"] for m in again] == [json.loads(m.data)["id"] for m in first]
    await cluster.until_streams_whole()


async def test_revocation_waits_for_no_stream(
    identity: Identity, integrators: Integrators, cluster: NatsCluster
) -> None:
    """It cuts off on one server while the two others, and so the streams, are down.

    The last test here, for it leaves them down.
    """
    owner = await identity.as_user()
    made = await create(identity, owner)
    stays, *others = cluster.servers
    client = await integrators.connect(made.id, made.secret, servers=[stays.url])
    for server in others:
        server.kill()
    await revoke(identity, owner, made.id)
    await until(lambda: not client.is_connected, "the connection lives on")
    assert await integrators.refused(made.id, made.secret, servers=[stays.url])
