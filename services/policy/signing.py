"""Ed25519 signatures over policies: the released agent's, and the one that also binds its context.

A released agent checks a signature over Go's encoding of the document and over nothing else:
version, tenant and device are not under it (`goencoding`). Native gRPC bundles therefore carry a
second signature, in the manner of DSSE (https://github.com/secure-systems-lab/dsse), over exact
bytes that name version, tenant, audience and the version before.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

PAYLOAD_TYPE = "application/vnd.evergreen.policy.v1+json"
AUDIENCE = "evergreen:devices"

# SubjectPublicKeyInfo of an Ed25519 key (RFC 8410) before its 32 bytes.
_SPKI = bytes.fromhex("302a300506032b6570032100")


@dataclass(frozen=True)
class PublicKey:
    """A public policy-signing key: 32 raw bytes."""

    raw: bytes

    @cached_property
    def id(self) -> str:
        """The key id: the JWK thumbprint (RFC 7638), base64url without padding."""
        canonical = json.dumps(
            {"crv": "Ed25519", "kty": "OKP", "x": b64url(self.raw)}, separators=(",", ":")
        )
        return b64url(hashlib.sha256(canonical.encode()).digest())

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
        """The key as PEM `PUBLIC KEY`, as an agent pins it."""
        body = base64.b64encode(_SPKI + self.raw).decode()
        return f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n"

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether the 64-byte signature is this key's over the message."""
        try:
            VerifyKey(self.raw).verify(message, signature)
        except (BadSignatureError, ValueError):
            return False
        return True


class Signer:
    """Signs with one private key, which is given as its raw 32-byte seed."""

    def __init__(self, seed: bytes) -> None:
        self._key = SigningKey(seed)
        self.public = PublicKey(bytes(self._key.verify_key))

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature over exactly these bytes."""
        return self._key.sign(message).signature

    def state(
        self,
        document: bytes,
        *,
        version: int,
        tenant: str,
        previous: bytes | None,
        issued_at: datetime,
    ) -> Statement:
        """Signs the document together with what it is for.

        `document` are the bytes of `goencoding`, `previous` the payload of the version before.
        """
        payload = statement_payload(
            document, version=version, tenant=tenant, previous=previous, issued_at=issued_at
        )
        signature = self.sign(pre_authentication_encoding(PAYLOAD_TYPE, payload))
        return Statement(payload, signature, self.public.id)


@dataclass(frozen=True, slots=True)
class Statement:
    """A signed payload; the signature is over its pre-authentication encoding."""

    payload: bytes
    signature: bytes
    key_id: str


def statement_payload(
    document: bytes, *, version: int, tenant: str, previous: bytes | None, issued_at: datetime
) -> bytes:
    """The bytes of the second signature: a JSON object that holds the document verbatim.

    `previous` is the payload of the version before; its SHA-256 chains the versions, so that a
    later agent can see a version that was left out. It is `""` in an org's first version.
    """
    head = json.dumps(
        {
            "version": str(version),
            "tenant": tenant,
            "audience": AUDIENCE,
            "previous": "" if previous is None else hashlib.sha256(previous).hexdigest(),
            "issuedAt": issued_at.isoformat().replace("+00:00", "Z"),
        },
        separators=(",", ":"),
    )
    return head[:-1].encode() + b',"document":' + document + b"}"


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """DSSE's PAE: `DSSEv1 <len> <type> <len> <payload>`, lengths in decimal bytes."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def envelope(
    version: str, signature: bytes, document: bytes, device_token: str | None = None
) -> bytes:
    """The released agent's ENVELOPE with exactly these document bytes in it."""
    body = envelope_head(version, signature, document)
    if device_token is None:
        return body + b"}"
    return body + b',"device_token":' + json.dumps(device_token).encode() + b"}"


def envelope_head(version: str, signature: bytes, document: bytes) -> bytes:
    """All of an ENVELOPE but its last brace, to which a device's own token can be added."""
    return b'{"version":%b,"signature":"%b","policy":%b' % (
        json.dumps(version).encode(),
        base64.b64encode(signature),
        document,
    )


def pem_bundle(keys: Iterable[PublicKey]) -> str:
    """Several keys in one PEM text, in the order given."""
    return "".join(key.pem() for key in keys)


def b64url(raw: bytes) -> str:
    """Base64url without padding, as JOSE writes it."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
