"""Random secrets that are shown once: tokens, links, pre-shared keys, of which hashes are stored;
and keys."""

from __future__ import annotations

import secrets

from servicekit.security.digests import sha256


def new_secret() -> str:
    """256 random bits, safe in a URL."""
    return secrets.token_urlsafe(32)


def new_key() -> bytes:
    """32 random bytes."""
    return secrets.token_bytes(32)


def secret_hash(secret: str) -> bytes:
    """What is stored of such a secret, and looked up.

    A plain hash is enough, and no lock-out is needed: 256 random bits cannot be guessed, neither
    through the API nor from the hash.
    """
    return sha256(secret.encode())
