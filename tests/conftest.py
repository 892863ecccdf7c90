"""Fixtures: real servers, a fresh database for every test, and the whole product."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
import typer.testing
from hypothesis import HealthCheck, settings

from evergreen.v1 import identity_pb2_grpc
from servicekit.app import Kit, Parts, Running, start
from servicekit.data.postgres import Database
from servicekit.ids import now
from servicekit.messaging.jetstream import Messaging
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory, TenantNode
from servicekit.rpc.channels import open_channel
from servicekit.settings import ServiceSettings
from tests.support import servers as test_servers
from tests.support import stack as test_stack
from tests.support.paths import LONG, in_memory
from tests.support.servers import Servers, TestDatabase
from tests.support.stack import Stack

collect_ignore = [
    *([] if os.environ.get("EVERGREEN_TEST_SERVERS") else ["external"]),
    *([] if LONG else ["bench/test_base.py"]),
]
"""`make test-servers` has what needs programs of others, `make test-long` what takes minutes."""

# How fast a machine is says nothing about what is tested.
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile(
    "short", max_examples=60, derandomize=True, deadline=None, suppress_health_check=SLOW
)
settings.register_profile("long", max_examples=1_000, deadline=None, suppress_health_check=SLOW)
settings.load_profile("long" if LONG else "short")

_NEW_OBJECTS = 20_000
"""More of them than have gone again, and the collector looks at them, as in the services."""

# A tree of commands stays the same; to make it takes a third of a second.
typer.testing._get_command = functools.cache(typer.testing._get_command)


def pytest_configure() -> None:
    """Puts the tests' files into memory, where a machine has room for them.

    PostgreSQL makes a thousand files for each database: on a disk they cost more than most tests.
    """
    if memory := in_memory():
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spares the garbage collector what stays: all that the tests load, and the tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out files in which `make test`, or `make test-servers`, would find nothing to run.

    To read all of them takes each worker half a minute.
    """
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    only = config.getoption("markexpr")
    if only == "not servers":
        return "\npytestmark = pytest.mark.servers\n" in collection_path.read_text() or None
    # The folder's conftest marks all of them.
    outside = collection_path.parent.name != "external"
    if only == "servers" and outside:
        return "mark.servers" not in collection_path.read_text() or None
    return None


LONGEST = (
    "docs/test_make_run.py",
    "e2e/test_schemathesis.py",
    "cli/cluster/test_restore.py",
    "e2e/test_backup.py",
    "release/test_release.py",
    "services/identity/tenants/test_tenancy.py",
    "cli/backup/test_killed.py",
    "external/test_moving.py",
    "external/test_postgres_upgrade.py",
    "external/test_forwarders.py",
    "upgrade/test_rolling.py",
    "upgrade/test_previous_release.py",
    "services/telemetry/reports/test_events.py",
    "e2e/test_lifecycle.py",
    "e2e/test_audit_cli.py",
    "e2e/test_second_factor.py",
    "e2e/test_people.py",
    "e2e/test_mail.py",
    "services/test_tenant_life.py",
    "e2e/test_faults.py",
    "upgrade/test_homes.py",
    "cli/backup/test_run.py",
    "e2e/test_enrollment_faults.py",
    "e2e/test_admin_day.py",
    "e2e/test_orgs_cli.py",
    "e2e/test_keys.py",
    "e2e/test_integrators.py",
    "e2e/test_planted_secrets.py",
    "e2e/test_forwarders_cli.py",
    "e2e/test_scim.py",
    "e2e/test_api_tokens.py",
    "services/telemetry/inventory/test_queries.py",
    "services/identity/authenticators/test_guesses.py",
    "services/policy/rollouts/test_rollouts.py",
    "services/policy/delivery/test_delivery.py",
)
"""The files that take longest, the longest first."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the longest files: one that begins last leaves the other processors idle."""
    tests = Path(__file__).parent
    turn = {tests / name: number for number, name in enumerate(LONGEST)}
    assert all(path.is_file() for path in turn), "a name in LONGEST is out of date"
    items.sort(key=lambda item: turn.get(item.path, len(turn)))


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
    home = tmp_path_factory.mktemp("stack") / "home"
    with test_stack.running(
        home,
        # A test waits for a new key to sign.
        EVERGREEN_KEY_LEAD_SECONDS="10",
        # Another one has a directory on this machine.
        EVERGREEN_LDAP_ALLOW=f"127.0.0.1/32:{test_stack.LDAP_PORT}",
    ) as found:
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
