"""Tokens as identity makes them, and others."""

from __future__ import annotations

import time
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

USER: Final = "01930000-0000-7000-8000-000000000001"
DEVICE: Final = "01930000-0000-7000-8000-000000000002"
TENANT: Final = "01930000-0000-7000-8000-000000000003"
SESSION: Final = "01930000-0000-7000-8000-000000000004"
API_TOKEN: Final = "01930000-0000-7000-8000-000000000005"
DAY: Final = 24 * 3600


class Signer:
    """One key of identity's, of Ed25519 or P-256."""

    def __init__(
        self, kid: str, key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey | None = None
    ) -> None:
        self.kid = kid
        self.key: Any = key or Ed25519PrivateKey.generate()
        self._algorithm = "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "EdDSA"

    @property
    def jwk(self) -> dict[str, Any]:
        """Its public half."""
        kind = jwt.algorithms.get_default_algorithms()[self._algorithm]
        jwk = kind.to_jwk(self.key.public_key(), as_dict=True)
        return {**jwk, "kid": self.kid, "alg": self._algorithm, "use": "sig"}

    def user(self, lifetime: int = 3600, **claims: Any) -> str:
        """A session's token; a claim that is `None` is left out."""
        return self._sign(
            {
                "iss": "evergreen:users",
                "aud": "evergreen:api",
                "sub": USER,
                "knd": "user",
                "role": "Owner",
                "email": "owner@example.org",
                "sid": SESSION,
                "tid": TENANT,
            },
            lifetime,
            claims,
        )

    def device(self, lifetime: int = 365 * DAY, **claims: Any) -> str:
        """A device's token."""
        return self._sign(
            {
                "iss": "evergreen:devices",
                "aud": "evergreen:devices",
                "sub": DEVICE,
                "knd": "device",
                "ver": 3,
                "tid": TENANT,
            },
            lifetime,
            claims,
        )

    def api_token(self, lifetime: int = 90 * DAY, **claims: Any) -> str:
        """An API token, with its prefix."""
        usual = {
            "iss": "evergreen:tokens",
            "aud": "evergreen:api",
            "sub": API_TOKEN,
            "own": USER,
            "who": "owner@example.org",
            "nam": "Nightly%20report",
            "scp": "devices:read policies:write",
            "knd": "token",
            "role": "Admin",
            "tid": TENANT,
        }
        return f"evt_{self._sign(usual, lifetime, claims)}"

    def _sign(self, usual: dict[str, Any], lifetime: int, claims: dict[str, Any]) -> str:
        now = int(time.time())
        payload = {"iat": now, "exp": now + lifetime, **usual, **claims}
        payload = {name: value for name, value in payload.items() if value is not None}
        header = {"kid": self.kid, "typ": f"evergreen-{payload.get('knd', 'user')}+jwt"}
        return jwt.encode(payload, self.key, self._algorithm, header)
