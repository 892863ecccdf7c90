"""Pre-shared keys and enrollment secrets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from servicekit.errors import DomainError, permission_denied
from servicekit.security.tokens import secret_hash

MIN_SECRET: Final = 32
"""A shorter secret could be guessed from its hash."""


@dataclass(frozen=True, slots=True)
class PreSharedKey:
    """What an administrator puts into an agent's configuration, without its secret itself."""

    tenant_code: str
    secret_hash: bytes = field(repr=False)


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
