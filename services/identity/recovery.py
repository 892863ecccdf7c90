"""The way back for somebody who has the server's machine: an invitation in a password's place, and
an end of second factors that are lost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from contract.access import Role
from contract.events.identity.sign_in import FactorOwner, SecondFactorsReset
from contract.events.identity.users import PasswordReset
from servicekit.data.postgres import SYSTEM, Connection, Scope
from servicekit.errors import failed_precondition, not_found
from servicekit.ids import new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import write
from servicekit.security.tokens import new_secret, secret_hash
from services.identity.api_tokens.ends import end_tokens_of
from services.identity.authenticators import guess_store
from services.identity.mail import store as mail_store
from services.identity.mail.domain import NOTICE_LIFE
from services.identity.second_factor.service import remove_all
from services.identity.sessions import store as sessions_store
from services.identity.tenants import store as tenants_store
from services.identity.users import store as users_store
from services.identity.users.domain import User, check_local, invitation_link, spellings, unlinked

RESET_LIFE: Final = timedelta(days=1)
ACTOR: Final = "operator (evergreen users reset-password)"
RESET_FACTORS_ACTOR: Final = "operator (evergreen users reset-mfa)"


@dataclass(frozen=True, slots=True)
class Reset:
    """What to hand to a user whose password was ended."""

    before: User
    token: str = field(repr=False)
    expires_at: datetime

    def link(self, public_url: str) -> str | None:
        """The page where the user sets a password; `None` without the public address."""
        return invitation_link(public_url, self.token)


async def reset_password(
    connection: Connection, email: str, operator: str, at: datetime, *, reactivate: bool
) -> Reset:
    """Ends the password, all sessions and all links of a user, who is invited from then on.

    The only Owner who could be reached is invited even when deactivated: nobody else can do that.

    Args:
        connection: within a transaction, of a role that owns the tables.
        email: as somebody typed it.
        operator: the account of the machine that asks for it.
        reactivate: whether a deactivated user is to be let in again.

    Raises:
        DomainError: NOT_FOUND; FAILED_PRECONDITION for a user who is deactivated, or whose tenant
            is archived.
    """
    await connection.execute("SELECT set_config('evergreen.scope', $1, true)", SYSTEM.setting)
    await users_store.take_turns(connection)
    found = await users_store.credentials_by_email(connection, *spellings(email))
    if found is None:
        raise not_found("user", email)
    scope = Scope.of(found.user.tenant_id)
    user = await users_store.user(connection, scope, found.user.id, for_update=True)
    if user is None:
        raise not_found("user", email)
    tenant = await tenants_store.tenant(connection, scope, user.tenant_id, for_share=True)
    if tenant is None or tenant.status != "active":
        raise failed_precondition(
            "ORGANISATION_ARCHIVED",
            "the user's organisation is archived, and nobody of it can log in; an Owner above it"
            " restores it first",
        )
    check_local(user)
    if user.status == "disabled" and not reactivate and not await _is_needed(connection, user):
        raise failed_precondition(
            "USER_DISABLED", "the user is deactivated; to let the user in again, add --reactivate"
        )
    after = replace(user, status="invited")
    reset = Reset(user, new_secret(), at + RESET_LIFE)
    await users_store.set_invitation(
        connection, user, secret_hash(reset.token), reset.expires_at, at
    )
    await sessions_store.end_sessions_of(connection, user.id, at)
    await guess_store.forget_account(connection, user.id)
    links = await users_store.forget_links(connection, user.id)
    event = PasswordReset(id=user.id, before=user.snapshot(), after=after.snapshot())
    events = (event, *unlinked(user, links))
    await write(
        connection,
        "identity",
        *(CloudEvent(one, user.tenant_id, actor=ACTOR, actor_id=operator) for one in events),
    )
    if user.status == "active":
        await _tell(connection, user, "password_ended", at)
    return reset


async def reset_factors(connection: Connection, email: str, operator: str, at: datetime) -> User:
    """Removes all second factors of a user, whose password stays, and ends the user's sessions.

    Args:
        connection: as for `reset_password`.
        email: as somebody typed it.
        operator: the account of the machine that asks for it.

    Raises:
        DomainError: NOT_FOUND; FAILED_PRECONDITION for a user who has none.
    """
    await connection.execute("SELECT set_config('evergreen.scope', $1, true)", SYSTEM.setting)
    found = await users_store.credentials_by_email(connection, *spellings(email))
    if found is None:
        raise not_found("user", email)
    user = await users_store.user(
        connection, Scope.of(found.user.tenant_id), found.user.id, for_update=True
    )
    if user is None:
        raise not_found("user", email)
    if not await remove_all(connection, user.id):
        raise failed_precondition("NO_SECOND_FACTOR", "the user has no second factor")
    await sessions_store.end_sessions_of(connection, user.id, at)
    event = SecondFactorsReset(id=user.id, after=FactorOwner(email=user.email))
    await write(
        connection,
        "identity",
        CloudEvent(event, user.tenant_id, actor=RESET_FACTORS_ACTOR, actor_id=operator),
        *await end_tokens_of(connection, user.id),
    )
    await _tell(connection, user, "factors_reset", at)
    return user


async def _tell(connection: Connection, user: User, kind: str, at: datetime) -> None:
    """Has a notice wait, where the installation sends mail."""
    if not await mail_store.is_on(connection):
        return
    notice = mail_store.NewMail(
        id=new_id(),
        tenant_id=user.tenant_id,
        key=f"{kind}:{new_id()}",
        kind=kind,
        budget="notice",
        address=user.email,
        details={"at": at.isoformat(), "by": ACTOR},
        created_at=at,
        expires_at=at + NOTICE_LIFE,
    )
    await mail_store.insert(connection, notice)


async def _is_needed(connection: Connection, user: User) -> bool:
    """Whether no Owner of the installation can log in but this one."""
    root = await tenants_store.root_tenant(connection)
    if root is None or user.tenant_id != root.id or user.role is not Role.OWNER:
        return False
    return not await users_store.has_active_owner(connection, root.id)
