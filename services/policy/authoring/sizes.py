"""How much secrets count in limits: nobody learns from what still fits how long one is.

What a tenant's people cannot see of tenants above counts as nothing, for they could fill up the
rest. Their own secrets, which they may not see either, count in steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from services.policy.authoring.goencoding import encoded_size

STEP: Final = 384
"""What 63 characters, the longest passphrase of WPA2, take at most."""


def rounding(size: int) -> int:
    """By how much a secret of a size counts for more."""
    return -size % STEP


def in_steps(secrets: Iterable[str]) -> int:
    """By how much secrets count for more than they are long."""
    return sum(rounding(encoded_size(secret)) for secret in secrets)


def unseen(secrets: Iterable[str]) -> int:
    """By how much secrets count for less than they are long: they count as nothing."""
    return sum(map(encoded_size, secrets))
