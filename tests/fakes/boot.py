"""A measured boot: events of a firmware, the log that it writes, and the registers of the TPM."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from hashlib import sha1, sha256

NO_ACTION, SEPARATOR = 0x3, 0x4
POST_CODE, ACTION, IPL = 0x1, 0x5, 0xD
DRIVER_CONFIG, BOOT_APPLICATION, EFI_ACTION = 0x80000001, 0x80000003, 0x80000007
GLOBAL_VARIABLE = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")


def little(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")


@dataclass(frozen=True)
class Event:
    """What is measured into a register: some data, or something else that the data describes."""

    pcr: int
    kind: int
    data: bytes
    measured: bytes | None = None

    @property
    def digest(self) -> bytes:
        """In the bank of SHA-256."""
        return sha256(self.data if self.measured is None else self.measured).digest()

    def written(self) -> bytes:
        """As TCG_PCR_EVENT2, with two banks."""
        other = sha1(self.data if self.measured is None else self.measured).digest()
        return (
            little(self.pcr, 4)
            + little(self.kind, 4)
            + little(2, 4)
            + little(0x0004, 2)
            + other
            + little(0x000B, 2)
            + self.digest
            + little(len(self.data), 4)
            + self.data
        )


def userspace_log(*phases: str) -> bytes:
    """What systemd writes of its measurements."""
    records = [
        {
            "pcr": 11,
            "digests": [
                {"hashAlg": "sha1", "digest": sha1(phase.encode()).hexdigest()},
                {"hashAlg": "sha256", "digest": sha256(phase.encode()).hexdigest()},
            ],
            "content_type": "systemd",
            "content": {
                "eventType": "phase",
                "string": phase,
                "bootId": "5f3a09c2d1e84b0f9a3c1b2d4e5f6071",
                "timestamp": 1_000_000 + number,
            },
        }
        for number, phase in enumerate(phases)
    ]
    return b"".join(b"\x1e" + json.dumps(record).encode() + b"\n" for record in records)


def secure_boot(on: bool) -> Event:
    """The variable that says whether secure boot is on."""
    name, content = "SecureBoot".encode("utf-16-le"), bytes([on])
    data = GLOBAL_VARIABLE + little(10, 8) + little(1, 8) + name + content
    return Event(7, DRIVER_CONFIG, data)


@dataclass
class Boot:
    """A boot; what is in it can be changed before it is measured."""

    firmware: bytes = b"firmware 1.0"
    loader: bytes = b"loader 2.0"
    secure: bool = True
    kernel: tuple[str, ...] = ()
    """Measurements into register 11, in hexadecimal."""
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.events = [
            Event(0, POST_CODE, b"an address", self.firmware),
            Event(2, BOOT_APPLICATION, b"a path", b"option ROM"),
            secure_boot(self.secure),
            Event(4, EFI_ACTION, b"Calling EFI Application from Boot Option"),
            *(Event(pcr, SEPARATOR, bytes(4)) for pcr in range(8)),
            Event(4, BOOT_APPLICATION, b"a path", self.loader),
            Event(8, IPL, b"a command", b"a command"),
        ]

    def log(self) -> bytes:
        """The whole event log."""
        header = (
            b"Spec ID Event03\0"
            + little(0, 4)
            + bytes([0, 2, 0, 2])
            + little(2, 4)
            + little(0x0004, 2)
            + little(20, 2)
            + little(0x000B, 2)
            + little(32, 2)
            + b"\0"
        )
        first = little(0, 4) + little(NO_ACTION, 4) + bytes(20) + little(len(header), 4) + header
        return first + b"".join(event.written() for event in self.events)

    def registers(self) -> dict[int, bytes]:
        """What the TPM has after it."""
        found = {index: bytes(32) for index in range(24)}
        found |= dict.fromkeys(range(17, 23), b"\xff" * 32)
        for event in self.events:
            if event.kind != NO_ACTION:
                found[event.pcr] = sha256(found[event.pcr] + event.digest).digest()
        for digest in self.kernel:
            found[11] = sha256(found[11] + bytes.fromhex(digest)).digest()
        return found

    def changed(self, number: int, **change: object) -> None:
        """Changes an event of the log alone: the TPM measured the other one."""
        self.events[number] = replace(self.events[number], **change)  # type: ignore[arg-type]
