"""PostgreSQL: one pool per service, and transactions that are bound to tenants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final, Protocol, TypeAlias
from uuid import UUID

import asyncpg

from servicekit import logs
from servicekit.errors import DomainError, unavailable
from servicekit.logs import brief
from servicekit.settings import ServiceSettings, read_secret
from servicekit.tracing import step

log = logs.get(__name__)

ACQUIRE_SECONDS: Final = 5.0
STATEMENT_SECONDS: Final = 15.0

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
"""A connection inside a transaction."""


@dataclass(frozen=True)
class Scope:
    """The tenants whose rows a transaction sees; `None` for all of them."""

    tenant_ids: tuple[UUID, ...] | None

    @cached_property
    def setting(self) -> str:
        """The value of the database setting `evergreen.scope`."""
        return "*" if self.tenant_ids is None else ",".join(map(str, self.tenant_ids))


SYSTEM: Final = Scope(None)
"""All rows: for work that no user asked for, and for devices, which name their rows by id."""


_AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    # What asyncpg raises when the server dies in the middle of a statement.
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.QueryCanceledError,
    asyncpg.DiskFullError,
    asyncpg.OutOfMemoryError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InsufficientResourcesError,
)
_RETRY: Final = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    # A migration changed a table that the connection had prepared statements for; asyncpg
    # prepares them anew.
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
)


def _partition_was_made(error: BaseException) -> bool:
    """Whether a row was on its way to the default partition when one for its like was made.

    Only a partition's own rule has no name.
    """
    return isinstance(error, asyncpg.CheckViolationError) and not error.constraint_name


def as_domain_error(error: BaseException) -> DomainError | None:
    """What callers are told of a database error; `None` when it is a defect of ours."""
    if isinstance(error, _RETRY) or _partition_was_made(error):
        return unavailable("too many changes at once; nothing was changed, try again")
    if isinstance(error, _AWAY):
        # Not "nothing was changed": a connection can die while its commit is answered.
        return unavailable("the database is not available; try again")
    return None


class Runs(Protocol):
    """What runs a statement: a connection inside a transaction, or a `Lane`."""

    async def fetch(self, query: str, *args: Any) -> list[asyncpg.Record]:
        """Runs a statement and answers its rows."""


class Lane:
    """A connection of its own for one writer: each statement is a transaction that sees all rows.

    Begin, scope, statement and commit are one round trip, not four, and there is no pool to ask:
    that is most of what a small batch costs. For the system's own writes which are one statement.
    """

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection[asyncpg.Record]]]):
        self._connect = connect
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._alone = asyncio.Lock()

    async def fetch(self, query: str, *args: Any) -> list[asyncpg.Record]:
        """Runs and commits a statement; answers its rows.

        Raises:
            DomainError: as `Database.transaction`.
        """
        with _told():
            async with self._alone:
                if self._connection is None or self._connection.is_closed():
                    self._connection = await self._connect()
                rows: list[asyncpg.Record] = await self._connection.fetch(query, *args)
                return rows

    async def close(self) -> None:
        """Closes the connection when its statement has ended."""
        if self._connection is not None:
            try:
                await self._connection.close(timeout=5)
            except TimeoutError:
                self._connection.terminate()


@contextmanager
def _told() -> Iterator[None]:
    """Turns what is wrong with the database into what callers are told."""
    try:
        yield
    except DomainError:
        raise
    except Exception as error:
        told = as_domain_error(error)
        if told is None:
            raise
        log.warning("database error", error=brief(error))
        raise told from error


class Database:
    """The pool of a service's connections.

    Connections are opened when they are needed, so that a service starts, and comes back by
    itself, whatever the database does meanwhile.
    """

    def __init__(
        self,
        pool: asyncpg.Pool[asyncpg.Record],
        connect: Callable[[], Awaitable[asyncpg.Connection[asyncpg.Record]]],
    ) -> None:
        self._pool = pool
        self._connect = connect
        self._lanes: list[Lane] = []

    @classmethod
    async def open(cls, settings: ServiceSettings) -> Database:
        """Makes the pool without connecting yet."""
        where: dict[str, Any] = {
            "dsn": settings.database_url,
            "password": read_secret(settings.database_password_file) or None,
            "timeout": ACQUIRE_SECONDS,
            "command_timeout": STATEMENT_SECONDS,
        }
        session = {"application_name": "evergreen", "timezone": "UTC"}
        pool = asyncpg.create_pool(
            **where,
            min_size=0,
            max_size=settings.database_pool_size,
            max_inactive_connection_lifetime=300,
            reset=_nothing_to_reset,
            server_settings=session,
        )
        await pool
        # Only these connections see all rows without being asked each time.
        session_of_lanes = session | {"evergreen.scope": SYSTEM.setting}
        return cls(pool, partial(asyncpg.connect, **where, server_settings=session_of_lanes))

    async def close(self) -> None:
        """Closes the connections when their transactions have ended."""
        for lane in self._lanes:
            await lane.close()
        try:
            await asyncio.wait_for(self._pool.close(), 5)
        except TimeoutError:
            self._pool.terminate()

    def lane(self) -> Lane:
        """A connection for one writer; it is made with the first statement."""
        lane = Lane(self._connect)
        self._lanes.append(lane)
        return lane

    @asynccontextmanager
    async def transaction(self, scope: Scope = SYSTEM) -> AsyncIterator[Connection]:
        """A transaction that sees the rows of `scope`; committed when the block ends.

        Raises:
            DomainError: UNAVAILABLE when the database is away or the change met another one.
        """
        with _told(), step("database transaction"):
            async with (
                self._pool.acquire(timeout=ACQUIRE_SECONDS) as connection,
                connection.transaction(),
            ):
                await connection.execute(
                    "SELECT set_config('evergreen.scope', $1, true)", scope.setting
                )
                yield connection

    @property
    def connections(self) -> tuple[int, int]:
        """How many connections are open, and how many of them nobody uses."""
        return self._pool.get_size(), self._pool.get_idle_size()

    async def ping(self) -> None:
        """Raises when the database does not answer."""
        async with self._pool.acquire(timeout=2) as connection:
            await connection.fetchval("SELECT 1", timeout=2)

    async def schema_version(self, schema: str) -> int:
        """The number of the newest migration that was applied to a schema."""
        async with self._pool.acquire(timeout=ACQUIRE_SECONDS) as connection:
            version: int = await connection.fetchval(
                "SELECT coalesce(max(version), 0) FROM evergreen.schema_migrations"
                " WHERE schema_name = $1",
                schema,
            )
            return version

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[Connection]:
        """A connection outside transactions, for LISTEN; it must come back without listeners."""
        async with self._pool.acquire(timeout=ACQUIRE_SECONDS) as connection:
            yield connection


async def _nothing_to_reset(connection: Connection) -> None:
    """Spares every transaction a statement: all that ours set, ends with them.

    asyncpg itself rolls back what a connection that comes back has open.
    """


def columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Turns rows into one list per column, as `unnest` takes them."""
    return [list(column) for column in zip(*rows, strict=True)]
