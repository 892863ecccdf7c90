"""Alerts that are made of entries of the log; each entry is looked at once, in order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar
from uuid import UUID

from servicekit.data.postgres import Connection
from servicekit.peers.tenants import TenantNode
from services.audit.alerts import log_store, store
from services.audit.alerts.board import Board
from services.audit.alerts.domain import (
    ATTESTATION_FAILED,
    ENROLLMENTS_REFUSED,
    LOGINS_REFUSED,
    OLDEST,
    WINDOW,
    Finding,
    Happened,
    Rule,
    Rules,
    peaks,
)
from services.audit.alerts.log_store import News, Noted

T = TypeVar("T")

_VERDICT: Final = "attestation.verdict_changed"
_GONE: Final = frozenset({"enrollment.device_decommissioned", "enrollment.device_deleted"})
_GOOD: Final = frozenset({"SELF_CONSISTENT", "KNOWN_TPM", "VERIFIED"})
_MANY: Final = "identity.logins_refused"
_USER: Final = "users/"
COUNTED: Final[Mapping[str, Sequence[str]]] = {
    ENROLLMENTS_REFUSED: ("enrollment.refused", "enrollment.reenrollment_refused"),
    LOGINS_REFUSED: ("identity.login_failed", "identity.login_refused", _MANY),
}
"""Kinds that count what happens within an hour, and what."""
ACTIONS: Final = (
    _VERDICT,
    *sorted(_GONE),
    *(action for actions in COUNTED.values() for action in actions),
)
"""What alerts are made of."""


async def take(
    connection: Connection,
    tenant: TenantNode,
    rules: Rules,
    found: News,
    board: Board,
    at: datetime,
) -> None:
    """Raises and resolves what some entries of a chain tell, and knows them from then on.

    Args:
        connection: in a transaction of the tenant.
        tenant: whose chain it is.
        rules: what counts for it.
        found: which entries.
        board: the alerts.
        at: the time.
    """
    first = await log_store.known(connection, tenant.id)
    if first >= found.until:
        return
    entries = await log_store.noted(connection, tenant.id, ACTIONS, first, found.until)
    await _verdicts(connection, tenant.id, entries)
    if any(entry.action == _VERDICT or entry.action in _GONE for entry in entries):
        await settle_devices(connection, tenant, rules, board, at)
    for kind, actions in COUNTED.items():
        fresh = [e for e in entries if e.action in actions and at - e.occurred_at < OLDEST]
        if fresh:
            held = await _counted(connection, tenant, kind, rules.rule(kind), fresh)
            await board.settle(connection, tenant, kind, rules, held, at, ended=())
    await log_store.know(connection, [(tenant.id, found.until)])


async def recount(
    connection: Connection,
    tenant: TenantNode,
    kind: str,
    rules: Rules,
    board: Board,
    at: datetime,
) -> None:
    """Resolves open alerts of a kind that counts, when the last hour has not half as many."""
    entries = await log_store.within(connection, tenant.id, COUNTED[kind], at - WINDOW, at)
    sums = Counter({"": 0})
    for entry in entries:
        for subject in dict.fromkeys((_subject(kind, entry), "")):
            sums[subject] += _amount(entry)
    rule = _halved(kind, rules.rule(kind))
    opened = await store.open_of(connection, tenant.id, kind)
    ended = [one for one in opened if sums[one] <= _threshold(kind, rule, one)]
    # What they were raised by stays told.
    await board.settle(connection, tenant, kind, rules, (), at, ended=ended)


async def settle_devices(
    connection: Connection, tenant: TenantNode, rules: Rules, board: Board, at: datetime
) -> None:
    """Compares the alerts of devices with those that fail their check."""
    failed = [Finding(one, {}) for one in await log_store.failed_devices(connection, tenant.id)]
    opened = await store.open_of(connection, tenant.id, ATTESTATION_FAILED)
    ended = opened.keys() - {finding.subject for finding in failed}
    await board.settle(connection, tenant, ATTESTATION_FAILED, rules, failed, at, ended=ended)


async def _verdicts(connection: Connection, tenant_id: UUID, entries: Sequence[Noted]) -> None:
    """The last word on each device counts, also while nobody wants to hear of it."""
    fails: dict[str, bool] = {}
    for entry in entries:
        if entry.action in _GONE:
            fails[entry.resource] = False
        elif entry.action == _VERDICT:
            before, after = _verdict(entry, "before"), _verdict(entry, "after")
            if after in _GOOD:
                fails[entry.resource] = False
            elif after == "FAILED" and before in _GOOD:
                fails[entry.resource] = True
    if fails:
        failed = [subject for subject, is_failed in fails.items() if is_failed]
        await log_store.note_verdicts(
            connection, tenant_id, failed, [subject for subject in fails if not fails[subject]]
        )


async def _counted(
    connection: Connection, tenant: TenantNode, kind: str, rule: Rule, fresh: Sequence[Noted]
) -> list[Finding]:
    """What was too much within an hour in which some entries happened."""
    entries = await log_store.within(
        connection,
        tenant.id,
        COUNTED[kind],
        min(entry.occurred_at for entry in fresh) - WINDOW,
        max(entry.occurred_at for entry in fresh) + WINDOW,
    )
    first = min(entry.sequence for entry in fresh)
    most = peaks(
        [
            Happened(
                entry.occurred_at, _subject(kind, entry), _amount(entry), entry.sequence >= first
            )
            for entry in entries
        ]
    )
    return [
        Finding(subject, {"number": number})
        for subject, number in most.items()
        if number > _threshold(kind, rule, subject)
    ]


def _threshold(kind: str, rule: Rule, subject: str) -> int:
    name = "total" if kind == LOGINS_REFUSED and not subject else "count"
    return rule.of(kind, name)


def _halved(kind: str, rule: Rule) -> Rule:
    """The rule by which an alert stays open: half of what it is raised by; none flickers."""
    names = ("count", "total") if kind == LOGINS_REFUSED else ("count",)
    return Rule(rule.enabled, {name: rule.of(kind, name) // 2 for name in names})


def _subject(kind: str, entry: Noted) -> str:
    of_user = kind == LOGINS_REFUSED and entry.resource.startswith(_USER)
    return entry.resource if of_user else ""


def _amount(entry: Noted) -> int:
    if entry.action != _MANY:
        return 1
    return _read(entry, lambda data: max(int(data["after"]["count"]), 1), 1)


def _verdict(entry: Noted, side: str) -> str:
    return _read(entry, lambda data: str(data[side]["verdict"]), "")


def _read(entry: Noted, read: Callable[[Any], T], otherwise: T) -> T:
    """A part of a record, or something else where somebody damaged or redacted it."""
    try:
        return read(json.loads(entry.record)["data"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return otherwise
