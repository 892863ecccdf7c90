"""Signing of tokens (JWT, EdDSA or ES256) and their public keys (RFC 7518, RFC 7638, RFC 8037)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from servicekit.keys.ring import KeyRing
from servicekit.keys.service import Purpose
from servicekit.security import jwt
from servicekit.security.signing import PublicKey
from servicekit.security.suites import ES256
from services.identity.users.domain import User

API_TOKEN_PREFIX: Final = "evt_"
"""What API tokens begin with, so that people and scanners of secrets know them (the gateway, too:
`deploy.gateway.auth`)."""
API_TOKEN_LIFE_MAX: Final = timedelta(days=400)
SESSION_TOKEN_LIFE: Final = timedelta(hours=1)
DEVICE_LAPSE: Final = timedelta(days=90)
"""How long a device token that has expired still fetches the policy, and so a new token."""
SEALED_FOR: Final = "identity-keys"
"""The purpose for which the master key seals the keys."""
USERS: Final = "users"
DEVICES: Final = "devices"
TOKENS: Final = "tokens"
ISSUER_USERS: Final = "evergreen:users"
ISSUER_DEVICES: Final = "evergreen:devices"
ISSUER_TOKENS: Final = "evergreen:tokens"
AUDIENCE_USERS: Final = "evergreen:api"
AUDIENCE_DEVICES: Final = "evergreen:devices"
TYPES: Final = {
    USERS: "evergreen-user+jwt",
    DEVICES: "evergreen-device+jwt",
    TOKENS: "evergreen-token+jwt",
}
"""What a token's header says that it is (RFC 8725, 3.11)."""
_TYPE_BEFORE: Final = "JWT"
"""What it says in tokens of release 0.1.0."""


def purposes(device_life: timedelta) -> tuple[Purpose, ...]:
    """What identity has token keys for."""
    return (
        Purpose(USERS, SESSION_TOKEN_LIFE, ES256),
        Purpose(DEVICES, device_life + DEVICE_LAPSE, ES256),
        Purpose(TOKENS, API_TOKEN_LIFE_MAX, ES256),
    )


class TokenSigner:
    """Signs with the active key of each purpose.

    Args:
        ring: the keys.
        device_life: how long device tokens are valid.
    """

    def __init__(self, ring: KeyRing, device_life: timedelta) -> None:
        self._device_life = device_life
        self._ring = ring

    def public_keys(self, purpose: str = "") -> list[PublicKey]:
        """The keys that verify tokens of a purpose; all without one."""
        return self._ring.verifying(purpose)

    def session_token(
        self,
        user: User,
        session_id: UUID,
        issued_at: datetime,
        authenticated_at: datetime,
        expires_at: datetime | None = None,
    ) -> tuple[str, datetime]:
        """A token for one hour (or until `expires_at`); answers it and when it expires.

        Args:
            authenticated_at: when the user logged in, or confirmed it since.
        """
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
            "aat": int(authenticated_at.timestamp()),
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

    def api_token(self, claims: Mapping[str, str], issued_at: datetime, until: datetime) -> str:
        """An API token with its prefix.

        Args:
            claims: who it acts for, what it may do (`servicekit.call.TOKEN_CLAIMS`).
            issued_at: when it was made.
            until: when it ends.
        """
        whole = {
            "iss": ISSUER_TOKENS,
            "aud": AUDIENCE_USERS,
            **claims,
            "iat": int(issued_at.timestamp()),
            "exp": int(until.timestamp()),
        }
        return API_TOKEN_PREFIX + self._sign(TOKENS, whole)

    def session_claims(self, token: str, *, lapsed: bool = False) -> dict[str, Any] | None:
        """What a session token of ours says; `None` when it is not one, or has expired.

        Args:
            lapsed: takes one that has expired, too.
        """
        try:
            header = jwt.header(token)
            if header.get("typ", _TYPE_BEFORE) not in {_TYPE_BEFORE, TYPES[USERS]}:
                return None
            key = self._ring.verifier(USERS, header.get("kid", ""))
            if key is None:
                return None
            found = jwt.decode(
                token,
                key,
                issuer=ISSUER_USERS,
                audience=AUDIENCE_USERS,
                required=["exp", "sub", "sid"],
                lapsed=lapsed,
            )
        except (ValueError, TypeError):
            return None
        return found if found.get("knd") == "user" else None

    def _sign(self, purpose: str, claims: dict[str, Any]) -> str:
        return jwt.encode(claims, self._ring.signer(purpose), TYPES[purpose])
