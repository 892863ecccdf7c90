"""The tenant tree and the ended sessions, as every service knows them from identity's feed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from evergreen.v1 import identity_pb2, identity_pb2_grpc
from servicekit.call import Caller, CallerKind
from servicekit.data.postgres import SYSTEM, Scope
from servicekit.errors import (
    DomainError,
    failed_precondition,
    invalid_field,
    not_found,
    unauthenticated,
    unavailable,
)
from servicekit.feeds.feed import ANSWER_SECONDS, WAIT_SECONDS, Follower
from servicekit.ids import Clock
from servicekit.peers.api_tokens import ApiTokens

_TOKEN_LIFE: Final = timedelta(hours=2)
"""Longer than a session token lives: a session that ended earlier has none left to refuse."""


@dataclass(frozen=True, slots=True)
class TenantNode:
    """A tenant in the tree; `kind` is `root`, `reseller` or `org`.

    `status` is `active`, `archived`, `deleting` or `deleted`; `closed_by` says who made it other
    than active, and `old_codes` are codes that it had before and that still work.
    """

    id: UUID
    parent_id: UUID | None
    kind: str
    name: str
    code: str
    status: str = "active"
    closed_by: str = ""
    old_codes: frozenset[str] = frozenset()

    @property
    def going(self) -> bool:
        """Whether it is deleted, or about to be: nobody sees it but in the audit log."""
        return self.status in {"deleting", "deleted"}

    def has_code(self, code: str) -> bool:
        """Whether a pre-shared key that begins with a code is the tenant's."""
        return code == self.code or code in self.old_codes


def _node(tenant: identity_pb2.Tenant) -> TenantNode:
    return TenantNode(
        UUID(tenant.id),
        UUID(tenant.parent_id) if tenant.HasField("parent_id") else None,
        tenant.kind,
        tenant.name,
        tenant.code,
        # The release before says nothing of it.
        tenant.status or "active",
        tenant.deleted_by or tenant.archived_by,
        frozenset(old.code for old in tenant.old_codes),
    )


def archived(org: TenantNode) -> DomainError:
    """The organisation is archived, and nothing is added to it."""
    return failed_precondition("ORGANISATION_ARCHIVED", f"{org.name} is archived; restore it first")


