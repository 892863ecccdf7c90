"""The JWTs by which identity tells NATS who may connect and what an integrator may do there.

NATS has its own kind: Ed25519 under the name `ed25519-nkey`, keys written as nkeys
(https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_callout).
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from contract.subjects import DOMAIN, reader_requests
from servicekit.security.digests import sha256
from servicekit.security.nkey import account_key
from servicekit.security.signing import b64url

_HEADER: Final = b64url(b'{"typ":"JWT","alg":"ed25519-nkey"}')
_ACCOUNT: Final = "INTEGRATORS"
"""The account of deploy/nats that reaches nothing but the requests of readers."""


@dataclass(frozen=True, slots=True)
class Request:
    """A server's question whether a connection may be opened."""

    server: str
    nkey: str
    """The key that the server made for this connection; the answer is good for it alone."""
    user: str
    secret: str = field(repr=False)
    expires_at: int
    """When the server stops waiting, in seconds since 1970."""


def read_request(token: bytes) -> Request:
    """Reads a server's question. Only servers can ask: who is asked knows that by the account.

    Raises:
        ValueError: it is none.
    """
    try:
        body = token.split(b".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)))
        asked = claims["nats"]
        options = asked["connect_opts"]
        return Request(
            asked["server_id"]["id"],
            asked["user_nkey"],
            str(options.get("user", "")),
            str(options.get("pass", "")),
            int(claims["exp"]),
        )
    except (IndexError, KeyError, TypeError) as broken:
        raise ValueError("not an authorization request") from broken


class NatsSigner:
    """Signs answers with the account's key."""

    def __init__(self, seed: str) -> None:
        self._key = account_key(seed)
        self._issuer = self._key.public

    def admit(self, request: Request, user: str, at: datetime, until: datetime) -> bytes:
        """The answer that lets a reader in, until a time."""
        permitted = {
            "pub": {"allow": reader_requests(f"$JS.{DOMAIN}.API", user)},
            "sub": {"allow": [f"_INBOX_{user}.>"]},
            "subs": -1,
            "data": -1,
            "payload": -1,
            "type": "user",
            "version": 2,
        }
        token = self._sign(
            at,
            sub=request.nkey,
            aud=_ACCOUNT,
            name=user,
            exp=int(until.timestamp()),
            nats=permitted,
        )
        return self._answer(request, at, jwt=token)

    def refuse(self, request: Request, at: datetime) -> bytes:
        """The answer that lets nobody in."""
        return self._answer(request, at, error="wrong credentials")

    def _answer(self, request: Request, at: datetime, **found: str) -> bytes:
        claims = {"type": "authorization_response", "version": 2, **found}
        return self._sign(at, sub=request.nkey, aud=request.server, nats=claims).encode("ascii")

    def _sign(self, at: datetime, **claims: Any) -> str:
        claims |= {"iss": self._issuer, "iat": int(at.timestamp())}
        digest = sha256(json.dumps(claims).encode())
        claims["jti"] = base64.b32encode(digest).decode().rstrip("=")
        signed = f"{_HEADER}.{b64url(json.dumps(claims).encode())}"
        return f"{signed}.{b64url(self._key.sign(signed.encode()))}"
