"""What a service holds about one person: its tables are looked through, a page at a time.

What is looked for is an address, a name or an id. Texts are compared as people read them: NFKC,
without case, any run of space as one, and whole words alone. What is found is told without secrets,
and without the addresses of other people.
"""

from __future__ import annotations

import asyncio
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg

from evergreen.v1 import person_pb2 as pb
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.data.quarantine import place, readable_slowly
from servicekit.errors import invalid_field
from servicekit.rpc.pagination import rows_within
from servicekit.times import format_rfc3339

ANOTHER: Final = "[another person]"
"""Stands for an address of somebody else."""
SECRET: Final = "[secret]"
"""Stands for what opens something."""
ROWS: Final = 2_000
"""Rows that a page looks through,"""
FOUND: Final = 200
"""and records that it holds, about."""
_LONG: Final = 2_000
"""Characters of a text; of a longer one only what stands around the person is told,"""
_AROUND: Final = 200
"""so many characters on both sides,"""
_MOST_PLACES: Final = 20
"""in so many places."""
_EMAIL: Final = re.compile(r"[\w.!#$%&'*+=?^`{|}~-]+@[\w-]+(?:\.[\w-]+)*")
_OPENS: Final = re.compile(
    r"pass(word|phrase|code)|secret|psk|pre.?shared|private.?key|sealed|hash|^token$|api.?key"
    r"|credential$|authorization",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Person:
    """Who is looked for.

    Args:
        emails: addresses, in small letters.
        names: names, or anything else that a text may have of the person.
        ids: what the person's accounts are called.
    """

    emails: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    ids: tuple[UUID, ...] = ()
    _words: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        emails, names = ([_plain(one) for one in group] for group in (self.emails, self.names))
        ids = [str(one) for one in self.ids]
        either = [
            *(rf"(?<![\w.+%-]){re.escape(one)}(?![\w-]|\.\w)" for one in emails),
            *(rf"(?<!\w){re.escape(one)}(?!\w)" for one in names),
            *(rf"(?<![\w-]){re.escape(one)}(?![\w-])" for one in ids),
        ]
        object.__setattr__(self, "_words", (*emails, *names, *ids))
        object.__setattr__(self, "_pattern", re.compile("|".join(either) or r"(?!)"))

    def is_in(self, text: str) -> bool:
        """Whether a text has the person."""
        plain = _plain(text)
        return any(word in plain for word in self._words) and bool(self._pattern.search(plain))

    def may_be_in(self, written: str) -> bool:
        """Whether JSON, as it is written, may have the person; it is cheap to ask."""
        if "\\" in written:
            return True
        plain = _plain(written)
        return any(word in plain for word in self._words)

    def text(self, text: str) -> str:
        """A text without the addresses of others; of a long one what is around the person."""
        if len(text) > _LONG:
            text = " … ".join(self._around(text)) or text[:_AROUND]
        return _EMAIL.sub(lambda found: found[0] if self.is_in(found[0]) else ANOTHER, text)

    def _around(self, text: str) -> Iterable[str]:
        # Where the plain text is longer or shorter, a little more or less is around it.
        for count, found in enumerate(self._pattern.finditer(_plain(text))):
            if count == _MOST_PLACES:
                return
            yield text[max(0, found.start() - _AROUND) : found.end() + _AROUND]

    def all_of(self, value: Any, name: str = "") -> Any:
        """A value of JSON without secrets and addresses of others.

        Args:
            name: of the member that holds it.
        """
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.all_of(one, str(key)) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.all_of(one, name) for one in value]
        if isinstance(value, str):
            return SECRET if value and _OPENS.search(name) else self.text(value)
        return value

    def parts_of(self, value: Any) -> list[dict[str, Any]]:
        """What a value of JSON says of the person: the smallest objects, and texts of lists, that
        have the person, each with its path (a JSON pointer).

        Of lists in such an object only the elements are told that have the person, too: the others
        are other people, as a rule.
        """
        found: list[dict[str, Any]] = []
        self._look(value, "", found)
        return found

    def _look(self, value: Any, path: str, found: list[dict[str, Any]]) -> None:
        if isinstance(value, Mapping):
            if any(self._has(one) for one in value.values()):
                found.append({"path": path, "value": self.all_of(self._narrowed(value))})
                return
            for key, one in value.items():
                below = f"{path}/{str(key).replace('~', '~0').replace('/', '~1')}"
                if self.is_in(str(key)):
                    found.append({"path": path, "value": self.all_of({key: one})})
                else:
                    self._look(one, below, found)
        elif isinstance(value, list | tuple):
            for number, one in enumerate(value):
                self._look(one, f"{path}/{number}", found)
        elif self._has(value):
            found.append({"path": path, "value": self.all_of(value)})

    def _has(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return False
        return self.is_in(str(value))

    def _narrowed(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: self._narrowed(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self._narrowed(one) for one in value if self.is_anywhere(one)]
        return value

    def is_anywhere(self, value: Any) -> bool:
        """Whether a value of JSON has the person anywhere."""
        if isinstance(value, Mapping):
            return any(self.is_in(str(k)) or self.is_anywhere(v) for k, v in value.items())
        if isinstance(value, list | tuple):
            return any(map(self.is_anywhere, value))
        return self._has(value)


Tell = Callable[[Person, Mapping[str, Any]], Mapping[str, Any] | None]
"""What a row says of a person, by its columns; `None` for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that may hold something about a person.

    Rows that are the person's own are told as they are. Others are told where a searched column has
    the person: what is shown of each row, and what is found.
    """

    kind: str
    """What a row is, for a reader."""
    source: str
    """What stands behind FROM."""
    key: tuple[tuple[str, str], ...] = (("id", "uuid"),)
    """What its rows are sorted by: columns that name one row of a tenant, with their types."""
    of_tenant: str = "tenant_id = $1"
    """What rows a tenant has."""
    shown: tuple[str, ...]
    """Columns, `expression AS name` where they are called otherwise."""
    searched: tuple[str, ...] = ()
    json: frozenset[str] = frozenset()
    """Those of the columns that hold JSON."""
    own: str = ""
    """What rows are the person's own: with the accounts' ids in $2, and the addresses in $3."""
    whole: bool = False
    """Whether a row that has the person anywhere is the person's own."""
    tell: Tell | None = None
    """Tells of rows in another way."""


@dataclass(frozen=True, slots=True)
class Record:
    """Something that a service holds about a person."""

    kind: str
    id: str
    content: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PersonPage:
    """Some records, and where to go on; empty at the end."""

    records: Sequence[Record]
    looked_at: int
    """Rows that were looked through."""
    token: str


async def look(
    connection: Connection,
    context: str,
    tables: Sequence[Table],
    tenant_id: UUID,
    person: Person,
    token: str,
) -> PersonPage:
    """A page of what tables hold about a person.

    Args:
        connection: sees the tenant's rows.
        token: where to begin: that of the page before, or empty.

    Raises:
        DomainError: INVALID_ARGUMENT when the token is none.
    """
    number, after = _position(token, tables)
    records: list[Record] = []
    looked_at = 0
    while number < len(tables):
        table = tables[number]
        rows, more = await _rows(connection, table, tenant_id, person, after, ROWS - looked_at)
        looked_at += len(rows)
        where = place(context, "person_records")

        async def told(row: asyncpg.Record, table: Table = table) -> Record | None:
            await asyncio.sleep(0)
            return _record(table, person, row)

        found = await readable_slowly(where, rows, told, lambda row: row["key"])
        records += [one for one in found if one is not None]
        if more:
            after = list(rows[-1]["key"])
        else:
            number, after = number + 1, []
        if looked_at >= ROWS or len(records) >= FOUND:
            break
    ended = number >= len(tables)
    return PersonPage(records, looked_at, "" if ended else json.dumps([number, *after]))


def _position(token: str, tables: Sequence[Table]) -> tuple[int, list[str]]:
    if not token:
        return 0, []
    try:
        number, *after = json.loads(token)
        fits = len(after) in {0, len(tables[number].key)} and number >= 0
        if fits and all(isinstance(one, str) for one in after):
            return number, after
    except (ValueError, TypeError, IndexError):
        pass
    raise invalid_field("pageToken", "is none that a page of this person has answered")


async def _rows(
    connection: Connection,
    table: Table,
    tenant_id: UUID,
    person: Person,
    after: Sequence[str],
    most: int,
) -> tuple[list[asyncpg.Record], bool]:
    """The next rows of a table, and whether there are more."""
    names = ", ".join(name for name, _ in table.key)
    texts = ", ".join(f"({name})::text" for name, _ in table.key)
    arguments: list[Any] = [tenant_id, list(person.ids), list(person.emails)]
    # All three are in each statement, whatever a table asks for.
    where = [table.of_tenant, "$2::uuid[] IS NOT NULL", "$3::text[] IS NOT NULL"]
    if table.own and not table.searched:
        where.append(f"({table.own})")
    if after:
        behind = ", ".join(
            f"${number}::text::{kind}" for number, (_, kind) in enumerate(table.key, 4)
        )
        where.append(f"({names}) > ({behind})")
        arguments += after
    known = set(map(name_of, table.shown))
    columns = [f"ARRAY[{texts}] AS key", f"({table.own or 'false'}) AS own", *table.shown]
    columns += [column for column in table.searched if name_of(column) not in known]
    rows, left = await rows_within(
        connection,
        f"SELECT {', '.join(columns)} FROM {table.source}"
        f" WHERE {' AND '.join(where)} ORDER BY {names} LIMIT {most + 1}",
        arguments,
        _size,
    )
    return rows[:most], left < 0 or len(rows) > most


def _size(row: asyncpg.Record) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, str | bytes))


