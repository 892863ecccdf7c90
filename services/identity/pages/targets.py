"""Where somebody wants to be after a login: one of our own pages, and no other."""

from __future__ import annotations

import re
from typing import Final

SECOND_STEP: Final = "/auth/second-factor"
_LOCAL: Final = re.compile(
    r"/(?:dashboard|auth/(?:account|invitations))(?:[/?][\x21-\x7e]*)?"
).fullmatch


def next_of(wish: str) -> str:
    """Where someone wants to be after a login: one of our own pages, or nowhere."""
    return wish if _LOCAL(wish) else ""
