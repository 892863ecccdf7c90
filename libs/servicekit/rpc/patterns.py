"""What the patterns of the protos ask for, in words for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_SLUG: Final = "must have small letters, digits and hyphens, and no hyphen at an end"
_NUMBER: Final = "must be a whole number of at most 18 digits, from 1 on"
_ATTRIBUTE: Final = "must have letters, digits and hyphens, and begin with a letter"
_SHA256: Final = "must be a SHA-256 digest: 64 hexadecimal digits in small letters"

WORDS: Final[Mapping[str, str]] = {
    "[a-z0-9]([a-z0-9-]*[a-z0-9])?": _SLUG,
    "([a-z0-9]([a-z0-9-]*[a-z0-9])?)?": _SLUG,
    "[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?": "must have at most 63 small letters, digits, hyphens and"
    " underscores, and a letter or digit at both ends",
    "[1-9][0-9]{0,17}": _NUMBER,
    "([1-9][0-9]{0,17})?": _NUMBER,
    "[0-9]{1,18}": "must be a whole number of at most 18 digits",
    "([0-9a-f]{64})?": _SHA256,
    "[A-Za-z][A-Za-z0-9-]*": _ATTRIBUTE,
    "([A-Za-z][A-Za-z0-9-]*)?": _ATTRIBUTE,
    "[A-Za-z0-9_+/-]*": "must be the name of a time zone, such as Europe/Berlin",
    "[a-z0-9]([a-z0-9-]*[a-z0-9])?([.][a-z0-9]([a-z0-9-]*[a-z0-9])?)*": "must be a domain in small"
    " letters, such as school.example",
    "[!-~]+": "must have visible ASCII characters and no blanks",
    "(/[A-Za-z0-9/?&=%._~#-]*)?": "must be a path that begins with `/`, without blanks and other"
    " characters that a URL has to encode",
    "[a-z][a-z0-9_-]{0,62}(=.*)?": "must be a label, such as room, or a label with a value, such as"
    " room=214",
    "(entries|[0-9]{1,2})(/x[0-9]{3}){0,4}/[0-9]{3}([.]p/[0-9]{1,3})?": "must be the path of a"
    " tile, such as 0/x001/234 or entries/067.p/8",
}
"""By the pattern; each that a proto has is here."""
