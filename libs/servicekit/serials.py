"""Serial numbers as firmware reports them: how they are shown, compared, told from placeholders.

A number is kept as the machine says it, and compared by its key. The schemas that look devices up
by it have the same key as a function in SQL (`enrollment.serial_key`, `telemetry.serial_key`).

Firmware that nobody wrote a number into reports words, dots or a sequence instead, and whole
deliveries share them. The words are those that inventories of hardware have met (OCS Inventory,
GLPI, fwupd, osquery); the rules find their further spellings.
"""

from __future__ import annotations

import re
import string
import unicodedata
from itertools import pairwise
from typing import Final

MAX_SERIAL: Final = 128

_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_LOWER: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_NOT_ALNUM: Final = re.compile(r"[^0-9a-z]+")
_WORD: Final = "|".join(
    sorted(
        (
            "to", "be", "filled", "by", "oem", "default", "string", "system", "serial", "number",
            "num", "no", "chassis", "base", "board", "motherboard", "mainboard",
            "product", "asset", "tag", "not", "specified", "applicable", "available", "assigned",
            "provided", "present", "defined", "set", "unknown", "unknow", "none", "null", "nil",
            "na", "invalid", "undefined", "unspecified", "empty", "blank", "placeholder", "sample",
            "dummy", "manufacturer", "vendor", "name", "uuid", "eval", "iatpass", "tulip",
            "computers", "sn", "ssn", "sys", "mb", "out", "of", "spec", "reserved", "standard",
            "tbd", "part", "customer", "reference", "information", "please", "virtual", "machine",
            "version", "type1", "type2", "sku", "model", "field",
        ),
        key=len,
        reverse=True,
    )
)  # fmt: skip
_WORDS: Final = re.compile(f"(?:{_WORD})+")
"""Alone or one after the other, in any spelling: "To be filled by O.E.M", "System SerialNumber"."""
_BEGINNING: Final = re.compile(f"(?:{_WORD})+(?=[0-9a-z]{{8}}|x+$)")
"""Of "SYS-1234567890", "Serial Number xxxxxx"."""
_LITERALS: Final = frozenset(
    {
        "0x00000000", "123456789000", "1234", "sn12345", "sn123456fvgv3i0b8o5n6n7k", "abcd1234",
        "abc123", "1234abcd", "a1b2c3d4", "qwertyuiop",
    }
)  # fmt: skip
_ORDER: Final = string.digits + string.ascii_lowercase
_SHORTEST_SEQUENCE: Final = 5
_SHORTEST_REPEAT: Final = 3


def as_printed(text: str) -> str:
    """What firmware says, without control characters and without blanks around it."""
    return _CONTROLS.sub("", text).strip()


def serial_key(serial: str) -> str:
    """What two spellings of one serial number have in common: NFKC, small letters, no blanks."""
    plain = as_printed(serial)
    if not plain.isascii():
        plain = unicodedata.normalize("NFKC", plain)
    return plain.translate(_LOWER).strip(" ")


def names_one_machine(serial: str) -> bool:
    """Whether it can be the number of a single machine: it is no placeholder."""
    key = serial_key(serial)
    if not key.isascii():
        return True
    letters = _NOT_ALNUM.sub("", key)
    if not letters.strip("0") or letters in _LITERALS or _WORDS.fullmatch(letters) is not None:
        return False
    begins = _BEGINNING.match(letters)
    return not _says_nothing(letters) and (
        begins is None or not _says_nothing(letters[begins.end() :])
    )


def _says_nothing(letters: str) -> bool:
    """Whether it is one character again and again, or a sequence, once or again and again."""
    if len(letters) >= _SHORTEST_REPEAT and len(set(letters)) == 1:
        return True
    period = (letters * 2).find(letters, 1)
    unit = letters[:period]
    return len(unit) >= _SHORTEST_SEQUENCE and (_is_sequence(unit) or _is_sequence(unit[::-1]))


def _is_sequence(letters: str) -> bool:
    return all(
        _ORDER.find(after) == _ORDER.find(before) + 1 or (before, after) == ("9", "0")
        for before, after in pairwise(letters)
    )
