"""Formats at rest: what was ever written is read, and what is written names its algorithm."""

from __future__ import annotations

import base64
import hashlib

import pytest

from servicekit.security import sealing
from servicekit.security.passwords import (
    UnknownSuiteError,
    hash_password,
    is_current,
    suite,
    verify_password,
)
from servicekit.security.sealing import Sealer, SealingError

_MASTER = bytes(range(32))
_OF_0_1_0 = bytes.fromhex(
    "e31f7d5c86f1c2ad846afc9f39702012adebea5a24f2aeb343d9296091c01fa531add1c163f5503ee3dc52c77bda0e"
    "85973cdc88651d07c043"
)
"""`the seed of a key`, sealed by release 0.1.0 for `identity-keys`."""


def test_what_0_1_0_sealed_opens_on_both_sides_of_the_switch() -> None:
    """Values without a name are read for ever."""
    for names_its_suite in (False, True):
        sealer = Sealer(_MASTER, "identity-keys", names_its_suite=names_its_suite)
        assert sealer.open(_OF_0_1_0) == b"the seed of a key"
        assert sealer.is_current(_OF_0_1_0) is not names_its_suite


def test_marks_are_those_of_0_1_0() -> None:
    """Counters of guesses are found again after an upgrade."""
    mark = Sealer(_MASTER, "identity-keys").mark("anna")
    assert mark.hex() == "bd27967eb6d9e9be65cd529119c4336930bd39b0010ba1e6d651f44043e1313a"


def test_a_sealed_value_names_its_suite_once_the_release_before_reads_it() -> None:
    """Both sides of the switch read both forms; only the new side writes the name."""
    before = Sealer(_MASTER, "audit-signing", names_its_suite=False)
    after = Sealer(_MASTER, "audit-signing", names_its_suite=True)
    named, nameless = after.seal(b"seed"), before.seal(b"seed")
    assert named.startswith(b"$xchacha20poly1305$")
    assert not nameless.startswith(b"$")
    for sealer in (before, after):
        assert sealer.open(named) == sealer.open(nameless) == b"seed"
    assert after.is_current(named)
    assert not after.is_current(nameless)
    assert before.is_current(nameless)


def test_this_release_writes_what_the_release_before_reads() -> None:
    """0.1.0 does not read the name: the switch is off until 0.2.0 is the release before."""
    assert sealing.NAMES_ITS_SUITE is False
    assert not Sealer(_MASTER, "identity-keys").seal(b"seed").startswith(b"$xchacha")


def test_a_name_cannot_be_taken_away_or_changed() -> None:
    """The name is authenticated, and an unknown one is named in the error."""
    sealer = Sealer(_MASTER, "identity-keys", names_its_suite=True)
    named = sealer.seal(b"seed")
    with pytest.raises(SealingError, match="not the one that sealed"):
        sealer.open(named.removeprefix(b"$xchacha20poly1305$"))
    with pytest.raises(SealingError, match="unknown suite, aes256gcm"):
        sealer.open(named.replace(b"xchacha20poly1305", b"aes256gcm"))
    with pytest.raises(SealingError, match="not the one that sealed"):
        Sealer(_MASTER, "policy-signing").open(named)
    for short in (b"", b"$", b"$xchacha20poly1305$", bytes(10)):
        with pytest.raises(SealingError):
            sealer.open(short)


def test_hashes_of_passwords_name_their_suite_and_old_ones_are_read() -> None:
    """argon2id of any parameters and PBKDF2 are read; an unknown suite is no wrong password."""
    new = hash_password("correct horse")
    assert suite(new) == "argon2id"
    assert is_current(new)

    weaker = (
        "$argon2id$v=19$m=8192,t=1,p=1$DKPn3o75OOso0kZFS3uGgw$"
        "5HRlhTmqKA1+tGqHPQxHbgXHCwv5DkYDqz3NP5jllLo"
    )
    assert verify_password(weaker, "correct horse")
    assert not is_current(weaker)

    salt = b"0123456789abcdef"
    derived = hashlib.pbkdf2_hmac("sha256", b"correct horse", salt, 1000)
    text = (base64.b64encode(raw).decode().rstrip("=") for raw in (salt, derived))
    approved = "$pbkdf2-sha256$i=1000$" + "$".join(text)
    assert verify_password(approved, "correct horse")
    assert not verify_password(approved, "correct horse ")
    assert not verify_password(approved[:-5], "correct horse")
    assert not is_current(approved)

    with pytest.raises(UnknownSuiteError, match="scrypt"):
        verify_password("$scrypt$ln=17$c2FsdA$aGFzaA", "correct horse")
