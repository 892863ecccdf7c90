"""Enrollment tokens: their rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from contract.events.enrollment import EnrollmentTokenSnapshot
from servicekit.etags import etag_of

TOKEN_LIFE: Final = timedelta(days=90)
"""How long an enrollment token admits devices when its creator does not say."""
MAX_TOKEN_LIFE: Final = timedelta(days=3653)
FIRST_TOKEN_LIFE: Final = MAX_TOKEN_LIFE
"""Ten years: the first start's token must not die while its administrator still learns; it can
be revoked at any time."""


@dataclass(frozen=True, slots=True)
class EnrollmentToken:
    """What admits devices to an organisation; its secret is known only to those who got it."""

    id: UUID
    tenant_id: UUID
    name: str
    created_at: datetime
    expires_at: datetime
    max_uses: int
    uses: int
    serial_count: int
    require_approval: bool
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What its devices are labelled with, unless they have a label already."""
    group_ids: tuple[UUID, ...] = ()
    """Groups with listed members that its devices come into."""
    only_expected: bool = False
    policy_key_id: str = ""
    """The key for policies that its devices pin; empty for the first one of the installation."""

    @property
    def etag(self) -> str:
        """Changes with every change of the token, but not with its use or with time."""
        return etag_of(
            self.id,
            self.tenant_id,
            self.name,
            self.expires_at,
            self.max_uses,
            self.serial_count,
            self.require_approval,
            self.revoked_at,
            sorted(self.labels.items()),
            self.group_ids,
            self.only_expected,
            self.policy_key_id,
        )

    def status(self, at: datetime) -> str:
        """`revoked`, `expired`, `used_up` or `active`."""
        if self.revoked_at is not None:
            return "revoked"
        if at >= self.expires_at:
            return "expired"
        if self.max_uses and self.uses >= self.max_uses:
            return "used_up"
        return "active"

    def snapshot(self) -> EnrollmentTokenSnapshot:
        """What events say of it."""
        return EnrollmentTokenSnapshot(
            name=self.name,
            org_id=self.tenant_id,
            expires_at=self.expires_at,
            max_uses=self.max_uses,
            uses=self.uses,
            serial_count=self.serial_count,
            require_approval=self.require_approval,
            revoked_at=self.revoked_at,
            labels=dict(sorted(self.labels.items())),
            group_ids=self.group_ids,
            only_expected=self.only_expected,
            policy_key_id=self.policy_key_id,
        )
