"""What makes a browser known to its account."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

DEVICE_COOKIE: Final = "__Host-evergreen_device"
"""The cookie that makes a browser known, with `OpenSession.device` as its value: HttpOnly, Secure,
SameSite=Strict, Path=/."""
DEVICE_LIFE: Final = timedelta(days=30)
"""How long the cookie lives, and how long a login makes its browser and its network familiar."""
