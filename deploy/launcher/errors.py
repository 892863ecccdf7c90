"""What the launcher tells a person when it cannot go on."""

from __future__ import annotations

from collections.abc import Sequence


class LauncherError(Exception):
    """A start that cannot go on: what happened, what the process said last, what to do now."""

    def __init__(
        self, message: str, *, advice: str = "", log: Sequence[str] = (), status: int = 1
    ) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        self.log = tuple(log)
        self.status = status
        """The launcher's exit status."""
