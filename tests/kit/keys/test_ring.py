"""The key ring: what each key may do at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from servicekit.keys.ring import KeyRing, RingKey, State
from servicekit.security.signing import Signer, new_seed

START = datetime(2026, 11, 29, 8, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def key(signs_from: datetime, verifies_until: datetime | None = None, **more: object) -> RingKey:
    """A key whose seed is not sealed."""
    seed = new_seed()
    values: dict[str, object] = {"purpose": "users", "created_at": signs_from - HOUR} | more
    return RingKey(
        public=Signer(seed).public,
        algorithm="ed25519",
        sealed_seed=seed,
        signs_from=signs_from,
        verifies_until=verifies_until,
        **values,  # type: ignore[arg-type] # what the tests give
    )


class Clock:
    """A time that the test sets."""

    now = START

    def __call__(self) -> datetime:
        return self.now


def test_a_key_goes_from_next_to_retired_by_the_clock_alone() -> None:
    """Exactly one key signs at any time, and everything that signs was published before."""
    old, new = key(START - HOUR, START + 3 * HOUR), key(START + HOUR)
    clock = Clock()
    ring = KeyRing(bytes, clock)
    ring.replace([new, old])
    expected = [
        (0, State.ACTIVE, State.NEXT, old),
        (1, State.RETIRING, State.ACTIVE, new),
        (2.9, State.RETIRING, State.ACTIVE, new),
        (3, State.RETIRED, State.ACTIVE, new),
    ]
    for hours, of_old, of_new, signs in expected:
        clock.now = START + hours * HOUR
        assert ring.states() == {old: of_old, new: of_new}
        assert ring.signer("users").public == signs.public
        verifying = [new.public] if of_old is State.RETIRED else [old.public, new.public]
        assert ring.verifying("users") == ring.verifying() == verifying
        known = ring.verifier("users", old.public.id)
        assert (known is None) is (of_old is State.RETIRED)


def test_a_key_of_what_is_kept_verifies_for_ever() -> None:
    """Checkpoints of a retired key are verified years later."""
    old, new = key(START - HOUR, purpose="audit"), key(START, purpose="audit")
    ring = KeyRing(bytes, lambda: START + 10_000 * HOUR)
    ring.replace([old, new])
    assert ring.states() == {old: State.RETIRED, new: State.ACTIVE}
    assert ring.verifying("audit") == [old.public, new.public]


def test_purposes_and_tenants_have_keys_of_their_own() -> None:
    """A key of one purpose neither signs nor verifies for another, nor a tenant's for others."""
    tenant = uuid4()
    users, devices = key(START), key(START, purpose="devices")
    theirs = key(START, tenant_id=tenant)
    ring = KeyRing(bytes, lambda: START)
    ring.replace([users, devices, theirs])
    assert ring.signer("users").public == users.public
    assert ring.signer("devices").public == devices.public
    assert ring.signer("users", tenant).public == theirs.public
    assert ring.verifier("users", devices.public.id) is None
    with pytest.raises(LookupError):
        ring.signer("audit")
    with pytest.raises(LookupError):
        ring.signer("devices", tenant)


def test_the_first_key_signs_also_where_the_clock_is_behind() -> None:
    """A replica whose clock is late does not fail at the first start."""
    first = key(START + timedelta(seconds=2))
    ring = KeyRing(bytes, lambda: START)
    ring.replace([first])
    assert ring.signer("users").public == first.public
    assert ring.states() == {first: State.ACTIVE}


def test_a_key_that_does_not_open_changes_nothing() -> None:
    """The keys of before go on signing."""
    good, other = key(START), key(START)
    broken = RingKey(other.public, "users", "ed25519", new_seed(), START, START + HOUR)
    ring = KeyRing(bytes, lambda: START)
    ring.replace([good])
    with pytest.raises(ValueError, match="does not belong"):
        ring.replace([good, broken])
    assert ring.signer("users").public == good.public
    assert ring.states() == {good: State.ACTIVE}
