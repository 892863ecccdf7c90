"""Whom an API token acts for, and where it may be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from contract.access import Role
from servicekit.call import Call
from servicekit.data.postgres import Connection, Scope
from servicekit.errors import failed_precondition, not_found, permission_denied, unauthenticated
from servicekit.peers.tenants import TenantDirectory
from services.identity.api_tokens import account_store
from services.identity.tenants import store as tenants_store
from services.identity.users import store as users_store

MANAGERS: Final = frozenset({Role.OWNER, Role.ADMIN})
"""Who manages service accounts, and revokes tokens of others, up to their own role."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom a token acts for."""

    id: UUID
    name: str
    role: Role
    tenant_id: UUID
    is_service: bool
    is_source: bool = False


async def source_of(connection: Connection, scope: Scope, call: Call, source_id: UUID) -> Holder:
    """The SCIM source that a token is for, locked.

    Raises:
        DomainError: as `holder_of`; PERMISSION_DENIED for anybody but Owners.
    """
    if call.caller.role is not Role.OWNER:
        raise permission_denied(
            "ROLE_MAY_NOT", "only an Owner makes and rotates tokens of SCIM sources"
        )
    # The source before the user, as changes of accounts by the source do.
    source = await account_store.scim_source(connection, scope, source_id)
    await holder_of(connection, scope, call, None)
    if source is None:
        raise not_found("SCIM source", source_id)
    name, tenant_id = source
    # The role is what the table asks for; it opens nothing.
    name = f"SCIM source {name}"
    return Holder(source_id, name, Role.AUDITOR, tenant_id, is_service=False, is_source=True)


async def holder_of(
    connection: Connection, scope: Scope, call: Call, service_account_id: UUID | None
) -> Holder:
    """Whom a token of the caller's, or of a service account, acts for, locked.

    Raises:
        DomainError: UNAUTHENTICATED for a caller who lost the role a moment ago; NOT_FOUND;
            PERMISSION_DENIED for a service account of somebody who only reads.
    """
    caller = call.caller
    user = await users_store.user(connection, scope, UUID(caller.id), for_update=True)
    if user is None or user.status != "active" or user.role is not caller.role:
        raise unauthenticated("SESSION_ENDED", "the session has ended; log in again")
    if service_account_id is None:
        return Holder(user.id, user.email, user.role, user.tenant_id, is_service=False)
    if caller.role not in MANAGERS:
        raise permission_denied("ROLE_MAY_NOT", "the role Auditor may not do this")
    account = await account_store.account(connection, scope, service_account_id, for_update=True)
    if account is None:
        raise not_found("service account", service_account_id)
    return Holder(account.id, account.name, account.role, account.tenant_id, is_service=True)


async def tenant_of(
    directory: TenantDirectory,
    connection: Connection,
    call: Call,
    tenant_id: UUID | None,
    holder: Holder,
) -> UUID:
    """The tenant of a token: the caller's or below it, and the holder's or below it.

    Raises:
        DomainError: NOT_FOUND; FAILED_PRECONDITION when it is archived.
    """
    wanted = tenant_id or holder.tenant_id
    node = await directory.require(call.caller, wanted, to_add=True)
    below = directory.scope(holder.tenant_id).tenant_ids
    if below is not None and node.id not in below:
        raise not_found("organisation", wanted)
    # Holds off an archive, which ends what its tokens may do.
    tenant = await tenants_store.tenant(connection, Scope.of(node.id), node.id, for_share=True)
    if tenant is None or tenant.status != "active":
        raise failed_precondition("ORGANISATION_ARCHIVED", f"{node.name} is archived")
    return node.id
