"""Digests: SHA-256 of what is public or random, keyed BLAKE2b of what must not be guessed.

In the place of BLAKE2b, the approved algorithms have HKDF and HMAC with SHA-256. HMAC is also here
for receivers that know nothing else, and SHA-1 to look something up in lists of others, where it
protects nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from servicekit.security import mode

_BYTES: Final = 32
_PERSON_BYTES: Final = 16


class Sha256:
    """A SHA-256 over what comes in parts."""

    def __init__(self) -> None:
        self._state = hashlib.sha256()

    def update(self, part: bytes) -> None:
        """Adds bytes."""
        self._state.update(part)

    def hexdigest(self) -> str:
        """The digest of all parts so far, as 64 hexadecimal digits."""
        return self._state.hexdigest()


def sha256(data: bytes | memoryview) -> bytes:
    """The SHA-256 of the data: 32 bytes."""
    return hashlib.sha256(data).digest()


def sha256_hex(data: bytes) -> str:
    """The SHA-256 of the data as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha1_hex(data: bytes) -> str:
    """The SHA-1 of the data as 40 hexadecimal digits; only to find it in somebody else's list."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def derived_key(key: bytes, purpose: str) -> bytes:
    """32 bytes for one purpose, from a key of 32 bytes; the purpose's first 16 bytes count."""
    _allowed()
    person = purpose.encode()[:_PERSON_BYTES]
    return hashlib.blake2b(b"", digest_size=_BYTES, key=key, person=person).digest()


def _allowed() -> None:
    # hashlib has a BLAKE2b of its own, and does not ask OpenSSL.
    if mode.is_required():
        raise mode.FipsError("BLAKE2b is not approved", "this is a mistake of the product; tell us")


def approved_key(key: bytes, purpose: str) -> bytes:
    """32 bytes for one purpose, from a key of 32 bytes, by HKDF-SHA256 (SP 800-56C)."""
    return HKDF(SHA256(), _BYTES, None, b"evergreen sealing 1\0" + purpose.encode()).derive(key)


def keyed(key: bytes, data: bytes) -> bytes:
    """32 bytes that stand for the data, and tell nothing of it without the key."""
    _allowed()
    return hashlib.blake2b(data, digest_size=_BYTES, key=key).digest()


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """The HMAC of the data with SHA-256 (RFC 2104): 32 bytes."""
    return hmac.digest(key, data, "sha256")


def equal(one: bytes, other: bytes) -> bool:
    """Compares in a time that does not tell where the two differ."""
    return hmac.compare_digest(one, other)
