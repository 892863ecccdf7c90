"""Whether people log in with what they have here, or only where their organisation knows them.

An Owner with a password here always gets in: the rule holds for others, and only while their
organisation has a directory or provider in use and such an Owner.
"""

from __future__ import annotations

from contract.access import Role
from servicekit.data.postgres import Connection
from servicekit.errors import DomainError, unauthenticated
from services.identity.sources import store
from services.identity.users.domain import User

LOCAL_LOGIN_OFF = "LOCAL_LOGIN_OFF"
"""The reason of the error."""


async def may_log_in_here(connection: Connection, user: User) -> bool:
    """Whether a user may log in with a password or passkey of here."""
    if user.origin != "local" or user.role is Role.OWNER:
        return True
    return not await store.only_owners_log_in_here(connection, user.tenant_id)


async def check_local_login(connection: Connection, user: User) -> None:
    """Refuses a login with what a user has here, where only Owners have that.

    Raises:
        DomainError: UNAUTHENTICATED.
    """
    if not await may_log_in_here(connection, user):
        raise local_login_off()


def local_login_off() -> DomainError:
    """Only Owners log in here with what they have here."""
    return unauthenticated(
        LOCAL_LOGIN_OFF,
        "only Owners of your organisation have a password here: sign in with your organisation's"
        " directory or single sign-on",
    )
