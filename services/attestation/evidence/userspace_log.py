"""What user space measured: systemd's log, replayed on what the firmware's log explains.

systemd writes each of its measurements as a record of JSON behind the byte 0x1e (RFC 7464), in the
canonical event log format of the TCG, to /run/log/systemd/tpm2-measure.log. Into register 11, which
holds a unified kernel image, it measures how far the start has come. So the register differs from
hour to hour, and what the image alone makes of it is the same for all machines.
"""

from __future__ import annotations

import json
from typing import Any, Final

from servicekit.security.digests import sha256
from services.attestation.evidence.structures import MalformedError
from services.attestation.grades import Reason

MOST_BYTES: Final = 256 << 10
"""A start makes some ten records of 300 bytes."""
IMAGE: Final = 11
"""The register that is replayed. The others are a machine's own, and are not compared."""
_BEGIN: Final = b"\x1e"
_MOST_RECORDS: Final = 1_000
_DIGEST: Final = 32


class UserspaceLogError(ValueError):
    """A log that is wrong."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def replay_userspace(log: bytes, before: bytes, signed: str) -> None:
    """Replays a log in the SHA-256 bank from what the firmware's log makes of register 11.

    Args:
        log: the log.
        before: the register as the firmware's log explains it.
        signed: the register that the TPM signed, in hexadecimal.

    Raises:
        UserspaceLogError: with the reason.
    """
    try:
        register = before
        for digest in _measured(log):
            register = sha256(register + digest)
    except (MalformedError, ValueError, RecursionError) as broken:
        raise UserspaceLogError(Reason.USERSPACE_LOG_MALFORMED) from broken
    if register.hex() != signed:
        raise UserspaceLogError(Reason.USERSPACE_LOG_MISMATCH)


def _measured(log: bytes) -> list[bytes]:
    """The digests that were measured into register 11, in order."""
    if len(log) > MOST_BYTES:
        raise MalformedError("too long")
    first, *records = log.split(_BEGIN, _MOST_RECORDS + 1)
    if first or len(records) > _MOST_RECORDS:
        raise MalformedError("no records, or too many")
    return [digest for record in map(json.loads, records) if (digest := _digest(record))]


def _digest(record: Any) -> bytes | None:
    """What a record measured into register 11; `None` when it is about something else."""
    if not isinstance(record, dict):
        raise MalformedError("a record that is no object")
    if record.get("pcr") != IMAGE:
        return None
    digests, content = record.get("digests"), record.get("content")
    if not isinstance(digests, list) or not isinstance(content, dict):
        raise MalformedError("a record without digests or content")
    found = [
        bytes.fromhex(str(one.get("digest")))
        for one in digests
        if isinstance(one, dict) and one.get("hashAlg") == "sha256"
    ]
    said = content.get("string")
    # As in the firmware's log: what is not under its digest is not believed.
    if len(found) != 1 or not isinstance(said, str) or found[0] != sha256(said.encode()):
        raise MalformedError("a digest of something else")
    return found[0]
