"""The use cases of the audit log."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Final
from uuid import UUID

from auditlog.chain import Checkpoint, Head
from auditlog.entries import Entry
from auditlog.export import (
    base_line,
    closing_line,
    entry_line,
    head_line,
    leaves_line,
    missing_line,
    opening_line,
    pruned_line,
    withheld_line,
)
from auditlog.leaves import TreeState
from auditlog.notes import Proof
from contract.events.audit import AuditExported
from contract.events.base import Export
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.data.quarantine import place, readable
from servicekit.errors import failed_precondition, not_found, unavailable
from servicekit.ids import Clock
from servicekit.keys.service import SigningKeys
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page, TimePosition
from servicekit.times import format_rfc3339
from services.audit.log import store
from services.audit.log.domain import CHECKPOINTS, Base, Bases, Filters, key_of
from services.audit.tree.service import Tree

_EXPORTED: Final = place("audit", "export_entries")
_PAGE: Final = 200
_FIRST: Final = (0, UUID(int=0))
_LAST_ID: Final = UUID(int=(1 << 128) - 1)


class AuditLog:
    """Reading the log, and proving it."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        keys: SigningKeys,
        tree: Tree,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._keys = keys
        self._tree = tree
        self._clock = clock

    async def _scope(self, call: Call, org_id: UUID | None) -> Scope:
        """Exactly the named tenant, or the caller's subtree; deleted ones keep their log.

        Raises:
            DomainError: NOT_FOUND when the tenant is not in the subtree.
        """
        if org_id is not None:
            node = await self._tenants.require(call.caller, org_id, deleted=True)
            return Scope.of(node.id)
        await self._tenants.query_scope(call.caller)
        return self._tenants.log_scope(UUID(call.caller.tenant_id))

    def name_of(self, tenant_id: UUID) -> str:
        """The tenant's name, also after its deletion; empty before identity was heard."""
        node = self._tenants.known(tenant_id)
        return node.name if node is not None else ""

    async def find(
        self,
        call: Call,
        org_id: UUID | None,
        filters: Filters,
        after: TimePosition | None,
        limit: int,
    ) -> tuple[Page[Entry, TimePosition], Bases]:
        """Entries, newest first, behind a position; with the last ones, what was pruned."""
        scope = await self._scope(call, org_id)
        async with self._database.transaction(scope) as connection:
            page = await store.list_entries(connection, scope, filters, after, limit)
            if page.token:
                return page, Bases()
            return page, await store.bases(connection, scope, filters.occurred_after)

    async def get(self, call: Call, entry_id: UUID) -> Entry:
        """One entry of the caller's subtree.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._scope(call, None)
        async with self._database.transaction(scope) as connection:
            found = await store.entry(connection, scope, entry_id)
        if found is None:
            raise not_found("audit entry", entry_id)
        return found

    async def prove(self, call: Call, entry_id: UUID) -> Proof:
        """The proof that an entry of the caller's subtree is in the tree over all entries.

        Raises:
            DomainError: NOT_FOUND; UNAVAILABLE when the tree does not have it yet;
                FAILED_PRECONDITION for an entry that was redacted.
        """
        entry = await self.get(call, entry_id)
        if entry.redacted:
            raise failed_precondition(
                "ENTRY_REDACTED", "the entry was redacted; proofs that were made before still hold"
            )
        return await self._tree.prove(entry)

    async def checkpoint(self, call: Call) -> Checkpoint:
        """The signed heads of all chains of the caller's subtree."""
        scope = await self._scope(call, None)
        async with self._database.transaction(scope) as connection:
            heads = await store.heads(connection, scope)
        taken_at = self._clock()
        statement = Checkpoint.state(taken_at, heads)
        signer = self._keys.ring.signer(CHECKPOINTS)
        return Checkpoint(
            statement=statement,
            key_id=signer.public.id,
            signature=signer.sign(statement.encode()),
            taken_at=taken_at.isoformat(),
            heads=tuple(heads),
        )

    async def export_lines(
        self, call: Call, org_id: UUID | None, filters: Filters
    ) -> AsyncGenerator[list[str], None]:
        """The lines of an export that can be verified; the last one says that it is complete."""
        scope = await self._scope(call, org_id)
        await self._tell(call, org_id, filters, "jsonl")
        complete = filters == Filters()
        whole = complete and scope.tenant_ids is None
        tree = await self._tree.state(all_tenants=whole)
        yield [opening_line(self._clock(), complete=complete, tree=tree)]
        count = left_out = 0
        if not complete:
            async for lines, wanted, written in self._parts(scope, filters, tree):
                count += written
                left_out += wanted - written
                yield lines
            yield [closing_line(count, left_out)]
            return
        for tenant_id in await self._chains(scope):
            last, after = None, _FIRST
            async for base, lines in self._pruned(tenant_id, tree if whole else None):
                after = (base.sequence, _LAST_ID)
                yield lines
            async for head, found in self._pages(tenant_id, Filters(), after):
                last = head
                page = await self._tree.placed(found, tree)
                lines = readable(_EXPORTED, page, entry_line, key_of)
                count += len(lines) - sum(entry.redacted for entry in page)
                left_out += len(page) - len(lines)
                yield lines
            if last is not None:
                yield [head_line(last)]
        yield [closing_line(count, left_out)]

    async def _pruned(
        self, tenant_id: UUID, tree: TreeState | None
    ) -> AsyncIterator[tuple[Base, list[str]]]:
        """The lines of an export for what was pruned of a chain, with its leaves in a tree."""
        base = await self._base(tenant_id)
        if base is None:
            return
        at, until = Head(str(tenant_id), base.sequence, base.hash.hex()), base.until_hash.hex()
        yield base, [pruned_line(at, Head(str(tenant_id), base.until_sequence, until))]
        if tree is not None:
            async for page in self._tree.leaves_up_to(tenant_id, base.sequence, tree):
                yield base, [leaves_line(str(tenant_id), page)]

    async def _base(self, tenant_id: UUID) -> Base | None:
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            return await store.base(connection, tenant_id)

    async def _parts(
        self, scope: Scope, filters: Filters, tree: TreeState | None
    ) -> AsyncIterator[tuple[list[str], int, int]]:
        """The lines of an export within some times; how many entries belong in them, and are."""

        def line(entry: Entry) -> str:
            return entry_line(entry) if filters.is_in_time(entry) else withheld_line(entry)

        for tenant_id in await self._chains(scope):
            async with self._database.transaction(Scope.of(tenant_id)) as connection:
                span = await store.span(connection, tenant_id, filters)
                base = await store.base(connection, tenant_id)
            if base is not None and base.reaches(filters.occurred_after):
                yield [_missing(base)], 0, 0
            if span is None:
                continue
            first, last = span
            async for head, page in self._pages(tenant_id, Filters(), (first - 1, _LAST_ID)):
                found = [entry for entry in page if entry.sequence <= last]
                if not found:
                    break
                wanted = sum(filters.is_in_time(one) and not one.redacted for one in found)
                lines = readable(_EXPORTED, await self._tree.placed(found, tree), line, key_of)
                written = wanted - (len(found) - len(lines))
                if first > 1 and found[0].sequence == first:
                    lines.insert(0, base_line(found[0]))
                if head is not None and found[-1].sequence == head.sequence:
                    lines.append(head_line(head))
                yield lines, wanted, written

    async def export_entries(
        self, call: Call, org_id: UUID | None, filters: Filters
    ) -> AsyncGenerator[Sequence[Entry | Base], None]:
        """The entries of an export for people, chain by chain, behind what was pruned of it; at
        least one page, be it empty."""
        scope = await self._scope(call, org_id)
        await self._tell(call, org_id, filters, "csv")
        yield []
        for tenant_id in await self._chains(scope):
            base = await self._base(tenant_id)
            if base is not None and base.reaches(filters.occurred_after):
                yield [base]
            after = (base.sequence, _LAST_ID) if base else _FIRST
            async for _, page in self._pages(tenant_id, filters, after):
                yield page

    async def _pages(
        self, tenant_id: UUID, filters: Filters, after: tuple[int, UUID] = _FIRST
    ) -> AsyncIterator[tuple[Head | None, list[Entry]]]:
        """A chain's pages, and its head as it was before each; the last page is empty.

        So the last head was read just before nothing more was found: neither is behind the other.
        """
        while True:
            async with self._database.transaction(Scope.of(tenant_id)) as connection:
                head, page = await store.chain_page(connection, tenant_id, filters, after, _PAGE)
                if page and filters == Filters() and page[0].sequence > after[0] + 1:
                    await _check_gap(connection, tenant_id, after[0])
            yield head, page
            if not page:
                return
            after = (page[-1].sequence, UUID(page[-1].columns.id))

    async def _tell(
        self, call: Call, org_id: UUID | None, filters: Filters, file_format: str
    ) -> None:
        tenant_id = org_id or UUID(call.caller.tenant_id)
        times = {
            "occurredAfter": filters.occurred_after,
            "occurredBefore": filters.occurred_before,
        }
        given = {name: format_rfc3339(time) for name, time in times.items() if time}
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            await self._outbox.append(
                connection,
                CloudEvent(
                    AuditExported(id=tenant_id, after=Export(format=file_format, filter=given)),
                    tenant_id,
                    call=call,
                ),
            )

    async def _chains(self, scope: Scope) -> list[UUID]:
        async with self._database.transaction(scope) as connection:
            return await store.chains(connection, scope)


def _missing(base: Base) -> str:
    """The line that says what a part of a log is without."""
    return missing_line(
        Head(str(base.tenant_id), base.sequence, base.hash.hex()),
        base.last_occurred_at,
        base.pruned_at,
        base.archive_sha256.hex(),
    )


async def _check_gap(connection: Connection, tenant_id: UUID, known: int) -> None:
    """Sees whether what is missing behind an entry was pruned just now.

    Raises:
        DomainError: UNAVAILABLE, if so: the file would not say it.
    """
    base = await store.base(connection, tenant_id)
    if base is not None and base.sequence > known:
        raise unavailable("entries were pruned while they were exported; try again")
