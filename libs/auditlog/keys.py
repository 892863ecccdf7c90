"""The public keys of checkpoints: Ed25519, in PEM, named by their JWK thumbprint (RFC 7638).

This repeats a little of the server's own code on purpose: who verifies a log needs nothing of it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

_SPKI: Final = bytes.fromhex("302a300506032b6570032100")
"""SubjectPublicKeyInfo of an Ed25519 key (RFC 8410) before its 32 bytes."""
_PEM: Final = re.compile(
    r"-----BEGIN PUBLIC KEY-----\s*([A-Za-z0-9+/=\s]+?)\s*-----END PUBLIC KEY-----"
)


@dataclass(frozen=True)
class CheckpointKey:
    """A public key: 32 raw bytes."""

    raw: bytes

    @cached_property
    def id(self) -> str:
        """The key id that a checkpoint names."""
        text = f'{{"crv":"Ed25519","kty":"OKP","x":"{_base64url(self.raw)}"}}'
        return _base64url(hashlib.sha256(text.encode()).digest())

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether the 64-byte signature is this key's over the message."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


class PrivateKey:
    """A private key of who signs notes.

    Args:
        seed: 32 bytes.
    """

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.raw = self._key.public_key().public_bytes_raw()
        """The public key."""

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of a signature."""
        return self._key.sign(message)


def read_keys(text: str) -> list[CheckpointKey]:
    """The keys of a PEM text.

    Raises:
        ValueError: when there is none, or one is not an Ed25519 key.
    """
    keys = []
    for body in _PEM.findall(text):
        try:
            der = base64.b64decode("".join(body.split()), validate=True)
        except binascii.Error as broken:
            raise ValueError("the PEM text is damaged") from broken
        if len(der) != len(_SPKI) + 32 or not der.startswith(_SPKI):
            raise ValueError("a key of the PEM text is not an Ed25519 public key")
        keys.append(CheckpointKey(der[len(_SPKI) :]))
    if not keys:
        raise ValueError("there is no PEM public key in it")
    return keys


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
