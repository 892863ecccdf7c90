"""The manifest of a report: what it is, and the digests of its files, as a signed note of C2SP.

evergreen report v1
id 01936d2e-9c14-7a02-8b77-51d2c3e4f506
kind devices-not-seen
org 01936d2e-5a70-7c31-9d0e-3f6f1a8b2c01
parameters {"days":30}
asOf 2026-11-30T09:00:00Z
readFrom 2026-11-30T09:00:01Z
readUntil 2026-11-30T09:00:04Z
rows 12
cryptography FIPS mode, OpenSSL FIPS Provider 3.5.9, SHA-256 <SHA-256 of the module>
file <SHA-256> 4711 devices-not-seen.csv

— evergreen.school.example/reports <signature>

The line `cryptography` is there in FIPS mode alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from auditlog.keys import CheckpointKey
from auditlog.notes import NoteError, Signature, read_note, signed_as, verdicts

FIRST_LINE: Final = "evergreen report v1"
SIGNS_AS: Final = "/reports"
"""Behind the installation's name: the name that signs."""
MANIFEST: Final = "manifest.txt"
"""The name of the manifest among a report's files."""
_HEAD: Final = ("id", "kind", "org", "parameters", "asOf", "readFrom", "readUntil", "rows")
_CRYPTOGRAPHY: Final = "cryptography "
_FILE: Final = re.compile(r"file ([0-9a-f]{64}) (0|[1-9][0-9]{0,17}) ([A-Za-z0-9][A-Za-z0-9._-]*)")


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A file of a report."""

    name: str
    bytes: int
    sha256: str
    """64 hexadecimal digits."""

    @property
    def line(self) -> str:
        """As a manifest has it."""
        return f"file {self.sha256} {self.bytes} {self.name}"

    @classmethod
    def read(cls, line: str) -> ManifestFile:
        """Reads a line.

        Raises:
            NoteError: it is none of a file.
        """
        match = _FILE.fullmatch(line)
        if match is None:
            raise NoteError("a line of a file is none")
        return cls(match[3], int(match[2]), match[1])


@dataclass(frozen=True, slots=True)
class ReportManifest:
    """What a report is."""

    id: str
    kind: str
    org_id: str
    parameters: str
    """JSON, in one line."""
    as_of: str
    """As of when it was asked for."""
    read_from: str
    """When its first row was read,"""
    read_until: str
    """and its last one."""
    rows: int
    files: tuple[ManifestFile, ...]
    signatures: tuple[Signature, ...] = ()
    cryptography: str = ""
    """The FIPS module by which it was made and signed; empty without FIPS mode."""

    @property
    def text(self) -> str:
        """What is signed."""
        values = (
            self.id,
            self.kind,
            self.org_id,
            self.parameters,
            self.as_of,
            self.read_from,
            self.read_until,
            str(self.rows),
        )
        lines = [f"{name} {value}" for name, value in zip(_HEAD, values, strict=True)]
        if self.cryptography:
            lines.append(f"{_CRYPTOGRAPHY}{self.cryptography}")
        lines += [file.line for file in self.files]
        return "\n".join([FIRST_LINE, *lines]) + "\n"

    def write(self) -> str:
        """The signed note."""
        return f"{self.text}\n{''.join(signature.line for signature in self.signatures)}"

    @classmethod
    def read(cls, note: str) -> ReportManifest:
        """Reads a note; signatures are not checked here.

        Raises:
            NoteError: it is no manifest of a report.
        """
        text, signatures = read_note(note)
        first, *lines = text.removesuffix("\n").split("\n")
        if first != FIRST_LINE:
            raise NoteError(f"it does not begin with {FIRST_LINE}")
        head = [line.partition(" ") for line in lines[: len(_HEAD)]]
        if [name for name, _, _ in head] != list(_HEAD):
            raise NoteError("it does not say what the report is")
        values = [value for _, _, value in head]
        rest = lines[len(_HEAD) :]
        has_module = bool(rest) and rest[0].startswith(_CRYPTOGRAPHY)
        cryptography = rest.pop(0).removeprefix(_CRYPTOGRAPHY) if has_module else ""
        files = [ManifestFile.read(line) for line in rest]
        if not values[-1].isdecimal():
            raise NoteError("it does not say how many rows there are")
        found = cls(
            id=values[0],
            kind=values[1],
            org_id=values[2],
            parameters=values[3],
            as_of=values[4],
            read_from=values[5],
            read_until=values[6],
            rows=int(values[7]),
            files=tuple(files),
            signatures=signatures,
            cryptography=cryptography,
        )
        if found.text != text:
            raise NoteError("it says more than a manifest")
        return found

    def signed_by(self, keys: Iterable[CheckpointKey]) -> bool | None:
        """Whether one of the keys signed it for an installation's reports; `None` when it names
        none of them, `False` when a signature that names one of them is forged."""
        return signed_as(self.text, SIGNS_AS, self.signatures, keys)

    def signers(self, keys: Iterable[CheckpointKey]) -> list[str]:
        """The names under which one of the keys signed it, sorted."""
        found = verdicts(self.text, SIGNS_AS, self.signatures, keys)
        return sorted(name for name, good in found.items() if good)
