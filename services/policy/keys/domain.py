"""Keys that sign policies, and what may become of them.

A released agent pins one key for good. So a key goes on signing for the devices that pin it, beside
the one that newer devices pin, until none is left:

| state | signs | new enrollment tokens carry it | until |
| --- | --- | --- | --- |
| next | for devices that pin it already, to try it | only when they name it | it is activated |
| active | yes | yes | another key of the same tenant is activated |
| retiring | for the devices that pin it | only when they name it | no device pins it |
| retired | no: its private half is erased | no | |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from contract.events.policy import PolicyKeySnapshot
from servicekit.errors import Code, DomainError, failed_precondition
from servicekit.security.signing import PublicKey

MOST_OF_A_TENANT: Final = 8
"""Keys of one tenant that are not retired."""
MOST_KEYS: Final = 20_000
"""Of an installation; each process has those that sign in memory."""


class State(StrEnum):
    """What a key is."""

    NEXT = "next"
    ACTIVE = "active"
    RETIRING = "retiring"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class PolicyKey:
    """A key that signs policies, at rest."""

    id: UUID
    public: PublicKey
    created_at: datetime
    sealed_seed: bytes | None = field(repr=False)
    """`None` of a retired key."""
    signs: bool = False
    """Whether what is stored is signed with it, as the release before does it."""
    tenant_id: UUID | None = None
    """Whose; `None` for the whole installation's."""
    state: State = State.ACTIVE
    activated_at: datetime | None = None
    retired_at: datetime | None = None
    compromised_at: datetime | None = None
    certified_by: str = ""
    """The root that certified it."""
    request_id: UUID | None = None

    def snapshot(self) -> PolicyKeySnapshot:
        """What events say of it."""
        return PolicyKeySnapshot(
            key_id=self.public.id,
            tenant_id=self.tenant_id,
            state=self.state.value,
            compromised=self.compromised_at is not None,
            certified_by=self.certified_by,
        )


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys as of one moment."""

    by_id: Mapping[str, PolicyKey]
    """By the ids that signatures name."""
    root_id: str = ""
    """The offline root, which certifies keys before devices are given them; empty for none."""

    @classmethod
    def of(cls, keys: Iterable[PolicyKey]) -> Keys:
        """Keys in any order."""
        return cls({key.public.id: key for key in keys})

    @property
    def first(self) -> PolicyKey | None:
        """The first key of the installation, which devices pin of which nothing else is known."""
        found = [key for key in self.by_id.values() if key.tenant_id is None]
        return min(found, key=lambda key: (key.created_at, key.public.id), default=None)

    @property
    def signing(self) -> PolicyKey | None:
        """The key with which what is stored is signed."""
        return next((key for key in self.by_id.values() if key.signs), None)

    def active(self, tenant_id: UUID | None) -> PolicyKey | None:
        """A tenant's own key that new enrollment tokens carry, or the installation's."""
        return next(
            (k for k in self.of_tenant(tenant_id) if k.state is State.ACTIVE),
            None,
        )

    def of_tenant(self, tenant_id: UUID | None) -> list[PolicyKey]:
        """The keys of a tenant, or of the installation."""
        return [key for key in self.by_id.values() if key.tenant_id == tenant_id]

    def given(self, line: Sequence[UUID]) -> PolicyKey | None:
        """The key that new enrollment tokens of an organisation carry.

        Args:
            line: the organisation and those above it, the root first.
        """
        for tenant_id in (*reversed(line), None):
            if (found := self.active(tenant_id)) is not None:
                return found
        return None

    def usable(self, key_id: str, line: Sequence[UUID]) -> PolicyKey | None:
        """A key by its id, if devices of an organisation may be given it."""
        found = self.by_id.get(key_id)
        if found is None or found.state is State.RETIRED or found.compromised_at is not None:
            return None
        if found.state is State.NEXT and self.root_id not in {"", found.certified_by}:
            return None
        return found if found.tenant_id is None or found.tenant_id in line else None


def check_room(keys: Keys, tenant_id: UUID | None) -> None:
    """Refuses one key more.

    Raises:
        DomainError: FAILED_PRECONDITION.
    """
    own = [key for key in keys.of_tenant(tenant_id) if key.state is not State.RETIRED]
    if any(key.state is State.NEXT for key in own):
        raise failed_precondition(
            "ROTATION_IN_PROGRESS",
            "a next key waits already: activate it first, or retire it",
        )
    if len(own) >= MOST_OF_A_TENANT or len(keys.by_id) >= MOST_KEYS:
        raise failed_precondition(
            "TOO_MANY_KEYS", "there are too many policy keys; retire those that no device pins"
        )


def check_activation(key: PolicyKey, root: PublicKey | None) -> None:
    """Refuses to give a key to new enrollment tokens.

    Raises:
        DomainError: FAILED_PRECONDITION.
    """
    if key.state is not State.NEXT or key.compromised_at is not None:
        raise failed_precondition(
            "KEY_NOT_NEXT", f"the key is {shown(key)}; only a next key is activated"
        )
    if root is not None and key.certified_by != root.id:
        raise failed_precondition(
            "KEY_NOT_CERTIFIED", "the offline root has to certify the key before it is activated"
        )


def check_retirement(key: PolicyKey, devices: int, lost: int) -> None:
    """Refuses to retire a key that is needed.

    Args:
        devices: so many pin it.
        lost: so many were confirmed to be given up.

    Raises:
        DomainError: FAILED_PRECONDITION.
    """
    if key.state is State.ACTIVE and (key.tenant_id is None or devices):
        raise failed_precondition(
            "KEY_ACTIVE", "new enrollment tokens carry the key; activate another one first"
        )
    if devices and lost != devices:
        raise DomainError(
            Code.FAILED_PRECONDITION,
            "KEY_IN_USE",
            f"{devices} devices pin the key and would get no policy any more; move them to another"
            f" key, or give up all {devices}",
            metadata={"devices": str(devices)},
        )


def shown(key: PolicyKey) -> str:
    """The state as people read it."""
    return f"{key.state.value}, compromised" if key.compromised_at else key.state.value
