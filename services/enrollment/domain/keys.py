"""What admits devices, and what names them: secrets and serial numbers."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final

from servicekit.errors import DomainError, invalid_field, permission_denied

MIN_SECRET: Final = 32
"""A shorter secret could be guessed from its hash."""
# What firmware reports when nobody wrote a serial number into it (compared without case). Many
# devices share these: taken for an identity, they would make one device of a whole delivery.
_PLACEHOLDERS: Final = frozenset(
    {
        "to be filled by o.e.m.",
        "to be filled by oem",
        "default string",
        "system serial number",
        "chassis serial number",
        "not specified",
        "not applicable",
        "not available",
        "unknown",
        "none",
        "null",
        "n/a",
        "oem",
        "invalid",
    }
)

# What the registry calls devices whose own serial number it does not know: after a restore, those
# that have enrolled since (`recovered:`), and those that a list says are retired (`retired:`).
_RESERVED: Final = ("recovered:", "retired:")


def new_secret() -> str:
    """The secret of an enrollment token: 256 random bits, safe in a URL."""
    return secrets.token_urlsafe(32)


def secret_hash(secret: str) -> bytes:
    """What is stored of a secret, and looked up.

    A plain hash is enough, and no lock-out is needed: 256 random bits cannot be guessed, neither
    through the API nor from the hash.
    """
    return hashlib.sha256(secret.encode()).digest()


@dataclass(frozen=True, slots=True)
class PreSharedKey:
    """What an administrator puts into an agent's configuration, without its secret itself."""

    tenant_code: str
    secret_hash: bytes


def parse_pre_shared_key(text: str) -> PreSharedKey:
    """Reads `<tenant code>:<secret>`; blanks around it, as copying leaves them, do not count.

    Raises:
        DomainError: PERMISSION_DENIED when it is not of that form.
    """
    code, colon, secret = text.strip().partition(":")
    if not colon or not code or not secret:
        raise wrong_key()
    return PreSharedKey(code, secret_hash(secret))


def wrong_key() -> DomainError:
    """The key admits nobody: an unknown code, a wrong secret, or one of another organisation.

    These look the same, so that nobody learns which codes exist.
    """
    return permission_denied("ENROLLMENT_REFUSED", "the pre-shared key is not valid")


def clean_serial(serial: str, field: str = "serial") -> str:
    """The serial number as it is stored and compared: exactly, but for blanks around it.

    Raises:
        DomainError: INVALID_ARGUMENT when it names no single device.
    """
    cleaned = serial.strip()
    if not cleaned:
        raise invalid_field(field, "is required")
    if cleaned.casefold() in _PLACEHOLDERS or not cleaned.strip("0"):
        raise invalid_field(
            field, "is a placeholder that many devices share, not a serial number of this device"
        )
    for prefix in _RESERVED:
        if cleaned.casefold().startswith(prefix):
            raise invalid_field(
                field,
                f"begins with {prefix}, which is kept for devices whose serial number is unknown",
            )
    return cleaned


def clean_serials(serials: list[str]) -> list[str]:
    """The serial numbers of an enrollment token's list, each once, in order.

    Raises:
        DomainError: INVALID_ARGUMENT when one of them can be no device's serial number.
    """
    cleaned: dict[str, None] = {}
    for index, serial in enumerate(serials):
        field = f"serials[{index}]"
        if any(c < " " or c == "\x7f" for c in serial):
            raise invalid_field(field, "must not contain control characters")
        cleaned[clean_serial(serial, field)] = None
    return list(cleaned)
