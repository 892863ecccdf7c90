"""What people are told of changes to their own accounts.

A notice belongs to an event, and is written into its transaction: what makes the event, the API, a
page or a sync, need not think of it. A sign-in from a new place makes no event of its own;
`new_place` tells of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from contract.events.base import Action
from contract.events.identity.programs import ApiTokenCreated, ApiTokenExpiresSoon
from contract.events.identity.sign_in import (
    PasskeyAdded,
    PasskeyRemoved,
    PasswordChanged,
    RecoveryCodesCreated,
    RecoveryCodeUsed,
    SecondFactorDisabled,
    SecondFactorEnabled,
    SecondFactorsReset,
)
from contract.events.identity.sources import AccountLinked
from contract.events.identity.users import (
    UserDeleted,
    UserMovedAway,
    UserMovedIn,
    UserSnapshot,
    UserUpdated,
)
from servicekit.call import current_call
from servicekit.data.postgres import Connection
from servicekit.messaging.events import CloudEvent
from services.identity.mail import store
from services.identity.mail.domain import Budget
from services.identity.mail.service import Mails
from services.identity.users.domain import User

SIGN_INS_A_DAY: Final = 10
"""Notices of new places that one address gets within 24 hours."""
_KINDS: Final[Mapping[type[Action], str]] = {
    SecondFactorEnabled: "app_added",
    SecondFactorDisabled: "app_removed",
    PasskeyAdded: "passkey_added",
    PasskeyRemoved: "passkey_removed",
    SecondFactorsReset: "factors_reset",
    RecoveryCodesCreated: "codes_made",
    PasswordChanged: "password_changed",
}
"""The notice of events about a user that need no further detail."""


@dataclass(frozen=True, slots=True)
class _Notice:
    kind: str
    address: str
    """Empty where only the account is known,"""
    account_id: UUID | None
    """which is this one."""
    details: Mapping[str, object]
    budget: Budget = "notice"


class Notices:
    """Has notices wait with the events that they belong to."""

    def __init__(self, mails: Mails) -> None:
        self._mails = mails

    async def of_events(self, connection: Connection, events: Sequence[CloudEvent]) -> None:
        """Follows the outbox (`Outbox.followed_by`)."""
        if not self._mails.on:
            return
        for event in events:
            if isinstance(event.event, UserDeleted):
                gone = event.event.before.email
                await store.void_of(connection, event.tenant_id, gone, self._mails.now())
            for notice in _notices(event, events):
                address = notice.address
                if not address and notice.account_id is not None:
                    address = await store.address_of(connection, notice.account_id)
                if not address:
                    continue
                by = event.actor or event.call.caller.name
                details = {"at": event.occurred_at.isoformat(), "by": by, **notice.details}
                key = f"{notice.kind}:{event.id}"
                await self._mails.send(
                    connection,
                    notice.kind,
                    event.tenant_id,
                    address,
                    key,
                    details,
                    budget=notice.budget,
                )

    async def new_place(self, connection: Connection, user: User, session_id: UUID) -> None:
        """Tells of a sign-in from where the account was not signed in to lately."""
        call = current_call.get()
        await self._mails.send(
            connection,
            "sign_in",
            user.tenant_id,
            user.email,
            f"sign_in:{session_id}",
            {
                "at": self._mails.now().isoformat(),
                "source": call.source_ip,
                "program": call.user_agent,
            },
            most_a_day=SIGN_INS_A_DAY,
        )


def _notices(event: CloudEvent, together: Sequence[CloudEvent]) -> Iterator[_Notice]:
    """What is told of an event.

    Args:
        together: the events of the same moment, this one among them.
    """
    told = event.event
    if (kind := _KINDS.get(type(told))) is not None:
        yield _Notice(kind, "", told.id, {})
    elif isinstance(told, RecoveryCodeUsed):
        yield _Notice("code_used", told.after.email, None, {"left": told.after.left})
    elif isinstance(told, AccountLinked):
        details = {"provider": told.after.provider}
        yield _Notice("provider_linked", told.after.email, None, details)
    elif isinstance(told, ApiTokenCreated):
        details = {"token": told.after.name, "until": told.after.expires_at.isoformat()}
        if told.after.service_account_id is None:
            yield _Notice("api_token_created", told.after.held_by, None, details)
        else:
            # A service account has no address: who made its token is told.
            details["holder"] = told.after.held_by
            address = event.call.caller.email
            yield _Notice("service_token_created", address, None, details)
    elif isinstance(told, ApiTokenExpiresSoon):
        if told.after.service_account_id is None:
            details = {"token": told.after.name, "until": told.after.expires_at.isoformat()}
            yield _Notice("api_token_ends", told.after.held_by, None, details)
    elif isinstance(told, UserUpdated):
        yield from _readdressed(told.before, told.after)
    elif isinstance(told, UserMovedIn):
        for other in together:
            if isinstance(other.event, UserMovedAway) and other.event.id == told.id:
                yield from _readdressed(other.event.before, told.after)


def _readdressed(before: UserSnapshot, after: UserSnapshot) -> Iterator[_Notice]:
    """Both addresses are told, unless nobody has ever used the old one, or a directory decides."""
    if before.email == after.email or after.status != "active" or after.origin != "local":
        return
    details = {"old": before.email, "new": after.email}
    yield _Notice("email_changed", before.email, None, details)
    # Nobody knows whose address the new one is.
    yield _Notice("email_changed", after.email, None, details, "written")
