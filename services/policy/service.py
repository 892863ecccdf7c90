"""Administration of policies: one transaction a use case, with its event in the same one."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from servicekit.call import Caller
from servicekit.errors import aborted, invalid_field, not_found
from servicekit.events import Event
from servicekit.ids import Clock, new_id
from servicekit.outbox import Outbox
from servicekit.postgres import Connection, Database, Scope
from servicekit.tenants import TenantDirectory
from services.policy import store
from services.policy.devices import DeviceDirectory
from services.policy.domain import (
    Policy,
    Published,
    Version,
    audited,
    compile_policy,
    next_version,
    parse_version,
)
from services.policy.keys import KeyRing

Refresh = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Change:
    """What an update changes; `None` leaves a field as it is."""

    name: str | None = None
    description: str | None = None
    org_id: str | None = None
    bundle: Any = None
    has_bundle: bool = False
    etag: str | None = None


class PolicyService:
    """The use cases of administrators.

    `refresh` makes what was committed known to the delivery in this process.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        devices: DeviceDirectory,
        keys: KeyRing,
        refresh: Refresh,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._devices = devices
        self._keys = keys
        self._refresh = refresh
        self._clock = clock

    async def list_policies(
        self, caller: Caller, org_id: str, after: UUID | None, limit: int
    ) -> list[Policy]:
        """The policies of an org, or of the caller's whole subtree, without bundles."""
        scope = await self._tenants.query_scope(caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await store.list_policies(connection, scope, after, limit)

    async def get(self, caller: Caller, policy_id: UUID) -> Policy:
        """One policy."""
        scope = await self._tenants.query_scope(caller, "")
        async with self._database.transaction(scope) as connection:
            return await _found(connection, scope, policy_id)

    async def create(
        self, caller: Caller, *, org_id: str, name: str, description: str | None, bundle: Any
    ) -> Policy:
        """Stores a new policy after checking its bundle; no device gets it yet."""
        org = await self._tenants.require_org(caller, org_id)
        compile_policy(bundle)
        now = self._clock()
        policy = Policy(
            id=new_id(),
            tenant_id=org.id,
            name=name,
            description=description,
            authored=_as_text(bundle),
            revision=1,
            published_version=None,
            changed_since_publish=True,
            in_force=False,
            created_at=now,
            updated_at=now,
        )
        async with self._database.transaction(Scope((org.id,))) as connection:
            await store.insert_policy(connection, policy)
            await self._tell(connection, "policy.created", policy, None, audited(policy))
        return policy

    async def update(self, caller: Caller, policy_id: UUID, change: Change) -> Policy:
        """Changes a policy; devices keep what was published."""
        if change.has_bundle:
            compile_policy(change.bundle)
        scope = await self._tenants.query_scope(caller, "")
        async with self._database.transaction(scope) as connection:
            policy = await _found(connection, scope, policy_id, lock=True)
            if change.etag and change.etag != policy.etag:
                raise aborted(
                    "ETAG_MISMATCH", "the policy was changed since you read it; read it again"
                )
            if change.org_id and UUID(change.org_id) != policy.tenant_id:
                raise invalid_field("orgId", "must stay what it is; create a policy there instead")
            authored = _as_text(change.bundle) if change.has_bundle else policy.authored
            changed = await store.update_policy(
                connection,
                replace(
                    policy,
                    name=policy.name if change.name is None else change.name,
                    description=policy.description
                    if change.description is None
                    else change.description,
                    authored=authored,
                    changed_since_publish=policy.changed_since_publish
                    or authored != policy.authored,
                ),
                self._clock(),
            )
            await self._tell(
                connection, "policy.updated", policy, audited(policy), audited(changed)
            )
        return changed

    async def delete(self, caller: Caller, policy_id: UUID) -> None:
        """Deletes a policy; if it was in force, nothing is from now on."""
        scope = await self._tenants.query_scope(caller, "")
        async with self._database.transaction(scope) as connection:
            policy = await _found(connection, scope, policy_id, lock=True)
            await store.delete_policy(connection, policy)
            await self._tell(connection, "policy.deleted", policy, audited(policy), None)
        if policy.in_force:
            await self._refresh()

    async def publish(self, caller: Caller, policy_id: UUID) -> Policy:
        """Signs a policy as it is under a new, higher version and puts it in force."""
        scope = await self._tenants.query_scope(caller, "")
        async with self._database.transaction(scope) as connection:
            policy = await _found(connection, scope, policy_id, lock=True)
            # Checked again: what may be authored can be narrower than when it was written.
            document = compile_policy(json.loads(policy.authored))
            published = await self._put_in_force(connection, caller, policy, document, None)
            await self._tell(
                connection, "policy.published", policy, audited(policy), audited(published)
            )
        await self._refresh()
        return published

    async def rollback(self, caller: Caller, policy_id: UUID, version: str) -> Policy:
        """Publishes what an earlier version held, and makes that the authored form again."""
        scope = await self._tenants.query_scope(caller, "")
        async with self._database.transaction(scope) as connection:
            policy = await _found(connection, scope, policy_id, lock=True)
            earlier = await store.get_version(connection, policy.tenant_id, parse_version(version))
            if earlier is None or earlier.policy_id != policy.id:
                raise not_found("policy version", version)
            restored = replace(policy, authored=earlier.authored)
            published = await self._put_in_force(
                connection, caller, restored, earlier.document, earlier.version
            )
            await self._tell(
                connection,
                "policy.rolled_back",
                policy,
                audited(policy),
                {**audited(published), "rollbackOf": version},
            )
        await self._refresh()
        return published

    async def list_versions(
        self, caller: Caller, policy_id: UUID, before: int | None, limit: int
    ) -> list[Published]:
        """What was published of a policy, newest first."""
        scope = await self._tenants.query_scope(caller, "")
        async with self._database.transaction(scope) as connection:
            policy = await _found(connection, scope, policy_id)
            return await store.list_versions(connection, policy, before, limit)

    async def sync_device(self, caller: Caller, device_id: UUID) -> datetime:
        """Has a device apply its policy again at its next poll."""
        scope = await self._tenants.query_scope(caller, "")
        org_id = await self._devices.org_of_active(scope, device_id)
        now = self._clock()
        async with self._database.transaction(scope) as connection:
            await store.request_sync(connection, device_id, org_id, now)
            await self._outbox.append(
                connection,
                Event(
                    "policy.device_sync_requested",
                    org_id,
                    f"devices/{device_id}",
                    after={"requestedAt": now.isoformat().replace("+00:00", "Z")},
                ),
            )
        await self._refresh()
        return now

    async def _put_in_force(
        self,
        connection: Connection,
        caller: Caller,
        policy: Policy,
        document: bytes,
        rollback_of: int | None,
    ) -> Policy:
        now = self._clock()
        last, reported = await store.lock_counter(connection, policy.tenant_id)
        before = await store.get_version(connection, policy.tenant_id, last)
        number = next_version(last, reported)
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
                previous=before.statement.payload if before else None,
                issued_at=now,
            ),
            rollback_of=rollback_of,
            published_at=now,
            published_by=caller.name,
        )
        await store.put_in_force(connection, version)
        published = replace(
            policy, published_version=number, changed_since_publish=False, in_force=True
        )
        return await store.update_policy(connection, published, now)

    async def _tell(
        self,
        connection: Connection,
        name: str,
        policy: Policy,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
    ) -> None:
        event = Event(name, policy.tenant_id, f"policies/{policy.id}", before, after)
        await self._outbox.append(connection, event)


async def _found(
    connection: Connection, scope: Scope, policy_id: UUID, *, lock: bool = False
) -> Policy:
    policy = await store.get_policy(connection, scope, policy_id, lock=lock)
    if policy is None:
        raise not_found("policy", str(policy_id))
    return policy


def _as_text(bundle: Any) -> str:
    return json.dumps(bundle, ensure_ascii=False, separators=(",", ":"))
