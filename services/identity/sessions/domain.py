"""Sessions: their rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from services.identity.users.domain import User

REFRESH_GRACE: Final = timedelta(seconds=30)
"""How long a refresh token still works after its first use: two tabs of a browser refresh at the
same moment, and an answer may be lost."""


@dataclass(frozen=True, slots=True)
class OpenSession:
    """What a login or a refresh answers."""

    user: User
    token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_at: datetime
    device: str = ""
    """The value of the browser's device cookie from now on; empty for a program."""
