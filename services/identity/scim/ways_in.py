"""How somebody whom a source has no more gets in: taken from the account that is left.

The source may give the same user name, and with it the account, to somebody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from contract.events.identity.sign_in import FactorOwner, SecondFactorsReset
from servicekit.data.postgres import SYSTEM, Connection
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from services.identity.api_tokens.ends import end_tokens_of
from services.identity.scim import standing_store
from services.identity.second_factor.service import remove_all
from services.identity.sessions import store as sessions_store
from services.identity.sources.domain import Source
from services.identity.users import store as users_store
from services.identity.users.domain import unlinked


async def close(
    connection: Connection, outbox: Outbox, source: Source, subjects: Sequence[str], at: datetime
) -> None:
    """Ends links with providers, second factors, passkeys, sessions and API tokens of people's
    accounts. What has been done is not done again.

    Args:
        connection: sees all rows.
        subjects: whose, of the source.
    """
    if not subjects:
        return
    for account_id in await standing_store.accounts_with_ways_in(connection, source.id, subjects):
        await _close(connection, outbox, source, account_id, at)


async def _close(
    connection: Connection, outbox: Outbox, source: Source, account_id: UUID, at: datetime
) -> None:
    user = await users_store.user(connection, SYSTEM, account_id, for_update=True)
    if user is None:
        return
    events = [
        *unlinked(user, await users_store.forget_links(connection, user.id, but="scim")),
        *(
            [SecondFactorsReset(id=user.id, after=FactorOwner(email=user.email))]
            if await remove_all(connection, user.id)
            else []
        ),
    ]
    await sessions_store.end_sessions_of(connection, user.id, at)
    await outbox.append(
        connection,
        *(CloudEvent(one, user.tenant_id, source.actor, str(source.id)) for one in events),
        *await end_tokens_of(connection, user.id),
    )
