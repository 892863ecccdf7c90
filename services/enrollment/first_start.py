"""The first start: an enrollment token for the organisation `default`, with a given secret."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final
from uuid import UUID

from contract.events.enrollment import TokenCreated
from servicekit.call import SYSTEM_CALL
from servicekit.data.postgres import Database, Scope
from servicekit.errors import DomainError
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import brief
from servicekit.peers.tenants import TenantDirectory
from servicekit.security.tokens import secret_hash
from servicekit.settings import read_secret
from services.enrollment.tokens import store as token_store
from services.enrollment.tokens.domain import FIRST_TOKEN_LIFE, EnrollmentToken
from services.enrollment.tokens.keys import MIN_SECRET

log = logs.get(__name__)

_ORG_CODE: Final = "default"
_RETRY_SECONDS: Final = 0.5


class FirstStart:
    """Makes the first enrollment token, once in the life of an installation.

    Not before the service serves: the other services need its feed, whether or not identity,
    which knows the organisation, is up.
    """

    def __init__(
        self,
        secret_file: Path | None,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        clock: Clock,
    ) -> None:
        self._secret_file = secret_file
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._clock = clock
        self.done = False
        """Whether nothing is left to make."""

    async def run(self) -> None:
        """Tries until it is done, then rests for as long as the service lives."""
        told: str | None = None
        while not self.done:
            try:
                self.done = await self.attempt()
            except DomainError as away:
                log.debug("first enrollment token postponed", error=away.message)
            except Exception as error:
                # A file that is missing or weak: somebody has to mend it, and is told once.
                if told != (told := brief(error)):
                    log.error("first enrollment token not created", error=told)
            if not self.done:
                await asyncio.sleep(_RETRY_SECONDS)
        await asyncio.Event().wait()

    async def attempt(self) -> bool:
        """Makes the token if it is time; answers whether nothing is left to make."""
        if self._secret_file is None:
            return True
        async with self._database.system_transaction("first_start has no tenant") as connection:
            if await token_store.first_token_made(connection):
                return True
        secret = read_secret(self._secret_file)
        if len(secret) < MIN_SECRET:
            raise ValueError(f"the secret must have at least {MIN_SECRET} characters")
        org = await self._tenants.by_code(_ORG_CODE)
        if org is None or org.kind != "org":
            return False
        await self._make(org.id, secret)
        return True

    async def _make(self, org_id: UUID, secret: str) -> None:
        at = self._clock()
        token = EnrollmentToken(
            id=new_id(),
            tenant_id=org_id,
            name="First start",
            created_at=at,
            expires_at=at + FIRST_TOKEN_LIFE,
            max_uses=0,
            uses=0,
            serial_count=0,
            require_approval=False,
        )
        async with self._database.transaction(Scope.of(org_id)) as connection:
            await token_store.lock_first_start(connection)
            if await token_store.first_token_made(connection):
                return
            await token_store.insert_token(connection, token, secret_hash(secret), ())
            await token_store.note_first_token(connection, token.id)
            await self._outbox.append(
                connection,
                CloudEvent(
                    TokenCreated(id=token.id, after=token.snapshot()), org_id, call=SYSTEM_CALL
                ),
            )
        log.info("first enrollment token created", org=_ORG_CODE, token=str(token.id))
