"""What people type to name things, and addresses that identify them.

A name is for people to read and click: trimmed, composed (NFC), one line, with something to see in
it, and nothing that hides or turns around what is there. An address identifies somebody: it has no
invisible characters and no second spelling (NFKC), so that two that look alike are one.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

# Controls, line and paragraph separators; soft hyphen, zero-width space, word joiner, byte order
# mark, annotations; and what turns the direction of text. Zero-width joiners and non-joiners are
# part of words in some scripts, and of emoji.
_HIDDEN: Final = (
    r"\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
)
_BLANK: Final = (
    r"\s\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u200c\u200d\u2800\u3164"
    r"\ufe00-\ufe0f\uffa0"
)
NAME_PATTERN: Final = rf"^(?=.*[^{_BLANK}])[^\x00-\x1f{_HIDDEN}]*$"
"""What a name matches, in the part of the grammar that Python and ECMA 262 share."""
TEXT_PATTERN: Final = rf"^[^\x00-\x08\x0b\x0c\x0e-\x1f{_HIDDEN}]*$"
"""What a text of several lines matches, likewise."""

_IN_NAMES: Final = re.compile(rf"[\x00-\x1f{_HIDDEN}]")
_IN_TEXTS: Final = re.compile(rf"[\x00-\x08\x0b\x0c\x0e-\x1f{_HIDDEN}]")
_VISIBLE: Final = re.compile(rf"[^{_BLANK}\U000e0000-\U000e0fff]")
_UNSEEN: Final = re.compile(rf"[{_BLANK}]")
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)*")


def tidy(text: str) -> str:
    """The text composed (NFC) and without space around it."""
    return unicodedata.normalize("NFC", text).strip()


def name_fault(name: str) -> str | None:
    """The rule that a name breaks."""
    if (found := _IN_NAMES.search(name)) is not None:
        return _must_not_contain(found[0])
    if _VISIBLE.search(name) is None:
        return "must have a visible character"
    return None


def plain_name(text: str) -> str:
    """A name of before there were rules, without what they refuse."""
    return _IN_NAMES.sub("", text)


def plain_text(text: str) -> str:
    """A text of several lines, likewise."""
    return _IN_TEXTS.sub("", text)


def text_fault(text: str) -> str | None:
    """The rule that a text of several lines breaks."""
    found = _IN_TEXTS.search(text)
    return _must_not_contain(found[0]) if found is not None else None


def email_fault(email: str) -> str | None:
    """The rule that an e-mail address breaks."""
    for character in email:
        # Other, that is controls, formats, private and unknown ones, and separators.
        if unicodedata.category(character)[0] in "CZ" or _UNSEEN.match(character) is not None:
            return _must_not_contain(character)
    if (plain := normal_email(email)) != unicodedata.normalize("NFC", email).lower():
        return f"must be written in plain characters: {plain}"
    if _EMAIL.fullmatch(email) is None:
        return "must be an e-mail address"
    return None


def normal_email(email: str) -> str:
    """The one spelling of an address: NFKC, in lower case, without space around it."""
    return unicodedata.normalize("NFKC", email.strip()).lower()


def _must_not_contain(character: str) -> str:
    name = unicodedata.name(character, "")
    return f"must not contain the character U+{ord(character):04X}" + (f" ({name})" if name else "")
