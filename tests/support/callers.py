"""Callers as the gateway vouches for them: the metadata of calls that skip the gateway."""

from __future__ import annotations

import time
from uuid import UUID, uuid4

from contract.access import Role

Metadata = tuple[tuple[str, str], ...]


def user(
    tenant_id: UUID | str,
    role: Role = Role.OWNER,
    *,
    user_id: UUID | str | None = None,
    session_id: UUID | str | None = None,
    email: str = "someone@example.org",
    source_ip: str = "192.0.2.7",
) -> Metadata:
    """A logged-in user."""
    issued = int(time.time())
    return (
        ("x-evergreen-kind", "user"),
        ("x-evergreen-subject", str(user_id or uuid4())),
        ("x-evergreen-tenant", str(tenant_id)),
        ("x-evergreen-role", role.value),
        ("x-evergreen-email", email),
        ("x-evergreen-session", str(session_id or uuid4())),
        ("x-evergreen-token-issued", str(issued)),
        ("x-evergreen-token-authenticated", str(issued)),
        ("x-evergreen-token-expires", str(issued + 3600)),
        ("x-request-id", str(uuid4())),
        ("x-envoy-external-address", source_ip),
    )


def device(
    device_id: UUID | str,
    tenant_id: UUID | str,
    *,
    version: int = 1,
    issued: float | None = None,
    expires: float | None = None,
) -> Metadata:
    """A device with a token of its own; times are seconds since 1970."""
    at = issued if issued is not None else time.time()
    return (
        ("x-evergreen-kind", "device"),
        ("x-evergreen-subject", str(device_id)),
        ("x-evergreen-tenant", str(tenant_id)),
        ("x-evergreen-token-version", str(version)),
        ("x-evergreen-token-issued", str(int(at))),
        ("x-evergreen-token-expires", str(int(expires if expires is not None else at + 86400))),
        ("x-request-id", str(uuid4())),
        ("x-envoy-external-address", "192.0.2.8"),
    )


def anonymous(source_ip: str = "192.0.2.9") -> Metadata:
    """Somebody without a token."""
    return (("x-request-id", str(uuid4())), ("x-envoy-external-address", source_ip))
