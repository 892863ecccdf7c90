"""Fixtures: real servers, a fresh database for every test, and the whole product."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from evergreen.v1 import identity_pb2_grpc
from servicekit.app import Kit, Parts, Running, start
from servicekit.channels import open_channel
from servicekit.ids import now
from servicekit.messaging import Messaging
from servicekit.outbox import Outbox
from servicekit.postgres import Database
from servicekit.settings import ServiceSettings
from servicekit.tenants import TenantDirectory, TenantNode
from tests import servers as test_servers
from tests import stack as test_stack
from tests.servers import Servers, TestDatabase
from tests.stack import Stack


@pytest_asyncio.fixture(scope="session")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Servers]:
    """PostgreSQL and NATS, started once."""
    async with test_servers.running(tmp_path_factory.mktemp("servers")) as found:
        yield found


@pytest_asyncio.fixture
async def database(servers: Servers) -> AsyncIterator[TestDatabase]:
    """A database of the test's own, with all migrations."""
    async with servers.database() as found:
        yield found


MakeKit = Callable[..., Awaitable[Kit]]


@pytest_asyncio.fixture
async def make_kit(servers: Servers, database: TestDatabase) -> AsyncIterator[MakeKit]:
    """Makes what a service is built from, on the test's database: `await make_kit("policy")`.

    `tenants` is the tree as identity would have told it; without it, identity is asked.
    """
    async with AsyncExitStack() as cleanup:

        async def make(
            context: str,
            kind: type[ServiceSettings] = ServiceSettings,
            tenants: list[TenantNode] | None = None,
            **settings: object,
        ) -> Kit:
            configured = servers.settings(kind, context, database, **settings)
            pool = await Database.open(configured)
            cleanup.push_async_callback(pool.close)
            messaging = Messaging(configured)
            cleanup.push_async_callback(messaging.close)
            identity = open_channel(configured.target("identity"), context)
            cleanup.push_async_callback(identity.close)
            directory = TenantDirectory(
                identity_pb2_grpc.IdentityInternalServiceStub(identity), now
            )
            if tenants is not None:
                directory.learn(tenants)
                directory.follower.synced = True
            return Kit(context, configured, pool, messaging, Outbox(pool, context), directory)

        yield make


ServeService = Callable[[Kit, Callable[[Kit], Awaitable[Parts]]], Awaitable[Running]]


@pytest_asyncio.fixture
async def serve() -> AsyncIterator[ServeService]:
    """Starts a service in this process, as its own process would: `await serve(kit, build)`."""
    async with AsyncExitStack() as cleanup:

        async def start_service(kit: Kit, build: Any) -> Running:
            running = await start(kit, build)
            cleanup.push_async_callback(running.stop, 0)
            return running

        yield start_service


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole product, started once; tests make tenants of their own in it.

    Or one that runs already, in whatever way: `EVERGREEN_TEST_BOOTSTRAP` is its `bootstrap.json`.
    """
    if running := os.environ.get("EVERGREEN_TEST_BOOTSTRAP"):
        yield test_stack.attached(Path(running))
        return
    with test_stack.running(tmp_path_factory.mktemp("stack") / "home") as found:
        yield found


def tenant(
    number: int, parent: TenantNode | None = None, kind: str = "org", code: str = ""
) -> TenantNode:
    """A tenant for `make_kit`, with an id that is easy to read."""
    return TenantNode(
        UUID(int=number),
        parent.id if parent else None,
        kind,
        f"Tenant {number}",
        code or f"t{number}",
    )
