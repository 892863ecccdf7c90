"""API tokens: made once, listed, rotated, revoked, and what is told of their end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias
from uuid import UUID

from contract.access import Role
from contract.events.identity.programs import (
    ApiTokenCreated,
    ApiTokenExpired,
    ApiTokenExpiresSoon,
    ApiTokenRevoked,
    ApiTokenRotated,
)
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import (
    DomainError,
    already_exists,
    failed_precondition,
    invalid_field,
    not_found,
    permission_denied,
)
from servicekit.etags import check_etag
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page
from services.identity.api_tokens import store
from services.identity.api_tokens.domain import (
    CONFIRMED_WITHIN,
    KEPT_FOR,
    MOST_OF_HOLDER,
    MOST_OF_PERSON,
    MOST_OF_TENANT,
    MOST_OVERLAP,
    SCIM_SCOPES,
    SOON,
    ApiToken,
    check_role,
    checked_expiry,
    checked_scopes,
)
from services.identity.api_tokens.ends import end_tokens_of, ended_of
from services.identity.api_tokens.holders import MANAGERS, holder_of, source_of, tenant_of
from services.identity.token_keys.tokens import TokenSigner

_AT_ONCE: Final = 100
"""Users whose tokens end in one transaction."""
_BEGINNING: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a new token is to be."""

    name: str
    scopes: Sequence[str]
    role: Role | None = None
    """The caller's, or the service account's, when not given."""
    tenant_id: UUID | None = None
    """The caller's, or the service account's, when not given."""
    service_account_id: UUID | None = None
    source_id: UUID | None = None
    """The SCIM source that it is for."""
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class MadeToken:
    """A new token, and what opens something with it, which is shown once."""

    token: ApiToken
    secret: str = field(repr=False)


CheckFactor: TypeAlias = Callable[[Call], Awaitable[None]]


