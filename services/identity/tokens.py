"""Signing of tokens (JWT, EdDSA) and their public keys (RFC 8037, RFC 7638)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from servicekit.keys import PublicKey
from services.identity.domain import SESSION_TOKEN_LIFE, SigningKey, User

USERS: Final = "users"
DEVICES: Final = "devices"
ISSUER_USERS: Final = "evergreen:users"
ISSUER_DEVICES: Final = "evergreen:devices"
AUDIENCE_USERS: Final = "evergreen:api"
AUDIENCE_DEVICES: Final = "evergreen:devices"


def generate_key(purpose: str) -> SigningKey:
    """A new key for one purpose."""
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return SigningKey(PublicKey(public).id, purpose, public, private.private_bytes_raw())


class TokenSigner:
    """Signs with the newest key of each purpose.

    Args:
        keys: all keys, oldest first; there is at least one per purpose.
        device_life: how long device tokens are valid.
    """

    def __init__(self, keys: Sequence[SigningKey], device_life: timedelta) -> None:
        self._device_life = device_life
        self._newest = {key.purpose: key for key in keys}
        self._private = {
            key.purpose: Ed25519PrivateKey.from_private_bytes(key.seed) for key in keys
        }
        self.public_keys = tuple(PublicKey(key.public_key) for key in keys)

    def session_token(
        self, user: User, session_id: UUID, issued_at: datetime, expires_at: datetime | None = None
    ) -> tuple[str, datetime]:
        """A token for one hour (or until `expires_at`); answers it and when it expires."""
        expires = expires_at or issued_at.replace(microsecond=0) + SESSION_TOKEN_LIFE
        claims = {
            "iss": ISSUER_USERS,
            "aud": AUDIENCE_USERS,
            "knd": "user",
            "sub": str(user.id),
            "tid": str(user.tenant_id),
            "role": user.role.value,
            "email": user.email,
            "sid": str(session_id),
            "iat": int(issued_at.timestamp()),
            "exp": int(expires.timestamp()),
        }
        return self._sign(USERS, claims), expires

    def device_token(
        self, device_id: str, tenant_id: str, version: int, issued_at: datetime
    ) -> tuple[str, datetime]:
        """A token that is bound to one device; answers it and when it expires."""
        expires = issued_at.replace(microsecond=0) + self._device_life
        claims = {
            "iss": ISSUER_DEVICES,
            "aud": AUDIENCE_DEVICES,
            "knd": "device",
            "sub": device_id,
            "tid": tenant_id,
            "ver": version,
            "iat": int(issued_at.timestamp()),
            "exp": int(expires.timestamp()),
        }
        return self._sign(DEVICES, claims), expires

    def _sign(self, purpose: str, claims: dict[str, Any]) -> str:
        return jwt.encode(
            claims,
            self._private[purpose],
            algorithm="EdDSA",
            headers={"kid": self._newest[purpose].key_id},
        )
