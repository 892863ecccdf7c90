"""The tenants below one whose template leaves values to them, and what tells their values apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias
from uuid import UUID

from servicekit.peers.tenants import TenantNode
from servicekit.security.digests import sha256_hex

OF_ORG: Final = "org."
"""With this begin the names of what each organisation has by itself."""
Revision: TypeAlias = tuple[UUID, int]
"""A tenant, and a number that changes with each value of its own."""


@dataclass(frozen=True, slots=True)
class Below:
    """The tenants below the one of a template, to the one that the layers are for."""

    tenant_id: UUID
    """The latter."""
    code: str
    name: str
    revisions: tuple[Revision, ...] = ()
    """The nearest tenant's first; without those that have no values of their own."""

    def mark(self, names: Iterable[str]) -> str:
        """Tells what is put in from anything else that may be; empty for nothing.

        Args:
            names: those that the template leaves open.
        """
        said: list[object] = []
        if any(not one.startswith(OF_ORG) for one in names):
            said += [[str(tenant_id), revision] for tenant_id, revision in self.revisions]
        if any(one.startswith(OF_ORG) for one in names):
            said += [self.code, self.name]
        return sha256_hex(json.dumps(said).encode())[:32] if said else ""


NOBODY: Final = Below(UUID(int=0), "", "")


def below(line: Sequence[TenantNode], revisions: Iterable[Revision]) -> Below:
    """The tenants below one with a template, from the upper ones to the one that layers are for.

    Without any, which is so for the tenant's own layers, nothing is put in.
    """
    last = line[-1] if line else None
    return NOBODY if last is None else Below(last.id, last.code, last.name, tuple(revisions))
