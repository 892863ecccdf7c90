"""The session in which a command calls the API; what a client needs is imported only then."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cli.client import Api


@contextmanager
def session(
    home: Path | None, url: str, ca_file: Path | None, email: str, password_file: Path | None
) -> Iterator[Api]:
    """The API as the user whom a command's options name.

    Raises:
        CliError: the installation cannot be reached or refuses the user.
    """
    # `evergreen up`, which is in a hurry, loads this file.
    from cli.client import find_access, logged_in  # noqa: PLC0415

    with logged_in(find_access(home, url, ca_file, email, password_file)) as api:
        yield api


def operator() -> str:
    """Whose account of this machine a command runs under."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"