class TenantDirectory:
    """Answers who may see what: the tree of tenants, and the tokens that are refused."""

    def __init__(
        self,
        identity: identity_pb2_grpc.IdentityInternalServiceAsyncStub,
        clock: Clock,
        wait_seconds: int = WAIT_SECONDS,
    ) -> None:
        self._identity = identity
        self._clock = clock
        self._nodes: dict[UUID, TenantNode] = {}
        self._codes: dict[str, UUID] = {}
        self._children: dict[UUID, list[UUID]] = {}
        self._scopes: dict[UUID, Scope] = {}
        self._closed: set[str] = set()
        self.on_foreign: Callable[[Caller], None] = lambda _: None
        """Is told of a caller who names a tenant that is there, and is not the caller's or below.
        """
        self.revision = 0
        """Changes whenever the tree may have changed."""
        self.closed_changed = asyncio.Event()
        """Set when a tenant has become other than active, or active again."""
        self._ended: dict[str, datetime] = {}
        self.api_tokens = ApiTokens(identity, clock)
        self._asked_at: datetime | None = None
        """When the reading began that is in progress, page by page."""
        self._wait_seconds = wait_seconds
        self.follower = Follower("identity", self._fetch, self._wait)

    def _question(self, cursor: str) -> identity_pb2.ListAccessChangesRequest:
        """What is asked behind a position, which has a part of its own for API tokens.

        Identity of the last release answers nothing of them, and their part stays as it is.
        """
        access, _, tokens = cursor.partition("|")
        return identity_pb2.ListAccessChangesRequest(cursor=access, api_token_cursor=tokens)

    async def _wait(self, cursor: str) -> bool:
        """Returns when there is something to tell, as `servicekit.feeds.feed.asking` has it."""
        question = self._question(cursor)
        question.limit, question.wait_seconds = 1, self._wait_seconds
        page = await self._identity.ListAccessChanges(
            question, timeout=self._wait_seconds + ANSWER_SECONDS
        )
        return bool(page.tenants or page.ended_sessions or page.api_tokens)

    async def _fetch(self, cursor: str) -> tuple[str, bool]:
        self._asked_at = self._asked_at or self._clock()
        question = self._question(cursor)
        page = await self._identity.ListAccessChanges(question, timeout=ANSWER_SECONDS)
        if page.tenants:
            self.learn(map(_node, page.tenants))
        for session in page.ended_sessions:
            self._ended[session.session_id] = session.ended_at.ToDatetime(tzinfo=UTC)
        self.api_tokens.learn(page.api_tokens)
        if not page.more:
            oldest = self._clock() - _TOKEN_LIFE
            self._ended = {k: t for k, t in self._ended.items() if t > oldest}
            if page.HasField("next_api_token_cursor"):
                self.api_tokens.all_known(self._asked_at)
            self._asked_at = None
        tokens = (
            page.next_api_token_cursor
            if page.HasField("next_api_token_cursor")
            else question.api_token_cursor
        )
        return f"{page.next_cursor}|{tokens}", page.more

    def learn(self, nodes: Iterable[TenantNode]) -> None:
        """Takes tenants as they are now; parents come before children or are known."""
        for node in nodes:
            if node.parent_id is not None and node.id not in self._nodes:
                self._children.setdefault(node.parent_id, []).append(node.id)
            old = self._nodes.get(node.id)
            # The old code may be another tenant's by now.
            for code in () if old is None else (old.code, *old.old_codes):
                if self._codes.get(code) == node.id:
                    del self._codes[code]
            self._nodes[node.id] = node
            if node.status != "deleted":
                for code in (*node.old_codes, node.code):
                    self._codes[code] = node.id
            if (old.status if old else "active") != node.status:
                self.closed_changed.set()
            if node.status == "active":
                self._closed.discard(str(node.id))
            else:
                self._closed.add(str(node.id))
        self._scopes.clear()
        self.revision += 1

    def remember_closed(self, tenant_ids: Iterable[UUID]) -> None:
        """Takes what the service knew before it stopped: tenants whose devices are refused."""
        self._closed.update(
            str(tenant_id) for tenant_id in tenant_ids if tenant_id not in self._nodes
        )

    def check_device(self, caller: Caller) -> None:
        """Refuses a device of an organisation that is archived or deleted.

        Raises:
            DomainError: UNAUTHENTICATED.
        """
        if caller.tenant_id in self._closed:
            raise unauthenticated("DEVICE_LOCKED_OUT", "the device's organisation is archived")

    def closed(self) -> list[TenantNode]:
        """The tenants that are archived, being deleted or deleted."""
        return [node for node in self._nodes.values() if node.status != "active"]

    def is_going(self, tenant_id: UUID) -> bool:
        """Whether a tenant is deleted, or about to be: nothing is stored of it any more."""
        node = self._nodes.get(tenant_id)
        return node is not None and node.going

    def check_session(self, caller: Caller, source_ip: str = "") -> None:
        """Refuses a user's token whose session has ended, and an API token that has.

        Raises:
            DomainError: UNAUTHENTICATED, or UNAVAILABLE before the first word from identity.
        """
        if not self.follower.synced:
            raise unavailable("the service is starting")
        if caller.token is not None:
            if caller.tenant_id in self._closed:
                raise unauthenticated(
                    "ORGANISATION_ARCHIVED", "the API token's organisation is archived"
                )
            self.api_tokens.check(caller, source_ip)
            return
        if caller.session_id in self._ended:
            raise unauthenticated("SESSION_ENDED", "the session has ended; log in again")

    def known(self, tenant_id: UUID) -> TenantNode | None:
        """The tenant, as far as identity's feed was heard; nobody is asked."""
        return self._nodes.get(tenant_id)

    @property
    def root(self) -> TenantNode | None:
        """The tenant above all, as soon as identity's feed was heard."""
        return next((node for node in self._nodes.values() if node.kind == "root"), None)

    def line(self, tenant_id: UUID) -> list[TenantNode]:
        """A tenant and those above it, the root first, as far as identity's feed was heard."""
        found: list[TenantNode] = []
        at: UUID | None = tenant_id
        while at is not None and (node := self._nodes.get(at)) is not None:
            found.append(node)
            at = node.parent_id
        return found[::-1]

    def whole_line(self, tenant_id: UUID) -> list[TenantNode]:
        """As `line`, with all tenants up to the root.

        Raises:
            DomainError: UNAVAILABLE before identity has told of all of them.
        """
        found = self.line(tenant_id)
        if not self.follower.synced or not found or found[0].parent_id is not None:
            raise unavailable("the tenants above are not known yet; try again")
        return found

    def organisations(self) -> list[UUID]:
        """The organisations that are not deleted or about to be."""
        return [n.id for n in self._nodes.values() if n.kind == "org" and not n.going]

    def scope(self, tenant_id: UUID) -> Scope:
        """The tenant and all below it that are not being deleted; the root sees everything."""
        if (known := self._scopes.get(tenant_id)) is not None:
            return known
        node = self._nodes.get(tenant_id)
        if node is not None and node.kind == "root":
            scope = SYSTEM
        else:
            below = self._subtree(tenant_id)[1:]
            scope = Scope((tenant_id, *(one for one in below if not self.is_going(one))))
        if node is not None:
            self._scopes[tenant_id] = scope
        return scope

    def log_scope(self, tenant_id: UUID) -> Scope:
        """As `scope`, with those that were deleted: their audit log stays."""
        node = self._nodes.get(tenant_id)
        if node is not None and node.kind == "root":
            return SYSTEM
        return Scope(tuple(self._subtree(tenant_id)))

    def subtree(self, tenant_id: UUID, *, deleted: bool = False) -> list[TenantNode]:
        """The tenant and all below it, as far as identity's feed was heard.

        Args:
            tenant_id: the tenant.
            deleted: whether those are listed that were deleted, or are about to be.
        """
        found = (self._nodes.get(one) for one in self._subtree(tenant_id))
        return [node for node in found if node is not None and (deleted or not node.going)]

    def above(self, tenant_id: UUID) -> list[UUID]:
        """The tenants above a tenant, the nearest first."""
        found: list[UUID] = []
        node = self._nodes.get(tenant_id)
        while node is not None and node.parent_id is not None:
            found.append(node.parent_id)
            node = self._nodes.get(node.parent_id)
        return found

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

    async def require_org(
        self, caller: Caller, org_id: UUID, field: str = "orgId", *, to_add: bool = False
    ) -> TenantNode:
        """The organisation `org_id`, if it is one that the caller may touch.

        Args:
            to_add: whether something is to be added to it.

        Raises:
            DomainError: NOT_FOUND when it is not in the caller's subtree; INVALID_ARGUMENT when
                it is a tenant of another kind; FAILED_PRECONDITION when it is archived and
                something is to be added; UNAVAILABLE when identity must be asked and is away.
        """
        node = await self.require(caller, org_id, to_add=to_add)
        if node.kind != "org":
            raise invalid_field(field, "must be an organisation; devices belong to organisations")
        return node

    async def require(
        self, caller: Caller, tenant_id: UUID, *, to_add: bool = False, deleted: bool = False
    ) -> TenantNode:
        """The tenant `tenant_id`, if it is the caller's or below it.

        Args:
            to_add: whether something is to be added to it.
            deleted: whether it may be one that was deleted, or is about to be.

        Raises:
            DomainError: as `require_org`.
        """
        node = await self._known(tenant_id)
        if node is None or not self._contains(UUID(caller.tenant_id), node.id):
            if node is not None:
                self.on_foreign(caller)
            raise not_found("organisation", tenant_id)
        if node.going and not deleted:
            raise not_found("organisation", tenant_id)
        if to_add and node.status == "archived":
            raise archived(node)
        return node

    async def query_scope(self, caller: Caller, org_id: UUID | None = None) -> Scope:
        """The tenants that a list shows: the subtree that `org_id` names, or else the caller's."""
        if caller.kind is not CallerKind.USER:
            raise unauthenticated("NO_USER", "only users list")
        tenant_id = UUID(caller.tenant_id)
        if org_id is not None:
            node: TenantNode | None = await self.require(caller, org_id)
        else:
            node = await self._known(tenant_id)
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
