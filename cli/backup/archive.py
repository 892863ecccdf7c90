"""What is inside an archive, and how it is written and read as a stream.

In this order: `backup.json` says what is in it; `files/…` are keys, certificates and configuration;
`data/<schema>.<table>/<number>` are the rows, as COPY writes them in text form, cut into pieces at
row ends; `manifest.json`, last, has the number and the SHA-256 of everything before it, so that an
archive that lacks something is told from a whole one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, cast

from cli.backup.crypt import ArchiveError, Key, Lock, opened, sealed
from servicekit.security.digests import Sha256

FORMAT: Final = "evergreen backup v1"
_HEADER: Final = "backup.json"
_MANIFEST: Final = "manifest.json"
_FILES: Final = "files/"
_DATA: Final = "data/"
_PIECE: Final = 4 << 20
_MOST_FILE_BYTES: Final = 16 << 20
_COMPRESSION: Final = 3
"""Barely slower than copying, and rows shrink to a fifth."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table, `schema.name`, and the columns whose values are kept."""

    name: str
    columns: tuple[str, ...]
    order: tuple[str, ...] = ()
    """The columns by which its rows are sorted, if they are."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """A sequence and where it stands; `value` is `None` when it was never asked."""

    name: str
    value: int | None


@dataclass(frozen=True, slots=True)
class Header:
    """What an archive says of itself."""

    id: str
    created_at: datetime
    point: datetime
    """Everything that was committed, and so acknowledged, by then is in it."""
    release: str
    server: str
    migrations: dict[str, dict[str, str]]
    """Schema → version → SHA-256 of each migration that was applied."""
    tables: tuple[Table, ...]
    sequences: tuple[Sequence, ...] = ()
    files: tuple[str, ...] = ()

    def write(self) -> bytes:
        """The header in JSON."""
        value = dataclasses.asdict(self) | {
            "format": FORMAT,
            "created_at": self.created_at.isoformat(),
            "point": self.point.isoformat(),
        }
        return json.dumps(value, indent=1).encode()

    @classmethod
    def read(cls, text: bytes) -> Header:
        """Reads what `write` wrote.

        Raises:
            ArchiveError: it is of another format.
        """
        try:
            value = json.loads(text)
            if (found := value.pop("format")) != FORMAT:
                raise ArchiveError(f"the archive's format is {found}; this release reads {FORMAT}")
            return cls(
                id=value["id"],
                created_at=datetime.fromisoformat(value["created_at"]),
                point=datetime.fromisoformat(value["point"]),
                release=value["release"],
                server=value["server"],
                migrations=value["migrations"],
                tables=tuple(
                    Table(t["name"], tuple(t["columns"]), tuple(t["order"]))
                    for t in value["tables"]
                ),
                sequences=tuple(Sequence(**sequence) for sequence in value["sequences"]),
                files=tuple(value["files"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as broken:
            raise ArchiveError("the archive's header cannot be read") from broken


@dataclass(slots=True)
class _Sum:
    """What is kept of a file or of a table's rows, to compare it later."""

    digest: Sha256 = field(default_factory=Sha256)
    size: int = 0
    rows: int = 0

    def add(self, part: bytes) -> None:
        self.digest.update(part)
        self.size += len(part)

    def facts(self) -> dict[str, Any]:
        return {"sha256": self.digest.hexdigest(), "bytes": self.size, "rows": self.rows}


