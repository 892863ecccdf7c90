"""Formats at rest: what was ever written is read, and what is written names its algorithm."""

from __future__ import annotations

import base64
import hashlib

import pytest

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


def test_what_older_releases_sealed_opens() -> None:
    """Values without a name are read for ever, and are sealed anew when they are used."""
    sealer = Sealer(_MASTER, "identity-keys")
    assert sealer.open(_OF_0_1_0) == b"the seed of a key"
    assert not sealer.is_current(_OF_0_1_0)


def test_marks_are_those_of_0_1_0() -> None:
    """Counters of guesses are found again after an upgrade."""
    mark = Sealer(_MASTER, "identity-keys").mark("anna")
    assert mark.hex() == "bd27967eb6d9e9be65cd529119c4336930bd39b0010ba1e6d651f44043e1313a"


def test_a_sealed_value_names_its_suite() -> None:
    """Release 0.2.0 reads the name, and wrote none."""
    sealer = Sealer(_MASTER, "audit-signing")
    named = sealer.seal(b"seed")
    assert named.startswith(b"$xchacha20poly1305$")
    assert sealer.open(named) == b"seed"
    assert sealer.is_current(named)


def test_a_name_cannot_be_taken_away_or_changed() -> None:
    """The name is authenticated, and an unknown one is named in the error."""
    sealer = Sealer(_MASTER, "identity-keys")
    named = sealer.seal(b"seed")
    with pytest.raises(SealingError, match="not the one that sealed"):
        sealer.open(named.removeprefix(b"$xchacha20poly1305$"))
    with pytest.raises(SealingError, match="unknown suite, aes512gcm"):
        sealer.open(named.replace(b"xchacha20poly1305", b"aes512gcm"))
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
