"""Hashes of passwords, which begin with the name of their suite (the PHC string format).

New ones are argon2id with OWASP's parameters (Password Storage Cheat Sheet: 19 MiB of memory, 2
iterations, 1 lane), or PBKDF2-HMAC-SHA256 with OWASP's 600,000 iterations where new values are made
with approved algorithms. Every suite and every parameter that was ever written is read for ever,
argon2id not in FIPS mode; what is not as it would be written now is hashed anew when its owner logs
in.

One password has many spellings in Unicode, and which one a keyboard sends depends on the system. So
the hash is that of a prepared form: RFC 8265's OpaqueString with NFKC in the place of NFC. Release
0.1.0 hashed what was typed. Both hashes are kept, for it reads its own alone.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from servicekit.security import mode
from servicekit.security.suites import ARGON2ID, PBKDF2_SHA256

if not mode.is_required():
    # Now, and not where it is needed: services that are forked share what is loaded.
    from servicekit.security import libsodium

_STANDARD: Final = f"${ARGON2ID}$v=19$m={19 * 1024},t=2,p=1$"
_ITERATIONS: Final = 600_000
"""OWASP's (Password Storage Cheat Sheet) for PBKDF2-HMAC-SHA256."""
_SALT_BYTES: Final = 16
_APPROVED: Final = f"${PBKDF2_SHA256}$i={_ITERATIONS}$"
_PBKDF2: Final = re.compile(
    rf"\${PBKDF2_SHA256}\$i=([1-9][0-9]{{3,7}})\$([A-Za-z0-9+/]{{22,86}})\$([A-Za-z0-9+/]{{43}})"
)


_NOBODY: Final = "nobody has this password"


class UnknownSuiteError(ValueError):
    """A hash cannot be verified: a newer release has written it, or FIPS mode forbids it."""


class PasswordError(ValueError):
    """A text cannot be a password; the message is the rule that it breaks."""


@dataclass(frozen=True, slots=True)
class PasswordHashes:
    """How a password is stored."""

    typed: str = field(repr=False)
    """The hash of what was typed, byte by byte; all that release 0.1.0 reads."""
    prepared: str | None = field(repr=False)
    """The hash of the prepared form, the same text where the forms are the same; `None` when
    release 0.1.0 has set the password."""


def prepare(password: str) -> str:
    """The one form of a password, whichever way it was typed.

    Raises:
        PasswordError: it is empty or has a character that no password may have.
    """
    if not password:
        raise PasswordError("must not be empty")
    for character in password:
        if unicodedata.category(character) in {"Cc", "Cs", "Cn"}:
            raise PasswordError(f"must not contain the character U+{ord(character):04X}")
    spaced = "".join(" " if unicodedata.category(c) == "Zs" else c for c in password)
    return unicodedata.normalize("NFKC", spaced)


def hash_new(password: str) -> PasswordHashes:
    """The hashes of a new password. Takes some 25 ms of CPU, twice that where the forms differ.

    Raises:
        PasswordError: as `prepare`.
    """
    prepared = prepare(password)
    typed = hash_password(password)
    return PasswordHashes(typed, typed if prepared == password else hash_password(prepared))


def verify(stored: PasswordHashes, password: str) -> bool:
    """Whether the password is the one that was hashed; one hash is computed, whatever is stored.

    Raises:
        UnknownSuiteError: as `verify_password`.
    """
    if stored.prepared is None:
        return verify_password(stored.typed, password)
    # One that has no such form cannot be right; the time must not tell.
    with suppress(PasswordError):
        password = prepare(password)
    return verify_password(stored.prepared, password)


def renewed(stored: PasswordHashes, password: str) -> PasswordHashes:
    """What to store of a password that was just verified; the same when that is up to date."""
    if is_up_to_date(stored):
        return stored
    keep = stored.prepared is None and is_current(stored.typed)
    typed = stored.typed if keep else hash_password(password)
    try:
        prepared = prepare(password)
    except PasswordError:
        # Release 0.1.0 took it; it goes on working as it was typed.
        return PasswordHashes(typed, None)
    return PasswordHashes(typed, typed if prepared == password else hash_password(prepared))


def is_up_to_date(stored: PasswordHashes) -> bool:
    """Whether both hashes are there, of the suite and the parameters of new ones."""
    return stored.prepared is not None and is_current(stored.prepared) and is_current(stored.typed)


def suite(stored: str) -> str:
    """The suite that a hash names."""
    return stored.split("$", 2)[1] if stored.startswith("$") else ""


def hash_password(password: str) -> str:
    """The hash to store. Takes some 25 ms of CPU, PBKDF2 some 75 to 180."""
    if not mode.writes_approved():
        return libsodium.hash_password(password.encode())
    salt = os.urandom(_SALT_BYTES)
    derived = PBKDF2HMAC(SHA256(), 32, salt, _ITERATIONS).derive(password.encode())
    return f"{_APPROVED}{_base64(salt)}${_base64(derived)}"


def verify_password(stored: str, password: str) -> bool:
    """Whether the password is the one that was hashed.

    Raises:
        UnknownSuiteError: the hash names none that is known, or one that FIPS mode forbids.
    """
    match suite(stored):
        case name if name == ARGON2ID and mode.is_required():
            raise UnknownSuiteError(
                "a password's hash is argon2id, which FIPS mode cannot verify: its owner needs a"
                " new password (docs/fips.md)"
            )
        case name if name == ARGON2ID:
            return libsodium.verify_password(stored, password.encode())
        case name if name == PBKDF2_SHA256:
            return _verify_pbkdf2(stored, password)
        case name:
            raise UnknownSuiteError(f"a password's hash is of an unknown suite: {name[:40]!r}")


def decoys() -> dict[str, str]:
    """Suite → a hash that is nobody's, for each suite whose hashes are usual now.

    What a login does not verify of them, it verifies of these: then its time does not tell whose
    hash there is. While an installation changes to approved algorithms there are two.
    """
    found = hash_password(_NOBODY)
    made = {suite(found): found}
    if mode.writes_approved() and not mode.is_required():
        made[ARGON2ID] = libsodium.hash_password(_NOBODY.encode())
    return made


def is_current(stored: str) -> bool:
    """Whether the hash is of the suite and the parameters of new ones."""
    return stored.startswith(_APPROVED if mode.writes_approved() else _STANDARD)


def _verify_pbkdf2(stored: str, password: str) -> bool:
    match = _PBKDF2.fullmatch(stored)
    if match is None:
        return False
    try:
        salt, expected = (_unbase64(text) for text in match.group(2, 3))
        PBKDF2HMAC(SHA256(), 32, salt, int(match[1])).verify(password.encode(), expected)
    except (binascii.Error, InvalidKey):
        return False
    return True


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode().rstrip("=")


def _unbase64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))
