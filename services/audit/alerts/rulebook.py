"""Whose rules count for a tenant: its own, or those of the nearest tenant above that has some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from servicekit.peers.tenants import TenantNode
from services.audit.alerts.domain import Rules


def effective(line: Sequence[TenantNode], said: Mapping[UUID, Rules]) -> Rules:
    """What counts for the last tenant of a line.

    Args:
        line: a tenant with those above it, the root first.
        said: what tenants have said.
    """
    for node in reversed(line):
        if node.id in said:
            return said[node.id]
    return Rules(line[0].id if line else UUID(int=0))
