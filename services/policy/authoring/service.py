"""Administration of policies: one transaction a use case, with its event in the same one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

from contract.access import ACCESS
from contract.events.base import Action
from contract.events.policy import (
    PolicyCreated,
    PolicyDeleted,
    PolicyPublished,
    PolicyRolledBack,
    PolicyUpdated,
    PolicyWithdrawn,
    RevealedSecrets,
    SecretsRevealed,
)
from servicekit.call import Call, Caller
from servicekit.data.postgres import Connection, Database, Scope, seeing_all
from servicekit.errors import DomainError, invalid_field, not_found, permission_denied
from servicekit.etags import check_etag
from servicekit.feeds.changes import Changes
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page
from services.policy.authoring import store
from services.policy.authoring.changes import Change as Differs
from services.policy.authoring.changes import changes
from services.policy.authoring.configuration import is_console_form
from services.policy.authoring.domain import (
    Policy,
    Published,
    Warned,
    advice_on,
    check_merging,
    compile_policy,
    compile_rollback,
    never_in_force,
    not_publishable,
    same_json,
    snapshot,
    snapshot_after_rollback,
    standing_of,
    still_in_force,
    what_counts,
)
from services.policy.authoring.layering import (
    Around,
    InForce,
    own_document_of,
    own_of,
    own_of_version,
    together,
)
from services.policy.authoring.publishing import Publishing, Stages
from services.policy.authoring.secret_values import complete, restore
from services.policy.authoring.stored_form import as_text
from services.policy.authoring.templates import ReadValues, Values, references
from services.policy.gate import store as gate_store
from services.policy.gate.domain import gives_otherwise
from services.policy.keys.service import KeyRing
from services.policy.layers.merging import Level, Merging, Source
from services.policy.stamps.numbers import lock_counter, previous_payload
from services.policy.targets.domain import (
    MOST_BOUND,
    PolicyTargets,
    check_targets,
    of_no_organisation,
    still_everywhere,
    too_many_bound,
)
from services.policy.targets.service import Seats, check_there
from services.policy.targets.store import count_bound, is_bound
from services.policy.vault import Vault
from services.policy.versions import Version, next_version, parse_version

NO_MERGING: Final = Merging()
NO_TARGETS: Final = PolicyTargets()
AS_USUAL: Final = Publishing()
_UPDATE = "/evergreen.v1.PolicyService/UpdatePolicy"


@dataclass(frozen=True, slots=True)
class Change:
    """What an update changes; `None` leaves a field as it is. `publish` gives it to devices."""

    name: str | None = None
    description: str | None = None
    org_id: UUID | None = None
    bundle: Any = field(default=None, repr=False)
    has_bundle: bool = False
    publish: bool = False
    merging: Merging | None = None
    targets: PolicyTargets | None = None


@dataclass(frozen=True, slots=True)
class New:
    """A policy that is to be stored."""

    tenant_id: UUID
    name: str
    description: str | None
    bundle: Any = field(repr=False)
    merging: Merging
    targets: PolicyTargets


class PolicyService:
    """The use cases of administrators."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        keys: KeyRing,
        vault: Vault,
        values: ReadValues,
        changes: Changes,
        around: Around,
        stages: Stages,
        seats: Seats,
        clock: Clock,
    ) -> None:
        self._around = around
        self._stages = stages
        self._seats = seats
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._keys = keys
        self._vault = vault
        self._values = values
        self._changes = changes
        self._clock = clock

    async def list_policies(
        self, call: Call, org_id: UUID | None, after: UUID | None, limit: int
    ) -> Page[Policy, UUID]:
        """The policies of an org, or of the caller's whole subtree, without bundles."""
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await store.list_policies(connection, self._vault, scope, after, limit)

    async def get(self, call: Call, policy_id: UUID, *, reveal: bool = False) -> Policy:
        """One policy; with `reveal` its secrets are going to be shown, which is audited.

        Raises:
            DomainError: PERMISSION_DENIED when the caller may not see secrets.
        """
        if reveal and not _may_see_secrets(call.caller):
            raise permission_denied("ROLE_MAY_NOT", "only Owners and Admins can see secrets")
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            policy = await _found(connection, self._vault, scope, policy_id)
            if reveal:
                version = str(policy.published_version or 0)
                revealed = RevealedSecrets(name=policy.name, version=version)
                await self._tell(connection, policy, SecretsRevealed(id=policy.id, after=revealed))
            return policy

    async def create(
        self,
        call: Call,
        *,
        org_id: UUID,
        name: str,
        description: str | None,
        bundle: Any,
        publish: bool = False,
        merging: Merging = NO_MERGING,
        targets: PolicyTargets = NO_TARGETS,
    ) -> Policy:
        """Stores a new policy after checking its bundle; devices get it if `publish` is set.

        It may be of any tenant; devices of the organisations below get it, too. With `targets` it
        is for groups and devices of an organisation.
        """
        org = await self._tenants.require(call.caller, org_id, to_add=True)
        check_merging(merging)
        await self._ask_for(org.id, targets)
        new = New(org.id, name, description, bundle, merging, targets)
        async with self._database.transaction(Scope.of(org.id)) as connection:
            policy = await self.created(connection, call, new, publish=publish)
        if publish:
            await self._changes.catch_up()
        return policy

    async def created(
        self,
        connection: Connection,
        call: Call,
        new: New,
        *,
        publish: bool,
        publishing: Publishing = AS_USUAL,
    ) -> Policy:
        """As `create`, in a transaction of the tenant and without its checks of the caller.

        Once it is committed, `publish` wants `Changes.catch_up`.
        """
        bundle = restore(new.bundle, None, "bundle")
        await check_there(connection, new.tenant_id, new.targets)
        authored = await self._authored(connection, new.tenant_id, bundle, draft=not publish)
        now = self._clock()
        policy = Policy(
            id=new_id(),
            tenant_id=new.tenant_id,
            name=new.name,
            description=new.description,
            authored=authored,
            revision=1,
            published_version=None,
            changed_since_publish=True,
            in_force=False,
            created_at=now,
            updated_at=now,
            merging=new.merging,
            targets=new.targets,
        )
        await store.insert_policy(connection, self._vault, policy)
        await self._tell(connection, policy, PolicyCreated(id=policy.id, after=snapshot(policy)))
        return await self._publish(connection, call, policy, publishing) if publish else policy

    async def update(self, call: Call, policy_id: UUID, change: Change) -> Policy:
        """Changes a policy; devices keep what was published, unless `publish` is set.

        `merging` and `targets` are changed as a whole. An update that changes nothing writes
        nothing, so that a repeated call does no harm.
        """
        if change.merging is not None:
            check_merging(change.merging)
        scope = await self._tenants.query_scope(call.caller)
        if change.targets:
            async with self._database.transaction(scope) as connection:
                org_id = (await _found(connection, self._vault, scope, policy_id)).tenant_id
            await self._ask_for(org_id, change.targets)
        async with self._database.transaction(scope) as connection:
            policy = await _locked(connection, self._vault, scope, policy_id)
            if change.org_id and change.org_id != policy.tenant_id:
                raise invalid_field("orgId", "must stay what it is; create a policy there instead")
            policy, published = await self.updated(connection, call, policy, change)
        if published:
            await self._changes.catch_up()
        return policy

    async def updated(
        self,
        connection: Connection,
        call: Call,
        before: Policy,
        change: Change,
        publishing: Publishing = AS_USUAL,
    ) -> tuple[Policy, bool]:
        """As `update`, of a policy whose row is locked, without its checks of the caller.

        Answers the policy, and whether it was published: then that wants `Changes.catch_up`, once
        it is committed.
        """
        authored = before.authored
        if change.has_bundle:
            stored = json.loads(before.authored)
            authored = await self._authored(
                connection,
                before.tenant_id,
                restore(change.bundle, stored, "bundle"),
                stored,
                draft=not change.publish,
            )
        if change.targets is not None and change.targets != before.targets:
            is_used = before.in_force or before.rollout_id is not None
            if is_used and bool(change.targets) != bool(before.targets):
                raise still_everywhere()
            await check_there(connection, before.tenant_id, change.targets)
        policy = _changed(before, change, authored)
        if policy != before:
            policy = await store.update_policy(connection, self._vault, policy, self._clock())
            updated = PolicyUpdated(id=policy.id, before=snapshot(before), after=snapshot(policy))
            await self._tell(connection, policy, updated)
        published = (
            change.publish
            and not await self._is_delivered(connection, policy)
            and not await self.is_on_its_way(connection, policy)
        )
        if published:
            policy = await self._publish(connection, call, policy, publishing)
        return policy, published

    async def delete(
        self, call: Call, policy_id: UUID, *, force: bool, urgent: bool = False
    ) -> None:
        """Deletes a policy; with `force` also one that is in force, and nothing is from then on.

        Args:
            force: also one that devices have.
            urgent: in a freeze, too.

        Raises:
            DomainError: FAILED_PRECONDITION when it is in force, or a rollout brings it to devices.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            policy = await _locked(connection, self._vault, scope, policy_id)
            await lock_counter(connection, policy.tenant_id)
            is_used = policy.in_force or await self._stages.is_live(connection, policy)
            if is_used and not force:
                raise still_in_force()
            await self.deleted(connection, policy, urgent=urgent)
        if is_used:
            await self._changes.catch_up()

    async def deleted(
        self, connection: Connection, policy: Policy, *, urgent: bool = False
    ) -> None:
        """Deletes a policy whose row is locked, and takes it out of force.

        Raises:
            DomainError: FAILED_PRECONDITION in a freeze where devices have it, unless it is urgent,
                and while a gate gives it to devices that fall short.
        """
        await lock_counter(connection, policy.tenant_id)
        await _check_no_gate(connection, policy)
        if policy.in_force or await self._stages.is_live(connection, policy):
            await self._stages.check_withdrawal(connection, policy, urgent=urgent)
        await self._stages.make_way(connection, policy, for_publish=False)
        await store.delete_policy(connection, policy)
        await store.take_out_of_force(connection, policy)
        await self._tell(connection, policy, PolicyDeleted(id=policy.id, before=snapshot(policy)))

    async def withdraw(self, call: Call, policy_id: UUID, *, urgent: bool = False) -> Policy:
        """Takes a policy out of force and keeps it; one that is not in force stays as it is.

        Raises:
            DomainError: FAILED_PRECONDITION in a freeze, unless it is urgent, and while a gate
                gives it to devices that fall short.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await _locked(connection, self._vault, scope, policy_id)
            if not before.in_force and before.rollout_id is None:
                return before
            await lock_counter(connection, before.tenant_id)
            await _check_no_gate(connection, before)
            if before.in_force or await self._stages.is_live(connection, before):
                await self._stages.check_withdrawal(connection, before, urgent=urgent)
            await self._stages.make_way(connection, before, for_publish=False)
            await store.take_out_of_force(connection, before)
            policy = await store.update_policy(
                connection,
                self._vault,
                replace(before, in_force=False, rollout_id=None),
                self._clock(),
            )
            withdrawn = PolicyWithdrawn(
                id=policy.id, before=snapshot(before), after=snapshot(policy)
            )
            await self._tell(connection, policy, withdrawn)
        await self._changes.catch_up()
        return policy

    async def publish(
        self, call: Call, policy_id: UUID, publishing: Publishing = AS_USUAL
    ) -> Policy:
        """Signs a policy as it is under a new, higher version and puts it in force.

        With a plan it comes to devices in batches, and is in force when the last one has passed.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            policy = await _locked(connection, self._vault, scope, policy_id)
            published = await self._publish(connection, call, policy, publishing)
        await self._changes.catch_up()
        return published

    async def published(
        self, connection: Connection, call: Call, policy: Policy, publishing: Publishing
    ) -> Policy:
        """As `publish`, of a policy whose row is locked, without its checks of the caller.

        Once it is committed, that wants `Changes.catch_up`.
        """
        return await self._publish(connection, call, policy, publishing)

    async def rollback(self, call: Call, policy_id: UUID, version: str) -> Policy:
        """Publishes what an earlier version held, and makes that the authored form again."""
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            policy = await _locked(connection, self._vault, scope, policy_id)
            earlier = await _published(connection, self._vault, policy, version)
            await lock_counter(connection, policy.tenant_id)
            if await store.was_never_in_force(connection, earlier):
                raise never_in_force()
            now = await store.get_in_force(connection, self._vault, policy.tenant_id)
            bundle = complete(json.loads(earlier.authored), *_authored_of(now))
            values = await self._values(connection, policy.tenant_id, references(bundle))
            try:
                document = compile_rollback(earlier, bundle, standing_of(now), values)
            except DomainError as broken:
                raise not_publishable(broken) from broken
            restored = replace(
                policy, authored=as_text(bundle), merging=own_of_version(earlier).merging
            )
            published = await self._put_in_force(
                connection, call, restored, document, values, earlier.version
            )
            rolled_back = PolicyRolledBack(
                id=policy.id,
                before=snapshot(policy),
                after=snapshot_after_rollback(published, version),
            )
            await self._tell(connection, policy, rolled_back)
        await self._changes.catch_up()
        return published

    async def list_versions(
        self, call: Call, policy_id: UUID, before: int | None, limit: int
    ) -> Page[Published, int]:
        """What was published of a policy, newest first."""
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            policy = await _found(connection, self._vault, scope, policy_id)
            return await store.list_versions(
                connection, policy, before, limit, ask_secrets=not _may_see_secrets(call.caller)
            )

    async def diff(
        self, call: Call, policy_id: UUID, version: str, base: str, mask: str
    ) -> tuple[str, list[Differs]]:
        """What a version sets otherwise than `base`, or else than the one before it.

        Answers the version that it was compared with, too; empty for none.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            policy = await _found(connection, self._vault, scope, policy_id)
            after = await _published(connection, self._vault, policy, version)
            if not base:
                before = await store.get_version_before(connection, self._vault, after)
            else:
                before = await _published(connection, self._vault, policy, base)
        nothing: dict[str, Any] = {}
        found = changes(
            json.loads(own_document_of(before)) if before else nothing,
            json.loads(own_document_of(after)),
            mask,
            own_of_version(before).told if before else {},
            own_of_version(after).told,
        )
        return str(before.version) if before else "", found

    async def _authored(
        self, connection: Connection, org_id: UUID, bundle: Any, *sources: Any, draft: bool
    ) -> str:
        """The text of a bundle to store, checked, with the passphrases that are known for it."""
        if is_console_form(bundle):
            in_force = await store.get_in_force(connection, self._vault, org_id)
            bundle = complete(bundle, *sources, *_authored_of(in_force))
        values = await self._values(connection, org_id, references(bundle))
        compile_policy(bundle, draft=draft, values=values)
        return as_text(bundle)

    async def _publish(
        self,
        connection: Connection,
        call: Call,
        policy: Policy,
        publishing: Publishing = AS_USUAL,
    ) -> Policy:
        await lock_counter(connection, policy.tenant_id)
        plan = await self._stages.plan_for(connection, policy, publishing)
        if plan is not None and await self._comes_already(connection, policy, publishing):
            # Once more: another rollout of the same would begin with other devices.
            return policy
        if publishing.keeps_rollouts:
            await self._stages.check_free(connection, policy)
        in_force = await store.get_in_force(connection, self._vault, policy.tenant_id)
        # Checked again: what may be authored can be narrower than when it was written.
        bundle = complete(json.loads(policy.authored), *_authored_of(in_force))
        values = await self._values(connection, policy.tenant_id, references(bundle))
        try:
            document = compile_policy(bundle, standing_of(in_force), values=values)
        except DomainError as broken:
            raise not_publishable(broken) from broken
        filled = replace(policy, authored=as_text(bundle))
        if plan is not None:
            version, _ = await self._signed(connection, call, filled, document, values, None)
            await store.insert_version(connection, self._vault, version)
            if filled.authored != policy.authored:
                filled = await store.update_policy(connection, self._vault, filled, self._clock())
            rollout_id = await self._stages.begin(
                connection, call, filled, version, plan, publishing
            )
            return replace(filled, rollout_id=rollout_id)
        published = await self._put_in_force(connection, call, filled, document, values, None)
        event = PolicyPublished(id=policy.id, before=snapshot(policy), after=snapshot(published))
        await self._tell(connection, policy, event)
        return published

    async def _is_delivered(self, connection: Connection, policy: Policy) -> bool:
        """Whether devices get the policy exactly as it is now; locks the org's counter."""
        if policy.changed_since_publish:
            return False
        await lock_counter(connection, policy.tenant_id)
        version = await self._in_force_of(connection, policy)
        return version is not None and await self._says(connection, policy, version)

    async def _says(self, connection: Connection, policy: Policy, version: Version) -> bool:
        """Whether a version is what a publish of the policy would make of it now."""
        bundle = json.loads(policy.authored)
        values = await self._values(connection, policy.tenant_id, references(bundle))
        try:
            document = compile_policy(bundle, standing_of(version), values=values)
        except DomainError:
            return False
        # Not the documents: layers have nothing twice.
        return own_of(bundle, document, policy.merging, values) == own_of_version(version)

    async def advice(
        self, connection: Connection, policy: Policy, reference: str
    ) -> tuple[Warned, ...]:
        """Advice on a value of now, of a policy that names it."""
        bundle = json.loads(policy.authored)
        values = await self._values(connection, policy.tenant_id, references(bundle))
        return advice_on(bundle["template"], reference, replace(values, open=frozenset()))

    async def has_values(self, connection: Connection, policy: Policy) -> bool:
        """Whether devices have a policy in force with the values of now, or get it by a rollout."""
        if await self._is_delivered(connection, policy):
            return True
        if not await self.is_on_its_way(connection, policy):
            return False
        coming = await self.coming(connection, policy)
        return coming is not None and await self._says(connection, policy, coming)

    async def coming(self, connection: Connection, policy: Policy) -> Version | None:
        """The version that a rollout brings to devices, or else the one published last."""
        number = await self._stages.brings(connection, policy) or policy.published_version
        if number is None:
            return None
        return await store.get_version(connection, self._vault, policy.tenant_id, number)

    async def _comes_already(
        self, connection: Connection, policy: Policy, publishing: Publishing
    ) -> bool:
        """Whether a rollout brings the policy as it is now, where the publish asks for none of its
        own."""
        if publishing.plan is not None or not await self._stages.goes_on(
            connection, policy, urgent=publishing.urgent
        ):
            return False
        coming = await self.coming(connection, policy)
        return (
            await self.is_on_its_way(connection, policy)
            and coming is not None
            and await self._says(connection, policy, coming)
        )

    async def awaits_approval(self, connection: Connection, policy: Policy) -> bool:
        """Whether what was published of the policy last waits for a second person."""
        return await self._stages.waits(connection, policy)

    async def is_on_its_way(self, connection: Connection, policy: Policy) -> bool:
        """Whether a rollout brings the policy to devices exactly as it is now."""
        if await self._stages.brings(connection, policy) is None:
            return False
        version = await self.coming(connection, policy)
        return (
            version is not None
            and same_json(version.authored, policy.authored)
            and own_of_version(version).merging == policy.merging
            and version.targets == policy.targets.text()
        )

    async def _in_force_of(self, connection: Connection, policy: Policy) -> Version | None:
        """The policy's version that is in force for all that it is for; `None` for none."""
        number = policy.published_version
        if not policy.targets:
            version = await store.get_in_force(connection, self._vault, policy.tenant_id)
            return version if version is not None and version.policy_id == policy.id else None
        if number is None or not await is_bound(
            connection, policy.tenant_id, policy.targets, policy.id, number
        ):
            return None
        return await store.get_version(connection, self._vault, policy.tenant_id, number)

    async def _ask_for(self, org_id: UUID, targets: PolicyTargets) -> None:
        """Checks targets as far as that takes no database, and reads what is told of them."""
        check_targets(targets)
        if targets:
            node = self._tenants.known(org_id)
            if node is None or node.kind != "org":
                raise of_no_organisation()
            await self._seats.ask()

    async def _put_in_force(
        self,
        connection: Connection,
        call: Call,
        policy: Policy,
        document: bytes,
        values: Values,
        rollback_of: int | None,
    ) -> Policy:
        version, above = await self._signed(connection, call, policy, document, values, rollback_of)
        await store.insert_version(connection, self._vault, version)
        await store.put_version_in_force(connection, self._vault, version)
        await self._stages.make_way(connection, policy)
        if policy.targets:
            if await count_bound(connection, policy.tenant_id) > MOST_BOUND:
                raise too_many_bound()
        else:
            await self._around.published(connection, policy.tenant_id, above, version)
        published = replace(
            policy,
            published_version=version.version,
            changed_since_publish=False,
            in_force=True,
            rollout_id=None,
        )
        return await store.update_policy(connection, self._vault, published, version.published_at)

    async def _signed(
        self,
        connection: Connection,
        call: Call,
        policy: Policy,
        document: bytes,
        values: Values,
        rollback_of: int | None,
    ) -> tuple[Version, list[InForce]]:
        """A new version of a policy, and the layers above that it was made with."""
        now = self._clock()
        await check_there(connection, policy.tenant_id, policy.targets)
        last, reported = await lock_counter(connection, policy.tenant_id)
        number = next_version(last, reported)
        own = own_of(json.loads(policy.authored), document, policy.merging, values)
        async with seeing_all(connection, "layers are of the tenants above"):
            above = await self._around.above(
                connection, policy.tenant_id, targeted=bool(policy.targets)
            )
            previous = await previous_payload(connection, self._vault, policy.tenant_id, last)
        if above:
            node = self._tenants.known(policy.tenant_id)
            # All that counts is whether tenants below have it, too.
            level = Level.ORG if node is None or node.kind == "org" else Level.RESELLER
            source = Source(level, policy.tenant_id, policy.id, policy.name, number)
            all_of_them = together([*above, InForce(source, own)])
            # With targets it is put together for each set of them.
            document = document if policy.targets else all_of_them
        signer = self._keys.signer
        version = Version(
            tenant_id=policy.tenant_id,
            version=number,
            policy_id=policy.id,
            authored=policy.authored,
            document=document,
            signature=signer.sign(document),
            statement=signer.state(
                document,
                version=number,
                tenant=str(policy.tenant_id),
                previous=previous,
                issued_at=now,
            ),
            rollback_of=rollback_of,
            published_at=now,
            published_by=call.caller.name,
            layer=own.text(),
            inherits=bool(above) and not policy.targets,
            targets=policy.targets.text(),
            leaves=frozenset[str]() if own.open is None else own.open.names,
        )
        return version, above

    async def _tell(self, connection: Connection, policy: Policy, event: Action) -> None:
        await self._outbox.append(connection, CloudEvent(event, policy.tenant_id))


