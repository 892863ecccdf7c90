"""What libsodium does: argon2id and XChaCha20-Poly1305. FIPS mode never imports it."""

from __future__ import annotations

from typing import Final

import nacl.exceptions
from nacl.pwhash import argon2id
from nacl.secret import Aead

OPERATIONS: Final = 2
MEMORY: Final = 19 * 1024 * 1024
"""OWASP's parameters of argon2id (Password Storage Cheat Sheet), with one lane."""


def hash_password(password: bytes) -> str:
    """A hash of argon2id in the PHC format. Takes some 25 ms of CPU."""
    return argon2id.str(password, OPERATIONS, MEMORY).decode()


def verify_password(stored: str, password: bytes) -> bool:
    """Whether a hash of argon2id, of any parameters, is the password's."""
    try:
        return argon2id.verify(stored.encode(), password)
    except nacl.exceptions.InvalidkeyError:
        return False


def encrypt(key: bytes, secret: bytes, bound: bytes) -> bytes:
    """A random nonce, then the ciphertext of XChaCha20-Poly1305."""
    return bytes(Aead(key).encrypt(secret, bound))


def decrypt(key: bytes, sealed: bytes, bound: bytes) -> bytes:
    """The secret.

    Raises:
        ValueError: the key is another one, or something was changed.
    """
    try:
        return Aead(key).decrypt(sealed, bound)
    except nacl.exceptions.CryptoError as wrong:
        raise ValueError("it does not open") from wrong
