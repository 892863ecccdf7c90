"""Extracts of the audit log."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from typing import ClassVar, Final

from auditlog.entries import Entry
from servicekit.peers.tenants import TenantNode
from services.audit.log.domain import data_of
from services.audit.reports.domain import Column, Kind, Row, Summary, Table
from services.audit.reports.kinds.base import ORG, Asked, Page, bars, figures, org_cells
from services.audit.reports.log import Chain

_MOST_COUNTED: Final = 10_000
"""Pairs of actor and action that are counted each; what is more is counted together."""


class AuditExtract:
    """Entries of the log."""

    KIND: ClassVar = Kind(
        name="audit-extract",
        title="Extract of the audit log",
        about="Who did what within the period. Each entry has its position and its hash, by which"
        " it is found in an export that verifies. Entries that were recorded after the report was"
        " made are not in it, though they may have happened within the period: of each chain it"
        " says up to which position it was read, and up to which one entries were pruned that may"
        " have happened within the period: these are in the archive that it names.",
        tables=(
            Table(
                "rows",
                "Entries",
                (
                    *ORG,
                    Column("sequence", "No."),
                    Column("occurredAt", "Time"),
                    Column("actor", "Actor"),
                    Column("action", "Action"),
                    Column("resource", "Resource"),
                    Column("outcome", "Outcome"),
                    Column("sourceIp", "From"),
                    Column("entryId", ""),
                    Column("hash", "Hash"),
                ),
            ),
            Table(
                "actors",
                "Actors and actions",
                (
                    Column("actor", "Actor"),
                    Column("action", "Action"),
                    Column("entries", "Entries", total=True),
                ),
            ),
            Table(
                "chains",
                "Chains",
                (
                    *ORG,
                    Column("firstSequence", "From no."),
                    Column("lastSequence", "To no."),
                    Column("headSequence", "Read up to no."),
                    Column("headHash", "Hash of that"),
                    Column("prunedSequence", "Pruned up to no."),
                    Column("prunedLastOccurredAt", "Of that time and before"),
                    Column("prunedAt", "Pruned"),
                    Column("archiveSha256", "Archive"),
                ),
            ),
        ),
        made_from=("audit",),
        areas=("audit",),
        takes=("from", "until", "actor", "resource"),
        with_deleted=True,
    )

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._counts: Counter[tuple[str, str]] = Counter()
        self._actions: Counter[str] = Counter()
        self._entries = self._failed = self._refused = self._redacted = 0

    async def pages(self) -> AsyncGenerator[Page, None]:
        """The entries, chain by chain, how many there are of each kind, and the chains."""
        asked = self._asked
        chains: list[tuple[TenantNode, Chain]] = []
        for org in asked.orgs:
            chain = await asked.log.chain(org.id, asked.parameters.start, asked.until)
            if chain is None:
                continue
            chains.append((org, chain))
            async for entries in asked.log.entries(chain):
                self._redacted += sum(entry.redacted for entry in entries)
                yield (
                    0,
                    [
                        self._row(org_cells(org), entry)
                        for entry in entries
                        if self._is_wanted(entry)
                    ],
                )
        yield 1, [(*names, count) for names, count in sorted(self._counts.items())]
        yield 2, await self._chains(chains)

    async def _chains(self, found: Sequence[tuple[TenantNode, Chain]]) -> list[Row]:
        """What was read of chains, and what was pruned of them, until now at the latest."""
        asked, ids = self._asked, [org.id for org, _ in found]
        bases = await asked.log.pruned(ids, asked.parameters.start, len(ids))
        of_each = {base.tenant_id: base for base in bases.shown}
        rows: list[Row] = []
        for org, chain in found:
            base = of_each.get(org.id)
            gone: Row = (None, None, None, None)
            if base is not None:
                archive = base.archive_sha256.hex()
                gone = (base.sequence, base.last_occurred_at, base.pruned_at, archive)
            read = (chain.first, chain.last, chain.head, chain.hash)
            rows.append((*org_cells(org), *read, *gone))
        return rows

    def _is_wanted(self, entry: Entry) -> bool:
        wanted, shown = self._asked.parameters, entry.columns
        by = not wanted.actor or wanted.actor.lower() in {shown.actor.lower(), shown.actor_id}
        return by and (not wanted.resource or wanted.resource == shown.resource)

    def _row(self, org: Row, entry: Entry) -> Row:
        shown, data = entry.columns, data_of(entry.record)
        pair = (shown.actor, shown.action)
        if pair not in self._counts and len(self._counts) >= _MOST_COUNTED:
            pair = ("all others", shown.action)
        self._entries += 1
        self._counts[pair] += 1
        self._actions[shown.action.partition(".")[0]] += 1
        self._failed += shown.action == "identity.login_failed"
        self._refused += shown.action.endswith(".calls_refused")
        outcome, source = data.get("outcome"), data.get("sourceIp")
        return (
            *org,
            entry.sequence,
            shown.occurred_at,
            shown.actor,
            shown.action,
            shown.resource,
            outcome if isinstance(outcome, str) else "",
            source if isinstance(source, str) else "",
            shown.id,
            entry.hash,
        )

    def summary(self) -> Summary:
        """How many there are."""
        return Summary(
            figures(
                {
                    "entries": self._entries,
                    "actors": len({actor for actor, _ in self._counts}),
                    "failed logins": self._failed,
                    "entries of refused calls": self._refused,
                    # Of the period, whoever they were by: they have no actor any more.
                    **({"redacted entries": self._redacted} if self._redacted else {}),
                }
            ),
            "Entries by service",
            bars(self._actions),
        )