def _may_see_secrets(caller: Caller) -> bool:
    return caller.role in ACCESS[_UPDATE].roles


async def _found(
    connection: Connection,
    vault: Vault,
    scope: Scope,
    policy_id: UUID,
    *,
    for_update: bool = False,
) -> Policy:
    policy = await store.get_policy(connection, vault, scope, policy_id, for_update=for_update)
    if policy is None:
        raise not_found("policy", policy_id)
    return policy


async def _locked(connection: Connection, vault: Vault, scope: Scope, policy_id: UUID) -> Policy:
    """A policy that is about to be changed, if it is as the caller expects it."""
    policy = await _found(connection, vault, scope, policy_id, for_update=True)
    check_etag(policy.etag)
    return policy


async def _check_no_gate(connection: Connection, policy: Policy) -> None:
    """Refuses to end a policy that devices get that fall short; the org's counter is locked."""
    if await gate_store.gives_otherwise(connection, policy.tenant_id, policy.id):
        raise gives_otherwise(policy.name)


async def _published(connection: Connection, vault: Vault, policy: Policy, version: str) -> Version:
    """A version of a policy."""
    found = await store.get_version(connection, vault, policy.tenant_id, parse_version(version))
    if found is None or found.policy_id != policy.id:
        raise not_found("policy version", version)
    return found


def _authored_of(version: Version | None) -> tuple[Any, ...]:
    """What was authored of the version in force, if there is one."""
    return () if version is None else (json.loads(version.authored),)


def _changed(policy: Policy, change: Change, authored: str) -> Policy:
    """The policy with a change applied; equal to `policy` if it changes nothing."""
    if same_json(authored, policy.authored):
        authored = policy.authored
    return replace(
        policy,
        name=policy.name if change.name is None else change.name,
        description=policy.description if change.description is None else change.description,
        authored=authored,
        merging=policy.merging if change.merging is None else change.merging,
        targets=policy.targets if change.targets is None else change.targets,
        changed_since_publish=policy.changed_since_publish
        or (change.targets is not None and change.targets != policy.targets)
        or (change.merging is not None and change.merging.stored() != policy.merging.stored())
        or what_counts(json.loads(authored)) != what_counts(json.loads(policy.authored)),
    )
