"""The catalogue: every event that the product sends, and what is in it.

An outbox takes no event that is not here, the streams' subjects and the AsyncAPI document are made
from it (`tools/asyncapi`), and the tests hold what is really sent against it. Schemas are JSON
Schema, draft 7, as AsyncAPI has it. Additions to an event are no breaking change: whoever reads
events has to ignore members that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Schema = Mapping[str, Any]

DEVICE_EVENTS: Final = "telemetry.device_events"
"""The one event that does not come from an outbox, and has a stream of its own."""

_TEXT: Final = {"type": "string"}
_FLAG: Final = {"type": "boolean"}
_NUMBER: Final = {"type": "integer"}
_UUID: Final = {"type": "string", "format": "uuid"}
_TIME: Final = {"type": "string", "format": "date-time"}
_ID_A: Final = "01936d2e-5a70-7c31-9d0e-3f6f1a8b2c01"
_ID_B: Final = "01936d2e-9c14-7a02-8b77-51d2c3e4f506"
_AT: Final = "2026-09-01T07:58:03Z"


def _or_null(schema: Schema) -> Schema:
    return {"oneOf": [schema, {"type": "null"}]}


def _object(about: str, /, **members: Schema) -> Schema:
    """An object with exactly these members known; further ones may come."""
    return {
        "type": "object",
        "description": about,
        "properties": members,
        "required": list(members),
    }


_TENANT: Final = _object(
    "A tenant.",
    name=_TEXT,
    code=_TEXT,
    kind={"enum": ["root", "reseller", "org"]},
    parentId=_or_null(_UUID),
)
_USER: Final = _object(
    "A user.",
    email=_TEXT,
    role={"enum": ["Owner", "Admin", "Auditor"]},
    status={"enum": ["active", "invited", "disabled"]},
    tenantId=_UUID,
)
_LOGIN: Final = _object("Who tried.", email=_TEXT)
_SESSION: Final = _object("The session that was opened.", email=_TEXT, sessionId=_UUID)
_SESSION_END: Final = _object("The session that has ended.", sessionId=_UUID)
_REUSE: Final = _object("The session that was ended for it.", sessionId=_UUID, sessionEnded=_FLAG)
_CREDENTIAL: Final = _object(
    "A credential that reads events; never its secret.",
    name=_TEXT,
    tenantId=_UUID,
    expiresAt=_or_null(_TIME),
    revokedAt=_or_null(_TIME),
)
_TOKEN: Final = _object(
    "An enrollment token; never its secret.",
    name=_TEXT,
    orgId=_UUID,
    expiresAt=_or_null(_TIME),
    maxUses=_or_null(_NUMBER),
    uses=_NUMBER,
    serialCount=_NUMBER,
    requireApproval=_FLAG,
    revokedAt=_or_null(_TIME),
)
_DEVICE: Final = _object(
    "A device in the registry.",
    serial=_TEXT,
    model=_TEXT,
    orgId=_UUID,
    status=_TEXT,
    tokenVersion=_NUMBER,
    enrollmentTokenId=_or_null(_UUID),
    reenrollmentAllowedUntil=_or_null(_TIME),
)
_POLICY: Final = _object(
    "A policy, its secrets blotted out; a very large bundle is replaced by its SHA-256.",
    name=_TEXT,
    description=_or_null(_TEXT),
    orgId=_UUID,
    version={"type": "string", "description": "The version that was published last; 0 if none."},
    inForce=_FLAG,
    bundle={},
)
_SYNC: Final = _object("The wish.", requestedAt=_TIME)
_EXPIRY: Final = _object("When the token expires.", expiresAt=_or_null(_TIME))
_DAYS: Final = _object("Days; null for the default.", days=_or_null(_NUMBER))
_EXPORT: Final = _object(
    "What was asked for.",
    format=_TEXT,
    filter={"type": "object", "description": "The filters that were given."},
)
_RESTORED: Final = _object(
    "Up to when, and up to which entry of the chain, the backup goes.",
    point=_TIME,
    sequence=_NUMBER,
    hash=_TEXT,
    release=_TEXT,
)
_REPORTED: Final = _object(
    "What a device reported.",
    id=_UUID,
    deviceId=_UUID,
    eventId={"type": "string", "description": "The id that the device gave it."},
    type=_TEXT,
    severity=_TEXT,
    message=_TEXT,
    occurredAt={"type": "string", "format": "date-time", "description": "By the device's clock."},
    receivedAt=_TIME,
    payload={"description": "Any JSON, exactly as the device sent it."},
)

_A_TENANT: Final = {"name": "North school", "code": "north", "kind": "org", "parentId": _ID_A}
_A_USER: Final = {
    "email": "admin@school.example",
    "role": "Admin",
    "status": "active",
    "tenantId": _ID_A,
}
_A_CREDENTIAL: Final = {
    "name": "SIEM",
    "tenantId": _ID_A,
    "expiresAt": None,
    "revokedAt": None,
}
_A_TOKEN: Final = {
    "name": "Room 12",
    "orgId": _ID_A,
    "expiresAt": _AT,
    "maxUses": 30,
    "uses": 0,
    "serialCount": 0,
    "requireApproval": False,
    "revokedAt": None,
}
_A_DEVICE: Final = {
    "serial": "SN-0042",
    "model": "Latitude 3340",
    "orgId": _ID_A,
    "status": "active",
    "tokenVersion": 1,
    "enrollmentTokenId": _ID_B,
    "reenrollmentAllowedUntil": None,
}
_A_POLICY: Final = {
    "name": "Laptops",
    "description": "",
    "orgId": _ID_A,
    "version": "3",
    "inForce": True,
    "bundle": {"browser": {"homepage": "https://school.example"}},
}
_AN_EVENT: Final = {
    "id": _ID_A,
    "deviceId": _ID_B,
    "eventId": "17",
    "type": "app.install_failed",
    "severity": "error",
    "message": "disk full",
    "occurredAt": _AT,
    "receivedAt": _AT,
    "payload": {"app": "org.gnome.Calculator"},
}


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a change: its schema, and an example."""

    schema: Schema
    example: Mapping[str, Any]
    always: bool = True
    """Whether it is never null."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of event."""

    name: str
    """`<context>.<what_happened>`."""
    summary: str
    resource: str
    """What it happened to, with `{id}` for its id."""
    before: Side | None = None
    """What `before` holds; `None` when it is always null."""
    after: Side | None = None

    @property
    def context(self) -> str:
        """The service that sends it."""
        return self.name.partition(".")[0]

    def data(self) -> Schema:
        """The schema of the CloudEvent's `data`."""
        if self.name == DEVICE_EVENTS:
            return _object(
                "Events of devices, those of each device in the order in which they were stored.",
                events={"type": "array", "items": _REPORTED, "minItems": 1},
            )
        return _object(
            "Who did what.",
            action={"const": self.name},
            resource={"type": "string", "description": f"`{self.resource}`"},
            actor={
                "type": "string",
                "description": "An e-mail address, `device:<id>`, `system` or `anonymous`.",
            },
            actorId=_TEXT,
            actorRole={"enum": ["", "Owner", "Admin", "Auditor"]},
            sourceIp=_TEXT,
            requestId=_TEXT,
            before=_side(self.before),
            after=_side(self.after),
        )

    def example(self) -> Mapping[str, Any]:
        """An example of the CloudEvent's `data`."""
        if self.name == DEVICE_EVENTS:
            return {"events": [_AN_EVENT]}
        return {
            "action": self.name,
            "resource": self.resource.replace("{id}", _ID_B),
            "actor": "admin@school.example",
            "actorId": _ID_A,
            "actorRole": "Admin",
            "sourceIp": "192.0.2.17",
            "requestId": "6f0e1a52-64a8-4f8e-9b39-0d1f5b7a9c11",
            "before": self.before.example if self.before else None,
            "after": self.after.example if self.after else None,
        }


