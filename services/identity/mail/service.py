"""Mails that wait: what is written into the transaction of that which they tell of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from prometheus_client import Counter

from servicekit.data.postgres import Connection
from servicekit.ids import Clock, new_id
from servicekit.peers.tenants import TenantDirectory
from servicekit.security.sealing import Sealer
from servicekit.security.tokens import secret_hash
from services.identity.authenticators import guess_store
from services.identity.authenticators.guess_store import Counter as Tally
from services.identity.mail import store
from services.identity.mail.domain import (
    MOST_WRITTEN_A_DAY,
    MOST_WRITTEN_ABOVE,
    MOST_WRITTEN_AN_HOUR,
    NOTICE_LIFE,
    Budget,
    Language,
    Queued,
)
from services.identity.mail.store import NewMail
from services.identity.users.domain import User

_NOT_QUEUED: Final = Counter(
    "evergreen_mails_not_queued_total",
    "Mails that found no place: too many of their organisation wait or were made today, or their"
    " address got too many lately.",
)
_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Link:
    """A link that is sent once."""

    token: str = field(repr=False)
    expires_at: datetime


class Mails:
    """Has mails wait.

    Args:
        sealer: seals the secrets of links; `None` where the installation sends no mail.
    """

    def __init__(self, sealer: Sealer | None, tenants: TenantDirectory, clock: Clock) -> None:
        self.sealer = sealer
        self._tenants = tenants
        self._clock = clock

    @property
    def on(self) -> bool:
        """Whether the installation sends mail."""
        return self.sealer is not None

    def now(self) -> datetime:
        """The time that mails are made at."""
        return self._clock()

    async def send_link(
        self,
        connection: Connection,
        kind: str,
        user: User,
        link: Link,
        details: Mapping[str, object],
        language: Language | None = None,
        *,
        budget: Budget,
    ) -> Queued:
        """Has a link wait, which is not sent after it has ended."""
        if self.sealer is None:
            return "off"
        hashed = secret_hash(link.token)
        return await self._insert(
            connection,
            NewMail(
                id=new_id(),
                tenant_id=user.tenant_id,
                key=f"{kind}:{hashed.hex()}",
                kind=kind,
                budget=budget,
                address=user.email,
                details={**details, "until": link.expires_at.isoformat()},
                created_at=self._clock(),
                expires_at=link.expires_at,
                language=language,
                sealed=self.sealer.seal(link.token.encode()),
                link_hash=hashed,
            ),
        )

    async def send(
        self,
        connection: Connection,
        kind: str,
        tenant_id: UUID,
        address: str,
        key: str,
        details: Mapping[str, object],
        *,
        budget: Budget = "notice",
        language: Language | None = None,
        most_a_day: int | None = None,
        life: timedelta = NOTICE_LIFE,
    ) -> Queued:
        """Has a mail without a secret wait.

        Args:
            key: what it is about; the same thing makes one mail.
            most_a_day: mails of the kind to the address; `None` for no bound of its own.
            life: so long it is tried.
        """
        if self.sealer is None:
            return "off"
        at = self._clock()
        if most_a_day is not None and most_a_day <= await store.made_since(
            connection, tenant_id, kind, address, at - _DAY
        ):
            return "full"
        return await self._insert(
            connection,
            NewMail(
                id=new_id(),
                tenant_id=tenant_id,
                key=key,
                kind=kind,
                budget=budget,
                address=address,
                details=details,
                created_at=at,
                expires_at=at + life,
                language=language,
            ),
        )

    async def _insert(self, connection: Connection, mail: NewMail) -> Queued:
        queued: Queued = "full"
        if mail.budget != "written" or await self._may_write(connection, mail):
            queued = await store.insert(connection, mail)
        if queued == "full":
            _NOT_QUEUED.inc()
        return queued

    async def _may_write(self, connection: Connection, mail: NewMail) -> bool:
        """Counts a mail that a user writes; answers whether its address, and the top-level
        organisation, may have one more, whichever tenant it is made in."""
        assert self.sealer is not None
        at = self._clock()
        line = self._tenants.line(mail.tenant_id)
        top = line[:2][-1].id if line else mail.tenant_id
        bounds = {
            self._tally("hour", mail.address): (_HOUR, MOST_WRITTEN_AN_HOUR),
            self._tally("day", mail.address): (_DAY, MOST_WRITTEN_A_DAY),
            self._tally("above", str(top)): (_DAY, MOST_WRITTEN_ABOVE),
        }
        tallies = [Tally(key, at + window, sliding=False) for key, (window, _) in bounds.items()]
        before = await guess_store.count(connection, tallies, at)
        return all(before[key] < most for key, (_, most) in bounds.items())

    def _tally(self, kind: str, name: str) -> bytes:
        assert self.sealer is not None
        return self.sealer.mark("\0".join(("written", kind, name)))
