"""What the system tells of forwarders."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, ClassVar
from uuid import UUID

from auditlog.chain import NO_HASH, Head
from auditlog.notes import TreeCheckpoint
from contract.events.audit import (
    ForwarderDisabled,
    ForwarderFailing,
    ForwarderHealth,
    ForwarderQuarantine,
    ForwarderQuarantined,
    ForwarderRecovered,
    ForwarderSnapshot,
    ForwarderTest,
    ForwarderTested,
)
from contract.events.base import Action
from servicekit.messaging.events import CloudEvent
from services.audit.forward.domain import Disabled, Forwarder, Webhook
from services.audit.forward.formats import Item


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCheckpoint:
    """The tree over all entries at one moment, and where the tenant's own chain ended."""

    origin: Annotated[str, "Which log it is."]
    size: Annotated[int, "The number of its leaves."]
    root: Annotated[str, "Its root, in base64."]
    note: Annotated[str, "All that, signed (`c2sp.org/tlog-checkpoint`)."]
    sequence: Annotated[int, "The last entry of the tenant's chain; 0 for none."]
    hash: Annotated[str, "The hash of that entry, in hexadecimal."]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointTold(Action):
    """Where the log is, once an hour. Forwarders alone send it: it is no entry of the log, so the
    contract's list of events does not have it."""

    NAME: ClassVar[str] = "audit.checkpoint"
    RESOURCE: ClassVar[str] = "tenants/{id}/audit"
    after: LogCheckpoint


def snapshot(forwarder: Forwarder) -> ForwarderSnapshot:
    """A forwarder as events have it."""
    config = forwarder.config
    return ForwarderSnapshot(
        name=forwarder.name,
        kind=forwarder.kind.value,
        enabled=forwarder.enabled,
        target=config.target,
        format=config.format.value,
        below_too=forwarder.below_too,
        actions=forwarder.filter.actions,
        excluded_actions=forwarder.filter.excluded_actions,
        outcomes=forwarder.filter.outcomes,
        headers=config.headers if isinstance(config, Webhook) else (),
        disabled_reason=forwarder.disabled_reason.value,
    )


def failing(forwarder: Forwarder, at: datetime) -> CloudEvent:
    """It has delivered nothing for a while."""
    health = ForwarderHealth(
        name=forwarder.name,
        status="failing",
        reason=forwarder.state.last_error,
        since=forwarder.state.failing_since or at,
    )
    return CloudEvent(ForwarderFailing(id=forwarder.id, after=health), forwarder.tenant_id)


def recovered(forwarder: Forwarder, at: datetime) -> CloudEvent:
    """It delivers again."""
    health = ForwarderHealth(name=forwarder.name, status="active", reason="", since=at)
    return CloudEvent(ForwarderRecovered(id=forwarder.id, after=health), forwarder.tenant_id)


def disabled(forwarder: Forwarder, reason: Disabled, at: datetime) -> CloudEvent:
    """The system disabled it."""
    health = ForwarderHealth(name=forwarder.name, status="disabled", reason=reason.value, since=at)
    return CloudEvent(ForwarderDisabled(id=forwarder.id, after=health), forwarder.tenant_id)


def quarantined(forwarder: Forwarder, entry_id: UUID, reason: str) -> CloudEvent:
    """A message of it was quarantined."""
    told = ForwarderQuarantined(name=forwarder.name, entry_id=entry_id, reason=reason)
    return CloudEvent(ForwarderQuarantine(id=forwarder.id, after=told), forwarder.tenant_id)


def tested(forwarder: Forwarder, error: str) -> CloudEvent:
    """It was tested."""
    told = ForwarderTest(name=forwarder.name, delivered=not error, error=error)
    return CloudEvent(ForwarderTested(id=forwarder.id, after=told), forwarder.tenant_id)


def checkpoint(forwarder: Forwarder, tree: TreeCheckpoint, head: Head | None) -> Item:
    """The message that says where the log is; the log does not have it."""
    told = LogCheckpoint(
        origin=tree.origin,
        size=tree.size,
        root=base64.b64encode(tree.root).decode(),
        note=tree.write(),
        sequence=head.sequence if head else 0,
        hash=head.hash if head else NO_HASH,
    )
    event = CloudEvent(CheckpointTold(id=forwarder.tenant_id, after=told), forwarder.tenant_id)
    return Item.test(event.id, event.payload())


def make_test(forwarder: Forwarder) -> Item:
    """The message of a test; the log does not have it."""
    event = tested(forwarder, "")
    return Item.test(event.id, event.payload())
