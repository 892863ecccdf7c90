"""PostgreSQL: one pool per service, and transactions that are bound to tenants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final, LiteralString, Protocol, TypeAlias
from uuid import UUID

import asyncpg

from servicekit.data import pooler
from servicekit.errors import DomainError, unavailable
from servicekit.observability import logs
from servicekit.observability.logs import brief
from servicekit.observability.tracing import step
from servicekit.settings import ServiceSettings, read_secret
from servicekit.times import read_all_times

log = logs.get(__name__)

ACQUIRE_SECONDS: Final = 5.0
STATEMENT_SECONDS: Final = 15.0
IDLE_SECONDS: Final = 60.0
"""A connection that nobody used for so long is closed: each is a process of 2 to 4 MB. Those that a
service at rest needs are used several times a minute."""

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
"""A connection inside a transaction."""


@dataclass(frozen=True)
class Scope:
    """The tenants whose rows a transaction sees; `None` for all of them."""

    tenant_ids: tuple[UUID, ...] | None

    @classmethod
    def of(cls, tenant_id: UUID) -> Scope:
        """One tenant, without those below it."""
        return cls((tenant_id,))

    @cached_property
    def setting(self) -> str:
        """The value of the database setting `evergreen.scope`."""
        return "*" if self.tenant_ids is None else ",".join(map(str, self.tenant_ids))


_SCOPE_OF_SESSION: Final = "SET evergreen.scope = '{}'"
_MOST_SERVERS: Final = 1000
SYSTEM: Final = Scope(None)
"""All rows: a root user's scope, and that of `Database.system_transaction`."""


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
        connect: Callable[..., Awaitable[asyncpg.Connection[asyncpg.Record]]],
    ) -> None:
        self._pool = pool
        self._connect = connect
        self._lanes: list[Lane] = []
        self._servers: dict[int, int] = {}
        """Behind a pooler: its number for a connection → PostgreSQL's process for it."""

    @classmethod
    async def open(cls, settings: ServiceSettings) -> Database:
        """Makes the pool without connecting yet."""
        where: dict[str, Any] = {
            "dsn": settings.database_url,
            "password": read_secret(settings.database_password_file) or None,
            "timeout": ACQUIRE_SECONDS,
            "command_timeout": STATEMENT_SECONDS,
        }
        # No others: poolers pass on the standard ones only.
        where["server_settings"] = {"application_name": "evergreen", "timezone": "UTC"}
        pool = asyncpg.create_pool(
            **where,
            min_size=0,
            max_size=settings.database_pool_size,
            max_inactive_connection_lifetime=IDLE_SECONDS,
            init=_see_nothing,
            reset=_nothing_to_reset,
        )
        await pool
        return cls(pool, partial(asyncpg.connect, **where))

    async def close(self) -> None:
        """Closes the connections when their transactions have ended."""
        for lane in self._lanes:
            await lane.close()
        try:
            await asyncio.wait_for(self._pool.close(), 5)
        except TimeoutError:
            self._pool.terminate()

    def system_lane(self, why: LiteralString) -> Lane:
        """A connection for one writer that sees all rows; it is made with the first statement.

        Args:
            why: as for `system_transaction`.
        """
        lane = Lane(self._connected_lane)
        self._lanes.append(lane)
        return lane

    async def _connected_lane(self) -> asyncpg.Connection[asyncpg.Record]:
        connection = await self._connect()
        await read_all_times(connection)
        # Only these connections see all rows without being asked each time. By a statement, once a
        # connection: as a startup parameter, a pooler would refuse or drop it.
        await connection.execute(_SCOPE_OF_SESSION.format(SYSTEM.setting))
        return connection

    async def require_sessions(self) -> None:
        """Makes sure that no pooler mixes up what belongs to one connection.

        Raises:
            PoolerError: one does.
        """
        await pooler.require_sessions(partial(self._connect, statement_cache_size=0))

    def transaction(self, scope: Scope) -> AbstractAsyncContextManager[Connection]:
        """A transaction that sees the rows of `scope`; committed when the block ends.

        Raises:
            DomainError: UNAVAILABLE when the database is away or the change met another one.
        """
        return self._begin(scope)

    def system_transaction(self, why: LiteralString) -> AbstractAsyncContextManager[Connection]:
        """A transaction that sees the rows of all tenants; committed when the block ends.

        Args:
            why: the reason why one scope is not enough, a literal for the reader of the call.

        Raises:
            DomainError: as `transaction`.
        """
        return self._begin(SYSTEM)

    @asynccontextmanager
    async def _begin(self, scope: Scope) -> AsyncIterator[Connection]:
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
        """Raises when the database does not answer, or a pooler has begun to mix up sessions."""
        async with self._pool.acquire(timeout=2) as connection:
            server = await connection.fetchval("SELECT pg_backend_pid()", timeout=2)
            number = connection.get_server_pid()
        if server == number:
            return
        if len(self._servers) > _MOST_SERVERS:
            self._servers.clear()
        if self._servers.setdefault(number, server) != server:
            raise pooler.PoolerError("transaction")

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


async def _see_nothing(connection: Connection) -> None:
    """Prepares a connection of the pool.

    PostgreSQL's side of it may have been a lane's before, behind a pooler that resets nothing.
    """
    await read_all_times(connection)
    await connection.execute(_SCOPE_OF_SESSION.format(""))


async def _nothing_to_reset(connection: Connection) -> None:
    """Spares every transaction a statement: all that ours set, ends with them.

    asyncpg itself rolls back what a connection that comes back has open.
    """


@asynccontextmanager
async def seeing_all(connection: Connection, why: LiteralString) -> AsyncIterator[None]:
    """Lets a transaction see the rows of all tenants for a few statements.

    Args:
        why: as for `Database.system_transaction`.
    """
    scope = await connection.fetchval("SELECT current_setting('evergreen.scope')")
    await connection.execute("SELECT set_config('evergreen.scope', $1, true)", SYSTEM.setting)
    yield
    # Where a statement failed, the transaction is over.
    await connection.execute("SELECT set_config('evergreen.scope', $1, true)", scope)


def columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Turns rows into one list per column, as `unnest` takes them."""
    return [list(column) for column in zip(*rows, strict=True)]
