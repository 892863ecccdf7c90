"""Signing keys by purpose and tenant, and what each of them may do at a time.

A key's state follows from its row and the clock, so that all replicas change at the same moment and
nothing has to run for it:

| state | signs | verifies | until |
| --- | --- | --- | --- |
| next | no | yes: verifiers learn it now | `signs_from` |
| active | yes | yes | its successor's `signs_from` |
| retiring | no | yes: what it signed is in use | `verifies_until` |
| retired | no | no; for ever, where what it signed is kept (checkpoints) | |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Final
from uuid import UUID

from servicekit.ids import Clock
from servicekit.security.signing import PublicKey, Signer

_TWO_SIGN: Final = timedelta(days=30)


class State(Enum):
    """What a key is at a time."""

    NEXT = "next"
    ACTIVE = "active"
    RETIRING = "retiring"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class RingKey:
    """A key at rest."""

    public: PublicKey
    purpose: str
    algorithm: str
    sealed_seed: bytes = field(repr=False)
    created_at: datetime
    signs_from: datetime
    verifies_until: datetime | None = None
    """`None` for a key without a successor, and for one that verifies for ever."""
    tenant_id: UUID | None = None
    """Whose key it is; `None` for the whole installation's."""
    request_id: UUID | None = None
    """The request that made it, so that a repeated one makes no second key."""

    def verifies(self, at: datetime) -> bool:
        """Whether its signatures count."""
        return self.verifies_until is None or at < self.verifies_until


class KeyRing:
    """The keys of a service, in memory.

    Args:
        open_seed: opens a sealed seed.
        clock: the time.
    """

    def __init__(self, open_seed: Callable[[bytes], bytes], clock: Clock) -> None:
        self._open = open_seed
        self._clock = clock
        self._keys: tuple[RingKey, ...] = ()
        self._signers: dict[str, Signer] = {}

    def replace(self, keys: Iterable[RingKey]) -> None:
        """Takes the keys that there are now.

        Raises:
            SealingError: the master key is not the one that sealed a key.
            ValueError: a private key does not belong to its public key.
        """
        found = tuple(sorted(keys, key=lambda key: (key.signs_from, key.created_at, key.public.id)))
        signers = {
            key.public.id: self._signers.get(key.public.id) or self._signer(key) for key in found
        }
        self._keys, self._signers = found, signers

    def signer(self, purpose: str, tenant_id: UUID | None = None) -> Signer:
        """The active key of a purpose, which signs.

        Raises:
            LookupError: there is none.
        """
        active = self._active(purpose, tenant_id)
        if active is None:
            raise LookupError(f"no key for {purpose}")
        return self._signers[active.public.id]

    def signers(self, purpose: str) -> list[Signer]:
        """The active key of a purpose and, for some time, the one before it, which some who verify
        may know alone.

        Raises:
            LookupError: there is none.
        """
        active = self._active(purpose, None)
        if active is None:
            raise LookupError(f"no key for {purpose}")
        older = [k for k in self._keys if k.purpose == purpose and k.signs_from < active.signs_from]
        if self._clock() - active.signs_from > _TWO_SIGN or not older:
            return [self._signers[active.public.id]]
        return [self._signers[key.public.id] for key in (active, older[-1])]

    def verifying(self, purpose: str = "") -> list[PublicKey]:
        """The keys whose signatures count, oldest first: of a purpose, or of all."""
        at = self._clock()
        return [k.public for k in self._keys if purpose in {"", k.purpose} and k.verifies(at)]

    def verifier(self, purpose: str, key_id: str) -> PublicKey | None:
        """The key with an id, if its signatures for the purpose count."""
        return next((key for key in self.verifying(purpose) if key.id == key_id), None)

    def states(self) -> Mapping[RingKey, State]:
        """Every key with its state, oldest first."""
        return {key: self._state(key) for key in self._keys}

    def _active(self, purpose: str, tenant_id: UUID | None) -> RingKey | None:
        of_purpose = [k for k in self._keys if (k.purpose, k.tenant_id) == (purpose, tenant_id)]
        at = self._clock()
        # The first key of all signs also where the clock is behind the one that made it.
        return next((k for k in reversed(of_purpose) if k.signs_from <= at), None) or next(
            iter(of_purpose), None
        )

    def _state(self, key: RingKey) -> State:
        if self._active(key.purpose, key.tenant_id) is key:
            return State.ACTIVE
        at = self._clock()
        if key.signs_from > at:
            return State.NEXT
        if key.verifies_until is not None and key.verifies(at):
            return State.RETIRING
        return State.RETIRED

    def _signer(self, key: RingKey) -> Signer:
        signer = Signer(self._open(key.sealed_seed), key.algorithm)
        if signer.public != key.public:
            raise ValueError(f"the private key of {key.public.id} does not belong to it")
        return signer
