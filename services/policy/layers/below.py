"""The tenants below one whose template leaves values to them, and what tells their values apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final, TypeAlias
from uuid import UUID

from servicekit.peers.tenants import TenantNode
from servicekit.security.digests import sha256_hex

OF_ORG: Final = "org."
"""With this begin the names of what each organisation has by itself."""
Changes: TypeAlias = Mapping[str, int]
"""The values that a tenant has of its own, by what templates call them, each with a number that
changes with it and never comes again."""


@dataclass(frozen=True, slots=True)
class Below:
    """The tenants below the one of a template, to the one that the layers are for."""

    tenant_id: UUID
    """The latter."""
    code: str
    name: str
    changes: tuple[tuple[UUID, Changes], ...] = ()
    """Of each tenant, the nearest one's first; without those that have no values of their own."""

    def mark(self, names: Set[str]) -> str:
        """Tells what may be put in from anything else; empty for nothing.

        Two organisations have the same mark only where nothing is put in that is of one of them.

        Args:
            names: those that the template leaves open.
        """
        said: list[object] = [
            [str(tenant_id), [(name, changes[name]) for name in sorted(named)]]
            for tenant_id, changes in self.changes
            if (named := names & changes.keys())
        ]
        if any(one.startswith(OF_ORG) for one in names):
            said.append([str(self.tenant_id), self.code, self.name])
        return sha256_hex(json.dumps(said).encode())[:32] if said else ""


NOBODY: Final = Below(UUID(int=0), "", "")


def below(line: Sequence[TenantNode], changes_of: Callable[[UUID], Changes | None]) -> Below:
    """The tenants below one with a template, from the upper ones to the one that layers are for.

    Without any, which is so for the tenant's own layers, nothing is put in.
    """
    if not line:
        return NOBODY
    found = ((node.id, changes_of(node.id)) for node in reversed(line))
    last = line[-1]
    return Below(last.id, last.code, last.name, tuple((id_, one) for id_, one in found if one))
