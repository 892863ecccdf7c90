"""The administration of enrollment tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from contract.events.enrollment import TokenCreated, TokenRevoked
from servicekit.call import Call
from servicekit.data.postgres import Database
from servicekit.errors import invalid_field, not_found
from servicekit.etags import check_etag
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page
from servicekit.security.tokens import new_secret, secret_hash
from services.enrollment.groups import membership
from services.enrollment.groups import store as group_store
from services.enrollment.groups.domain import Group
from services.enrollment.registry.labels import clean_labels
from services.enrollment.registry.peers import Peers
from services.enrollment.serials import clean_serials
from services.enrollment.tokens import store as token_store
from services.enrollment.tokens.domain import MAX_TOKEN_LIFE, TOKEN_LIFE, EnrollmentToken

_SERIALS_A_PAGE: Final = 20_000
"""A page of tokens ends early rather than carry more serial numbers than this."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A token as it is shown; the secret and the key only when it is created."""

    token: EnrollmentToken
    serials: Sequence[str]
    secret: str | None = field(default=None, repr=False)
    pre_shared_key: str | None = field(default=None, repr=False)
    policy_key_pem: str | None = None
    """The key that goes with it, in PEM."""


class Tokens:
    """The use cases around enrollment tokens."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        peers: Peers,
        clock: Clock,
    ) -> None:
        self._peers = peers
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._clock = clock

    async def list(
        self, call: Call, org_id: UUID | None, before: UUID | None, limit: int
    ) -> Page[Shown, UUID]:
        """Tokens of the caller's subtree, newest first, behind a position."""
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            page = _fitting(await token_store.list_tokens(connection, scope, before, limit))
            limited = [token.id for token in page.items if token.serial_count]
            serials = await token_store.serials_of(connection, scope, limited) if limited else {}
        shown = [Shown(token, serials.get(token.id, ())) for token in page.items]
        return Page(shown, page.after)

    async def get(self, call: Call, token_id: UUID) -> Shown:
        """One token of the caller's subtree.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            token = await token_store.token(connection, scope, token_id)
            if token is None:
                raise not_found("enrollment token", token_id)
            serials = await token_store.serials_of(connection, scope, [token.id])
        return Shown(token, serials.get(token.id, ()))

    async def create(
        self,
        call: Call,
        org_id: UUID,
        name: str,
        *,
        expires_at: datetime | None,
        max_uses: int,
        serials: Sequence[str],
        require_approval: bool,
        labels: Mapping[str, str],
        group_ids: Sequence[UUID],
        only_expected: bool,
        policy_key_id: str,
    ) -> Shown:
        """Adds a token; the answer holds its secret, which is stored nowhere.

        Args:
            policy_key_id: the key for policies that its devices pin; empty for the active one.

        Raises:
            DomainError: NOT_FOUND for the organisation; INVALID_ARGUMENT with the field;
                UNAVAILABLE when policy, which knows the keys, is away.
        """
        org = await self._tenants.require_org(call.caller, org_id, to_add=True)
        at = self._clock()
        expires_at = expires_at or at + TOKEN_LIFE
        if expires_at <= at:
            raise invalid_field("expiresAt", "must be in the future")
        if expires_at > at + MAX_TOKEN_LIFE:
            raise invalid_field("expiresAt", f"must be at most {MAX_TOKEN_LIFE.days} days from now")
        admitted = clean_serials(serials)
        if only_expected and admitted:
            raise invalid_field("serials", "must be empty with onlyExpected")
        key_id, pem = await self._peers.token_key(org.id, policy_key_id)
        secret = new_secret()
        token = EnrollmentToken(
            id=new_id(),
            tenant_id=org.id,
            name=name,
            created_at=at,
            expires_at=expires_at,
            max_uses=max_uses,
            uses=0,
            serial_count=len(admitted),
            require_approval=require_approval,
            labels=clean_labels(labels),
            group_ids=tuple(sorted(set(group_ids))),
            only_expected=only_expected,
            policy_key_id=key_id,
        )
        async with self._database.transaction(self._tenants.scope(org.id)) as connection:
            if token.group_ids:
                await membership.hold(connection, [org.id])
                known = await group_store.groups_by_id(connection, org.id, group_ids)
                for index, group_id in enumerate(group_ids):
                    _check_group(known.get(group_id), f"groupIds[{index}]")
            await token_store.insert_token(connection, token, secret_hash(secret), admitted)
            created = TokenCreated(id=token.id, after=token.snapshot())
            await self._outbox.append(connection, CloudEvent(created, org.id))
        return Shown(token, admitted, secret, f"{org.code}:{secret}", pem or None)

    async def revoke(self, call: Call, token_id: UUID) -> Shown:
        """Revokes a token; a token that is revoked stays as it is.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            token = await token_store.token(connection, scope, token_id, for_update=True)
            if token is None:
                raise not_found("enrollment token", token_id)
            check_etag(token.etag)
            if token.revoked_at is None:
                at = self._clock()
                revoked = replace(token, revoked_at=at)
                await token_store.revoke_token(connection, token.id, at)
                event = TokenRevoked(id=token.id, before=token.snapshot(), after=revoked.snapshot())
                await self._outbox.append(connection, CloudEvent(event, token.tenant_id))
                token = revoked
            serials = await token_store.serials_of(connection, scope, [token.id])
        return Shown(token, serials.get(token.id, ()))


def _check_group(group: Group | None, field: str) -> None:
    if group is None:
        raise invalid_field(field, "is no group of the organisation")
    if not group.is_listed:
        raise invalid_field(field, "is a group with a filter; its members cannot be listed")


def _fitting(page: Page[EnrollmentToken, UUID]) -> Page[EnrollmentToken, UUID]:
    weight = 0
    for index, token in enumerate(page.items):
        weight += token.serial_count
        if weight > _SERIALS_A_PAGE and index:
            return Page.of(page.items, index, lambda last: last.id)
    return page
