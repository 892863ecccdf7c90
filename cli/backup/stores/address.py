"""What `EVERGREEN_BACKUP_TARGET` may be, and the store that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from cli.backup.stores.directory import DirectoryStore
from cli.backup.stores.store import Access, Store, stored
from cli.errors import CliError

_FORMS: Final = "/directory, sftp://user@host/path or s3://bucket/prefix"


def is_address(text: str) -> bool:
    """Whether a text names a store on another machine."""
    return text.startswith(("s3://", "sftp://"))


def open_store(target: str, access: Access) -> Store:
    """The store that a text names; nothing is connected to yet.

    Raises:
        CliError: it names none.
    """
    if target.startswith("/"):
        return DirectoryStore(Path(target))
    try:
        url = urlsplit(target)
        host, port = url.hostname or "", url.port
    except ValueError as error:
        raise CliError(f"the target of backups is not {_FORMS}: {error}") from error
    if url.password is not None:
        raise CliError("the target of backups has a password in it; give a key as a file")
    if not host or url.query or url.fragment or url.scheme not in {"s3", "sftp"}:
        raise CliError(f"the target of backups is {target!r}, not {_FORMS}")
    if url.scheme == "s3":
        # Not for installations that keep backups elsewhere: the library takes its time to load.
        from cli.backup.stores.s3 import S3Store  # noqa: PLC0415

        return S3Store(url.netloc, unquote(url.path), access)
    from cli.backup.stores.sftp import SftpStore  # noqa: PLC0415

    if host.startswith("-") or (url.username or "").startswith("-"):
        raise CliError("the target of backups names no server")
    return SftpStore(unquote(url.username or ""), host, port, unquote(url.path) or "/~/", access)


def split(address: str) -> tuple[str, str]:
    """A store's address, and the name of the backup in it; empty when only the store is named."""
    whole, _, last = address.rpartition("/")
    return (whole, last) if stored(last, 0) is not None else (address.rstrip("/"), "")
