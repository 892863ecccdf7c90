"""Open files: every connection is one, and the shell says how many a process may have."""

from __future__ import annotations

import resource
from typing import Final

from cli.errors import CliError

_OTHERS: Final = 64
"""Files that the process has open besides its connections."""


def allow_connections(count: int) -> None:
    """Raises this process's own limit of open files as far as it needs.

    Raises:
        CliError: the system does not let it; says what to do.
    """
    needed = count + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise CliError(
            f"{count:,} connections need {needed:,} open files, and this shell allows {hard:,}."
            f" Take fewer (--connections {max(1, hard - _OTHERS)}; devices share them), or raise"
            f" the limit: as root, `ulimit -Hn {needed}`, or LimitNOFILE= / nofile in"
            " /etc/security/limits.conf. The gateway needs as many."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
