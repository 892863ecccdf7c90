"""Who may call what: the one table of all RPCs.

The services' call chain, the gateway's configuration and the tests are made from it. An RPC
without a row is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

PACKAGE: Final = "evergreen.v1"


class Audience(Enum):
    """Whose credentials an RPC takes."""

    PUBLIC = "public"
    """Anyone; a token, if given, is not looked at."""
    DEVICE = "device"
    """A device with a valid token of its own."""
    DEVICE_LAPSED = "device-lapsed"
    """A device whose token may have expired up to 90 days ago."""
    USER = "user"
    """A logged-in user with one of the rule's roles."""
    INTERNAL = "internal"
    """Another service, over the internal listener that the gateway never reaches."""


class Role(Enum):
    """What a user may do in the user's tenant and all below it."""

    OWNER = "Owner"
    ADMIN = "Admin"
    AUDITOR = "Auditor"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table."""

    context: str
    """The bounded context that serves the RPC."""
    audience: Audience
    roles: frozenset[Role] = frozenset()
    """The roles that may call it; only for `Audience.USER`."""
    writes: bool = False
    """Whether it changes state; every such call of a user is found in the audit log."""


_READ: Final = frozenset({Role.OWNER, Role.ADMIN, Role.AUDITOR})
_WRITE: Final = frozenset({Role.OWNER, Role.ADMIN})
_OWN: Final = frozenset({Role.OWNER})


_Row = tuple[Audience, frozenset[Role], bool]


def _row(audience: Audience, roles: frozenset[Role] = frozenset(), writes: bool = False) -> _Row:
    return audience, roles, writes


_OPEN: Final = _row(Audience.PUBLIC)
_OPEN_WRITE: Final = _row(Audience.PUBLIC, writes=True)
_POLL: Final = _row(Audience.DEVICE_LAPSED)
_REPORT: Final = _row(Audience.DEVICE, writes=True)
_SERVICES: Final = _row(Audience.INTERNAL)
_USER_READ: Final = _row(Audience.USER, _READ)
_USER_OWN: Final = _row(Audience.USER, _READ, writes=True)
_ADMIN_WRITE: Final = _row(Audience.USER, _WRITE, writes=True)
_OWNER_WRITE: Final = _row(Audience.USER, _OWN, writes=True)

_TABLE: Final[dict[str, dict[str, dict[str, _Row]]]] = {
    "identity": {
        "AuthService": {
            "Login": _OPEN_WRITE,
            "RefreshSession": _OPEN_WRITE,
            "AcceptInvitation": _OPEN_WRITE,
            "GetSession": _USER_READ,
            "Logout": _USER_OWN,
            "ChangePassword": _USER_OWN,
        },
        "TenantService": {
            "ListTenants": _USER_READ,
            "GetTenant": _USER_READ,
            "CreateTenant": _OWNER_WRITE,
            "UpdateTenant": _OWNER_WRITE,
        },
        "UserService": {
            "ListUsers": _USER_READ,
            "GetUser": _USER_READ,
            "CreateUser": _ADMIN_WRITE,
            "UpdateUser": _ADMIN_WRITE,
            "DeactivateUser": _ADMIN_WRITE,
            "InviteUser": _ADMIN_WRITE,
        },
        "EventCredentialService": {
            "ListEventCredentials": _USER_READ,
            "CreateEventCredential": _ADMIN_WRITE,
            "RevokeEventCredential": _ADMIN_WRITE,
        },
        "TokenKeyService": {"GetJwks": _OPEN},
        "IdentityInternalService": {
            "IssueDeviceToken": _SERVICES,
            "ListAccessChanges": _SERVICES,
        },
    },
    "enrollment": {
        "DeviceService": {"EnrollDevice": _OPEN_WRITE},
        "EnrollmentTokenService": {
            "ListEnrollmentTokens": _USER_READ,
            "GetEnrollmentToken": _USER_READ,
            "CreateEnrollmentToken": _ADMIN_WRITE,
            "RevokeEnrollmentToken": _ADMIN_WRITE,
        },
        "DeviceRegistryService": {
            "ListRegistrations": _USER_READ,
            "GetRegistration": _USER_READ,
            "ApproveDevice": _ADMIN_WRITE,
            "RejectDevice": _ADMIN_WRITE,
            "AllowReenrollment": _ADMIN_WRITE,
            "DecommissionDevice": _ADMIN_WRITE,
            "PrepareDevice": _ADMIN_WRITE,
        },
        "EnrollmentInternalService": {"ListDeviceChanges": _SERVICES},
    },
    "policy": {
        "DeviceService": {"PullPolicy": _POLL},
        "PolicyService": {
            "ListPolicies": _USER_READ,
            "GetPolicy": _USER_READ,
            "CreatePolicy": _ADMIN_WRITE,
            "UpdatePolicy": _ADMIN_WRITE,
            "DeletePolicy": _ADMIN_WRITE,
            "PublishPolicy": _ADMIN_WRITE,
            "RollbackPolicy": _ADMIN_WRITE,
            "ListPolicyVersions": _USER_READ,
            "SyncDevice": _ADMIN_WRITE,
        },
        "PolicyKeyService": {
            "ListPolicyKeys": _OPEN,
            "GetPolicyKeysPem": _OPEN,
        },
        "PolicyInternalService": {
            "GetDevicePolicy": _SERVICES,
            "ListAppliedVersions": _SERVICES,
        },
    },
    "telemetry": {
        "DeviceService": {
            "ReportState": _REPORT,
            "ReportEvents": _REPORT,
        },
        "InventoryService": {
            "ListDevices": _USER_READ,
            "GetDevice": _USER_READ,
            "ExportDevices": _USER_READ,
        },
        "EventService": {
            "ListEvents": _USER_READ,
            "ExportEvents": _USER_READ,
            "ListQuarantinedEvents": _USER_READ,
            "ExportQuarantinedEvent": _USER_READ,
            "GetEventRetention": _USER_READ,
            "UpdateEventRetention": _ADMIN_WRITE,
        },
    },
    "attestation": {
        "DeviceService": {"AttestBoot": _REPORT},
        "AttestationService": {
            "CreateChallenge": _REPORT,
            "ListAttestations": _USER_READ,
            "GetAttestation": _USER_READ,
            "ListReferenceValues": _USER_READ,
            "CreateReferenceValue": _ADMIN_WRITE,
            "DeleteReferenceValue": _ADMIN_WRITE,
        },
    },
    "audit": {
        "AuditService": {
            "ListAuditEntries": _USER_READ,
            "GetAuditEntry": _USER_READ,
            "GetAuditCheckpoint": _USER_READ,
            "ExportAuditEntries": _USER_READ,
            "GetAuditKeysPem": _OPEN,
        },
    },
}

ACCESS: Final[Mapping[str, Rule]] = {
    f"/{PACKAGE}.{service}/{method}": Rule(context, *row)
    for context, services in _TABLE.items()
    for service, methods in services.items()
    for method, row in methods.items()
}
"""Every RPC by its full method name, `/evergreen.v1.<Service>/<Method>`."""

CONTEXTS: Final = tuple(_TABLE)
"""The bounded contexts, in the order in which they depend on each other."""
