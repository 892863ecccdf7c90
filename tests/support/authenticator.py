"""A person's authenticator app."""

from __future__ import annotations

import base64
import time
from datetime import timedelta
from typing import Final

from servicekit.ids import now
from servicekit.security import totp

_AHEAD: Final = timedelta(seconds=12)
"""So much the app's clock is ahead: so long at least the code before the one it shows is taken."""


class App:
    """The app, from its key as people type it."""

    def __init__(self, secret: str) -> None:
        self.key = base64.b32decode(secret.replace(" ", ""))

    def code(self, steps: int = 0) -> str:
        """What it shows, so many half minutes from now; the next one is given when it is taken."""
        at = now() + _AHEAD + timedelta(seconds=totp.STEP_SECONDS * steps)
        if totp.step_of(at) == totp.step_of(now()) + 2:
            time.sleep(totp.STEP_SECONDS - time.time() % totp.STEP_SECONDS)
        return totp.code_at(self.key, at)
