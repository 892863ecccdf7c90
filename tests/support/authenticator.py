"""A person's authenticator app."""

from __future__ import annotations

import base64
import time
from datetime import timedelta

from servicekit.ids import now
from servicekit.security import totp

_LATE_SECONDS = 18
"""So far into a half minute, the code of the one before may be too old when it arrives."""


class App:
    """The app, from its key as people type it."""

    def __init__(self, secret: str) -> None:
        self.key = base64.b32decode(secret.replace(" ", ""))

    def code(self, steps: int = 0) -> str:
        """What it shows, so many half minutes from now; an earlier one is given early enough."""
        if steps < 0 and (late := time.time() % totp.STEP_SECONDS) > _LATE_SECONDS:
            time.sleep(totp.STEP_SECONDS - late)
        return totp.code_at(self.key, now() + timedelta(seconds=totp.STEP_SECONDS * steps))
