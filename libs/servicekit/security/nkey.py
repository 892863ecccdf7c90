"""Account keys of NATS (nkeys), with which identity vouches for integrators."""

from __future__ import annotations

import base64
import binascii
import secrets
from typing import Any, Final

import nkeys

_SEED: Final = "SA"
_RAW_BYTES: Final = 32


def new_seed() -> str:
    """A new key's private half, as NATS writes it (`SA…`)."""
    return _seed(secrets.token_bytes(_RAW_BYTES))


def public_key(seed: str) -> str:
    """The public half (`A…`) of a seed, or of what `account_key` takes for one.

    Raises:
        ValueError: it is no key.
    """
    found: bytes = account_key(seed).public_key
    return found.decode("ascii")


def account_key(text: str) -> Any:
    """The key pair (`nkeys.KeyPair`) of a secret.

    Args:
        text: the seed as NATS writes it (`SA…`), or 32 random bytes in base64, for whoever makes
            secrets without knowing nkeys.

    Raises:
        ValueError: it is neither.
    """
    if not text.startswith(_SEED):
        try:
            raw = base64.b64decode(text, validate=True)
        except binascii.Error as broken:
            raise ValueError("must be an account's seed, or 32 bytes in base64") from broken
        if len(raw) != _RAW_BYTES:
            raise ValueError("must be an account's seed, or 32 bytes in base64")
        text = _seed(raw)
    try:
        return nkeys.from_seed(bytearray(text, "ascii"))
    except (nkeys.NkeysError, binascii.Error) as broken:
        raise ValueError("must be an account's seed, or 32 bytes in base64") from broken


def _seed(raw: bytes) -> str:
    seed: bytes = nkeys.encode_seed(raw, nkeys.PREFIX_BYTE_ACCOUNT)
    return seed.decode("ascii")
