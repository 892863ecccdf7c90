"""The time zone of this process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

ZONES = ("UTC", "America/Los_Angeles", "Asia/Tokyo")


@contextmanager
def time_zone(name: str) -> Iterator[str]:
    """Another zone while the block runs; afterwards everything is as it was for the next test."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = name
    time.tzset()
    try:
        yield name
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()
