"""Account keys of NATS (nkeys), with which identity vouches for integrators.

An nkey is Ed25519, written as base32 of a prefix, 32 bytes and a CRC-16 (XModem, its low byte
first; https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/nkey_auth).
"""

from __future__ import annotations

import base64
import binascii
import secrets
from typing import Final

from servicekit.security.signing import Signer

_RAW_BYTES: Final = 32
_SEED: Final = 18 << 3
"""The prefix of private halves (`S`), above that of what they are for."""
_ACCOUNT: Final = 0
"""The prefix of accounts (`A`)."""
_SEED_PREFIX: Final = bytes([_SEED | _ACCOUNT >> 5, (_ACCOUNT & 31) << 3])
_SEED_TEXT: Final = "SA"
_BAD: Final = "must be an account's seed, or 32 bytes in base64"


class AccountKey:
    """The key pair of an account.

    Args:
        raw: the private half, 32 bytes.
    """

    def __init__(self, raw: bytes) -> None:
        self._signer = Signer(raw)
        self.public = _written(bytes([_ACCOUNT]) + self._signer.public.raw)
        """The public half, as NATS writes it (`A…`)."""

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature over exactly these bytes."""
        return self._signer.sign(message)


def new_seed() -> str:
    """A new key's private half, as NATS writes it (`SA…`)."""
    return _written(_SEED_PREFIX + secrets.token_bytes(_RAW_BYTES))


def public_key(seed: str) -> str:
    """The public half (`A…`) of a seed, or of what `account_key` takes for one.

    Raises:
        ValueError: it is no key.
    """
    return account_key(seed).public


def account_key(text: str) -> AccountKey:
    """The key pair of a secret.

    Args:
        text: the seed as NATS writes it (`SA…`), or 32 random bytes in base64, for programs
            that make secrets without knowing nkeys.

    Raises:
        ValueError: it is neither.
    """
    try:
        raw = _read(text) if text.startswith(_SEED_TEXT) else base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as broken:
        raise ValueError(_BAD) from broken
    if len(raw) != _RAW_BYTES:
        raise ValueError(_BAD)
    return AccountKey(raw)


def _read(text: str) -> bytes:
    """The raw private half of a seed.

    The checksum is not compared: up to release 0.2.0 it was not, and an installation whose key has
    a wrong one has to go on working.

    Raises:
        ValueError: the text is no account's seed.
    """
    body = base64.b32decode(text + "=" * (-len(text) % 8))[:-2]
    if not body.startswith(_SEED_PREFIX):
        raise ValueError(_BAD)
    return body[len(_SEED_PREFIX) :]


def _written(body: bytes) -> str:
    return base64.b32encode(body + _crc(body)).decode("ascii").rstrip("=")


def _crc(body: bytes) -> bytes:
    return binascii.crc_hqx(body, 0).to_bytes(2, "little")
