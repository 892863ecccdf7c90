"""Encrypting and decrypting a stream of any size, at constant memory: with age (`cli.backup.age`),
or with approved algorithms (`servicekit.security.approved_stream`).

A passphrase is used as new values are made (`servicekit.security.mode`), a key as it is; that of
age not in FIPS mode. What was ever made is read, that of age not in FIPS mode either.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from cli.errors import CliError
from deploy.private_files import sync_directory
from servicekit.security import age_passphrase, approved_stream, mode
from servicekit.security.digests import Sha256

if not mode.is_required():
    from cli.backup import age

_AGE: Final = b"age-encryption.org/"
_BUFFER: Final = 1 << 16
STANDARD_OUTPUT: Final = Path("-")
MIN_PASSPHRASE: Final = 12
_NOT_THERE: Final = (
    "this OpenSSL has not the algorithms of age; unset OPENSSL_CONF, which may still say fips=yes"
)


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


def verifiable(lock: Lock) -> tuple[Lock, Key]:
    """A lock that this program can open again, as its own, and what opens it.

    Who only has public keys cannot read what is closed with them, so another key is added that
    nobody keeps.
    """
    if not lock.recipients:
        return lock, Key(passphrase=lock.passphrase)
    make = approved_stream.new_key_pair if _is_approved(lock) else age.new_key_pair
    public, private = make()
    return Lock(recipients=(*lock.recipients, public)), Key(identity=private)


def _is_approved(lock: Lock) -> bool:
    """Whether an archive is encrypted with approved algorithms.

    Raises:
        CliError: the keys are of both kinds, or of the kind that must not be used.
    """
    if not lock.recipients:
        return mode.writes_approved()
    approved = [text.startswith(approved_stream.RECIPIENT) for text in lock.recipients]
    if all(approved):
        return True
    if any(approved):
        raise CliError("keys of P-256 and of age cannot open the same archive; give one kind")
    if mode.is_required():
        raise CliError(
            f"{lock.recipients[0][:40]} is no key for approved algorithms; make one with"
            " `ssh-keygen -t ecdsa -b 256 -m PEM -N ''`"
        )
    return False


@contextlib.contextmanager
def sealed(path: Path, lock: Lock) -> Iterator[BinaryIO]:
    """Encrypts what is written into a new file, which appears under its name when it is whole.

    `-` is the standard output. There, a backup that failed is one that was cut off.

    Raises:
        CliError: the file is there, or cannot be written.
    """
    if path == STANDARD_OUTPUT:
        with _to_standard_output(lock) as writer:
            yield writer
        return
    if path.exists():
        raise CliError(f"{path} is there already; choose another name")
    part = path.with_name(path.name + ".part")
    try:
        # A new file always: what somebody laid there may be a link, or be open to others.
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise CliError(f"{part} cannot be written: {error.strerror}") from error
    is_whole = False
    try:
        with os.fdopen(descriptor, "w+b") as file:
            counted = _Counted(file)
            with _encrypted(cast("BinaryIO", counted), lock) as writer:
                yield writer
            is_whole = True
            file.flush()
            os.fsync(file.fileno())
            counted.compare()
        part.rename(path)
        sync_directory(path.parent)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, _WriteError) or (is_whole and isinstance(error, OSError)):
            raise CliError(f"{path} cannot be written: {error}") from error
        raise


@contextlib.contextmanager
def _to_standard_output(lock: Lock) -> Iterator[BinaryIO]:
    # Python has none where its parent closed it.
    if sys.stdout is None:
        raise CliError("the standard output is closed; name a file with -o")
    if sys.stdout.isatty():
        raise CliError("a backup is no text for a terminal; redirect the output, or use -o FILE")
    counted = _Counted(sys.stdout.buffer)
    try:
        with _encrypted(cast("BinaryIO", counted), lock) as writer:
            yield writer
        counted.flush()
    except _WriteError as error:
        raise CliError(
            f"the output cannot be written, what it has is no backup: {error}"
        ) from error
    except OSError as error:
        raise CliError(f"the backup was cut off: {error}") from error
    if not counted.size:
        raise CliError("nothing was written to the output")


class _WriteError(OSError):
    """What encrypts cannot write."""


class _Counted(io.RawIOBase):
    """What is written to a file, counted and digested on its way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = Sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, part: Any) -> int:
        self._file.write(part)
        self._digest.update(part)
        self.size += len(part)
        return len(part)

    def flush(self) -> None:
        self._file.flush()

    def compare(self) -> None:
        """Reads the file from the disk again.

        Raises:
            OSError: it does not hold what was written.
        """
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._file.seek(0)
        found, size = Sha256(), 0
        while part := self._file.read(1 << 20):
            found.update(part)
            size += len(part)
        if not size or found.hexdigest() != self._digest.hexdigest():
            raise OSError(f"it does not hold what was written ({self.size:,} bytes)")


