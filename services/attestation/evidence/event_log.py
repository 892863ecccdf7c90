"""The firmware's event log, replayed: what a boot measured, as far as it can be believed.

"TCG PC Client Platform Firmware Profile" 1.05, 10.2 and 10.4: a first event of the old format that
says which banks follow, then events with a digest for each bank. The registers that a TPM signed
prove the digests and their order, and nothing else: neither an event's type nor its data is under
any digest, unless the digest is of the data. So only such events are believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from servicekit.security.digests import sha256
from services.attestation.evidence.structures import DIGEST_BYTES, Alg, MalformedError
from services.attestation.evidence.userspace_log import IMAGE
from services.attestation.grades import Reason

MOST_BYTES: Final = 1 << 20
"""A log of a PC has 20 to 200 kB."""
_MOST_EVENTS: Final = 10_000
_MOST_BANKS: Final = 8
REPLAYED: Final = range(10)
"""The registers that a log has to explain: firmware, boot loader, and what it loads."""
_SIGNATURE: Final = b"Spec ID Event03\0"
_LOCALITY: Final = b"StartupLocality\0"
_LOCALITIES: Final = frozenset({0, 3, 4})

_NO_ACTION: Final = 0x00000003
_SEPARATOR: Final = 0x00000004
_DRIVER_CONFIG: Final = 0x80000001
_EFI_ACTION: Final = 0x80000007
_AUTHORITY: Final = 0x800000E0
_OF_THEIR_DATA: Final = frozenset({_SEPARATOR, _DRIVER_CONFIG, _EFI_ACTION, _AUTHORITY})
"""Types whose digest is that of their data."""
_SEPARATED: Final = range(8)
"""The registers in which firmware separates what is before the boot loader from the rest."""
_SEPARATORS: Final = frozenset({b"\0\0\0\0", b"\xff\xff\xff\xff"})
_NULL_SEPARATOR: Final = sha256(b"\0\0\0\0")
_GLOBAL_VARIABLE: Final = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
"""EFI_GLOBAL_VARIABLE, the vendor of `SecureBoot`, as a variable's data begins."""
_SECURE_BOOT: Final = "SecureBoot".encode("utf-16-le")


class LogError(ValueError):
    """A log that is wrong."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a log proves."""

    secure_boot: bool
    image: bytes
    """Register 11, as far as the log explains it."""


@dataclass(slots=True)
class _State:
    """What was seen so far."""

    registers: dict[int, bytes] = field(default_factory=dict)
    separated: set[int] = field(default_factory=set)
    secure_boot: bool | None = None


class _LittleReader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise MalformedError("truncated")
        found = self._data[self._at : end]
        self._at = end
        return found

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")


def replay(log: bytes, pcrs: Mapping[int, str]) -> Replayed:
    """Replays a log in the SHA-256 bank against registers that a TPM signed.

    Raises:
        LogError: with the reason.
    """
    try:
        state = _read(log)
    except MalformedError as broken:
        raise LogError(Reason.LOG_MALFORMED) from broken
    for index in REPLAYED:
        found = state.registers.get(index, bytes(DIGEST_BYTES[Alg.SHA256]))
        if found.hex() != pcrs[index]:
            missing = index not in state.registers
            raise LogError(Reason.LOG_INCOMPLETE if missing else Reason.LOG_MISMATCH)
    if not state.separated.issuperset(_SEPARATED):
        raise LogError(Reason.LOG_INCOMPLETE)
    image = state.registers.get(IMAGE, bytes(DIGEST_BYTES[Alg.SHA256]))
    return Replayed(secure_boot=state.secure_boot is True, image=image)


def _read(log: bytes) -> _State:
    if not log:
        raise LogError(Reason.LOG_INCOMPLETE)
    if len(log) > MOST_BYTES:
        raise MalformedError("too long")
    reader = _LittleReader(log)
    sizes = _header(reader)
    state = _State()
    for _ in range(_MOST_EVENTS):
        if not reader.left:
            return state
        _event(reader, sizes, state)
    raise MalformedError("too many events")


def _header(reader: _LittleReader) -> dict[int, int]:
    """The first event: which banks there are, and how long their digests."""
    if reader.integer(4) != 0 or reader.integer(4) != _NO_ACTION or any(reader.take(20)):
        raise MalformedError("no header")
    header = _LittleReader(reader.take(reader.integer(4)))
    if header.take(16) != _SIGNATURE:
        raise MalformedError("another format")
    header.take(8)
    count = header.integer(4)
    if not 1 <= count <= _MOST_BANKS:
        raise MalformedError("a number of banks")
    sizes = {header.integer(2): header.integer(2) for _ in range(count)}
    if len(sizes) != count or sizes.get(Alg.SHA256) != DIGEST_BYTES[Alg.SHA256]:
        raise MalformedError("no bank of SHA-256")
    header.take(header.integer(1))
    if header.left:
        raise MalformedError("trailing bytes")
    return sizes


def _event(reader: _LittleReader, sizes: Mapping[int, int], state: _State) -> None:
    index, kind, count = reader.integer(4), reader.integer(4), reader.integer(4)
    if count != len(sizes) or index > 23:
        raise MalformedError("digests of other banks")
    digests = {}
    for _ in range(count):
        bank = reader.integer(2)
        if bank not in sizes or bank in digests:
            raise MalformedError("a digest of another bank")
        digests[bank] = reader.take(sizes[bank])
    data = reader.take(reader.integer(4))
    if kind == _NO_ACTION:
        _start(data, index, state)
        return
    digest = digests[Alg.SHA256]
    _check(index, kind, digest, data, state)
    before = state.registers.get(index, bytes(len(digest)))
    state.registers[index] = sha256(before + digest)


def _start(data: bytes, index: int, state: _State) -> None:
    """An event that extends nothing; one says with what PCR 0 began."""
    if not data.startswith(_LOCALITY):
        return
    if index or 0 in state.registers or len(data) != len(_LOCALITY) + 1:
        raise MalformedError("a start in the middle")
    if data[-1] not in _LOCALITIES:
        raise MalformedError("another locality")
    state.registers[0] = bytes(31) + data[-1:]


def _check(index: int, kind: int, digest: bytes, data: bytes, state: _State) -> None:
    if kind == _SEPARATOR:
        if data not in _SEPARATORS or index in state.separated:
            raise LogError(Reason.LOG_SEPARATOR_BAD)
        state.separated.add(index)
    elif digest == _NULL_SEPARATOR and index in _SEPARATED:
        raise LogError(Reason.LOG_SEPARATOR_DISGUISED)
    if kind in _OF_THEIR_DATA and sha256(data) != digest:
        raise LogError(Reason.LOG_DIGEST_NOT_OF_DATA)
    if index == 7 and kind == _DRIVER_CONFIG and index not in state.separated:
        _variable(data, state)


def _variable(data: bytes, state: _State) -> None:
    """UEFI_VARIABLE_DATA: vendor, lengths of name and content, name (UTF-16), content."""
    reader = _LittleReader(data)
    vendor, characters, size = reader.take(16), reader.integer(8), reader.integer(8)
    name, content = reader.take(2 * characters), reader.take(size)
    if vendor != _GLOBAL_VARIABLE or name != _SECURE_BOOT:
        return
    if state.secure_boot is not None:
        # Of two, the firmware measured one.
        raise MalformedError("SecureBoot twice")
    state.secure_boot = content == b"\x01"
