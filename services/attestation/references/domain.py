"""Reference values, and what they make of a boot.

Firmware and operating system change apart, so that their values are apart: a boot is accepted when
it matches one of each. Only registers that are alike on equal machines are compared. The others
hold what differs between them: addresses of network cards in 1, the order of boot entries in 5, the
configuration of a boot loader in 8 and 9, what the system measures while it runs in 10.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from servicekit.errors import DomainError, invalid_field
from servicekit.etags import etag_of
from servicekit.security.digests import sha256
from services.attestation.grades import Reason, Verdict

MOST_VALUES: Final = 64
"""Of a register in one reference value."""
_HEX: Final = re.compile(r"[0-9a-f]{64}").fullmatch


class Kind(StrEnum):
    """What a value speaks of."""

    FIRMWARE = "FIRMWARE"
    OS_IMAGE = "OS_IMAGE"


class State(StrEnum):
    """How far a value is: only active ones count."""

    STAGED = "STAGED"
    ACTIVE = "ACTIVE"
    RETIRED = "RETIRED"


class Source(StrEnum):
    """Where a value is from."""

    LEARNED = "LEARNED"
    UPLOADED = "UPLOADED"
    UKI = "UKI"


REGISTERS: Final[Mapping[Kind, tuple[int, ...]]] = {
    # The firmware, the programs of its devices, and what secure boot trusts.
    Kind.FIRMWARE: (0, 2, 7),
    # The boot loader or unified kernel image, and what is in the latter.
    Kind.OS_IMAGE: (4, 11),
}
"""The registers that are compared, by kind."""
LOADER: Final = 4
IMAGE: Final = 11
SECURE_BOOT: Final = 7
"""Register 11 is filled by the image itself, and so by any program that is started in its place.
Register 4 says which program that was, or register 7 whose signature it needed."""
_UNKNOWN: Final = {
    Kind.FIRMWARE: Reason.FIRMWARE_UNKNOWN,
    Kind.OS_IMAGE: Reason.OS_IMAGE_UNKNOWN,
}

Pcrs = Mapping[int, tuple[str, ...]]
"""Register → the values that it may have."""


@dataclass(frozen=True, slots=True)
class ReferenceValue:
    """What devices of an organisation may boot."""

    id: UUID
    tenant_id: UUID
    name: str
    kind: Kind
    model: str
    pcrs: Pcrs
    state: State
    source: Source
    created_at: datetime
    updated_at: datetime

    @property
    def etag(self) -> str:
        """Changes with every change."""
        return etag_of(self.id, self.name, self.state, self.updated_at.isoformat())

    def applies_to(self, model: str) -> bool:
        """Whether it speaks of devices of a model."""
        return not self.model or self.model.casefold() == model.casefold()

    def matches(self, pcrs: Mapping[int, str]) -> bool:
        """Whether a boot is this one."""
        # A loop takes half as long as a generator, and a preview makes millions of comparisons.
        for index, values in self.pcrs.items():  # noqa: SIM110 - as said
            if pcrs.get(index) not in values:
                return False
        return True


@dataclass(frozen=True, slots=True)
class Grade:
    """What reference values make of the evidence of a known TPM."""

    verdict: Verdict
    reasons: tuple[Reason, ...]
    matched: tuple[UUID, ...] = ()


def grade(
    pcrs: Mapping[int, str],
    model: str,
    secure_boot: bool | None,
    values: Iterable[ReferenceValue],
    image: str | None = None,
) -> Grade:
    """Grades evidence of a known TPM by the active values of its organisation.

    Args:
        pcrs: the registers of the SHA-256 bank.
        model: of the device.
        secure_boot: whether the event log shows it; `None` without a log.
        values: those of the organisation, in whatever state.
        image: register 11 before user space measured into it, where a log shows that.
    """
    mine = [v for v in values if v.state is State.ACTIVE and v.applies_to(model)]
    if not mine:
        return Grade(Verdict.KNOWN_TPM, (Reason.NO_REFERENCE_VALUES,))
    reasons: list[Reason] = []
    if secure_boot is None:
        reasons.append(Reason.NO_EVENT_LOG)
    elif not secure_boot:
        reasons.append(Reason.SECURE_BOOT_OFF)
    matched: list[UUID] = []
    # A value may be of the image alone, or of how far the start had come.
    started = pcrs if image is None else {**pcrs, IMAGE: image}
    fitting = [v for v in mine if v.matches(pcrs) or (started is not pcrs and v.matches(started))]
    # The values that vouch for more come first.
    fitting.sort(key=lambda v: not v.pcrs.keys() & {LOADER, SECURE_BOOT})
    for kind in Kind:
        found = next((v for v in fitting if v.kind is kind), None)
        if found is None:
            reasons.append(_UNKNOWN[kind])
        else:
            matched.append(found.id)
    anchored = any(v.pcrs.keys() & {LOADER, SECURE_BOOT} for v in fitting)
    if len(matched) == len(Kind) and not anchored:
        reasons.append(Reason.OS_IMAGE_NOT_ANCHORED)
    verdict = Verdict.KNOWN_TPM if reasons else Verdict.VERIFIED
    return Grade(verdict, tuple(reasons), tuple(matched))


def check_pcrs(kind: Kind, pcrs: Mapping[str, Sequence[str]]) -> dict[int, tuple[str, ...]]:
    """Values of registers as they are stored.

    Raises:
        DomainError: INVALID_ARGUMENT with the register.
    """
    if not pcrs:
        raise invalid_field("pcrs", "must name a register")
    found: dict[int, tuple[str, ...]] = {}
    for name, values in pcrs.items():
        index = check_register(kind, name)
        if not 1 <= len(values) <= MOST_VALUES:
            raise invalid_field(f"pcrs.{name}", f"must have 1 to {MOST_VALUES} values")
        if not all(map(_HEX, values)):
            raise invalid_field(f"pcrs.{name}", "must be SHA-256 digests in 64 small hex digits")
        found[index] = tuple(dict.fromkeys(values))
    return found


def check_register(kind: Kind, name: str) -> int:
    """The number of a register that a kind compares.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    allowed = {str(index): index for index in REGISTERS[kind]}
    if name not in allowed:
        raise _wrong_register(kind, name)
    return allowed[name]


def _wrong_register(kind: Kind, name: str) -> DomainError:
    known = ", ".join(map(str, REGISTERS[kind]))
    return invalid_field(
        "pcrs",
        f"{name[:20]!r} is no register that {kind} compares ({known}); others differ between equal"
        " machines",
    )


SECTIONS: Final = (
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat",
    ".pcrpkey",
)  # fmt: skip
"""The sections of a unified kernel image that systemd-stub measures, in its order."""
_PHASES: Final = ("enter-initrd", "leave-initrd", "sysinit", "ready")
"""What systemd measures after them, one after the other, while the system starts."""


def uki_pcr11(sections: Mapping[str, bytes]) -> tuple[str, ...]:
    """The values that register 11 has while a unified kernel image starts, from the image alone.

    For each section systemd-stub measures its name, with a zero behind it, and its content
    (systemd-stub(7), systemd-measure(1)). The evidence may be sent in any phase.

    Args:
        sections: the SHA-256 of each one's content.
    """
    register = bytes(32)
    for name in SECTIONS:
        if name in sections:
            register = sha256(register + sha256(name.encode() + b"\0"))
            register = sha256(register + sections[name])
    found = [register.hex()]
    for phase in _PHASES:
        register = sha256(register + sha256(phase.encode()))
        found.append(register.hex())
    return tuple(found)
