"""Secrets that stand in policies become secrets with names, so that files can say everything."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import Code, DomainError
from servicekit.feeds.changes import Changes
from servicekit.peers.tenants import TenantDirectory
from services.policy.authoring import store as authoring_store
from services.policy.authoring.domain import Policy, same_json
from services.policy.authoring.publishing import Publishing
from services.policy.authoring.secret_values import with_names
from services.policy.authoring.service import Change, PolicyService
from services.policy.authoring.stored_form import as_text
from services.policy.authoring.templates import is_template
from services.policy.sets import store
from services.policy.sets.domain import MOST_KNOWN, not_exportable
from services.policy.variables import store as variables_store
from services.policy.variables.domain import MOST_VARIABLES
from services.policy.variables.service import Variables
from services.policy.vault import Vault

_NO_NAME: Final = re.compile(r"[^a-z0-9]+")
_MOST_NAME: Final = 63


class _PlanOnlyError(Exception):
    """Ends the transaction of a plan without a commit."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What was moved, or would be."""

    secrets: list[str] = field(default_factory=list)
    """The names of the new secrets."""
    policies: list[tuple[Policy, bool]] = field(default_factory=list)
    """The policies that name them, and whether each was published."""


class MovingSecrets:
    """Moves the secrets of policies."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        tenants: TenantDirectory,
        changes: Changes,
        policies: PolicyService,
        variables: Variables,
    ) -> None:
        self._database = database
        self._vault = vault
        self._tenants = tenants
        self._changes = changes
        self._policies = policies
        self._variables = variables

    async def move(
        self, call: Call, tenant_id: UUID, *, validate_only: bool = False, urgent: bool = False
    ) -> Moved:
        """Gives names to the secrets that stand in a tenant's policies, all of them or none.

        The policies become templates. Those that are in force are published: devices get what they
        have under a new number. Policies of single devices, which are in no set, stay.

        Args:
            validate_only: nothing is written.
            urgent: also in a freeze.

        Raises:
            DomainError: NOT_FOUND for the tenant; FAILED_PRECONDITION for policies with unpublished
                changes, for those that cannot be templates as they have double braces, and what a
                publish raises.
        """
        tenant = await self._tenants.require(call.caller, tenant_id, to_add=True)
        moved = Moved()
        try:
            async with self._database.transaction(Scope.of(tenant.id)) as connection:
                await self._move(connection, call, tenant.id, moved, urgent=urgent)
                if validate_only:
                    raise _PlanOnlyError
        except _PlanOnlyError:
            return moved
        if any(is_published for _, is_published in moved.policies):
            await self._changes.catch_up()
        return moved

    async def _move(
        self, connection: Connection, call: Call, tenant_id: UUID, moved: Moved, *, urgent: bool
    ) -> None:
        await store.hold(connection, tenant_id)
        scope = Scope.of(tenant_id)
        page = await authoring_store.list_policies(connection, self._vault, scope, None, MOST_KNOWN)
        # In the order of a publish: policies first, then their values.
        found: list[Policy] = []
        for id_ in sorted(one.id for one in page.items if not one.targets.device_ids):
            policy = await authoring_store.get_policy(
                connection, self._vault, scope, id_, for_update=True
            )
            if policy is not None and _has_any(policy):
                found.append(policy)
        reasons = [
            f"{one.name} has unpublished changes: publish or undo them"
            for one in found
            if _is_used(one)
            and one.changed_since_publish
            and not await self._policies.is_on_its_way(connection, one)
        ]
        if reasons:
            raise not_exportable(reasons)
        known = await variables_store.list_variables(connection, scope, None, MOST_VARIABLES)
        # One that policies above take would count in them, too.
        above = await self._variables.open_above(connection, tenant_id)
        names = _Names({one.name for one in known.items} | above)
        for policy in found:
            template = with_names(json.loads(policy.authored), names.of)
            try:
                for name, value in names.new():
                    await self._variables.created(
                        connection, call, tenant_id, name, value, is_secret=True
                    )
                    moved.secrets.append(name)
                after, published = await self._policies.updated(
                    connection,
                    call,
                    policy,
                    Change(bundle=template, has_bundle=True, publish=_is_used(policy)),
                    Publishing(keeps_rollouts=True, urgent=urgent),
                )
            except DomainError as error:
                if error.code is not Code.INVALID_ARGUMENT:
                    raise
                reason = f"{policy.name} cannot be a template: {error.message}"
                raise not_exportable([reason]) from error
            moved.policies.append((after, published))


def _has_any(policy: Policy) -> bool:
    """Whether secrets without a name stand in a policy."""
    authored = json.loads(policy.authored)
    named = with_names(authored, lambda *_: "x")
    before = authored if is_template(authored) else {"template": authored}
    return not same_json(as_text(named), as_text(before))


def _is_used(policy: Policy) -> bool:
    return policy.in_force or policy.rollout_id is not None


class _Names:
    """Names for secrets: one for a value of a network's field, in however many policies."""

    def __init__(self, taken: Collection[str]) -> None:
        self._taken = set(taken)
        self._known: dict[tuple[str, str, str, str], str] = {}
        self._new: list[tuple[str, str]] = []

    def of(self, item: str, field_name: str, entry: str, value: str) -> str:
        """The name of a secret."""
        key = (item, field_name, entry, value)
        if key not in self._known:
            parts = [item, *([] if field_name == "passphrase" else [field_name]), entry]
            self._known[key] = self._free("-".join(part for part in parts if part))
            self._new.append((self._known[key], value))
        return self._known[key]

    def new(self) -> list[tuple[str, str]]:
        """Those that are new since this was last asked, with their values."""
        new, self._new = self._new, []
        return new

    def _free(self, text: str) -> str:
        base = _NO_NAME.sub("-", text.lower()).strip("-")[: _MOST_NAME - 4].strip("-") or "secret"
        number, name = 1, base
        while name in self._taken:
            number += 1
            name = f"{base}-{number}"
        self._taken.add(name)
        return name
