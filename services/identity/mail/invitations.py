"""Invitations by mail."""

from __future__ import annotations

from datetime import datetime

from servicekit.call import current_call
from servicekit.data.postgres import Connection
from servicekit.peers.tenants import TenantDirectory
from services.identity.mail.domain import Queued
from services.identity.mail.service import Link, Mails
from services.identity.users.domain import User


class InvitationMails:
    """Has links of invitations wait."""

    def __init__(self, mails: Mails, tenants: TenantDirectory) -> None:
        self._mails = mails
        self._tenants = tenants

    async def __call__(
        self, connection: Connection, user: User, token: str, expires_at: datetime
    ) -> Queued:
        """Has the link of an invited user wait, in the transaction that makes it."""
        tenant = self._tenants.known(user.tenant_id)
        details = {
            "organisation": tenant.name if tenant else "Evergreen",
            "by": current_call.get().caller.name,
        }
        kind = "invitation_again" if user.activated else "invitation"
        link = Link(token, expires_at)
        return await self._mails.send_link(connection, kind, user, link, details, budget="written")
