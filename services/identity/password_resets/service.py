"""Asking for a link with which a new password is set.

The answer is the same whoever asks for whom: it tells neither whether there is such an account nor
whether a mail goes out. Asking changes nothing: the old password counts until the link is used.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final
from uuid import UUID

from contract.events.identity.sign_in import FactorOwner, PasswordResetRequested
from evergreen.v1 import identity_pb2 as pb
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import DomainError
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import brief
from servicekit.peers.tenants import TenantDirectory
from servicekit.security.sealing import Sealer
from servicekit.security.tokens import new_secret, secret_hash
from services.identity.authenticators import guess_store
from services.identity.authenticators.guess_store import Counter
from services.identity.authenticators.guesses import network_of
from services.identity.mail.domain import Language
from services.identity.mail.service import Link, Mails
from services.identity.password_resets import store
from services.identity.sources.local_logins import may_log_in_here
from services.identity.tenants import store as tenants_store
from services.identity.users import store as users_store
from services.identity.users.domain import User, spellings
from services.identity.users.store import Credentials

log = logs.get(__name__)

LIFE: Final = timedelta(hours=1)
MOST_FOR_ACCOUNT: Final = 3
"""Mails to one account within an hour."""
MOST_A_DAY: Final = 6
"""Mails to one account within a day."""
MOST_FROM_NETWORK: Final = 30
"""Requests that are followed up, from one network within an hour: a school may have one address."""
_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)
_ANSWER_SECONDS: Final = 0.5
"""How long the answer takes, whatever is found."""
_AT_ONCE: Final = 2
"""Requests that are followed up at the same time: each has a connection to the database."""
_MOST_WAITING: Final = 64
"""Requests that are to be followed up; further ones are not."""


class PasswordResets:
    """Asks for links.

    Args:
        sealer: makes keys of what is counted.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        mails: Mails,
        sealer: Sealer,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._mails = mails
        self._sealer = sealer
        self._clock = clock
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def on(self) -> bool:
        """Whether links are sent at all."""
        return self._mails.on

    async def ask(self, call: Call, email: str, language: Language | None = None) -> None:
        """Has a link sent, if the address is that of an account with a password here.

        Args:
            language: of the mail; `None` for the organisation's.
        """
        if self._mails.on and len(self._tasks) < _MOST_WAITING:
            task = asyncio.create_task(self._try(call, email, language))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        # What is done, and whether anything is, must not show in the time, however long it takes.
        await asyncio.sleep(_ANSWER_SECONDS)

    async def forget_old(self) -> None:
        """Deletes links that have expired."""
        async with self._database.system_transaction("links of all tenants expire") as connection:
            await store.forget(connection, self._clock())

    async def _try(self, call: Call, email: str, language: Language | None) -> None:
        try:
            async with self._places:
                await self._send(call, email, language)
        except (DomainError, OSError) as error:
            log.warning("password reset not sent", error=brief(error))
        except Exception as error:
            # Nor must it show in the answer.
            log.error("password reset failed", error=type(error).__name__)

    async def _send(self, call: Call, email: str, language: Language | None) -> None:
        stored, email = spellings(email)
        network = self._sealer.mark("\0".join(("forgot", network_of(call.source_ip))))
        async with self._database.system_transaction("counters have no tenant") as connection:
            if not await self._counted(connection, (network, _HOUR, MOST_FROM_NETWORK)):
                return
            found = await users_store.credentials_by_email(connection, stored, email)
            if found is None or found.user.status != "active":
                return
            account = self._sealer.mark("\0".join(("forgot", str(found.user.id))))
            today = self._sealer.mark("\0".join(("forgot today", str(found.user.id))))
            if not await self._counted(
                connection,
                (account, _HOUR, MOST_FOR_ACCOUNT),
                (today, _DAY, MOST_A_DAY),
                kept=True,
            ):
                return
        scope = Scope.of(found.user.tenant_id)
        async with self._database.transaction(scope) as connection:
            now = await users_store.credentials(connection, scope, found.user.id, for_update=True)
            if now is None or now.user.status != "active" or now.user.email != found.user.email:
                return
            tenant = await tenants_store.tenant(connection, scope, now.user.tenant_id)
            if tenant is None or tenant.status != "active":
                return
            if now.user.origin != "local" or not await may_log_in_here(connection, now.user):
                await self._send_elsewhere(connection, now.user, account, language)
                return
            if now.hashes is not None:
                await self._send_link(connection, now, language)

    async def _send_link(
        self, connection: Connection, found: Credentials, language: Language | None
    ) -> None:
        user = found.user
        link = Link(new_secret(), self._clock() + LIFE)
        queued = await self._mails.send_link(
            connection, "reset", user, link, {}, language, budget="asked"
        )
        if queued != "queued":
            # The link before it works on.
            return
        await store.put(connection, found, secret_hash(link.token), link.expires_at)
        asked = PasswordResetRequested(id=user.id, after=FactorOwner(email=user.email))
        await self._outbox.append(connection, CloudEvent(asked, user.tenant_id))

    async def _send_elsewhere(
        self, connection: Connection, user: User, account: bytes, language: Language | None
    ) -> None:
        at = self._clock()
        await self._mails.send(
            connection,
            "reset_elsewhere",
            user.tenant_id,
            user.email,
            # One within an hour says it all.
            f"reset_elsewhere:{account.hex()}:{at:%Y%m%d%H}",
            {"organisation": self._organisation(user.tenant_id)},
            budget="asked",
            language=language,
            life=LIFE,
        )

    def _organisation(self, tenant_id: UUID) -> str:
        tenant = self._tenants.known(tenant_id)
        return tenant.name if tenant else ""

    async def _counted(
        self, connection: Connection, *bounds: tuple[bytes, timedelta, int], kept: bool = False
    ) -> bool:
        """Counts something, by keys, each with a window and how often it is allowed in that;
        answers whether it still is.

        Args:
            kept: whether it is counted for an account.
        """
        at = self._clock()
        counters = [
            Counter(key, at + window, sliding=False, kept=kept) for key, window, _ in bounds
        ]
        before = await guess_store.count(connection, counters, at)
        return all(before[key] < most for key, _, most in bounds)


def language_asked(request: pb.ForgotPasswordRequest) -> Language | None:
    """The language that a request names."""
    if not request.HasField("language"):
        return None
    return "de" if request.language == "de" else "en"
