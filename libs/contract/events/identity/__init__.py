"""What identity tells, one module for each part of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from contract.events.base import Action, CallsRefused
from contract.events.identity import programs, scim, sign_in, sources, tenants, users


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityCallsRefused(CallsRefused):
    """Calls of a user to identity were refused.

    Told every ten seconds, once for each user, RPC and reason. `ROLE_MAY_NOT`: the user's role may
    not do this. `FOREIGN_TENANT`: the call names a tenant that exists, and is not below the user's.
    """

    NAME: ClassVar[str] = "identity.calls_refused"


_PARTS: Final = (tenants, users, sign_in, programs, sources, scim)

EXAMPLES: Final[tuple[Action, ...]] = (
    *(example for part in _PARTS for example in part.EXAMPLES),
    IdentityCallsRefused.example("UserService/CreateUser"),
)
"""One of each; this is the list of what identity sends."""
