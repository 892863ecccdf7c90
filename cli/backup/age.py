"""age, for backups: keys are the library's work, passphrases are `age_passphrase`'s. FIPS mode has
neither."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, BinaryIO, Final

import pyrage

from cli.errors import CliError
from servicekit.security import age_passphrase

MAGIC: Final = "age-encryption.org/"


def new_key_pair() -> tuple[str, str]:
    """A new recipient and its private key."""
    own = pyrage.x25519.Identity.generate()
    return str(own.to_public()), str(own)


def recipient(text: str) -> Any:
    """A public key.

    Raises:
        CliError: it is none.
    """
    kind = pyrage.ssh if text.startswith("ssh-") else pyrage.x25519
    try:
        return kind.Recipient.from_str(text)
    except pyrage.RecipientError as error:
        raise CliError(f"{text[:40]} is no public key of age or SSH: {error}") from error


def identities(text: str, passphrase: str) -> list[Any]:
    """The private keys of a file, which may have a passphrase.

    Raises:
        PassphraseError: it does not open with the passphrase.
        CliError: there is none in it.
    """
    if text.startswith(MAGIC):
        if not passphrase:
            raise CliError("the private key has a passphrase; give --passphrase-file too")
        plain = io.BytesIO()
        age_passphrase.decrypt_io(io.BytesIO(text.encode("latin-1")), plain, passphrase)
        text = plain.getvalue().decode("ascii", "replace")
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


def encrypt(reader: BinaryIO, writer: BinaryIO, recipients: Sequence[Any], passphrase: str) -> None:
    """Encrypts a stream into another one, for the recipients, or else the passphrase."""
    if recipients:
        pyrage.encrypt_io(reader, writer, recipients)
    else:
        age_passphrase.encrypt_io(reader, writer, passphrase)


def decrypt(reader: BinaryIO, writer: BinaryIO, keys: Sequence[Any]) -> None:
    """Decrypts a stream into another one with private keys."""
    pyrage.decrypt_io(reader, writer, keys)
