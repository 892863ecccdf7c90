"""Policies, their versions, and the rules of delivering them. Pure: no I/O."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any
from uuid import UUID

from servicekit.errors import DomainError, invalid_field, unauthenticated
from services.policy.configuration import compile_bundle
from services.policy.document import MAX_DOCUMENT, redact
from services.policy.goencoding import encode_document
from services.policy.signing import Statement, envelope_head

MAX_VERSION = 10**18 - 1
# A device may name any version. What it says can move an organisation's counter only this far,
# so that no device can use the counter up.
MAX_JUMP = 1_000_000
LAPSED_TOKEN_LIFE = timedelta(days=90)
# An audit entry shows a policy up to this size, and of a larger one its digest.
_MAX_AUDITED = 100_000


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy as it is administered; `authored` is its JSON text as given."""

    id: UUID
    tenant_id: UUID
    name: str
    description: str | None
    authored: str
    revision: int
    published_version: int | None
    changed_since_publish: bool
    in_force: bool
    created_at: datetime
    updated_at: datetime

    @property
    def etag(self) -> str:
        """Changes with every change of the policy."""
        return str(self.revision)


@dataclass(frozen=True, slots=True)
class Version:
    """A published version: what was authored, the exact bytes, and their two signatures."""

    tenant_id: UUID
    version: int
    policy_id: UUID
    authored: str
    document: bytes
    signature: bytes
    statement: Statement
    rollback_of: int | None
    published_at: datetime
    published_by: str


@dataclass(frozen=True, slots=True)
class Published:
    """What a list says of a published version."""

    version: int
    published_at: datetime
    published_by: str
    rollback_of: int | None
    key_id: str
    document_sha256: str


@dataclass(frozen=True, eq=False)
class Bundle:
    """What devices get of a version, kept in memory; equal only to itself."""

    version: int
    document: bytes
    signature: bytes
    statement: Statement

    @cached_property
    def _head(self) -> bytes:
        return envelope_head(str(self.version), self.signature, self.document)

    @cached_property
    def envelope(self) -> bytes:
        """The released agent's ENVELOPE."""
        return self._head + b"}"

    def envelope_with(self, device_token: str) -> bytes:
        """The ENVELOPE with a new token for one device."""
        return self._head + b',"device_token":' + json.dumps(device_token).encode() + b"}"


def compile_policy(bundle: object) -> bytes:
    """Checks an authored bundle and answers the exact bytes that devices get of it.

    Raises `DomainError` (INVALID_ARGUMENT) with every broken field, from `bundle` on.
    """
    try:
        document = encode_document(compile_bundle(bundle, "bundle"))
    except RecursionError as deep:
        raise invalid_field("bundle", "is nested too deeply") from deep
    if len(document) > MAX_DOCUMENT:
        raise invalid_field(
            "bundle", f"must be at most {MAX_DOCUMENT} bytes as a document, not {len(document)}"
        )
    return document


def parse_version(text: str) -> int:
    """The version that a device names; 0 for none, and for what was never a version."""
    if text.isascii() and text.isdecimal() and len(text) <= 18:
        return int(text)
    return 0


def next_version(last: int, highest_reported: int) -> int:
    """The version of the next publish: above all that were published and all that devices have.

    Devices have higher versions than the database when it was restored from a backup; a lower
    version would never reach them. `highest_reported` is what devices say, up to `MAX_JUMP` above
    the last version.
    """
    version = max(last, min(highest_reported, last + MAX_JUMP)) + 1
    if version > MAX_VERSION:
        raise OverflowError("an organisation has used up its versions")
    return version


def rotation_due(issued_at: datetime | None, expires_at: datetime | None, now: datetime) -> bool:
    """Whether a device's token is past half of its life, or past all of it."""
    if issued_at is None or expires_at is None:
        return False
    return now >= issued_at + (expires_at - issued_at) / 2


def check_lapsed(expires_at: datetime | None, now: datetime) -> None:
    """Refuses a token that expired too long ago. Raises `DomainError` (UNAUTHENTICATED)."""
    if expires_at is not None and now > expires_at + LAPSED_TOKEN_LIFE:
        raise lapsed()


def lapsed() -> DomainError:
    """The device was away for too long; an administrator has to let it enroll again."""
    return unauthenticated(
        "TOKEN_EXPIRED", "the device token expired too long ago; enroll the device again"
    )


def audited(policy: Policy) -> Mapping[str, Any]:
    """A policy as the audit log shows it: without secrets, and not beyond measure."""
    bundle: Any = redact(json.loads(policy.authored))
    text = json.dumps(bundle, ensure_ascii=False)
    if len(text.encode()) > _MAX_AUDITED:
        digest = hashlib.sha256(policy.authored.encode()).hexdigest()
        bundle = {"omitted": "too large for the audit log", "sha256": digest}
    return {
        "name": policy.name,
        "description": policy.description,
        "orgId": str(policy.tenant_id),
        "version": str(policy.published_version or 0),
        "inForce": policy.in_force,
        "bundle": bundle,
    }
