"""The tenant tree and the ended sessions, as every service knows them from identity's feed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from evergreen.v1 import identity_pb2, identity_pb2_grpc
from servicekit.call import Caller, CallerKind
from servicekit.errors import (
    invalid_field,
    not_found,
    unauthenticated,
    unavailable,
)
from servicekit.feed import ANSWER_SECONDS, Follower, asking
from servicekit.ids import Clock
from servicekit.postgres import SYSTEM, Scope

_TOKEN_LIFE: Final = timedelta(hours=2)
"""Longer than a session token lives: a session that ended earlier has none left to refuse."""


@dataclass(frozen=True, slots=True)
class TenantNode:
    """A tenant in the tree; `kind` is `root`, `reseller` or `org`."""

    id: UUID
    parent_id: UUID | None
    kind: str
    name: str
    code: str


def _node(tenant: identity_pb2.Tenant) -> TenantNode:
    return TenantNode(
        UUID(tenant.id),
        UUID(tenant.parent_id) if tenant.HasField("parent_id") else None,
        tenant.kind,
        tenant.name,
        tenant.code,
    )


class TenantDirectory:
    """Answers who may see what: the tree of tenants, and the tokens that are refused."""

    def __init__(
        self, identity: identity_pb2_grpc.IdentityInternalServiceAsyncStub, clock: Clock
    ) -> None:
        self._identity = identity
        self._clock = clock
        self._nodes: dict[UUID, TenantNode] = {}
        self._codes: dict[str, UUID] = {}
        self._children: dict[UUID, list[UUID]] = {}
        self._scopes: dict[UUID, Scope] = {}
        self._ended: dict[str, datetime] = {}
        self.follower = Follower(
            "identity",
            self._fetch,
            asking(
                identity.ListAccessChanges,
                identity_pb2.ListAccessChangesRequest(),
                "tenants",
                "ended_sessions",
            ),
        )

    async def _fetch(self, cursor: str) -> tuple[str, bool]:
        page = await self._identity.ListAccessChanges(
            identity_pb2.ListAccessChangesRequest(cursor=cursor), timeout=ANSWER_SECONDS
        )
        if page.tenants:
            self.learn(map(_node, page.tenants))
        for session in page.ended_sessions:
            self._ended[session.session_id] = session.ended_at.ToDatetime(tzinfo=UTC)
        if not page.more:
            oldest = self._clock() - _TOKEN_LIFE
            self._ended = {k: t for k, t in self._ended.items() if t > oldest}
        return page.next_cursor, page.more

    def learn(self, nodes: Iterable[TenantNode]) -> None:
        """Takes tenants as they are now; parents come before children or are known."""
        for node in nodes:
            if node.parent_id is not None and node.id not in self._nodes:
                self._children.setdefault(node.parent_id, []).append(node.id)
            old = self._nodes.get(node.id)
            # The old code may be another tenant's by now.
            if old is not None and self._codes.get(old.code) == node.id:
                del self._codes[old.code]
            self._nodes[node.id] = node
            self._codes[node.code] = node.id
        self._scopes.clear()

    def check_session(self, caller: Caller) -> None:
        """Refuses a user's token whose session has ended.

        Raises:
            DomainError: UNAUTHENTICATED, or UNAVAILABLE before the first word from identity.
        """
        if not self.follower.synced:
            raise unavailable("the service is starting")
        if caller.session_id in self._ended:
            raise unauthenticated("SESSION_ENDED", "the session has ended; log in again")

    def known(self, tenant_id: UUID) -> TenantNode | None:
        """The tenant, as far as identity's feed was heard; nobody is asked."""
        return self._nodes.get(tenant_id)

    def scope(self, tenant_id: UUID) -> Scope:
        """The tenant and all below it; the root sees everything."""
        if (known := self._scopes.get(tenant_id)) is not None:
            return known
        node = self._nodes.get(tenant_id)
        if node is not None and node.kind == "root":
            scope = SYSTEM
        else:
            scope = Scope(tuple(self._subtree(tenant_id)))
        if node is not None:
            self._scopes[tenant_id] = scope
        return scope

    def _subtree(self, tenant_id: UUID) -> list[UUID]:
        found = [tenant_id]
        for one in found:
            found.extend(self._children.get(one, ()))
        return found

    def _contains(self, ancestor: UUID, tenant_id: UUID) -> bool:
        at: UUID | None = tenant_id
        while at is not None:
            if at == ancestor:
                return True
            node = self._nodes.get(at)
            at = node.parent_id if node else None
        return False

    async def _known(self, tenant_id: UUID) -> TenantNode | None:
        """The tenant; one that was created a moment ago is asked for."""
        if tenant_id not in self._nodes:
            await self._ask()
        return self._nodes.get(tenant_id)

    async def _ask(self) -> None:
        try:
            await self.follower.refresh()
        except Exception as error:
            raise unavailable("identity is not available; try again") from error

    async def require_org(self, caller: Caller, org_id: str, field: str = "orgId") -> TenantNode:
        """The organisation `org_id`, if it is one that the caller may touch.

        Raises:
            DomainError: NOT_FOUND when it is not in the caller's subtree; INVALID_ARGUMENT when
                it is a tenant of another kind; UNAVAILABLE when identity must be asked and is away.
        """
        node = await self.require(caller, org_id)
        if node.kind != "org":
            raise invalid_field(field, "must be an organisation; devices belong to organisations")
        return node

    async def require(self, caller: Caller, tenant_id: str) -> TenantNode:
        """The tenant `tenant_id`, if it is the caller's or below it."""
        node = await self._known(UUID(tenant_id))
        if node is None or not self._contains(UUID(caller.tenant_id), node.id):
            raise not_found("organisation", tenant_id)
        return node

    async def query_scope(self, caller: Caller, org_id: str) -> Scope:
        """The tenants that a list shows: the subtree that `org_id` names, or else the caller's."""
        if caller.kind is not CallerKind.USER:
            raise unauthenticated("NO_USER", "only users list")
        tenant_id = UUID(caller.tenant_id)
        node = await self.require(caller, org_id) if org_id else await self._known(tenant_id)
        if node is not None and node.kind == "reseller":
            # An organisation that was made a moment ago belongs into the list. The root's scope
            # needs no list of tenants, and an organisation has none below it.
            await self.follower.try_refresh()
        return self.scope(node.id if node is not None else tenant_id)

    async def by_code(self, code: str) -> TenantNode | None:
        """The organisation with a tenant code; codes are unique in the whole system."""
        if code not in self._codes:
            await self._ask()
        known = self._codes.get(code)
        return self._nodes[known] if known is not None else None
