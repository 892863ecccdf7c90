"""The key with which identity says to NATS what an integrator may do: an account's nkey."""

from __future__ import annotations

import secrets

import nkeys


def new_seed() -> str:
    """A new key's private half, as NATS writes it (`SA…`)."""
    seed: bytes = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_ACCOUNT)
    return seed.decode("ascii")


def public_key(seed: str) -> str:
    """The public half of a seed (`A…`)."""
    found: bytes = nkeys.from_seed(bytearray(seed, "ascii")).public_key
    return found.decode("ascii")
