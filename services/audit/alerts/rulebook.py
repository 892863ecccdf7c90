"""Whose rules count for a tenant: its own, or those of the nearest tenant above that has some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from servicekit.peers.tenants import TenantNode
from services.audit.alerts.domain import Rules


def effective(tenant: TenantNode, line: Sequence[TenantNode], said: Mapping[UUID, Rules]) -> Rules:
    """What counts for a tenant.

    Args:
        tenant: the tenant.
        line: the tenant with those above it, the root first.
        said: what tenants have said.
    """
    for node in reversed(line):
        if node.id in said:
            return said[node.id]
    return Rules(line[0].id if line else tenant.id)


def working(tenant: TenantNode, line: Sequence[TenantNode], said: Mapping[UUID, Rules]) -> Rules:
    """As `effective`, and for a tenant that is archived or being deleted nothing at all."""
    if tenant.status != "active":
        return Rules.nothing(tenant.id)
    return effective(tenant, line, said)
