"""Ed25519 keys: signing, verifying, and how their public halves are written."""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from servicekit.security.digests import sha256

_SPKI: Final = bytes.fromhex("302a300506032b6570032100")
"""SubjectPublicKeyInfo of an Ed25519 key (RFC 8410) before its 32 bytes."""
_SEED_BYTES: Final = 32
_PEM: Final = re.compile(
    r"-----BEGIN PUBLIC KEY-----\s*([A-Za-z0-9+/=\s]+?)\s*-----END PUBLIC KEY-----"
)


def b64url(raw: bytes) -> str:
    """Base64url without padding, as JOSE writes it."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@dataclass(frozen=True)
class PublicKey:
    """A public key: 32 raw bytes."""

    raw: bytes

    @cached_property
    def id(self) -> str:
        """The key id: the JWK thumbprint (RFC 7638), base64url without padding."""
        canonical = json.dumps(
            {"crv": "Ed25519", "kty": "OKP", "x": b64url(self.raw)}, separators=(",", ":")
        )
        return b64url(sha256(canonical.encode()))

    @cached_property
    def verifier(self) -> Ed25519PublicKey:
        """The key for `cryptography`; a `ValueError` when these are not 32 bytes."""
        return Ed25519PublicKey.from_public_bytes(self.raw)

    def jwk(self) -> dict[str, str]:
        """The key as a JSON Web Key (RFC 8037)."""
        return {
            "kty": "OKP",
            "crv": "Ed25519",
            "x": b64url(self.raw),
            "kid": self.id,
            "alg": "EdDSA",
            "use": "sig",
        }

    def pem(self) -> str:
        """The key as PEM `PUBLIC KEY`."""
        body = base64.b64encode(_SPKI + self.raw).decode()
        return f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n"

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether the 64-byte signature is this key's over the message."""
        try:
            self.verifier.verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


class Signer:
    """Signs with one private key, which is given as its raw 32-byte seed."""

    def __init__(self, seed: bytes) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = PublicKey(self.private.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature over exactly these bytes."""
        return self.private.sign(message)


def new_seed() -> bytes:
    """The private half of a new key: 32 random bytes."""
    return secrets.token_bytes(_SEED_BYTES)


def pem_bundle(keys: Iterable[PublicKey]) -> str:
    """Several keys in one PEM text, in the order given."""
    return "".join(key.pem() for key in keys)


def read_pem_bundle(text: str) -> list[PublicKey]:
    """The Ed25519 keys of a PEM text.

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
        keys.append(PublicKey(der[len(_SPKI) :]))
    if not keys:
        raise ValueError("there is no PEM public key in it")
    return keys