def _record(table: Table, person: Person, row: asyncpg.Record) -> Record | None:
    values = {name: row[name] for name in row.keys() if name not in {"key", "own"}}  # noqa: SIM118 -- a record iterates over its values
    record_id = str(values.get("id", ""))
    if table.tell is not None:
        told = table.tell(person, values)
        return Record(table.kind, record_id, told) if told is not None else None
    own = bool(row["own"])
    found: dict[str, Any] = {}
    for name in () if own else map(name_of, table.searched):
        if parts := _parts(table, person, name, values[name]):
            found[name] = parts if name in table.json else parts[0]["value"]
    if not own and not found:
        return None
    whole = own or table.whole
    shown = values if whole else {name_of(column): None for column in table.shown}
    content = {
        camel(name): person.all_of(_value(table, name, values[name]), name)
        for name in shown
        if values[name] is not None
    }
    if not whole:
        content |= {camel(name): parts for name, parts in found.items()}
    return Record(table.kind, record_id, content)


def _parts(table: Table, person: Person, name: str, value: Any) -> list[dict[str, Any]]:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str) and name in table.json and not person.may_be_in(value):
        return []
    return person.parts_of(_value(table, name, value))


def _value(table: Table, name: str, value: Any) -> Any:
    """A column's value as JSON has it."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if name in table.json and isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return plain_value(value)


def plain_value(value: Any) -> Any:
    """A value of PostgreSQL as JSON has it."""
    if isinstance(value, datetime):
        return format_rfc3339(value)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, list | tuple):
        return [plain_value(one) for one in value]
    return value


def name_of(column: str) -> str:
    """What a column is called in a row."""
    return column.rpartition(" AS ")[2].rpartition(".")[2].strip('"')


def camel(name: str) -> str:
    """A column's name as JSON has it."""
    first, *more = name.split("_")
    return first + "".join(word.capitalize() for word in more)


def _plain(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


async def person_records(
    database: Database,
    context: str,
    tables: Sequence[Table],
    request: pb.ListPersonRecordsRequest,
) -> pb.ListPersonRecordsResponse:
    """A page of what tables of a service hold about a person.

    Args:
        context: the service.

    Raises:
        DomainError: INVALID_ARGUMENT for a page token that is none.
    """
    tenant_id = UUID(request.tenant_id)
    person = Person(tuple(request.emails), tuple(request.names), tuple(map(UUID, request.ids)))
    async with database.transaction(Scope.of(tenant_id)) as connection:
        page = await look(connection, context, tables, tenant_id, person, request.page_token)
    return pb.ListPersonRecordsResponse(
        records=[
            pb.PersonRecord(
                kind=one.kind, id=one.id, content=json.dumps(one.content, ensure_ascii=False)
            )
            for one in page.records
        ],
        looked_at=page.looked_at,
        next_page_token=page.token,
    )
