"""Sealing of private keys at rest, with a master key that is not in the database.

A sealed value begins with the name of its suite: `$xchacha20poly1305$`, then the nonce and the
ciphertext. Values up to release 0.2.0 are without it, and begin with 24 random bytes. Both are read
for ever; older ones are sealed anew when they are used.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Final

from nacl.exceptions import CryptoError
from nacl.secret import Aead

from servicekit.security.digests import derived_key, keyed
from servicekit.security.suites import XCHACHA20POLY1305

_KEY_BYTES: Final = 32
_NAME: Final = re.compile(rb"\$([a-z0-9-]{3,40})\$")
_PREFIX: Final = b"$%b$" % XCHACHA20POLY1305.encode()


class SealingError(Exception):
    """The master key is missing, malformed, or not the one that sealed."""


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
    return Sealer(master_key, "key-check").mark("evergreen")


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
        key = derived_key(master_key, purpose)
        self._box = Aead(key)
        self._marks = keyed(key, b"marks")
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
        return _PREFIX + bytes(self._box.encrypt(secret, self._bound(_PREFIX)))

    @staticmethod
    def is_current(sealed: bytes) -> bool:
        """Whether a value is sealed as it would be now."""
        return sealed.startswith(_PREFIX)

    def mark(self, text: str) -> bytes:
        """32 bytes that stand for a text, and tell nothing of it without the master key."""
        return keyed(self._marks, text.encode())

    def open(self, sealed: bytes) -> bytes:
        """Decrypts.

        Raises:
            SealingError: it was sealed with another key, for another purpose, or with a suite
                that this release does not know.
        """
        prefix = _PREFIX if sealed.startswith(_PREFIX) else b""
        try:
            return self._box.decrypt(sealed[len(prefix) :], self._bound(prefix))
        except (CryptoError, ValueError) as wrong:
            # Only now: the random bytes of an old value could look like a name.
            if not prefix and (named := _NAME.match(sealed)) is not None:
                suite = named[1].decode()
                raise SealingError(f"it is sealed with an unknown suite, {suite}") from wrong
            raise SealingError("the master key is not the one that sealed this") from wrong

    def _bound(self, prefix: bytes) -> bytes:
        """What is authenticated beside the secret: nobody can take the name away."""
        return prefix + self._purpose
