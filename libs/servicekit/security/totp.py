"""Codes of authenticator apps: TOTP (RFC 6238) with SHA-1, six digits and 30 seconds, which is what
all apps know."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from servicekit.security.digests import equal
from servicekit.security.tokens import new_key

DIGITS: Final = 6
STEP_SECONDS: Final = 30
_KEY_BYTES: Final = 20
_WINDOW: Final = 1
"""Steps before and behind now whose codes are taken: clocks differ, and people type slowly."""


def new_totp_key() -> bytes:
    """A random key."""
    return new_key()[:_KEY_BYTES]


def step_of(at: datetime) -> int:
    """The number of the 30 seconds that a time lies in."""
    return int(at.timestamp()) // STEP_SECONDS


def step_of_code(key: bytes, code: str, at: datetime, window: int = _WINDOW) -> int | None:
    """The step whose code this is, of those around a time; `None` when it is of none of them.

    A code has to be taken once: remember the step, and take none that is not later.

    Args:
        window: how many steps before and behind are looked at.
    """
    totp = _totp(key)
    now = step_of(at)
    found = None
    # All are compared, whichever fits.
    for step in range(max(now - window, 0), now + window + 1):
        if equal(totp.generate(step * STEP_SECONDS), code.encode()):
            found = step
    return found


def code_at(key: bytes, at: datetime) -> str:
    """The code that an app shows at a time."""
    return _totp(key).generate(step_of(at) * STEP_SECONDS).decode()


def key_text(key: bytes) -> str:
    """The key as people type it."""
    return base64.b32encode(key).decode()


def key_uri(key: bytes, account: str, issuer: str) -> str:
    """The key as an address that apps take.

    Args:
        account: whose it is.
        issuer: for what; without a colon.
    """
    return _totp(key).get_provisioning_uri(account, issuer)


def _totp(key: bytes) -> TOTP:
    return TOTP(key, DIGITS, SHA1(), STEP_SECONDS)  # noqa: S303 - what RFC 6238 and all apps use
