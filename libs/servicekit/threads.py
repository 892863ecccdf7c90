"""Threads whose work can wait."""

from __future__ import annotations

import os
import threading
from typing import Final

_NICENESS: Final = 10


def give_way() -> None:
    """Lets all other work go before that of this thread: an initializer of thread pools.

    Where one machine carries everything, devices that ask for their policy come before evidence
    that is verified and passwords that are hashed.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
