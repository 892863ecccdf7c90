"""Sealing of private keys at rest, with a master key that is not in the database."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Final

from nacl.encoding import RawEncoder
from nacl.exceptions import CryptoError
from nacl.hash import blake2b
from nacl.secret import Aead

_KEY_BYTES: Final = 32


class SealingError(Exception):
    """The master key is missing, malformed, or not the one that sealed."""


class Sealer:
    """Seals and opens small secrets for one purpose (XChaCha20-Poly1305, libsodium).

    The purpose is bound to what is sealed: a value that was sealed for one purpose does not
    open for another.
    """

    def __init__(self, master_key: bytes, purpose: str) -> None:
        if len(master_key) != _KEY_BYTES:
            raise SealingError("the master key must be 32 bytes, base64-encoded")
        key = blake2b(
            b"",
            digest_size=Aead.KEY_SIZE,
            key=master_key,
            person=purpose.encode()[:16],
            encoder=RawEncoder,
        )
        self._box = Aead(key)
        self._purpose = purpose.encode()

    @classmethod
    def from_file(cls, path: Path | None, purpose: str) -> Sealer:
        """Reads the master key.

        Raises:
            SealingError: when the file is not there or does not hold such a key.
        """
        if path is None:
            raise SealingError("EVERGREEN_MASTER_KEY_FILE is not set")
        try:
            return cls(
                base64.b64decode(path.read_text("ascii").strip(), validate=True),
                purpose,
            )
        except (OSError, ValueError, binascii.Error) as broken:
            raise SealingError(f"cannot read the master key from {path}: {broken}") from broken

    def seal(self, secret: bytes) -> bytes:
        """Encrypts with a random nonce, which is part of the answer."""
        return bytes(self._box.encrypt(secret, self._purpose))

    def open(self, sealed: bytes) -> bytes:
        """Decrypts.

        Raises:
            SealingError: when it was sealed with another key or for another purpose.
        """
        try:
            return self._box.decrypt(sealed, self._purpose)
        except CryptoError as wrong:
            raise SealingError("the master key is not the one that sealed this") from wrong
