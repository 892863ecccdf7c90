"""Rows that cannot be handled: left out, counted, and noted where `evergreen doctor` reads it.

A loop that goes through the rows of all tenants must not stop at one of them. It leaves out what it
cannot handle, and notes it here: in the metric `evergreen_rows_quarantined_total`, in a line of the
log, and in the table `quarantined_row` of the service's schema. Nothing is deleted: the row stays
where it is, and the note says which one it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar

import asyncpg
from prometheus_client import Counter

from servicekit.data.postgres import Connection, Database
from servicekit.errors import DomainError
from servicekit.observability import logs
from servicekit.observability.logs import Repeated, brief

log = logs.get(__name__)

T = TypeVar("T")
R = TypeVar("R")

ROWS: Final = Counter(
    "evergreen_rows_quarantined_total",
    "Rows that could not be handled and were left out, by where that was.",
    ["where"],
)
MOST_KEPT: Final = 1_000
"""Notes of a service; the oldest ones go."""
_MOST_WAITING: Final = 1_000
_MOST_REMEMBERED: Final = 10_000
_AGAIN_SECONDS: Final = 3_600.0
"""A row that is met again and again is noted so often."""
_WRITE_SECONDS: Final = 1.0
_KEPT: Final = timedelta(days=30)
_MOST_SAID: Final = 100
"""Lines of a place, until the service starts again; the table has the rest."""
_LONGEST_KEY: Final = 200
_LONGEST_REASON: Final = 500

ROW_ERRORS: Final = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
)
"""What one row can be the reason of. All else (the database is away, a table is missing) would
befall the next row too."""


@dataclass(frozen=True, slots=True)
class Note:
    """That a row could not be handled. `where` begins with the name of the service."""

    where: str
    key: str
    reason: str


_waiting: Final[dict[tuple[str, str], Note]] = {}
_keepers: Final[set[Callable[[], object]]] = set()
"""How those who write notes are told that there are some."""
_said: Final[dict[str, int]] = {}
_remembered: Final[OrderedDict[tuple[str, str], float]] = OrderedDict()


def place(context: str, what: str) -> str:
    """The name of a place where rows can be left out; its count begins with 0.

    Args:
        context: the service.
        what: what goes through rows there.
    """
    where = f"{context}.{what}"
    ROWS.labels(where)
    return where


def note(where: str, key: object, why: Exception | str) -> None:
    """Notes a row that could not be handled; never fails, and never waits.

    Args:
        where: as `place` answers it.
        key: which row it is; never what is in it.
        why: what went wrong.
    """
    name = (where, _plain(str(key), _LONGEST_KEY))
    now = time.monotonic()
    if (last := _remembered.get(name)) is not None and now < last + _AGAIN_SECONDS:
        return
    _remembered[name] = now
    _remembered.move_to_end(name)
    if len(_remembered) > _MOST_REMEMBERED:
        _remembered.popitem(last=False)
    reason = _plain(why if isinstance(why, str) else brief(why), _LONGEST_REASON)
    ROWS.labels(where).inc()
    _said[where] = _said.get(where, 0) + 1
    say = log.error if _said[where] <= _MOST_SAID else log.debug
    say("row quarantined", where=where, key=name[1], reason=reason)
    if len(_waiting) < _MOST_WAITING:
        _waiting[name] = Note(where, name[1], reason)
    for tell in tuple(_keepers):
        # One whose loop has ended writes nothing any more.
        with contextlib.suppress(RuntimeError):
            tell()


def _plain(text: str, most: int) -> str:
    return text[:most].replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def readable(
    where: str, rows: Iterable[T], make: Callable[[T], R], key: Callable[[T], object]
) -> list[R]:
    """What `make` makes of rows; those of which it can make nothing are noted and left out."""
    made = []
    for row in rows:
        try:
            made.append(make(row))
        except ROW_ERRORS as error:
            note(where, _key_of(row, key), error)
    return made


async def readable_slowly(
    where: str, rows: Iterable[T], make: Callable[[T], Awaitable[R]], key: Callable[[T], object]
) -> list[R]:
    """As `readable`, where making one lets others go on meanwhile."""
    made = []
    for row in rows:
        try:
            made.append(await make(row))
        except ROW_ERRORS as error:
            note(where, _key_of(row, key), error)
    return made


def _key_of(row: T, key: Callable[[T], object]) -> object:
    try:
        return key(row)
    except ROW_ERRORS:
        return "?"


async def write_readable(
    where: str,
    items: Sequence[T],
    write: Callable[[Sequence[T]], Awaitable[None]],
    key: Callable[[T], object],
) -> bool:
    """Writes items in one transaction; those that cannot be written are noted and left out.

    By halves, so that finding one among many costs few writes. Answers whether all were written
    at once.

    Args:
        where: as `place` answers it.
        items: what to write, in its order.
        write: writes some of them in a transaction of its own.
        key: which item it is.

    Raises:
        DomainError: the database is away; some may be written.
    """
    try:
        await write(items)
    except DomainError:
        raise
    except ROW_ERRORS as error:
        if len(items) == 1:
            note(where, _key_of(items[0], key), error)
        else:
            middle = len(items) // 2
            await write_readable(where, items[:middle], write, key)
            await write_readable(where, items[middle:], write, key)
        return False
    return True


class Keeper:
    """Writes the notes of a service into its schema, some at a time."""

    def __init__(self, database: Database, context: str) -> None:
        self._database = database
        self._context = context

    async def run(self) -> None:
        """Writes what was noted, for as long as the service lives."""
        outage = Repeated(log, "records of quarantined rows postponed")
        noted = asyncio.Event()
        # Rows are also looked at in other threads.
        tell = partial(asyncio.get_running_loop().call_soon_threadsafe, noted.set)
        _keepers.add(tell)
        try:
            while True:
                noted.clear()
                if not _waiting:
                    await noted.wait()
                await asyncio.sleep(_WRITE_SECONDS)
                try:
                    await self.write()
                    outage.worked()
                except Exception as error:
                    outage.failed(error)
        finally:
            _keepers.discard(tell)

    async def write(self) -> None:
        """Writes what was noted by now."""
        mine = {
            name: found
            for name, found in _waiting.items()
            if found.where.startswith(f"{self._context}.")
        }
        if not mine:
            return
        async with self._database.system_transaction("bad rows belong to no tenant") as connection:
            await connection.executemany(
                f"INSERT INTO {self._context}.quarantined_row AS q (place, key, reason)"
                " VALUES ($1, $2, $3) ON CONFLICT (place, key) DO UPDATE"
                " SET reason = excluded.reason, last_seen = now(), times = q.times + 1",
                [(found.where, found.key, found.reason) for found in mine.values()],
            )
            await connection.execute(
                f"DELETE FROM {self._context}.quarantined_row WHERE (place, key) IN ("
                f"SELECT place, key FROM {self._context}.quarantined_row"
                " ORDER BY last_seen DESC, place, key OFFSET $1)",
                MOST_KEPT,
            )
            # Those that wait to be published are tried again at each start, and noted until then.
            await connection.execute(
                f"DELETE FROM {self._context}.quarantined_row"
                " WHERE last_seen < now() - $1::interval AND place NOT LIKE '%.outbox'",
                _KEPT,
            )
        for name in mine:
            _waiting.pop(name, None)


async def noted(connection: Connection, context: str, where: str) -> list[str]:
    """The keys of a place that are noted, the oldest first."""
    rows = await connection.fetch(
        f"SELECT key FROM {context}.quarantined_row WHERE place = $1 ORDER BY first_seen, key",
        where,
    )
    return [row["key"] for row in rows]


async def forget(connection: Connection, context: str, where: str, keys: Iterable[Any]) -> None:
    """Deletes notes: those rows were handled after all."""
    gone = [str(key) for key in keys]
    await connection.execute(
        f"DELETE FROM {context}.quarantined_row WHERE place = $1 AND key = ANY ($2)", where, gone
    )
    for key in gone:
        _remembered.pop((where, key), None)