class ApiTokens:
    """The use cases around API tokens.

    Args:
        check_factor: refuses a caller who lacks a second factor that is asked for.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        directory: TenantDirectory,
        signer: TokenSigner,
        check_factor: CheckFactor,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._directory = directory
        self._signer = signer
        self._check_factor = check_factor
        self._clock = clock

    async def list(
        self,
        call: Call,
        org_id: UUID | None,
        after: UUID | None,
        limit: int,
        *,
        service_account_id: UUID | None,
        source_id: UUID | None = None,
        mine: bool,
        ended: bool,
    ) -> Page[ApiToken, UUID]:
        """Tokens of one tenant or of the caller's subtree, behind a position.

        Args:
            service_account_id: only those of a service account.
            source_id: only those of a SCIM source.
            mine: only the caller's own.
            ended: those that have ended, too.
        """
        scope = await self._directory.query_scope(call.caller, org_id)
        holder_id = UUID(call.caller.id) if mine else service_account_id or source_id
        async with self._database.transaction(scope) as connection:
            return await store.list_tokens(
                connection,
                scope,
                after,
                limit,
                holder_id=holder_id,
                ended=ended,
                at=self._clock(),
            )

    async def get(self, call: Call, token_id: UUID) -> ApiToken:
        """One token of the caller's subtree.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._directory.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            return await self._found(connection, scope, token_id)

    async def create(self, call: Call, wish: Wish) -> MadeToken:
        """Makes a token for the caller, or for a service account that the caller may manage.

        Raises:
            DomainError: NOT_FOUND for the tenant or the service account; PERMISSION_DENIED for a
                role above the caller's or the service account's, and for a service account of
                somebody who only reads; INVALID_ARGUMENT for scopes and times that cannot be;
                ALREADY_EXISTS for a name that a token of the same holder has; FAILED_PRECONDITION
                when there are enough, and for a caller who lacks a second factor that is asked for.
        """
        await self._check_factor(call)
        at = self._clock()
        expires_at = checked_expiry(wish.expires_at, at)
        scope = await self._directory.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            if wish.source_id is not None:
                check_of_source(wish)
                holder = await source_of(connection, scope, call, wish.source_id)
            else:
                holder = await holder_of(connection, scope, call, wish.service_account_id)
            role = wish.role or min(
                (holder.role, call.caller.role or Role.AUDITOR),
                key=[Role.AUDITOR, Role.ADMIN, Role.OWNER].index,
            )
            check_role(role, call.caller.role, holder.role)
            scopes = SCIM_SCOPES if holder.is_source else checked_scopes(wish.scopes, role)
            tenant_id = await tenant_of(self._directory, connection, call, wish.tenant_id, holder)
            await store.take_turns(connection, holder.id, tenant_id)
            if await store.has_name(connection, holder.id, wish.name, at):
                raise already_exists("NAME_TAKEN", "name: already in use by another API token")
            await self._check_room(connection, holder.id, tenant_id, at)
            token = ApiToken(
                id=new_id(),
                tenant_id=tenant_id,
                name=wish.name,
                role=role,
                scopes=scopes,
                held_by=holder.name,
                created_at=at,
                created_by=call.caller.name,
                expires_at=expires_at,
                ends_at=expires_at,
                account_id=None if holder.is_service or holder.is_source else holder.id,
                service_account_id=holder.id if holder.is_service else None,
                source_id=wish.source_id,
            )
            await store.insert(connection, token)
            event = ApiTokenCreated(id=token.id, after=token.snapshot())
            await self._outbox.append(connection, CloudEvent(event, tenant_id))
        await self._directory.follower.try_refresh()
        return self._made(token)

    async def rotate(
        self, call: Call, token_id: UUID, overlap: timedelta, expires_at: datetime | None
    ) -> MadeToken:
        """Makes a token's successor, which may do the same and lives as long; the token itself
        works on for the overlap.

        Raises:
            DomainError: NOT_FOUND; PERMISSION_DENIED for anybody but its holder, or who may manage
                its service account; FAILED_PRECONDITION for one that has ended or has a successor;
                INVALID_ARGUMENT for a time that cannot be; and as `create` without a second factor.
        """
        await self._check_factor(call)
        assert timedelta(0) <= overlap <= MOST_OVERLAP
        at = self._clock()
        scope = await self._directory.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await self._found(connection, scope, token_id, for_update=True)
            # The caller who gets the successor can do what its holder may.
            if before.account_id is not None and str(before.account_id) != call.caller.id:
                raise permission_denied(
                    "HOLDERS_ROTATE", "only its holder may rotate an API token; revoke it instead"
                )
            if before.source_id is not None:
                holder = await source_of(connection, scope, call, before.source_id)
            else:
                holder = await holder_of(connection, scope, call, before.service_account_id)
            check_role(before.role, call.caller.role, holder.role)
            check_etag(before.etag)
            if before.status(at) != "active":
                raise failed_precondition(
                    "TOKEN_ENDED", f"the API token is {before.status(at)}; make a new one"
                )
            if before.replaced_by is not None:
                raise failed_precondition(
                    "ALREADY_ROTATED", "the API token has a successor; rotate that one"
                )
            life = before.expires_at - before.created_at
            expires = checked_expiry(expires_at, at, life)
            await tenant_of(self._directory, connection, call, before.tenant_id, holder)
            await store.take_turns(connection, before.holder_id, before.tenant_id)
            await self._check_room(connection, before.holder_id, before.tenant_id, at, besides=1)
            token = replace(
                before,
                id=new_id(),
                held_by=holder.name,
                created_at=at,
                created_by=call.caller.name,
                expires_at=expires,
                ends_at=expires,
                last_used_at=None,
                last_used_from="",
            )
            after = replace(
                before,
                ends_at=min(before.ends_at, at + overlap),
                ended_because="rotated",
                replaced_by=token.id,
            )
            await store.insert(connection, token)
            await store.end(connection, after)
            rotated = ApiTokenRotated(
                id=before.id, before=before.snapshot(), after=after.snapshot()
            )
            created = ApiTokenCreated(id=token.id, after=token.snapshot())
            await self._outbox.append(
                connection,
                CloudEvent(rotated, before.tenant_id),
                CloudEvent(created, token.tenant_id),
            )
        await self._directory.follower.try_refresh()
        return self._made(token)

    async def revoke(self, call: Call, token_id: UUID) -> ApiToken:
        """Ends a token; answers it, also when it had ended before.

        Raises:
            DomainError: NOT_FOUND; PERMISSION_DENIED for those who only read, unless it is their
                own, and for an Admin, of a token with the role of an Owner.
        """
        at = self._clock()
        scope = await self._directory.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await self._found(connection, scope, token_id, for_update=True)
            if str(before.account_id) != call.caller.id:
                if call.caller.role not in MANAGERS:
                    raise permission_denied(
                        "NOT_YOUR_TOKEN", "an Auditor revokes API tokens of the own alone"
                    )
                check_role(before.role, call.caller.role)
            check_etag(before.etag)
            if before.status(at) != "active":
                return before
            after = replace(before, ends_at=at, ended_because="revoked")
            await store.end(connection, after)
            revoked = ApiTokenRevoked(id=after.id, before=before.snapshot(), after=after.snapshot())
            await self._outbox.append(connection, CloudEvent(revoked, after.tenant_id))
        await self._directory.follower.try_refresh()
        return after

    async def holder_changed(self, connection: Connection, holder_id: UUID) -> None:
        """Tells which tokens ended because of what the transaction did to their holder."""
        await self._outbox.append(connection, *await ended_of(connection, holder_id))

    async def still_works(self, connection: Connection, token_id: UUID) -> bool:
        """Whether a token works now."""
        return await store.works(connection, token_id)

    async def note_uses(self, uses: Iterable[tuple[UUID, datetime, str]]) -> None:
        """Takes note of uses that another service has seen."""
        latest: dict[UUID, tuple[UUID, datetime, str]] = {}
        for use in uses:
            known = latest.get(use[0])
            latest[use[0]] = use if known is None else max(known, use, key=lambda one: one[1])
        if not latest:
            return
        async with self._database.system_transaction(
            "uses are noted of tokens of all tenants"
        ) as connection:
            await store.note_uses(connection, sorted(latest.values()))

    async def tell_of_ends(self) -> None:
        """Tells of tokens that expire within two weeks or have expired, and forgets old ones."""
        at = self._clock()
        async with self._database.system_transaction("tokens of all tenants expire") as connection:
            soon = await store.take_to_tell(connection, "soon", at, at + SOON)
            expired = await store.take_to_tell(connection, "expired", _BEGINNING, at)
            await self._outbox.append(
                connection,
                *(
                    CloudEvent(ApiTokenExpiresSoon(id=t.id, after=t.snapshot()), t.tenant_id)
                    for t in soon
                    # One that was made for so short a time needs no warning.
                    if t.expires_at - t.created_at > SOON
                ),
                *(
                    CloudEvent(ApiTokenExpired(id=t.id, after=t.snapshot()), t.tenant_id)
                    for t in expired
                ),
            )
            await store.forget(connection, at - KEPT_FOR)

    async def end_unconfirmed(self) -> None:
        """Ends the tokens of people whose directory or provider has not confirmed them for long:
        nobody says whether they are still there."""
        since = self._clock() - CONFIRMED_WITHIN
        async with self._database.system_transaction("people of all tenants leave") as connection:
            for holder in await store.unconfirmed_holders(connection, since, _AT_ONCE):
                await self._outbox.append(connection, *await end_tokens_of(connection, holder))

    async def _found(
        self, connection: Connection, scope: Scope, token_id: UUID, *, for_update: bool = False
    ) -> ApiToken:
        found = await store.token(connection, scope, token_id, for_update=for_update)
        if found is None:
            raise not_found("API token", token_id)
        return found

    async def _check_room(
        self,
        connection: Connection,
        holder_id: UUID,
        tenant_id: UUID,
        at: datetime,
        *,
        besides: int = 0,
    ) -> None:
        of_holder, of_person, of_tenant = await store.counts(connection, holder_id, tenant_id, at)
        if of_holder - besides >= MOST_OF_HOLDER:
            raise _too_many(f"{MOST_OF_HOLDER} API tokens of one holder work; revoke one first")
        if of_person >= MOST_OF_PERSON:
            raise _too_many(
                f"you have {MOST_OF_PERSON} API tokens that have not expired, those that were"
                " revoked included; make tokens that live longer, less often"
            )
        if of_tenant >= MOST_OF_TENANT:
            raise _too_many(
                f"the tenant has {MOST_OF_TENANT} API tokens that have not expired, those that were"
                " revoked included; make tokens that live longer, less often"
            )

    def _made(self, token: ApiToken) -> MadeToken:
        secret = self._signer.api_token(token.claims(), token.created_at, token.expires_at)
        return MadeToken(token, secret)


def check_of_source(wish: Wish) -> None:
    """Refuses what a token of a SCIM source cannot have.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    given = {
        "scopes": wish.scopes,
        "role": wish.role,
        "orgId": wish.tenant_id,
        "serviceAccountId": wish.service_account_id,
    }
    for name, value in given.items():
        if value:
            raise invalid_field(name, "must not be given with scimSourceId")


def _too_many(message: str) -> DomainError:
    return failed_precondition("TOO_MANY_TOKENS", message)