def _approved_recipient(text: str) -> Any:
    try:
        return approved_stream.read_recipient(text)
    except ValueError as error:
        raise CliError(f"{text[:40]} is no public key of P-256: {error}") from error


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
def _encrypted(file: BinaryIO, lock: Lock) -> Iterator[BinaryIO]:
    encrypt: Callable[[BinaryIO], None]
    if _is_approved(lock):
        points = [_approved_recipient(text) for text in lock.recipients]

        def encrypt(reader: BinaryIO) -> None:
            approved_stream.encrypt_io(reader, file, lock.passphrase, points)

    else:
        recipients = [age.recipient(text) for text in lock.recipients]

        def encrypt(reader: BinaryIO) -> None:
            age.encrypt(reader, file, recipients, lock.passphrase)

    read_end, write_end = os.pipe()
    reader = os.fdopen(read_end, "rb", buffering=_BUFFER)
    writer = os.fdopen(write_end, "wb", buffering=_BUFFER)

    work = _Work(lambda: encrypt(reader), reader)
    work.start()
    try:
        yield writer
    finally:
        # When the thread failed, the pipe is broken; its own error is the one that is told.
        with contextlib.suppress(BrokenPipeError):
            writer.close()
        work.join()
        if work.error is not None:
            if age_passphrase.is_unsupported(work.error):
                raise CliError(f"the backup cannot be encrypted: {_NOT_THERE}") from work.error
            raise _WriteError(str(work.error)) from work.error


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
        decrypt = _opener(file, path, key)
        read_end, write_end = os.pipe()
        reader = os.fdopen(read_end, "rb", buffering=_BUFFER)
        writer = os.fdopen(write_end, "wb", buffering=_BUFFER)
        work = _Work(lambda: decrypt(writer), writer)
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


def _broken(path: Path, error: Exception) -> CliError:
    if age_passphrase.is_unsupported(error):
        return CliError(f"{path} cannot be opened: {_NOT_THERE}")
    if isinstance(error, approved_stream.WrongKeyError) or (
        "No matching keys" in str(error) or "passphrase" in str(error)
    ):
        return ArchiveError(f"{path} does not open with this key; it was made for another one")
    return ArchiveError(f"{path} is damaged or cut off: {error}")


def _opener(file: BinaryIO, path: Path, key: Key) -> Callable[[BinaryIO], None]:
    """What decrypts the file into a stream."""
    start = file.read(64)
    file.seek(0)
    is_approved = start.startswith(approved_stream.MAGIC)
    if not is_approved and not start.startswith(_AGE):
        raise ArchiveError(f"{path} is no backup, or its beginning is damaged")
    if not is_approved and mode.is_required():
        raise CliError(
            f"{path} was made with age, whose algorithms FIPS mode forbids; set EVERGREEN_FIPS=off"
            " to open it"
        )
    has_passphrase = (
        approved_stream.has_passphrase if is_approved else age_passphrase.is_passphrased
    )
    if has_passphrase(start):
        if not key.passphrase:
            raise CliError(f"{path} was made with a passphrase; give --passphrase-file")
        decrypt = approved_stream.decrypt_io if is_approved else age_passphrase.decrypt_io
        return lambda writer: decrypt(file, writer, key.passphrase)
    if not key.identity:
        raise CliError(f"{path} was made for a key, not with a passphrase; give --identity")
    if is_approved:
        private = _approved_key(key)
        return lambda writer: approved_stream.decrypt_io(file, writer, "", private)
    try:
        identities = age.identities(key.identity, key.passphrase)
    except age_passphrase.PassphraseError as error:
        raise ArchiveError(f"the private key does not open: {error}") from error
    return lambda writer: age.decrypt(file, writer, identities)


def _approved_key(key: Key) -> Any:
    try:
        return approved_stream.read_private_key(key.identity.encode())
    except ValueError as error:
        raise CliError(f"the private key cannot be read: {error}") from error
