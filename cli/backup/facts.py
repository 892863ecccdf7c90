"""What was decided after the moment to which a restore goes back, as far as something still knows.

A device that was retired yesterday must stay retired when last week's backup is restored, and an
Owner who became an Auditor must not be an Owner again. Sources are the database that is replaced,
exports of the audit log, and a plain list of devices.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from cli.backup import catalog
from cli.backup.catalog import Connection
from cli.errors import CliError
from servicekit.access import Role
from servicekit.auditexport import EXPORT_FORMAT


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """A device as it was last known."""

    id: UUID
    tenant_id: UUID
    serial: str
    model: str
    status: str
    token_version: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Login:
    """What opens an account: the hashes of its password and of its open invitation."""

    password_hash: str | None
    invitation_hash: bytes | None
    invitation_expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class KnownUser:
    """A user as last known; what is empty is not known."""

    at: datetime
    role: str = ""
    status: str = ""
    voided: bool = False
    """Whether an invitation has ended the password of the backup, or was itself used."""
    login: Login | None = None


@dataclass(slots=True)
class Facts:
    """What is carried over into the restored database."""

    devices: dict[UUID, KnownDevice] = field(default_factory=dict)
    retired: set[UUID] = field(default_factory=set)
    """Devices of which only this is known."""
    versions: dict[UUID, int] = field(default_factory=dict)
    """Organisation → the highest policy version that was published."""
    users: dict[UUID, KnownUser] = field(default_factory=dict)
    token_uses: dict[UUID, int] = field(default_factory=dict)
    """Enrollment token → how often it was used,"""
    revoked_tokens: set[UUID] = field(default_factory=set)
    """those that are revoked,"""
    revoked_credentials: set[UUID] = field(default_factory=set)
    """and integrators' credentials."""

    def device(self, device: KnownDevice) -> None:
        """Takes a device's state; the newest one counts."""
        known = self.devices.get(device.id)
        if known is None or known.at <= device.at:
            self.devices[device.id] = device

    def user(self, user_id: UUID, user: KnownUser) -> None:
        """Takes what is known of a user; the newest counts, and what it does not say stays."""
        known = self.users.get(user_id)
        if known is None:
            self.users[user_id] = user
            return
        older, newer = (known, user) if known.at <= user.at else (user, known)
        self.users[user_id] = (
            newer
            if newer.login
            else replace(
                newer,
                role=newer.role or older.role,
                status=newer.status or older.status,
                voided=newer.voided or older.voided,
            )
        )

    def version(self, tenant_id: UUID, version: int) -> None:
        """Takes a published version."""
        self.versions[tenant_id] = max(self.versions.get(tenant_id, 0), version)


async def read_database(connection: Connection, facts: Facts) -> None:
    """Takes what a database knows that is about to be replaced."""
    await catalog.see_everything(connection)
    now = await connection.fetchval("SELECT now()")
    for row in await connection.fetch(
        "SELECT id, tenant_id, serial, model, status, token_version FROM enrollment.device"
    ):
        facts.device(KnownDevice(**dict(row), at=now))
    for row in await connection.fetch(
        "SELECT tenant_id, last_version FROM policy.version_counters"
    ):
        facts.version(row["tenant_id"], row["last_version"])
    for row in await connection.fetch(
        "SELECT id, role, status, password_hash, invitation_hash, invitation_expires_at"
        " FROM identity.account"
    ):
        login = Login(row["password_hash"], row["invitation_hash"], row["invitation_expires_at"])
        facts.user(row["id"], KnownUser(now, row["role"], row["status"], login=login))
    for row in await connection.fetch("SELECT id, uses, revoked_at FROM enrollment.token"):
        facts.token_uses[row["id"]] = row["uses"]
        if row["revoked_at"] is not None:
            facts.revoked_tokens.add(row["id"])
    if await connection.fetchval("SELECT to_regclass('identity.event_credential')") is not None:
        credentials = await connection.fetch(
            "SELECT id FROM identity.event_credential WHERE revoked_at IS NOT NULL"
        )
        facts.revoked_credentials.update(row["id"] for row in credentials)


def read_retired(path: Path, facts: Facts) -> None:
    """Takes a list of devices that are retired: one device id a line, `#` for remarks.

    Raises:
        CliError: a line is no device id.
    """
    for number, line in enumerate(_lines(path), start=1):
        text = line.partition("#")[0].strip()
        if text:
            try:
                facts.retired.add(UUID(text))
            except ValueError as error:
                raise CliError(f"{path}, line {number}: {text[:60]} is no device id") from error


def read_audit_export(path: Path, heads: dict[str, int], facts: Facts) -> None:
    """Takes what an export of the audit log tells that the backup does not know.

    Args:
        path: what `evergreen audit export` wrote.
        heads: tenant → the last entry that the backup has.
        facts: takes it.

    Raises:
        CliError: it is no such export.
    """
    try:
        lines = iter(_lines(path))
        if json.loads(next(lines, "")).get("format") != EXPORT_FORMAT:
            raise ValueError("another format")
        for line in lines:
            entry = json.loads(line).get("entry")
            if entry and entry["sequence"] > heads.get(entry["tenantId"], 0):
                event = json.loads(entry["record"])
                _learn(event["data"], UUID(event["tenantid"]), _time(event["time"]), facts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CliError(f"{path} is no export of the audit log: {error}") from error


def _learn(data: dict[str, Any], tenant_id: UUID, at: datetime, facts: Facts) -> None:
    after: dict[str, Any] = data.get("after") or {}
    kind, _, name = str(data["resource"]).partition("/")
    if kind == "devices" and "status" in after and "tokenVersion" in after:
        facts.device(
            KnownDevice(
                UUID(name),
                UUID(after.get("orgId") or str(tenant_id)),
                str(after.get("serial", "")),
                str(after.get("model", "")),
                str(after["status"]),
                int(after["tokenVersion"]),
                at,
            )
        )
    elif data["action"] in {"policy.published", "policy.rolled_back"} and "version" in after:
        facts.version(tenant_id, int(after["version"]))
    elif kind == "users" and "status" in after:
        role, status = Role(after["role"]).value, str(after["status"])
        facts.user(UUID(name), KnownUser(at, role, status, voided=status == "invited"))
    elif data["action"] == "identity.invitation_accepted":
        facts.user(UUID(name), KnownUser(at, voided=True))
    elif data["action"] == "enrollment.token_revoked":
        facts.revoked_tokens.add(UUID(name))
    elif data["action"] == "identity.event_credential_revoked":
        facts.revoked_credentials.add(UUID(name))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _lines(path: Path) -> Iterable[str]:
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{path} cannot be read: {error}") from error
