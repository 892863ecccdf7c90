"""What a service holds about one person: its tables are looked through, a page at a time.

What is looked for is an address, a name or an id. Texts are compared as people read them: NFKC,
without case, any run of space as one, and whole words alone. What is found is told without secrets,
and without the addresses of other people.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg

from evergreen.v1 import person_pb2 as pb
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.data.quarantine import ROW_ERRORS, note, place
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
"""records that it holds,"""
ANSWER: Final = 4 << 20
"""and characters of them, about."""
MOST_LOOKED: Final = 1 << 20
"""Characters of a column that are looked at; the rest of it counts as left out."""
_SLOW: Final = 16 << 10
"""Rows with more characters are looked at in another thread."""
_LONG: Final = 2_000
"""Characters of a text; of a longer one only what stands around the person is told,"""
_AROUND: Final = 200
"""so many characters on both sides,"""
_MOST_PLACES: Final = 20
"""in so many places."""
_MOST_PARTS: Final = 20
"""Parts of a column that are told; the others are counted."""
_LONGEST_PATH: Final = 200
_LONGEST_NUMBER: Final = 300
_LONGEST_ADDRESS: Final = 400
_AT: Final = re.compile("[@\ufe6b\uff20]")
_LOCAL: Final = r"\w.+'%\-"
_DOMAIN: Final = re.compile(r"[\w-]+(?:\.[\w-]+)*")
_UNSPACED: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Letters that stand without a space beside those of the next word: Thai, Chinese and others."""
_IS_UNSPACED: Final = re.compile(f"[{_UNSPACED}]")
_BARE: Final = re.compile(rf"^(?:[^\w]|[{_UNSPACED}])+|(?:[^\w]|[{_UNSPACED}])+$")
_SURROGATES: Final = re.compile("[\ud800-\udfff]")
_LETTER: Final = rf"[^\W_{_UNSPACED}]"
_BETWEEN: Final = re.compile(r"[\s_.-]+")
"""What stands between the words of a name."""
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
    _local: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _addresses: frozenset[str] = field(init=False, repr=False, compare=False)
    _called: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        emails, names = ([_plain(one) for one in group] for group in (self.emails, self.names))
        pieces = [found for name in names if (found := [*filter(None, _BETWEEN.split(name))])]
        ids = [str(one) for one in self.ids]
        either = [
            *map(_name_pattern, pieces),
            *(rf"(?<![\w-]){re.escape(one)}(?![\w-])" for one in ids),
        ]
        # A text has the longest piece of a name as it is, whatever stands between the pieces.
        words = (*emails, *(max(one, key=len) for one in pieces), *ids)
        more = "".join({one for email in emails for one in email.rpartition("@")[0]})
        object.__setattr__(self, "_words", words)
        object.__setattr__(self, "_pattern", re.compile("|".join(either) or r"(?!)"))
        object.__setattr__(self, "_local", re.compile(f"[{_LOCAL}{re.escape(more)}]+"))
        object.__setattr__(self, "_addresses", frozenset(emails))
        object.__setattr__(self, "_called", frozenset(map(" ".join, pieces)))

    def is_in(self, text: str) -> bool:
        """Whether a text has the person."""
        plain = _plain(text)
        return any(word in plain for word in self._words) and any(self._places(plain))

    def may_be_in(self, written: str) -> bool:
        """Whether JSON, as it is written, may have the person; it is cheap to ask."""
        if "\\" in written:
            return True
        plain = _plain(written)
        return any(word in plain for word in self._words)

    def text(self, text: str) -> str:
        """A text without the addresses of others; of a long one what is around the person."""
        text = self._masked(text)
        if len(text) > _LONG:
            return " … ".join(self._around(text)) or text[:_AROUND]
        return text

    def _places(self, plain: str) -> Iterator[tuple[int, int]]:
        """Where a plain text has the person: names and ids outside of addresses."""
        rest, end = [], 0
        for begin, until in self._addresses_in(plain):
            if self._is_own(plain[begin:until]):
                yield begin, until
            rest += [plain[end:begin], "\0" * (until - begin)]
            end = until
        outside = "".join([*rest, plain[end:]])
        yield from (found.span() for found in self._pattern.finditer(outside))

    def _addresses_in(self, text: str) -> Iterator[tuple[int, int]]:
        # Each character is looked at once on either side of an @, however long a run is.
        end = 0
        for at in _AT.finditer(text):
            if at.start() <= end:
                continue
            local = self._local.match(text[end : at.start()][::-1])
            domain = _DOMAIN.match(text, at.end())
            end = at.end()
            if local is not None and domain is not None:
                yield at.start() - local.end(), domain.end()
                end = domain.end()

    def _is_own(self, address: str) -> bool:
        """Whether an address is the person's: one of those looked for, or called as the person."""
        if len(address) > _LONGEST_ADDRESS:
            return False
        plain = _plain(address)
        if plain in self._addresses or _BARE.sub("", plain) in self._addresses:
            return True
        local = _BARE.sub("", plain.rpartition("@")[0])
        return " ".join(_BETWEEN.split(local)) in self._called

    def _masked(self, text: str) -> str:
        if _AT.search(text) is None:
            return text
        parts, end = [], 0
        for begin, until in self._addresses_in(text):
            own = self._is_own(text[begin:until])
            parts += [text[end:begin], text[begin:until] if own else ANOTHER]
            end = until
        return "".join([*parts, text[end:]])

    def _around(self, text: str) -> Iterator[str]:
        """What is around the person in a long text, in its order."""
        plain, starts = _mapped(text)
        places = [begin for begin, _ in starts]
        shown = count = 0
        for begin, end in sorted(self._places(plain)):
            first = starts[bisect_right(places, begin) - 1][1]
            behind = bisect_right(places, end - 1)
            last = starts[behind][1] if behind < len(starts) else len(text)
            if last <= shown:
                continue
            if count == _MOST_PLACES:
                return
            count += 1
            yield text[max(shown, first - _AROUND, 0) : last + _AROUND]
            shown = last + _AROUND

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
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        return value

    def parts_of(self, value: Any) -> list[dict[str, Any]]:
        """What a value of JSON says of the person: the smallest objects, and texts of lists, that
        have the person, each with its path (a JSON pointer). Of many the first ones, and how many
        more there are (`further`).

        Of lists in such an object objects are told that have the person, too: the others are other
        people, as a rule, and counted (`furtherElements`). Texts of a list are told if one of them
        has the person, those alone, and else all.
        """
        found: list[dict[str, Any]] = []
        further = 0
        for path, part in self._look(value, "", ""):
            if len(found) < _MOST_PARTS:
                found.append({"path": self.text(path), "value": self.all_of(part())})
            else:
                further += 1
        return [*found, {"further": further}] if further else found

    def _look(self, value: Any, name: str, path: str) -> Iterator[tuple[str, Callable[[], Any]]]:
        if isinstance(value, Mapping):
            if any(self._has(one) for one in value.values()):
                yield path, lambda: self._narrowed(value)
                return
            for key, one in value.items():
                if self.is_in(str(key)):
                    yield path, lambda key=key, one=one: {key: one}  # type: ignore[misc]
                else:
                    yield from self._look(one, str(key), _below(path, str(key)))
        elif isinstance(value, list | tuple):
            for number, one in enumerate(value):
                yield from self._look(one, name, _below(path, str(number)))
        elif self._has(value):
            # Where the member's name says that it opens something, it does so in a list, too.
            yield path, lambda: SECRET if name and _OPENS.search(name) else value

    def _has(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return False
        return value != SECRET and self.is_in(str(value))

    def _narrowed(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: self._narrowed(one) for key, one in value.items()}
        if not isinstance(value, list | tuple):
            return value
        of_people = any(map(self._has, value))
        kept = [
            self._narrowed(one)
            for one in value
            if self.is_anywhere(one) or not (of_people or isinstance(one, Mapping | list | tuple))
        ]
        left = len(value) - len(kept)
        return [*kept, {"furtherElements": left}] if left else kept

    def is_anywhere(self, value: Any) -> bool:
        """Whether a value of JSON has the person anywhere."""
        if isinstance(value, Mapping):
            return any(self.is_in(str(k)) or self.is_anywhere(v) for k, v in value.items())
        if isinstance(value, list | tuple):
            return any(map(self.is_anywhere, value))
        return self._has(value)


def _name_pattern(pieces: Sequence[str]) -> str:
    """What finds a name: whole words, where words have space between them."""
    before = "" if _IS_UNSPACED.match(pieces[0][0]) else f"(?<!{_LETTER})"
    behind = "" if _IS_UNSPACED.match(pieces[-1][-1]) else f"(?!{_LETTER})"
    return before + r"[\s_.-]+".join(map(re.escape, pieces)) + behind


def _below(path: str, name: str) -> str:
    """The path of a member; a long one is cut, and says so."""
    if path.endswith("…"):
        return path
    path = f"{path}/{name[:_LONGEST_PATH].replace('~', '~0').replace('/', '~1')}"
    return path if len(path) <= _LONGEST_PATH else path[:_LONGEST_PATH] + "…"


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
    rest: bool = False
    """Whether searched columns of a row are told that do not have the person, where one has."""
    tell: Tell | None = None
    """Tells of rows in another way."""


@dataclass(frozen=True, slots=True)
class Record:
    """Something that a service holds about a person."""

    kind: str
    id: str
    content: str
    """What it says, as JSON that can be encoded."""


@dataclass(frozen=True, slots=True)
class PersonPage:
    """Some records, and where to go on; empty at the end."""

    records: Sequence[Record]
    looked_at: int
    """Rows that were looked through."""
    left_out: int
    """Those of them that could not be read, or in part alone."""
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
    where = place(context, "person_records")
    records: list[Record] = []
    looked_at = left_out = size = 0
    while number < len(tables):
        table = tables[number]
        rows, more = await _rows(connection, table, tenant_id, person, after, ROWS - looked_at)
        for row in rows:
            looked_at += 1
            after = list(row["key"])
            found, whole = await _told(where, table, person, row)
            left_out += not whole
            if found is not None:
                records.append(found)
                size += len(found.content)
            if size >= ANSWER or len(records) >= FOUND:
                break
        if not more and (not rows or after == list(rows[-1]["key"])):
            number, after = number + 1, []
        if looked_at >= ROWS or size >= ANSWER or len(records) >= FOUND:
            break
    ended = number >= len(tables)
    token = "" if ended else json.dumps([number, *after])
    return PersonPage(records, looked_at, left_out, token)


async def _told(
    where: str, table: Table, person: Person, row: asyncpg.Record
) -> tuple[Record | None, bool]:
    """What a row says of the person, and whether all of it was looked at."""
    await asyncio.sleep(0)
    try:
        if _size(row) > _SLOW:
            return await asyncio.to_thread(_record, table, person, row)
        return _record(table, person, row)
    except ROW_ERRORS as error:
        note(where, row["key"], error)
        return None, False


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


def _record(table: Table, person: Person, row: asyncpg.Record) -> tuple[Record | None, bool]:
    values = {name: row[name] for name in row.keys() if name not in {"key", "own"}}  # noqa: SIM118 -- a record iterates over its values
    record_id = str(values.get("id", ""))
    if table.tell is not None:
        told = table.tell(person, values)
        return (Record(table.kind, record_id, _text(told)) if told is not None else None), True
    cut = {name for name, value in values.items() if _length(value) > MOST_LOOKED}
    values = {name: _first(value) if name in cut else value for name, value in values.items()}
    own = bool(row["own"])
    found: dict[str, Any] = {}
    for name in () if own else map(name_of, table.searched):
        if parts := _parts(table, person, name, values[name]):
            found[name] = parts if name in table.json else parts[0]["value"]
    if not own and not found:
        return None, not cut
    whole = own or table.whole
    shown = values if whole or table.rest else {name_of(column): None for column in table.shown}
    content = {
        camel(name): person.all_of(_value(table, name, values[name]), name)
        for name in shown
        if values[name] is not None and (whole or name not in found)
    }
    if not whole:
        content |= {camel(name): parts for name, parts in found.items()}
    return Record(table.kind, record_id, _text(content)), not cut


def _text(content: Mapping[str, Any]) -> str:
    """JSON that can be encoded: a part of a character, which JSON may have, is none."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _SURROGATES.sub("\ufffd", text)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes) else 0


def _first(value: str | bytes) -> str | bytes:
    return value[:MOST_LOOKED]


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
            return _read(value)
        except (ValueError, RecursionError):
            return value
    return plain_value(value)


def _read(written: str) -> Any:
    """A value of JSON with all that is written: numbers of any size, and members twice."""
    return json.loads(
        written,
        object_pairs_hook=_members,
        parse_float=_float,
        parse_int=_int,
        parse_constant=str,
    )


def _float(written: str) -> float | str:
    number = float(written)
    return number if math.isfinite(number) else written[:_LONGEST_NUMBER]


def _int(written: str) -> int | str:
    return int(written) if len(written) <= _LONGEST_NUMBER else written[:_LONGEST_NUMBER]


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    members, counts = {}, Counter[str]()
    for name, value in pairs:
        called = name
        while called in members:
            counts[name] += 1
            called = f"{name} ({counts[name] + 1})"
        members[called] = value
    return members


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


_PIECE: Final = re.compile(r"(\s*)(\S{1,100})")


def _mapped(text: str) -> tuple[str, list[tuple[int, int]]]:
    """A plain text, and where its pieces begin, in it and in the text."""
    parts: list[str] = []
    starts: list[tuple[int, int]] = []
    length = 0
    for found in _PIECE.finditer(text):
        if not (piece := _plain(found[2])):
            continue
        if found[1] and parts:
            parts.append(" ")
            length += 1
        starts.append((length, found.start(2)))
        parts.append(piece)
        length += len(piece)
    return "".join(parts), starts


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
            pb.PersonRecord(kind=one.kind, id=one.id, content=one.content) for one in page.records
        ],
        looked_at=page.looked_at,
        left_out=page.left_out,
        next_page_token=page.token,
    )
