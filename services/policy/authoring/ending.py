"""Ends what is in force for groups and devices that the registry deleted, and says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from contract.events.policy import PolicyWithdrawn
from servicekit.call import SYSTEM_CALL
from servicekit.data.postgres import Connection, Scope
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.security.sealing import SealingError
from services.policy.authoring import store
from services.policy.authoring.domain import snapshot
from services.policy.targets.store import unbind_targets
from services.policy.vault import Vault

log = logs.get(__name__)


class Endings:
    """What becomes of policies when the groups and devices that they are for are deleted."""

    def __init__(self, vault: Vault, outbox: Outbox) -> None:
        self._vault = vault
        self._outbox = outbox

    async def end(self, connection: Connection, target_ids: Sequence[UUID]) -> None:
        """Takes policies out of force for groups and devices.

        One that is in force for nobody any more is told of as withdrawn. No policy is locked: a
        publish holds its lock while it waits for the rows of groups and devices, which the caller
        has locked.

        Args:
            connection: of a transaction that sees all tenants.
            target_ids: the groups and devices.
        """
        for tenant_id, policy_id in await unbind_targets(connection, target_ids):
            try:
                policy = await store.get_policy(
                    connection, self._vault, Scope.of(tenant_id), policy_id
                )
            except SealingError as broken:
                # The registry's feed goes on.
                log.error("withdrawal not told", policy=str(policy_id), error=str(broken))
                continue
            if policy is None or policy.in_force:
                continue
            withdrawn = PolicyWithdrawn(
                id=policy_id,
                before=snapshot(replace(policy, in_force=True)),
                after=snapshot(policy),
            )
            # Whose call had the registry's feed read has nothing to do with it.
            event = CloudEvent(withdrawn, tenant_id, call=SYSTEM_CALL)
            await self._outbox.append(connection, event)
