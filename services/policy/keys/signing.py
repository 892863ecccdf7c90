"""Ed25519 signatures over policies: the released agent's, and the one that also binds its context.

A released agent checks a signature over Go's encoding of the document and over nothing else:
version, tenant and device are not under it (`goencoding`). Native gRPC bundles therefore carry a
second signature, in the manner of DSSE (https://github.com/secure-systems-lab/dsse), over exact
bytes that name version, tenant, audience and the version before.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import datetime

from servicekit.security import signing
from servicekit.security.digests import sha256_hex
from servicekit.security.signing import dsse_encoding
from servicekit.times import format_rfc3339

PAYLOAD_TYPE = "application/vnd.evergreen.policy.v1+json"
AUDIENCE = "evergreen:devices"


class Signer(signing.Signer):
    """Signs policies with one private key, which is given as its raw 32-byte seed."""

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
        signature = self.sign(dsse_encoding(PAYLOAD_TYPE, payload))
        return Statement(payload, signature, self.public.id)

    def again(self, statement: Statement) -> Statement:
        """The same statement, signed with this key."""
        signature = self.sign(dsse_encoding(PAYLOAD_TYPE, statement.payload))
        return Statement(statement.payload, signature, self.public.id)


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
            "previous": "" if previous is None else sha256_hex(previous),
            "issuedAt": format_rfc3339(issued_at),
        },
        separators=(",", ":"),
    )
    return head[:-1].encode() + b',"document":' + document + b"}"


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