def _side(side: Side | None) -> Schema:
    if side is None:
        return {"type": "null"}
    return side.schema if side.always else _or_null(side.schema)


def _tenant(name: str, summary: str, before: bool) -> Kind:
    old = Side(_TENANT, _A_TENANT) if before else None
    return Kind(f"identity.{name}", summary, "tenants/{id}", old, Side(_TENANT, _A_TENANT))


def _user(name: str, summary: str, before: Side | None = None, after: Side | None = None) -> Kind:
    return Kind(f"identity.{name}", summary, "users/{id}", before, after)


def _device(name: str, summary: str, before: str) -> Kind:
    """`before` is `always`, `sometimes` or `never` there."""
    old = None if before == "never" else Side(_DEVICE, _A_DEVICE, before == "always")
    return Kind(f"enrollment.{name}", summary, "devices/{id}", old, Side(_DEVICE, _A_DEVICE))


def _policy(name: str, summary: str, before: bool = True, after: bool = True) -> Kind:
    side = Side(_POLICY, _A_POLICY)
    return Kind(
        f"policy.{name}",
        summary,
        "policies/{id}",
        side if before else None,
        side if after else None,
    )


def _export(name: str, summary: str, resource: str, **filters: Any) -> Kind:
    return Kind(name, summary, resource, None, Side(_EXPORT, {"format": "csv", "filter": filters}))


_A_USER_BEFORE: Final = Side(_USER, _A_USER)
_CREDENTIALS: Final = "event-credentials/{id}"

