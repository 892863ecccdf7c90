"""Sealing of private keys at rest, with a master key that is not in the database.

A sealed value begins with the name of its suite: `$xchacha20poly1305$`, or `$aes256gcm$` where new
values are made with approved algorithms; then the nonce and the ciphertext. Values up to release
0.2.0 are without it, and begin with 24 random bytes. All are read for ever, in FIPS mode those with
approved algorithms alone; older ones are sealed anew when they are used.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Final

from servicekit.security import aead, mode
from servicekit.security.digests import approved_key, derived_key, hmac_sha256, keyed
from servicekit.security.suites import AES256GCM, XCHACHA20POLY1305

if not mode.is_required():
    from servicekit.security import libsodium

_KEY_BYTES: Final = 32
_NAME: Final = re.compile(rb"\$([a-z0-9-]{3,40})\$")
_STANDARD: Final = b"$%b$" % XCHACHA20POLY1305.encode()
_APPROVED: Final = b"$%b$" % AES256GCM.encode()


_CHECK: Final = "key-check"
_CHECKED: Final = b"evergreen"


class SealingError(Exception):
    """The master key is missing, malformed, or not the one that sealed."""


class ForbiddenSuiteError(SealingError):
    """A value is sealed in a way that FIPS mode forbids; to start again does not help."""


def parse_master_key(text: bytes) -> bytes:
    """The master key in a file's content: 32 bytes, base64-encoded.

    Raises:
        SealingError: it is empty, or no such key.
    """
    if not text.strip():
        raise SealingError("the master key is empty")
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error as broken:
        raise SealingError(f"the master key is not base64: {broken}") from broken
    if len(key) != _KEY_BYTES:
        raise SealingError("the master key must be 32 bytes, base64-encoded")
    return key


def read_master_key(path: Path | None) -> bytes:
    """Reads the master key.

    Raises:
        SealingError: the file is not there, or does not hold such a key.
    """
    if path is None:
        raise SealingError("EVERGREEN_MASTER_KEY_FILE is not set")
    try:
        return parse_master_key(path.read_bytes())
    except (OSError, SealingError) as broken:
        raise SealingError(f"cannot read the master key from {path}: {broken}") from broken


def check_value(master_key: bytes) -> bytes:
    """32 bytes by which a database knows its master key, and that tell nothing of it."""
    return keyed(_standard_marks(derived_key(master_key, _CHECK)), _CHECKED)


def approved_check_value(master_key: bytes) -> bytes:
    """The same, made with approved algorithms."""
    return hmac_sha256(approved_key(master_key, f"{_CHECK}\0marks"), _CHECKED)


def uses_standard(sealed: bytes) -> bool:
    """Whether a value is sealed in a way that FIPS mode does not open."""
    return not sealed.startswith(_APPROVED)


class Sealer:
    """Seals and opens small secrets for one purpose.

    The purpose is bound to what is sealed: a value that was sealed for one purpose does not
    open for another.

    Args:
        master_key: 32 bytes.
        purpose: what is sealed; purposes differ in their first 16 bytes.
    """

    def __init__(self, master_key: bytes, purpose: str) -> None:
        if len(master_key) != _KEY_BYTES:
            raise SealingError("the master key must be 32 bytes, base64-encoded")
        self._approved = approved_key(master_key, purpose)
        self._approved_marks = approved_key(master_key, f"{purpose}\0marks")
        if not mode.is_required():
            self._standard = derived_key(master_key, purpose)
            self._marks = _standard_marks(self._standard)
        self._purpose = purpose.encode()

    @classmethod
    def from_file(cls, path: Path | None, purpose: str) -> Sealer:
        """Reads the master key.

        Raises:
            SealingError: when the file is not there or does not hold such a key.
        """
        return cls(read_master_key(path), purpose)

    def seal(self, secret: bytes) -> bytes:
        """Encrypts with a random nonce, which is part of the answer."""
        if mode.writes_approved():
            return self.seal_approved(secret)
        return _STANDARD + libsodium.encrypt(self._standard, secret, self._bound(_STANDARD))

    def seal_approved(self, secret: bytes) -> bytes:
        """The same, with approved algorithms in any mode."""
        return _APPROVED + aead.encrypt(self._approved, secret, self._bound(_APPROVED))

    @staticmethod
    def is_current(sealed: bytes) -> bool:
        """Whether a value is sealed as it would be now."""
        return sealed.startswith(_APPROVED if mode.writes_approved() else _STANDARD)

    def mark(self, text: str) -> bytes:
        """32 bytes that stand for a text, and tell nothing of it without the master key.

        Another suite gives other bytes, so that what is kept under them is only what passes by
        itself: counters, logins that are in progress.
        """
        if mode.writes_approved():
            return hmac_sha256(self._approved_marks, text.encode())
        return keyed(self._marks, text.encode())

    def open(self, sealed: bytes) -> bytes:
        """Decrypts.

        Raises:
            SealingError: it was sealed with another key, for another purpose, with a suite that
                this release does not know, or with one that FIPS mode forbids.
        """
        try:
            if sealed.startswith(_APPROVED):
                return aead.decrypt(
                    self._approved, sealed[len(_APPROVED) :], self._bound(_APPROVED)
                )
            prefix = _STANDARD if sealed.startswith(_STANDARD) else b""
            if mode.is_required():
                raise ForbiddenSuiteError(
                    "it is sealed in a way that FIPS mode forbids: set EVERGREEN_FIPS=off, and run"
                    " `evergreen fips migrate`"
                )
            return libsodium.decrypt(self._standard, sealed[len(prefix) :], self._bound(prefix))
        except ValueError as wrong:
            # Only now: the random bytes of an old value could look like a name.
            named = _NAME.match(sealed)
            if named is not None and named[0] not in {_APPROVED, _STANDARD}:
                suite = named[1].decode()
                raise SealingError(f"it is sealed with an unknown suite, {suite}") from wrong
            raise SealingError("the master key is not the one that sealed this") from wrong

    def _bound(self, prefix: bytes) -> bytes:
        """What is authenticated beside the secret: nobody can take the name away."""
        return prefix + self._purpose


def _standard_marks(key: bytes) -> bytes:
    return keyed(key, b"marks")
