"""The nkey of an account, with which identity vouches for integrators at NATS."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

import nkeys

_SEED: Final = "SA"
_RAW_BYTES: Final = 32


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
        text = nkeys.encode_seed(raw, nkeys.PREFIX_BYTE_ACCOUNT).decode("ascii")
    try:
        return nkeys.from_seed(bytearray(text, "ascii"))
    except (nkeys.NkeysError, binascii.Error) as broken:
        raise ValueError("must be an account's seed, or 32 bytes in base64") from broken
