"""AES-256-GCM with a random nonce (SP 800-38D)."""

from __future__ import annotations

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE: Final = 12


def encrypt(key: bytes, secret: bytes, bound: bytes) -> bytes:
    """A random nonce, then the ciphertext with its tag.

    One key takes 2^32 of them: far more than an installation has secrets.
    """
    nonce = os.urandom(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, secret, bound)


def decrypt(key: bytes, sealed: bytes, bound: bytes) -> bytes:
    """The secret.

    Raises:
        ValueError: the key is another one, or something was changed.
    """
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], bound)
    except InvalidTag as wrong:
        raise ValueError("it does not open") from wrong
