"""Ed25519 and P-256 keys: signing, verifying, and how their public halves are written.

P-256 is for tokens where new values are made with approved algorithms; all else is Ed25519.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from servicekit.security.digests import sha256
from servicekit.security.suites import ED25519, ES256

_SPKI: Final = bytes.fromhex("302a300506032b6570032100")
"""SubjectPublicKeyInfo of an Ed25519 key (RFC 8410) before its 32 bytes."""
_SEED_BYTES: Final = 32
_POINT_BYTES: Final = 65
_CURVE: Final = ec.SECP256R1()
_PEM: Final = re.compile(
    r"-----BEGIN PUBLIC KEY-----\s*([A-Za-z0-9+/=\s]+?)\s*-----END PUBLIC KEY-----"
)


def b64url(raw: bytes) -> str:
    """Base64url without padding, as JOSE writes it."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@dataclass(frozen=True)
class PublicKey:
    """A public key: the 32 raw bytes of an Ed25519 key, or the 65 of a P-256 key's uncompressed
    point (SEC 1, 2.3.3)."""

    raw: bytes

    @property
    def algorithm(self) -> str:
        """What it verifies, as `suites` names it."""
        return ES256 if len(self.raw) == _POINT_BYTES else ED25519

    @cached_property
    def id(self) -> str:
        """The key id: the JWK thumbprint (RFC 7638), base64url without padding."""
        canonical = json.dumps(self._members(), separators=(",", ":"), sort_keys=True)
        return b64url(sha256(canonical.encode()))

    @cached_property
    def verifier(self) -> Ed25519PublicKey | ec.EllipticCurvePublicKey:
        """The key for `cryptography`; a `ValueError` when these bytes are none."""
        if self.algorithm == ES256:
            return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, self.raw)
        return Ed25519PublicKey.from_public_bytes(self.raw)

    def jwk(self) -> dict[str, str]:
        """The key as a JSON Web Key (RFC 8037; RFC 7518, 6.2)."""
        alg = "ES256" if self.algorithm == ES256 else "EdDSA"
        return self._members() | {"kid": self.id, "alg": alg, "use": "sig"}

    def _members(self) -> dict[str, str]:
        """What makes the key."""
        if self.algorithm == ES256:
            x, y = self.raw[1:33], self.raw[33:]
            return {"kty": "EC", "crv": "P-256", "x": b64url(x), "y": b64url(y)}
        return {"kty": "OKP", "crv": "Ed25519", "x": b64url(self.raw)}

    def pem(self) -> str:
        """The key as PEM `PUBLIC KEY`."""
        if self.algorithm == ES256:
            return self.verifier.public_bytes(
                Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
            ).decode("ascii")
        body = base64.b64encode(_SPKI + self.raw).decode()
        return f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n"

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether the 64-byte signature is this key's over the message."""
        try:
            if isinstance(self.verifier, Ed25519PublicKey):
                self.verifier.verify(signature, message)
            else:
                r, s = (int.from_bytes(half) for half in (signature[:32], signature[32:]))
                der = encode_dss_signature(r, s)
                self.verifier.verify(der, message, ec.ECDSA(SHA256()))
        except (InvalidSignature, ValueError):
            return False
        return True


class Signer:
    """Signs with one private key.

    Args:
        seed: its raw 32 bytes; of a P-256 key its scalar, the highest byte first.
        algorithm: what it is for, as `suites` names it.
    """

    def __init__(self, seed: bytes, algorithm: str = ED25519) -> None:
        self.private: Ed25519PrivateKey | ec.EllipticCurvePrivateKey
        if algorithm == ES256:
            self.private = ec.derive_private_key(int.from_bytes(seed), _CURVE)
            point = self.private.public_key().public_bytes(
                Encoding.X962, PublicFormat.UncompressedPoint
            )
            self.public = PublicKey(point)
        elif algorithm == ED25519:
            self.private = Ed25519PrivateKey.from_private_bytes(seed)
            self.public = PublicKey(self.private.public_key().public_bytes_raw())
        else:
            raise ValueError(f"keys of {algorithm!r} are not known")

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature over exactly these bytes."""
        if isinstance(self.private, Ed25519PrivateKey):
            return self.private.sign(message)
        r, s = decode_dss_signature(self.private.sign(message, ec.ECDSA(SHA256())))
        return r.to_bytes(32) + s.to_bytes(32)


def new_seed(algorithm: str = ED25519) -> bytes:
    """The private half of a new key: 32 random bytes."""
    if algorithm == ES256:
        return ec.generate_private_key(_CURVE).private_numbers().private_value.to_bytes(32)
    return secrets.token_bytes(_SEED_BYTES)


def dsse_encoding(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding, which is what a DSSE signature is over:
    `DSSEv1 <len> <type> <len> <payload>`, lengths in decimal bytes."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def read_jwk(jwk: Mapping[str, Any]) -> PublicKey:
    """The Ed25519 key that a JSON Web Key says (RFC 8037).

    Raises:
        ValueError: it says none.
    """
    try:
        raw = base64.urlsafe_b64decode(str(jwk["x"]) + "=")
        key = PublicKey(raw)
        if len(raw) != _SEED_BYTES or key.jwk() != {**key.jwk(), **jwk}:
            raise ValueError("the key is no Ed25519 key")
        key.verifier  # noqa: B018 - raises where the bytes are no point
    except (KeyError, TypeError, binascii.Error) as broken:
        raise ValueError("the key is no Ed25519 key") from broken
    return key


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
