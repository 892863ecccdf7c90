"""Sessions: their rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from services.identity.users.domain import User

REFRESH_GRACE: Final = timedelta(seconds=30)
"""How long a refresh token still works after its first use: two tabs of a browser refresh at the
same moment, and an answer may be lost."""


MAX_USER_AGENT: Final = 256
"""Characters of what a program says of itself that are kept."""


@dataclass(frozen=True, slots=True)
class KnownSession:
    """A session as it is listed."""

    id: UUID
    created_at: datetime
    expires_at: datetime
    last_seen_at: datetime
    """When it was opened or last refreshed, which is once an hour while it is used."""
    source_ip: str
    user_agent: str
    methods: tuple[str, ...] = ()
    """How the user logged in; empty where it is not known."""


@dataclass(frozen=True, slots=True)
class OpenSession:
    """What a login or a refresh answers."""

    user: User
    token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_at: datetime
    device: str = ""
    """The value of the browser's device cookie from now on; empty for a program."""
