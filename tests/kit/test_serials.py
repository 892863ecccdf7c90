"""Serial numbers: which are one machine's, and when two are the same."""

from __future__ import annotations

import unicodedata

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.serials import as_printed, names_one_machine, serial_key
from tests.support.servers import TestDatabase

SHARED = """
To be filled by O.E.M|To Be Filled By O.E.M.|System SerialNumber|Serial Number|123456789|0123456789
XXXXXXX|........|FFFFFFFF|Default|Default string|Chassis Serial|Base Board Serial Number|N/A|None|0
0000|1234567890|123456789000|SYS-1234567890|MB-1234567890|987654321|0123456789ABCDEF|O.E.M.|null
Serial Number xxxxxx|12345678901234567|(null string)|-|INVALID|Not Applicable|Not Specified|Empty
Unknown|SSN12345678901234567|1111111|11-11-11|12345|Product Serial|NNNNNNN|<OUT OF SPEC>|Not Set
Type2 - Board Serial Number|Chassis Serial Number|Asset-1234567890|0x00000000|TBD by OEM|1234
Customer Reference Number|Part Number|No Asset Information|Undefined|NotAvailable|ABCDEFGH|????
"""
OWN = (
    "1|00010|None-1|5CD1234XYZ|\u00e9|recovered-1|SN-1|SN-0042|PF-1AB2C3|C02XYZ1Q|R90ABC12|2233445"
)


@pytest.mark.parametrize("serial", SHARED.replace("\n", "|").strip("|").split("|"))
def test_what_firmware_says_in_place_of_a_number_names_no_machine(serial: str) -> None:
    """In any case, with blanks and control characters around it."""
    for spelled in (serial, serial.upper(), serial.lower(), f" {serial}\x00\x00 "):
        assert not names_one_machine(spelled)


@pytest.mark.parametrize("serial", OWN.split("|"))
def test_a_number_names_a_machine(serial: str) -> None:
    """What only looks like a placeholder does, too."""
    assert names_one_machine(serial)


@given(st.text(max_size=128))
def test_a_key_is_the_same_for_every_spelling(serial: str) -> None:
    """Of what was cleaned, and of the key itself."""
    key = serial_key(serial)
    assert serial_key(as_printed(serial)) == key
    assert serial_key(f" {serial}\x00") == key
    names_one_machine(serial)
    if serial.isascii():
        assert serial_key(serial.upper()) == serial_key(serial.lower()) == serial_key(key) == key


async def test_postgresql_has_the_same_keys(database: TestDatabase) -> None:
    """The migrations make keys of what is stored, as the services do."""
    texts = [
        as_printed(text) for text in ("PF-1\u00e9\u00c9", "\uff30\uff26\uff0d1", "\u00a81", "a b")
    ]
    texts += [chr(c) + "Ab" for c in range(0xA0, 0x3100) if unicodedata.category(chr(c)) != "Cn"]
    texts = [as_printed(text) for text in texts]
    connection: asyncpg.Connection[asyncpg.Record] = await database.superuser()
    try:
        rows = await connection.fetch(
            "SELECT t, enrollment.serial_key(t) AS key FROM unnest($1::text[]) AS t", texts
        )
    finally:
        await connection.close()
    assert [(row["t"], row["key"]) for row in rows] == [(t, serial_key(t)) for t in texts]
