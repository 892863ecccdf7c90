"""Serial numbers as they name devices here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from servicekit.errors import invalid_field
from servicekit.serials import as_printed, names_one_machine, serial_key

# What the registry calls devices whose own serial number it does not know: after a restore, those
# that have enrolled since (`recovered:`), and those that a list says are retired (`retired:`);
# and machines that have none (`unnamed:`).
_RESERVED: Final = ("recovered:", "retired:", "unnamed:")


_LONGEST_KEY: Final = 256
"""An index keeps keys, and one character may be a dozen in a key (NFKC)."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def unnamed(device_id: UUID) -> str:
    """What the registry calls a machine that has no serial number of its own."""
    return f"unnamed:{device_id}"


def names_device(serial: str) -> bool:
    """Whether a serial number names a device: one machine has it, and the registry did not make it.

    Otherwise a machine that reports it enrolls by an administrator's approval.
    """
    return names_one_machine(serial) and not serial_key(serial).startswith(_RESERVED)


def clean_serial(serial: str, field: str = "serial") -> str:
    """The serial number as it is shown: as it was given, but for blanks around it.

    Raises:
        DomainError: INVALID_ARGUMENT when it names no single device.
    """
    cleaned = as_printed(serial)
    if not cleaned:
        raise invalid_field(field, "is required")
    if len(serial_key(cleaned)) > _LONGEST_KEY:
        raise invalid_field(field, "has too many characters that stand for several")
    if not names_one_machine(cleaned):
        raise invalid_field(
            field, "is a placeholder that many devices share, not a serial number of this device"
        )
    refuse_reserved(cleaned, field)
    return cleaned


def refuse_reserved(serial: str, field: str = "serial") -> None:
    """Refuses a name that the registry makes.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    for prefix in _RESERVED:
        if serial_key(serial).startswith(prefix):
            raise invalid_field(
                field,
                f"begins with {prefix}, which is kept for devices whose serial number is unknown",
            )


def clean_listed(text: str, field: str) -> str:
    """A serial number of a list.

    Raises:
        DomainError: INVALID_ARGUMENT when it can be no device's serial number.
    """
    if _CONTROL.search(text.strip().strip("\0").strip()) is not None:
        # Two lines of a list that were taken for one, perhaps.
        raise invalid_field(field, "must not contain control characters")
    return clean_serial(text, field)


def clean_serials(serials: Sequence[str], within: str = "serials") -> list[str]:
    """The serial numbers of a list, each once, in order.

    Args:
        within: the request's field that has them.

    Raises:
        DomainError: INVALID_ARGUMENT when one of them can be no device's serial number.
    """
    cleaned: dict[str, str] = {}
    for index, text in enumerate(serials):
        serial = clean_listed(text, f"{within}[{index}]")
        cleaned.setdefault(serial_key(serial), serial)
    return list(cleaned.values())
