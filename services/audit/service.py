"""The use cases of the audit log."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Final
from uuid import UUID

from servicekit.auditchain import Checkpoint
from servicekit.auditexport import closing_line, entry_line, head_line, opening_line
from servicekit.auditverify import Entry
from servicekit.call import Call
from servicekit.errors import not_found
from servicekit.events import Event
from servicekit.ids import Clock
from servicekit.outbox import Outbox
from servicekit.postgres import Database, Scope
from servicekit.tenants import TenantDirectory
from services.audit import store
from services.audit.domain import Filters, Position, data_of
from services.audit.keys import Keys

_PAGE: Final = 200
_PIECE: Final = 128 << 10
"""The characters of an export that are sent at once, more or less."""
_FIRST: Final = (0, UUID(int=0))
CSV_COLUMNS: Final = (
    "occurredAt",
    "tenantId",
    "sequence",
    "id",
    "actor",
    "actorId",
    "actorRole",
    "action",
    "resource",
    "sourceIp",
    "requestId",
    "before",
    "after",
    "hash",
)


class AuditLog:
    """Reading the log, and proving it."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        keys: Keys,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._keys = keys
        self._clock = clock

    async def _scope(self, call: Call, org_id: str) -> Scope:
        """Exactly the named tenant, or the caller's subtree.

        Raises:
            DomainError: NOT_FOUND when the tenant is not in the subtree.
        """
        if org_id:
            node = await self._tenants.require(call.caller, org_id)
            return Scope((node.id,))
        return await self._tenants.query_scope(call.caller, "")

    async def find(
        self, call: Call, org_id: str, filters: Filters, after: Position | None, limit: int
    ) -> tuple[list[Entry], bool]:
        """Entries, newest first, behind a position, and whether there are more."""
        scope = await self._scope(call, org_id)
        async with self._database.transaction(scope) as connection:
            return await store.list_entries(connection, scope, filters, after, limit)

    async def get(self, call: Call, entry_id: str) -> Entry:
        """One entry of the caller's subtree.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._scope(call, "")
        async with self._database.transaction(scope) as connection:
            found = await store.entry(connection, scope, UUID(entry_id))
        if found is None:
            raise not_found("audit entry", entry_id)
        return found

    async def checkpoint(self, call: Call) -> Checkpoint:
        """The signed heads of all chains of the caller's subtree."""
        scope = await self._scope(call, "")
        async with self._database.transaction(scope) as connection:
            heads = await store.heads(connection, scope)
        taken_at = self._clock()
        statement = Checkpoint.state(taken_at, heads)
        signer = self._keys.signer
        return Checkpoint(
            statement=statement,
            key_id=signer.public.id,
            signature=signer.sign(statement.encode()),
            taken_at=taken_at.isoformat(),
            heads=tuple(heads),
        )

    async def export_lines(self, call: Call, org_id: str, filters: Filters) -> AsyncIterator[str]:
        """An export that can be verified, in pieces; its end says that it is whole."""
        scope = await self._scope(call, org_id)
        await self._tell(call, org_id, filters, "jsonl")
        yield opening_line(self._clock(), complete=filters == Filters())
        count = 0
        for tenant_id in await self._chains(scope):
            after = _FIRST
            while True:
                async with self._database.transaction(scope) as connection:
                    head, page = await store.chain_page(
                        connection, tenant_id, filters, after, _PAGE
                    )
                if not page:
                    break
                count += len(page)
                after = (page[-1].sequence, UUID(page[-1].columns.id))
                for piece in _pieces(map(entry_line, page)):
                    yield piece
            # Read just before nothing more was found: neither may be behind the other.
            if head is not None:
                yield head_line(head)
        yield closing_line(count)

    async def export_csv(self, call: Call, org_id: str, filters: Filters) -> AsyncIterator[str]:
        """An export for people and spreadsheets, in pieces.

        Its last line is `end` and the number of rows: a file that broke off ends like a whole one.
        """
        scope = await self._scope(call, org_id)
        await self._tell(call, org_id, filters, "csv")
        yield _csv([CSV_COLUMNS])
        count = 0
        for tenant_id in await self._chains(scope):
            after = _FIRST
            while True:
                async with self._database.transaction(scope) as connection:
                    _, page = await store.chain_page(connection, tenant_id, filters, after, _PAGE)
                if not page:
                    break
                count += len(page)
                after = (page[-1].sequence, UUID(page[-1].columns.id))
                for piece in _pieces(_csv([_csv_row(entry)]) for entry in page):
                    yield piece
        yield _csv([("end", str(count))])

    async def _tell(self, call: Call, org_id: str, filters: Filters, file_format: str) -> None:
        tenant_id = UUID(org_id or call.caller.tenant_id)
        times = {
            "occurredAfter": filters.occurred_after,
            "occurredBefore": filters.occurred_before,
        }
        given = {
            name: time.isoformat().replace("+00:00", "Z") for name, time in times.items() if time
        }
        async with self._database.transaction() as connection:
            await self._outbox.append(
                connection,
                Event(
                    "audit.exported",
                    tenant_id,
                    f"tenants/{tenant_id}/audit",
                    after={"format": file_format, "filter": given},
                    call=call,
                ),
            )

    async def _chains(self, scope: Scope) -> list[UUID]:
        async with self._database.transaction(scope) as connection:
            return await store.chains(connection, scope)


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    """Joins lines into pieces of a size that suits the network."""
    gathered: list[str] = []
    size = 0
    for line in lines:
        gathered.append(line)
        size += len(line)
        if size >= _PIECE:
            yield "".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield "".join(gathered)


def _csv_row(entry: Entry) -> tuple[str, ...]:
    data = data_of(entry.record)

    def part(name: str) -> str:
        value = data.get(name)
        if value is None:
            return ""
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return (
        entry.columns.occurred_at.isoformat().replace("+00:00", "Z"),
        entry.tenant_id,
        str(entry.sequence),
        entry.columns.id,
        part("actor"),
        part("actorId"),
        part("actorRole"),
        part("action"),
        part("resource"),
        part("sourceIp"),
        part("requestId"),
        part("before"),
        part("after"),
        entry.hash,
    )


def _csv(rows: list[tuple[str, ...]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerows([_harmless(cell) for cell in row] for row in rows)
    return out.getvalue()


def _harmless(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula (OWASP, CSV injection)."""
    return "'" + cell if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
