"""Ends of API tokens that come of what happens to their holders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from uuid import UUID

from contract.events.identity.programs import ApiTokenRevoked
from servicekit.data.postgres import Connection
from servicekit.messaging.events import CloudEvent
from services.identity.api_tokens import store
from services.identity.api_tokens.domain import ApiToken


async def ended_of(connection: Connection, holder_id: UUID) -> list[CloudEvent]:
    """What tells of the tokens that ended because of what the transaction did to their holder."""
    return _told(await store.ended_now(connection, holder_id))


async def end_tokens_of(connection: Connection, account_id: UUID) -> list[CloudEvent]:
    """Ends the tokens of a user, not those of service accounts; answers what tells of it."""
    return _told(await store.end_of_account(connection, account_id))


async def end_tokens_of_source(connection: Connection, source_id: UUID) -> list[CloudEvent]:
    """Ends the tokens of a SCIM source; answers what tells of it."""
    return _told(await store.end_of_source(connection, source_id))


def _told(ended: Iterable[ApiToken]) -> list[CloudEvent]:
    return [
        CloudEvent(
            ApiTokenRevoked(
                id=one.id,
                before=replace(one, ends_at=one.expires_at, ended_because=None).snapshot(),
                after=one.snapshot(),
            ),
            one.tenant_id,
        )
        for one in ended
    ]
