"""The key with which identity says to NATS what an integrator may do: an account's nkey."""

from __future__ import annotations

import secrets

import nkeys

from servicekit.nkey import account_key


def new_seed() -> str:
    """A new key's private half, as NATS writes it (`SA…`)."""
    seed: bytes = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_ACCOUNT)
    return seed.decode("ascii")


def public_key(seed: str) -> str:
    """The public half (`A…`) of a seed, or of what `account_key` takes for one.

    Raises:
        ValueError: it is no key.
    """
    found: bytes = account_key(seed).public_key
    return found.decode("ascii")
