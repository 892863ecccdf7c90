"""Poolers between a program and PostgreSQL, such as PgBouncer: which of their modes will do.

Prepared statements, the scope of a lane, LISTEN and the lock of the migrations belong to a session.
A pooler that keeps a server for each session (`pool_mode = session`) passes them on. In its other
modes it mixes sessions up without an error; hence this check before anything relies on them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Final, TypeAlias

import asyncpg

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Connect: TypeAlias = Callable[[], Awaitable[Connection]]
"""Opens a connection of its own without a cache of statements (`statement_cache_size=0`)."""

_SERVER: Final = "SELECT pg_backend_pid()"
_OTHERS: Final = 2
_ROUNDS: Final = 3
_SECONDS: Final = 5.0


class PoolerError(Exception):
    """A pooler does not keep a server for each session; the message says what to do."""

    def __init__(self, mode: str) -> None:
        super().__init__(
            f"the pooler in front of PostgreSQL pools {mode}s, and Evergreen needs sessions:"
            " set pool_mode = session for this database, or connect to PostgreSQL itself"
        )


async def require_sessions(connect: Connect) -> None:
    """Makes sure that a connection keeps its server; leaves no trace in the database.

    A pooler gives a connection a process id of its own, other than PostgreSQL's; without one,
    nothing else is checked. Behind one, a connection must keep its server between transactions
    while others begin some: in a mode other than `session`, one of the others gets that server, or
    the connection itself comes to another one.

    Raises:
        PoolerError: it does not.
        TimeoutError: the pooler has no connection left for us.
    """
    async with AsyncExitStack() as opened:

        async def another() -> Connection:
            connection = await connect()
            # Not a polite close: that would wait for a server, too.
            opened.callback(connection.terminate)
            return connection

        first = await another()
        server = await _begin(first)
        await first.execute("ROLLBACK")
        if server == first.get_server_pid():
            return
        others = [await another() for _ in range(_OTHERS)]
        for _ in range(_ROUNDS):
            for other in others:
                taken = await _begin(other)
                again = await _begin(first)
                await first.execute("ROLLBACK")
                if taken == server or again != server:
                    raise PoolerError("transaction")
            for other in others:
                await other.execute("ROLLBACK")


async def _begin(connection: Connection) -> int:
    """Begins a transaction; answers the server that has it."""
    try:
        await connection.execute("BEGIN", timeout=_SECONDS)
        server: int = await connection.fetchval(_SERVER, timeout=_SECONDS)
    except TimeoutError as error:
        raise TimeoutError(
            "the pooler in front of PostgreSQL has no connection left: raise its default_pool_size"
            " and max_db_connections"
        ) from error
    except asyncpg.PostgresError as error:
        # PgBouncer: "transaction blocks not allowed in statement pooling mode".
        if "statement pooling" in str(error):
            raise PoolerError("statement") from error
        raise
    return server
