"""A list of passwords that were stolen elsewhere, which the operator may provide.

It is a file of SHA-1 digests in hexadecimal, sorted, one a line, each perhaps followed by a colon
and a number: the form in which "Have I Been Pwned" publishes its list. It has some 40 GB, so no
more of it is read than some lines for each new password, and nothing is sent anywhere.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO, Final

from servicekit.security.digests import sha1_hex

_LINE: Final = re.compile(rb"[0-9A-Fa-f]{40}(?::\d+)?\r?\n?")
_DIGITS: Final = 40


class BreachedPasswords:
    """The list.

    Raises:
        ValueError: the file is not such a list.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            if not _LINE.fullmatch(file.readline(_DIGITS * 2)):
                raise ValueError(f"{path} does not begin with a SHA-1 digest in hexadecimal")

    def has(self, *passwords: str) -> bool:
        """Whether one of some passwords is on the list. Reads some 40 lines for each.

        Raises:
            OSError: the list cannot be read.
        """
        with self._path.open("rb") as file:
            return any(_has(file, sha1_hex(one.encode()).upper().encode()) for one in passwords)


def _has(file: BinaryIO, wanted: bytes) -> bool:
    # The line that begins behind `low` and before `high` is the one that is looked for.
    low, high = 0, file.seek(0, 2)
    while low < high:
        middle = (low + high) // 2
        # From the byte before, so that a line that begins right here is not passed over.
        file.seek(max(middle - 1, 0))
        if middle:
            file.readline()
        begins = file.tell()
        line = file.readline()
        found = line[:_DIGITS].upper()
        if found == wanted:
            return True
        if begins >= high or found > wanted:
            high = middle
        else:
            low = begins + len(line)
    return False
