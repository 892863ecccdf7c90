"""Logins of browsers between the password and the second factor."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from servicekit.data.postgres import Connection, Database
from servicekit.ids import Clock
from servicekit.security.digests import equal
from servicekit.security.sealing import Sealer
from servicekit.security.tokens import new_secret, secret_hash
from services.identity.second_factor import store
from services.identity.second_factor.domain import CHALLENGE_LIFE, MAX_TRIES, challenge_over
from services.identity.sources.domain import Origin
from services.identity.users.domain import User
from services.identity.users.store import Credentials


@dataclass(frozen=True, slots=True)
class PendingLogin:
    """A login whose first step was right, and that waits for the second factor."""

    user_id: UUID
    tenant_id: UUID
    session_id: UUID
    """The session that it opens."""
    methods: tuple[str, ...]
    mark: bytes = field(repr=False)
    """Stands for the password that was right."""
    origin: Origin | None = None
    by_link: bool = False
    """Whether it began with a link that was sent to the person."""
    secret: str = field(default="", repr=False)
    """What the browser names it by; empty for a program, which gives both at once."""


class Challenges:
    """Keeps logins that wait."""

    def __init__(self, database: Database, sealer: Sealer, clock: Clock) -> None:
        self._database = database
        self._sealer = sealer
        self._clock = clock

    def begun(
        self, credentials: Credentials, methods: tuple[str, ...], session_id: UUID
    ) -> PendingLogin:
        """A login whose first step was right."""
        user = credentials.user
        mark = self._mark(credentials)
        return PendingLogin(user.id, user.tenant_id, session_id, methods, mark)

    def is_still(self, pending: PendingLogin, now: Credentials | None) -> User | None:
        """The user of a login that waits, when its first step is still right."""
        if now is None or now.user.status != "active":
            return None
        return now.user if equal(self._mark(now), pending.mark) else None

    def _mark(self, credentials: Credentials) -> bytes:
        typed = credentials.hashes.typed if credentials.hashes else ""
        return self._sealer.mark(f"login\0{credentials.user.id}\0{typed}")

    async def keep(self, connection: Connection, pending: PendingLogin) -> str:
        """Keeps a login; answers the secret by which its browser names it."""
        secret = new_secret()
        await store.insert_challenge(
            connection,
            secret_hash(secret),
            store.Challenge(
                account_id=pending.user_id,
                tenant_id=pending.tenant_id,
                session_id=pending.session_id,
                methods=pending.methods,
                mark=pending.mark,
                tries=0,
                origin=pending.origin,
                by_link=pending.by_link,
            ),
            self._clock() + CHALLENGE_LIFE,
        )
        return secret

    async def find(self, secret: str) -> PendingLogin:
        """The login that a browser names.

        Raises:
            DomainError: UNAUTHENTICATED when it waits no more.
        """
        async with self._database.system_transaction("a login names no tenant") as connection:
            found = await store.challenge(connection, secret_hash(secret), self._clock())
        if found is None or found.tries >= MAX_TRIES:
            raise challenge_over()
        return PendingLogin(
            user_id=found.account_id,
            tenant_id=found.tenant_id,
            session_id=found.session_id,
            methods=found.methods,
            mark=found.mark,
            origin=found.origin,
            by_link=found.by_link,
            secret=secret,
        )

    async def count_try(self, pending: PendingLogin) -> None:
        """Counts a code, before it is looked at.

        Raises:
            DomainError: UNAUTHENTICATED after enough of them.
        """
        async with self._database.system_transaction("a login names no tenant") as connection:
            left = await store.count_try(connection, secret_hash(pending.secret), MAX_TRIES)
        if not left:
            raise challenge_over()

    @staticmethod
    async def end(connection: Connection, pending: PendingLogin) -> None:
        """Ends a login that opens its session, once.

        Raises:
            DomainError: UNAUTHENTICATED when it was ended before.
        """
        if not await store.end_challenge(connection, secret_hash(pending.secret)):
            raise challenge_over()

    async def forget_old(self) -> None:
        """Deletes logins that waited for too long."""
        async with self._database.system_transaction("old logins of all tenants go") as connection:
            await store.forget_challenges(connection, self._clock())
