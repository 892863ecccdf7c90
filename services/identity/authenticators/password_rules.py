"""Which passwords may be set: what is left of one when all that is guessed first is taken away.

NIST SP 800-63B-4 asks for length and a blocklist, and for no mixture of characters. Lists of leaked
passwords hold next to nothing that is as long as ours have to be, so the words of which such
passwords are made are looked for in them: names of the account, common words, years, rows of keys.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Final, TypeAlias

LEAST: Final = 12
"""Characters of every new password, in its prepared form; the API's rules count what is typed."""
LEAST_ALONE: Final = 15
"""Characters of a new password that nothing else protects, unless the operator says otherwise."""

REPEATS: Final = "must not repeat or continue itself, as abcabc, aaaaaa or 123456 do"
NAMES: Final = (
    "must be more than the user's name or address, the organisation or this product with digits"
)
COMMON: Final = "must be more than one or two common words with digits"
BREACHED: Final = "is on the list of passwords that were stolen elsewhere; choose another one"
SAME: Final = "must be another one than until now"

_LOOKED_AT: Final = 128
"""Characters: nobody types a longer one, and looking takes the longer the more there are."""
_MOST_WORDS: Final = 2
"""So many common words make no password; three are found in no dictionary."""
_LEAST_LEFT: Final = 8
"""Characters beside such words, and beside repetition, that make one."""
_LEAST_DIFFERENT: Final = 6
_LEAST_WORD: Final = 3
_LEAST_RUN: Final = 3
_PRODUCT: Final = ("evergreen", "evergreenos", "selfhost", "backend")
_LISTS: Final = ("common.txt", "school-de.txt", "school-en.txt")
_ROWS: Final = (
    "qwertyuiop",
    "qwertzuiopu",
    "azertyuiop",
    "asdfghjkl",
    "qsdfghjklm",
    "zxcvbnm",
    "yxcvbnm",
    "wxcvbn",
    "1234567890",
)
_NEIGHBOURS: Final = frozenset(
    pair for row in _ROWS for line in (row, row[::-1]) for pair in pairwise(line)
)
_READ_AS: Final = str.maketrans("@4301!5$7", "aaeoiisst")
"""Digits and signs that stand for letters."""
_YEAR: Final = re.compile(r"(?:19|20)\d\d")
_NOT_OF_WORDS: Final = re.compile(r"[^a-z]+")
_GoesOn: TypeAlias = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class Person:
    """Whose password is to be set."""

    email: str
    tenant_name: str = ""
    tenant_code: str = ""
    second_factor: bool = False
    """Whether a login takes more than the password."""


def least_characters(person: Person, least_alone: int) -> int:
    """How many characters a new password has to have."""
    return LEAST if person.second_factor else least_alone


def fault_of(prepared: str, person: Person, least_alone: int = LEAST_ALONE) -> str | None:
    """The rule that a new password breaks, if it breaks one.

    Args:
        prepared: the password in its prepared form.
        person: whose it is to be.
        least_alone: the characters of a password that nothing else protects.
    """
    least = least_characters(person, least_alone)
    if len(prepared) < least:
        return f"must have at least {least} characters"
    text = _folded(prepared[:_LOOKED_AT])
    if len(set(text)) < _LEAST_DIFFERENT or _weight(_unit(text)) < _LEAST_LEFT:
        return REPEATS
    names = _names(person)
    text = _YEAR.sub("\0", text)
    for reading in (text, text.translate(_READ_AS)):
        found, left = _without(reading, names | _common_words())
        if found and len(found - names) <= _MOST_WORDS and left < _LEAST_LEFT:
            return NAMES if found & names else COMMON
    return None


def _folded(text: str) -> str:
    """Without case and accents, so that one entry of a list stands for all its spellings."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in plain if not unicodedata.combining(c))


def _unit(text: str) -> str:
    """What a text repeats; the text itself if it does not."""
    for period in range(1, len(text) // 2 + 1):
        if text[period:] == text[:-period]:
            return text[:period]
    return text


def _weight(text: str) -> int:
    """The characters of a text; what repeats or continues itself counts once."""
    count = position = 0
    while position < len(text):
        if text[position] == "\0":
            position += 1
            continue
        end = max(
            _end_of_run(text, position, goes_on) for goes_on in (_is_same, _rises, _falls, _is_next)
        )
        position = end if end - position >= _LEAST_RUN else position + 1
        count += 1
    return count


def _end_of_run(text: str, position: int, goes_on: _GoesOn) -> int:
    end = position + 1
    while end < len(text) and goes_on(text[end - 1], text[end]):
        end += 1
    return end


def _is_same(one: str, other: str) -> bool:
    return one == other


def _rises(one: str, other: str) -> bool:
    return ord(other) == ord(one) + 1


def _falls(one: str, other: str) -> bool:
    return ord(other) == ord(one) - 1


def _is_next(one: str, other: str) -> bool:
    return (one, other) in _NEIGHBOURS


def _without(text: str, words: Iterable[str]) -> tuple[set[str], int]:
    """The words that a text has, and the weight of what it has beside them."""
    found = set()
    for word in sorted(words, key=len, reverse=True):
        if word in text:
            text = text.replace(word, "\0")
            found.add(word)
    return found, _weight(text)


def _names(person: Person) -> frozenset[str]:
    local, _, domain = person.email.partition("@")
    said = [*_PRODUCT, local, *domain.split("."), person.tenant_name, person.tenant_code]
    return frozenset(word for text in said for word in _words_of(text))


def _words_of(text: str) -> Iterable[str]:
    """The words of a text, each in the spellings that somebody may type, and all in one."""
    for spelling in _spellings(text):
        parts = _NOT_OF_WORDS.split(spelling)
        yield from (word for word in {*parts, "".join(parts)} if len(word) >= _LEAST_WORD)


def _spellings(text: str) -> tuple[str, str, str]:
    """With umlauts left plain, and written out; and written out ones plain."""
    low = text.casefold()
    written_out = low.replace("ä", "ae").replace("ö", "oe").replace("ü", "ue")
    plain = written_out.replace("ae", "a").replace("oe", "o").replace("ue", "u")
    return _folded(low), _folded(written_out), _folded(plain)


@cache
def _common_words() -> frozenset[str]:
    folder = resources.files("services.identity.authenticators").joinpath("words")
    return frozenset(
        word
        for name in _LISTS
        for line in folder.joinpath(name).read_text(encoding="utf-8").split()
        for word in _spellings(line)
    )
