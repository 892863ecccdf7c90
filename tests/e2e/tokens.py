"""Tokens that are wrong in one way each, made with the installation's real keys where need be."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any
from uuid import uuid4

import asyncpg
import jwt

from deploy.launcher.home import Home
from servicekit.security.sealing import Sealer
from servicekit.security.signing import Signer, new_seed
from tests.support.stack import Stack


def superuser(stack: Stack, sql: str, *arguments: Any) -> list[asyncpg.Record]:
    """Runs a statement as the database's superuser, also what the product may not do."""

    async def run() -> list[asyncpg.Record]:
        home = Home(stack.home)
        connection = await asyncpg.connect(
            f"postgresql://postgres@/evergreen?host={home.run_directory() / 'postgres'}",
            password=(home.secrets / "postgres_superuser").read_text().strip(),
        )
        try:
            return await connection.fetch(sql, *arguments)
        finally:
            await connection.close()

    return asyncio.run(run())


_KEYS: dict[tuple[str, str], tuple[str, Signer]] = {}


def signing_key(stack: Stack, purpose: str) -> tuple[str, Signer]:
    """The key that really signs tokens for `users` or `devices`, opened with the master key."""
    where = (str(stack.home), purpose)
    if where not in _KEYS:
        _KEYS[where] = _read_signing_key(stack, purpose)
    return _KEYS[where]


def _read_signing_key(stack: Stack, purpose: str) -> tuple[str, Signer]:
    (row, *_) = superuser(
        stack,
        "SELECT key_id, sealed_seed, algorithm FROM identity.signing_key WHERE purpose = $1"
        " ORDER BY created_at DESC",
        purpose,
    )
    sealer = Sealer.from_file(stack.home / "secrets" / "master_key", "identity-keys")
    return row["key_id"], Signer(sealer.open(row["sealed_seed"]), row["algorithm"])


def claims(token: str) -> dict[str, Any]:
    """What a token says, unverified."""
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found


def sign(stack: Stack, purpose: str, payload: dict[str, Any]) -> str:
    """Signs any claims with the real key."""
    return _encode(payload, *signing_key(stack, purpose))


def _encode(payload: dict[str, Any], key_id: str, key: Signer) -> str:
    algorithm = key.public.jwk()["alg"]
    return jwt.encode(payload, key.private, algorithm=algorithm, headers={"kid": key_id})


def wrong_tokens(stack: Stack, good: str, purpose: str) -> dict[str, str]:
    """One token for each way to be wrong, all made from a good one."""
    found = claims(good)
    header, payload, signature = good.split(".")
    key_id = jwt.get_unverified_header(good)["kid"]
    real = signing_key(stack, purpose)[1].public
    other = Signer(new_seed(real.algorithm), real.algorithm)
    now = int(time.time())

    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    other_purpose = "devices" if purpose == "users" else "users"
    other_issuer = "evergreen:devices" if purpose == "users" else "evergreen:users"
    raised = {**found, "role": "Owner", "sub": str(uuid4())}
    return {
        "not a token": "abc",
        "empty": "",
        "forged signature": f"{header}.{payload}.{'A' * len(signature)}",
        "changed claims": f"{header}.{part(raised)}.{signature}",
        "other key": _encode(found, key_id, other),
        "key of another purpose": sign(stack, other_purpose, found),
        "no algorithm": f"{part({'alg': 'none', 'typ': 'JWT'})}.{payload}.",
        "HMAC with the public key": jwt.encode(
            found, real.raw, algorithm="HS256", headers={"kid": key_id}
        ),
        "expired": sign(stack, purpose, {**found, "iat": now - 9000, "exp": now - 5400}),
        "no expiry": sign(stack, purpose, {k: v for k, v in found.items() if k != "exp"}),
        "wrong issuer": sign(stack, purpose, {**found, "iss": other_issuer}),
        "unknown issuer": sign(stack, purpose, {**found, "iss": "https://elsewhere.example"}),
        "wrong audience": sign(stack, purpose, {**found, "aud": "elsewhere"}),
    }
