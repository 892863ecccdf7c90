"""Templates of tenants above that take a tenant's values in place of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final, Protocol
from uuid import UUID

from servicekit.call import Call
from servicekit.data.postgres import Connection, seeing_all
from servicekit.errors import DomainError
from servicekit.peers.tenants import TenantDirectory
from services.policy.authoring.domain import advice_on
from services.policy.authoring.filling import as_published
from services.policy.authoring.layering import InForce, own_of_version, together
from services.policy.authoring.store import get_version
from services.policy.variables import store
from services.policy.variables.domain import Advice, Taking, Variable
from services.policy.vault import Vault

_WHY: Final = "templates are of tenants above"
MOST_LOOKED_AT: Final = 100
"""Organisations below that are looked at when a value is set."""


class Layers(Protocol):
    """What is in force for tenants and those above them."""

    async def of_several(
        self, connection: Connection, tenant_ids: Collection[UUID]
    ) -> dict[UUID, list[InForce]]:
        """The layers of each, the root's first."""


class Deciding(Protocol):
    """Who may change at any time what devices have."""

    async def check_values(
        self, connection: Connection, call: Call, tenant_id: UUID, *, urgent: bool
    ) -> None:
        """Refuses it in a freeze, and of one person where two have to agree."""


class Above:
    """Which templates take a value, and what follows from that: devices get it at once."""

    def __init__(self, tenants: TenantDirectory, layers: Layers, deciding: Deciding) -> None:
        self._tenants = tenants
        self._layers = layers
        self._deciding = deciding

    async def taking(self, connection: Connection, variable: Variable) -> list[Taking]:
        """The policies in force above that take a value of this name."""
        ids = self._tenants.above(variable.tenant_id)
        async with seeing_all(connection, _WHY):
            return await store.leaving(connection, ids, variable.reference)

    async def advice(
        self, connection: Connection, vault: Vault, variable: Variable, taking: Sequence[Taking]
    ) -> list[Advice]:
        """Advice on a value that was set, of policies above that take it."""
        found: list[Advice] = []
        for one in taking[:MOST_LOOKED_AT]:
            async with seeing_all(connection, _WHY):
                version = await get_version(connection, vault, one.tenant_id, one.version)
            left = None if version is None else own_of_version(version).open
            if left is None:
                continue
            own = await store.values(connection, vault, variable.tenant_id, left.names)
            values = replace(left.values, of={**left.values.of, **own.of}, open=frozenset())
            warned = advice_on(left.template, variable.reference, values)
            found += [Advice(one.name, each) for each in warned]
        return found

    async def open_names(self, connection: Connection, tenant_id: UUID) -> set[str]:
        """The names of secrets that policies in force above take from a tenant."""
        async with seeing_all(connection, _WHY):
            found = await store.left_open(connection, self._tenants.above(tenant_id))
        return {one.removeprefix("secret.") for one in found if one.startswith("secret.")}

    async def check_change(
        self, connection: Connection, call: Call, variable: Variable, *, urgent: bool
    ) -> bool:
        """Checks that what devices have may change now; answers whether it changes at all.

        Raises:
            DomainError: FAILED_PRECONDITION in a freeze, unless it is urgent; PERMISSION_DENIED
                where a second person has to agree and the caller cannot do without.
        """
        if not await self.taking(connection, variable):
            return False
        await self._deciding.check_values(connection, call, variable.tenant_id, urgent=urgent)
        return True

    async def misfit(self, connection: Connection, tenant_id: UUID) -> str:
        """Why devices cannot apply the templates with the tenant's values as they are now, and for
        which organisation below; empty where they can.

        Devices are those of organisations. So of a tenant between those below are looked at, as far
        as theirs fit until now: first those with policies or values of their own. Of the others one
        is as good as all.
        """
        below = [
            node.id
            for node in self._tenants.subtree(tenant_id)
            if node.kind == "org" and node.id != tenant_id and not node.going
        ]
        async with seeing_all(connection, _WHY):
            some = await store.differing(connection, below, MOST_LOOKED_AT)
            if len(some) < MOST_LOOKED_AT:
                some += [one for one in below if one not in some][:1]
            some = some or [tenant_id]
            found = await self._layers.of_several(connection, some)
            held = await store.held(connection, [one for one in some if one != tenant_id])
        for one in some:
            await asyncio.sleep(0)
            if one not in held and (problem := _problem(found[one])):
                node = self._tenants.known(one)
                whom = "" if node is None or one == tenant_id else f", for {node.name} below"
                return f"does not fit where a policy above names it{whom}: {problem}"
        return ""


def _problem(layers: Sequence[InForce]) -> str:
    """Why layers do not fit with values of tenants below; empty where they do, and where they would
    not without."""
    try:
        together(layers)
    except DomainError as unfit:
        with suppress(DomainError):
            together(as_published(layers))
            return unfit.message
    return ""