_KINDS: Final = (
    _tenant("tenant_created", "A tenant was added.", before=False),
    _tenant("tenant_updated", "A tenant's name or code was changed.", before=True),
    _user("user_created", "A user was added.", after=_A_USER_BEFORE),
    _user("user_updated", "A user got another role.", _A_USER_BEFORE, _A_USER_BEFORE),
    _user("user_deactivated", "A user was disabled.", _A_USER_BEFORE, _A_USER_BEFORE),
    _user("user_invited", "A user was invited (again).", _A_USER_BEFORE, _A_USER_BEFORE),
    _user(
        "login_succeeded",
        "A user logged in.",
        after=Side(_SESSION, {"email": "admin@school.example", "sessionId": _ID_A}),
    ),
    _user(
        "login_failed",
        "Somebody tried to log in as a user and could not.",
        after=Side(_LOGIN, {"email": "admin@school.example"}),
    ),
    _user("logged_out", "A user logged out.", after=Side(_SESSION_END, {"sessionId": _ID_A})),
    _user("password_changed", "A user changed the own password."),
    _user(
        "invitation_accepted",
        "An invited user set a password and logged in.",
        after=Side(_SESSION, {"email": "admin@school.example", "sessionId": _ID_A}),
    ),
    _user(
        "refresh_token_reused",
        "A refresh token was used twice; its session was ended.",
        after=Side(_REUSE, {"sessionId": _ID_A, "sessionEnded": True}),
    ),
    Kind(
        "identity.event_credential_created",
        "A credential that reads events was made.",
        _CREDENTIALS,
        None,
        Side(_CREDENTIAL, _A_CREDENTIAL),
    ),
    Kind(
        "identity.event_credential_revoked",
        "A credential that reads events was revoked; its connections are cut.",
        _CREDENTIALS,
        Side(_CREDENTIAL, _A_CREDENTIAL),
        Side(_CREDENTIAL, {**_A_CREDENTIAL, "revokedAt": _AT}),
    ),
    Kind(
        "enrollment.token_created",
        "An enrollment token was made.",
        "enrollment-tokens/{id}",
        None,
        Side(_TOKEN, _A_TOKEN),
    ),
    Kind(
        "enrollment.token_revoked",
        "An enrollment token was revoked.",
        "enrollment-tokens/{id}",
        Side(_TOKEN, _A_TOKEN),
        Side(_TOKEN, {**_A_TOKEN, "revokedAt": _AT}),
    ),
    _device("device_enrolled", "A device enrolled.", "sometimes"),
    _device("device_reenrolled", "A known device enrolled again, as it was allowed.", "sometimes"),
    _device("device_pending", "A device waits for approval.", "sometimes"),
    _device("device_approved", "An admin let a waiting device in.", "always"),
    _device("device_rejected", "An admin refused a waiting device.", "always"),
    _device("device_prepared", "A device was registered by an admin.", "sometimes"),
    _device("device_recovered", "A device that was lost from the registry called.", "never"),
    _device("reenrollment_allowed", "A device may enroll again for a while.", "always"),
    _device(
        "reenrollment_refused",
        "Something with a known serial number tried to enroll and was refused.",
        "sometimes",
    ),
    _device("device_decommissioned", "A device was locked out for good.", "always"),
    _policy("created", "A policy was made.", before=False),
    _policy("updated", "A policy was changed; devices keep what was published."),
    _policy("deleted", "A policy was deleted.", after=False),
    _policy("published", "A policy is in force from now on."),
    _policy("rolled_back", "An older version is in force again, under a new number."),
    Kind(
        "policy.device_sync_requested",
        "An admin wants a device to fetch its policy soon.",
        "devices/{id}",
        None,
        Side(_SYNC, {"requestedAt": _AT}),
    ),
    Kind(
        "policy.device_token_rotated",
        "A device got a new token.",
        "devices/{id}",
        Side(_EXPIRY, {"expiresAt": _AT}),
        Side(_EXPIRY, {"expiresAt": "2027-09-01T07:58:03Z"}),
    ),
    Kind(
        "telemetry.event_retention_updated",
        "An organisation keeps its devices' events for another time.",
        "tenants/{id}/event-retention",
        Side(_DAYS, {"days": None}),
        Side(_DAYS, {"days": 90}),
    ),
    _export(
        "telemetry.devices_exported",
        "A user began to export devices.",
        "tenants/{id}/devices",
        status="online",
    ),
    _export(
        "telemetry.events_exported",
        "A user began to export devices' events.",
        "tenants/{id}/events",
        action="app.install_failed",
    ),
    _export(
        "telemetry.quarantined_event_exported",
        "A user began to export an event that was set aside.",
        "quarantined-events/{id}",
    ),
    _export(
        "audit.exported",
        "A user began to export the audit log, or to verify it.",
        "tenants/{id}/audit",
        occurredAfter=_AT,
    ),
    Kind(
        "audit.restored",
        "The database went back to a backup; the chain goes on behind the entry that it ends with.",
        "backups/{id}",
        None,
        Side(_RESTORED, {"point": _AT, "sequence": 41, "hash": "9f" * 32, "release": "0.1.0"}),
    ),
    Kind(
        DEVICE_EVENTS,
        "Devices reported events; one message holds many.",
        "",
    ),
)

CATALOGUE: Final[Mapping[str, Kind]] = {kind.name: kind for kind in _KINDS}
"""Every kind of event, by its name."""
