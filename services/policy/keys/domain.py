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
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from contract.events.policy import PolicyKeySnapshot
from servicekit.errors import Code, DomainError, exhausted, failed_precondition
from servicekit.security.signing import PublicKey

MOST_OF_A_TENANT: Final = 8
"""Keys of one tenant that are not retired."""
MOST_EVER: Final = 100
"""Keys of one tenant, with those that are retired: they stay in the log for good."""
MOST_A_DAY: Final = 10
"""Keys that a tenant makes."""
MOST_KEYS: Final = 20_000
"""Of an installation that are not retired; each process has them in memory."""
KEPT_FREE: Final = 100
"""Of these for the keys of the whole installation, whatever its tenants make."""
_DAY: Final = timedelta(days=1)
ENDING: Final = timedelta(minutes=10)
"""For so long no device is let in with a key that is being retired; then, where the process was
killed that retired it, all is as before."""
ENDED_WITHIN: Final = timedelta(minutes=1)
"""After that a key is not retired any more: clocks differ by less than the rest."""


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
    is_first: bool = False
    """Whether it is the first key of the installation."""
    ending_until: datetime | None = None
    """Until then no device is let in with it, because it is being retired."""

    def is_ending(self, at: datetime) -> bool:
        """Whether it is being retired."""
        return self.ending_until is not None and at < self.ending_until

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
    has_root: bool = False
    """Whether an offline root certifies keys before devices are given them."""
    certified: frozenset[str] = frozenset()
    """The ids of next keys that it has certified, by the log."""

    @classmethod
    def of(cls, keys: Iterable[PolicyKey]) -> Keys:
        """Keys in any order."""
        return cls({key.public.id: key for key in keys})

    @property
    def first(self) -> PolicyKey | None:
        """The first key of the installation, which devices pin of which nothing else is known."""
        return next((key for key in self.by_id.values() if key.is_first), None)

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

    def given(self, line: Sequence[UUID], at: datetime) -> PolicyKey | None:
        """The key that new enrollment tokens of an organisation carry.

        Args:
            line: the organisation and those above it, the root first.
            at: now.
        """
        for tenant_id in (*reversed(line), None):
            found = self.active(tenant_id)
            if found is not None and not found.is_ending(at):
                return found
        return None

    def usable(self, key_id: str, line: Sequence[UUID], at: datetime) -> PolicyKey | None:
        """A key by its id, if devices of an organisation may be given it."""
        found = self.by_id.get(key_id)
        if found is None or found.state is State.RETIRED or found.compromised_at is not None:
            return None
        if found.is_ending(at):
            return None
        if found.state is State.NEXT and self.has_root and key_id not in self.certified:
            return None
        return found if found.tenant_id is None or found.tenant_id in line else None


def check_room(keys: Keys, tenant_id: UUID | None, at: datetime) -> None:
    """Refuses one key more.

    Raises:
        DomainError: FAILED_PRECONDITION; RESOURCE_EXHAUSTED when a tenant has made too many of
            late.
    """
    if any(key.state is State.NEXT for key in keys.of_tenant(tenant_id)):
        raise failed_precondition(
            "ROTATION_IN_PROGRESS",
            "a next key waits already: activate it first, or retire it",
        )
    _check_bounds(keys, tenant_id, at)


def has_room(keys: Keys, tenant_id: UUID | None, at: datetime) -> bool:
    """Whether a key that ends may have a successor; the installation's always has one."""
    try:
        _check_bounds(keys, tenant_id, at)
    except DomainError:
        return tenant_id is None
    return True


def _check_bounds(keys: Keys, tenant_id: UUID | None, at: datetime) -> None:
    ever = keys.of_tenant(tenant_id)
    own = [key for key in ever if key.state is not State.RETIRED]
    kept = sum(key.state is not State.RETIRED for key in keys.by_id.values())
    if len(own) >= MOST_OF_A_TENANT or kept >= MOST_KEYS - (KEPT_FREE if tenant_id else 0):
        raise failed_precondition(
            "TOO_MANY_KEYS", "there are too many policy keys; retire those that no device pins"
        )
    if tenant_id is None:
        return
    if len(ever) >= MOST_EVER:
        raise failed_precondition(
            "TOO_MANY_KEYS",
            f"the tenant has had {len(ever)} policy keys, which stay in the log; it cannot have"
            " more, but its devices can have keys of the tenants above",
        )
    recent = sorted(key.created_at for key in ever if key.created_at > at - _DAY)
    if len(recent) >= MOST_A_DAY:
        wait = recent[-MOST_A_DAY] + _DAY - at
        raise exhausted(
            "TOO_MANY_NEW_KEYS",
            f"the tenant has made {len(recent)} policy keys within a day, and may make"
            f" {MOST_A_DAY}",
            retry_after=wait.total_seconds(),
        )


def check_activation(key: PolicyKey, *, is_certified: bool) -> None:
    """Refuses to give a key to new enrollment tokens.

    Args:
        is_certified: whether the offline root has certified it, or there is none.

    Raises:
        DomainError: FAILED_PRECONDITION.
    """
    if key.state is not State.NEXT or key.compromised_at is not None:
        raise failed_precondition(
            "KEY_NOT_NEXT", f"the key is {shown(key)}; only a next key is activated"
        )
    if not is_certified:
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