class Writer:
    """Writes an archive."""

    def __init__(self, tar: tarfile.TarFile, header: Header) -> None:
        self._tar = tar
        self._sums = {_HEADER: _Sum()}
        self._at = int(header.created_at.timestamp())
        self._table = ""
        self._pieces = 0
        self._waiting = bytearray()
        text = header.write()
        self._sums[_HEADER].add(text)
        self._member(_HEADER, text)

    def file(self, name: str, content: bytes) -> None:
        """Adds a key, a certificate or a piece of configuration."""
        self._sums.setdefault(_FILES + name, _Sum()).add(content)
        self._member(_FILES + name, content)

    def start_table(self, name: str) -> None:
        """Begins a table; `rows` belong to it until `end_table`."""
        self._table, self._pieces = name, 0
        self._sums[_DATA + name] = _Sum()

    def rows(self, part: bytes) -> None:
        """Adds rows, or a part of a row, in the form of COPY."""
        self._sums[_DATA + self._table].add(part)
        self._waiting += part
        if len(self._waiting) >= _PIECE:
            self._flush(self._waiting.rfind(b"\n") + 1)

    def end_table(self, rows: int) -> None:
        """Ends a table, which has this number of rows."""
        self._sums[_DATA + self._table].rows = rows
        self._flush(len(self._waiting))

    def _flush(self, upto: int) -> None:
        if upto:
            self._member(f"{_DATA}{self._table}/{self._pieces:06d}", bytes(self._waiting[:upto]))
            del self._waiting[:upto]
            self._pieces += 1

    def close(self) -> None:
        """Ends the archive."""
        sums = {name: found.facts() for name, found in self._sums.items()}
        self._member(_MANIFEST, json.dumps({"holds": sums}, indent=1).encode())

    def _member(self, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(content), 0o600, self._at
        self._tar.addfile(info, io.BytesIO(content))


@contextlib.contextmanager
def writing(path: Path, lock: Lock, header: Header) -> Iterator[Writer]:
    """A new archive, which appears under its name when the block has ended well."""
    with (
        sealed(path, lock) as file,
        gzip.GzipFile(fileobj=file, mode="wb", compresslevel=_COMPRESSION, filename="") as zipped,
        tarfile.open(
            fileobj=cast("IO[bytes]", zipped), mode="w|", format=tarfile.GNU_FORMAT
        ) as tar,
    ):
        writer = Writer(tar, header)
        yield writer
        writer.close()


class Reader:
    """Reads an archive from its beginning to its end, once.

    `header` and `files` are there at once. `tables` then answers each table with its rows, which
    must be read before the next one; after the last one everything is checked against the manifest.
    """

    def __init__(self, tar: tarfile.TarFile, stream: BinaryIO) -> None:
        self._tar = tar
        self._stream = stream
        self._sums: dict[str, _Sum] = {}
        self._next: tarfile.TarInfo | None = None
        first = self._advance()
        if first is None or first.name != _HEADER:
            raise ArchiveError("the archive does not begin with its header")
        self.header = Header.read(self._content(first))
        self.files: dict[str, bytes] = {}
        while (member := self._advance()) is not None and member.name.startswith(_FILES):
            self.files[member.name.removeprefix(_FILES)] = self._content(member)

    def tables(self) -> Iterator[tuple[Table, Iterator[bytes]]]:
        """The tables in the archive's order, each with its rows in pieces, cut at row ends.

        Raises:
            ArchiveError: the archive is damaged, cut off, or lacks something.
        """
        for table in self.header.tables:
            rows = self._rows(table)
            yield table, rows
            for _ in rows:
                pass
        self._finish()

    def _rows(self, table: Table) -> Iterator[bytes]:
        name = _DATA + table.name
        found = self._sums.setdefault(name, _Sum())
        while (member := self._next) is not None and member.name.startswith(f"{name}/"):
            piece = self._bytes(member)
            found.add(piece)
            found.rows += piece.count(b"\n")
            self._advance()
            yield piece

    def _finish(self) -> None:
        last = self._next
        if last is None or last.name != _MANIFEST:
            raise ArchiveError(
                f"the archive holds {last.name if last else 'nothing'} where its end should be"
            )
        holds = json.loads(self._bytes(last))["holds"]
        # Only the end of the stream shows that nothing of it is missing.
        while self._stream.read(1 << 16):
            pass
        found = {name: sums.facts() for name, sums in self._sums.items()}
        wrong = sorted(
            name for name in holds.keys() | found.keys() if holds.get(name) != found.get(name)
        )
        if wrong:
            raise ArchiveError(f"the archive does not hold what it says: {', '.join(wrong[:5])}")

    def _advance(self) -> tarfile.TarInfo | None:
        self._next = self._tar.next()
        return self._next

    def _content(self, member: tarfile.TarInfo) -> bytes:
        """The content of a small member, which is counted as a file is: without rows."""
        content = self._bytes(member)
        self._sums.setdefault(member.name, _Sum()).add(content)
        return content

    def _bytes(self, member: tarfile.TarInfo) -> bytes:
        if member.size > _MOST_FILE_BYTES + _PIECE and not member.name.startswith(_DATA):
            raise ArchiveError(f"{member.name} is too large")
        file = self._tar.extractfile(member)
        if file is None:
            raise ArchiveError(f"{member.name} is no file")
        return file.read()


@contextlib.contextmanager
def reading(path: Path, key: Key) -> Iterator[Reader]:
    """An archive, opened.

    Raises:
        ArchiveError: in the block too: it is damaged, cut off, or does not open with the key.
    """
    with opened(path, key) as stream:
        try:
            zipped = gzip.GzipFile(fileobj=stream, mode="rb")
            with tarfile.open(fileobj=cast("IO[bytes]", zipped), mode="r|") as tar:
                yield Reader(tar, cast("BinaryIO", zipped))
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, ValueError, KeyError) as broken:
            raise ArchiveError(f"{path} is damaged or cut off: {broken}") from broken
