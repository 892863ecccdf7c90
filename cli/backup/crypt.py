"""Encrypting and decrypting a stream of any size with age, at constant memory.

age's passphrases open small files only here (the library reads those whole), so a passphrase
encrypts a key that was made for this one archive, and the key encrypts the archive.
"""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyrage

from cli.errors import CliError

_MAGIC: Final = b"age-encryption.org/"
_BLOCK: Final = tarfile.BLOCKSIZE
_BUFFER: Final = 1 << 16
KEY_MEMBER: Final = "key.age"
DATA_MEMBER: Final = "backup.age"
_MOST_KEY_BYTES: Final = 1 << 16
MIN_PASSPHRASE: Final = 12


class ArchiveError(CliError):
    """An archive is damaged, cut off, or does not open with the given key."""


@dataclass(frozen=True, slots=True)
class Lock:
    """What closes an archive: a passphrase, or the public keys of those who may open it."""

    passphrase: str = field(default="", repr=False)
    recipients: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Key:
    """What opens an archive: its passphrase, or a private key (which may itself have one)."""

    passphrase: str = field(default="", repr=False)
    identity: str = field(default="", repr=False)


@contextlib.contextmanager
def sealed(path: Path, lock: Lock) -> Iterator[BinaryIO]:
    """Encrypts what is written into a new file, which appears under its name when it is whole.

    Raises:
        CliError: the file is there, or cannot be written.
    """
    if path.exists():
        raise CliError(f"{path} is there already; choose another name")
    part = path.with_name(path.name + ".part")
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise CliError(f"{part} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "w+b") as file:
            with _frame(file, lock) as recipients, _encrypted(file, recipients) as writer:
                yield writer
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CliError(f"{path} cannot be written: {error}") from error
        raise


@contextlib.contextmanager
def _frame(file: BinaryIO, lock: Lock) -> Iterator[list[Any]]:
    """Writes what stands around the encrypted stream; answers for whom to encrypt it."""
    if lock.recipients:
        yield [_recipient(text) for text in lock.recipients]
        return
    identity = pyrage.x25519.Identity.generate()
    key = pyrage.passphrase.encrypt(f"{identity}\n".encode(), lock.passphrase)
    file.write(_tar_header(KEY_MEMBER, len(key)) + key + bytes(-len(key) % _BLOCK))
    at = file.tell()
    file.write(_tar_header(DATA_MEMBER, 0))
    yield [identity.to_public()]
    size = file.tell() - at - _BLOCK
    file.write(bytes(-size % _BLOCK + 2 * _BLOCK))
    file.seek(at)
    file.write(_tar_header(DATA_MEMBER, size))


def _tar_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(tarfile.GNU_FORMAT)


def _recipient(text: str) -> Any:
    kind = pyrage.ssh if text.startswith("ssh-") else pyrage.x25519
    try:
        return kind.Recipient.from_str(text)
    except pyrage.RecipientError as error:
        raise CliError(f"{text[:40]} is no public key of age or SSH: {error}") from error


class _Work(threading.Thread):
    """A thread that keeps what went wrong in it."""

    def __init__(self, target: Any, *closing: Any) -> None:
        super().__init__(daemon=True)
        self._work = target
        self._closing = closing
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._work()
        except Exception as error:
            self.error = error
        finally:
            for end in self._closing:
                with contextlib.suppress(OSError):
                    end.close()


@contextlib.contextmanager
def _encrypted(file: BinaryIO, recipients: list[Any]) -> Iterator[BinaryIO]:
    read_end, write_end = os.pipe()
    reader = os.fdopen(read_end, "rb", buffering=_BUFFER)
    writer = os.fdopen(write_end, "wb", buffering=_BUFFER)
    work = _Work(lambda: pyrage.encrypt_io(reader, file, recipients), reader)
    work.start()
    try:
        yield writer
    finally:
        # When the thread failed, the pipe is broken; its own error is the one that is told.
        with contextlib.suppress(BrokenPipeError):
            writer.close()
        work.join()
        if work.error is not None:
            raise OSError(str(work.error)) from work.error


@contextlib.contextmanager
def opened(path: Path, key: Key) -> Iterator[BinaryIO]:
    """The decrypted stream of an archive. Reading its end raises when it is not whole.

    Raises:
        ArchiveError: it is no archive, or the key does not open it.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        source, identities = _unframe(file, path, key)
        read_end, write_end = os.pipe()
        reader = os.fdopen(read_end, "rb", buffering=_BUFFER)
        writer = os.fdopen(write_end, "wb", buffering=_BUFFER)
        work = _Work(lambda: pyrage.decrypt_io(source, writer, identities), writer)
        work.start()
        try:
            yield io.BufferedReader(_Checked(reader, work, path), _BUFFER)
        finally:
            reader.close()
            work.join()


class _Checked(io.RawIOBase):
    """A pipe's reading end, whose end is an error when the thread that fills it failed."""

    def __init__(self, pipe: BinaryIO, work: _Work, path: Path) -> None:
        self._pipe, self._work, self._path = pipe, work, path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._pipe.read(len(buffer))
        if not part:
            self._work.join()
            if self._work.error is not None:
                raise _broken(self._path, self._work.error)
        buffer[: len(part)] = part
        return len(part)


def _broken(path: Path, error: Exception) -> ArchiveError:
    if "No matching keys" in str(error):
        return ArchiveError(f"{path} does not open with this key; it was made for another one")
    return ArchiveError(f"{path} is damaged or cut off: {error}")


def _unframe(file: BinaryIO, path: Path, key: Key) -> tuple[BinaryIO, list[Any]]:
    """The encrypted stream in a file, and the keys to it."""
    start = file.read(_BLOCK)
    if start.startswith(_MAGIC):
        file.seek(0)
        if not key.identity:
            raise CliError(f"{path} was made for a key, not with a passphrase; give --identity")
        return file, _identities(key)
    try:
        info = tarfile.TarInfo.frombuf(start, "utf-8", "strict")
    except tarfile.HeaderError as error:
        raise ArchiveError(f"{path} is no backup, or its beginning is damaged") from error
    if info.name != KEY_MEMBER or info.size > _MOST_KEY_BYTES:
        raise ArchiveError(f"{path} is no backup")
    if not key.passphrase:
        raise CliError(f"{path} was made with a passphrase; give --passphrase-file")
    wrapped = file.read(info.size)
    file.read(-info.size % _BLOCK)
    identity = _unwrap(wrapped, key.passphrase, str(path))
    try:
        data = tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "strict")
    except tarfile.HeaderError as error:
        raise ArchiveError(f"{path} is damaged or cut off") from error
    return io.BufferedReader(_Limited(file, data.size), _BUFFER), _identities(Key("", identity))


class _Limited(io.RawIOBase):
    """The next bytes of a file, up to a number."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._file.read(min(len(buffer), self._left))
        self._left -= len(part)
        buffer[: len(part)] = part
        return len(part)


def _unwrap(wrapped: bytes, passphrase: str, name: str) -> str:
    try:
        return str(pyrage.passphrase.decrypt(wrapped, passphrase), "ascii")
    except (pyrage.DecryptError, OSError, ValueError) as error:
        raise ArchiveError(f"{name} does not open with this passphrase, or is damaged") from error


def _identities(key: Key) -> list[Any]:
    text = key.identity
    if text.startswith(_MAGIC.decode()):
        if not key.passphrase:
            raise CliError("the private key has a passphrase; give --passphrase-file too")
        text = _unwrap(text.encode("latin-1"), key.passphrase, "the private key")
    try:
        if text.startswith("-----BEGIN"):
            return [pyrage.ssh.Identity.from_buffer(text.encode("ascii"))]
        lines = [line.strip() for line in text.splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise CliError("the file of the private key is empty")
        return [pyrage.x25519.Identity.from_str(line) for line in found]
    except (pyrage.IdentityError, ValueError) as error:
        raise CliError(f"the private key cannot be read: {error}") from error
