"""age's passphrase encryption as a stream (https://age-encryption.org/v1).

The age library reads what has a passphrase into memory, takes up to half a gigabyte for the
passphrase, and refuses on a slow machine what a fast one made. The format is small, so that it is
spoken here, with a fixed cost: a random file key is wrapped by scrypt(passphrase); HKDF makes of it
the key of the header's MAC and that of the payload; the payload is ChaCha20-Poly1305 over pieces of
64 KiB, whose nonces count them and mark the last one.
"""

from __future__ import annotations

import base64
import hmac
import os
import re
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from servicekit.security import digests

_VERSION: Final = b"age-encryption.org/v1\n"
_LABEL: Final = b"age-encryption.org/v1/scrypt"
_PIECE: Final = 1 << 16
_TAG: Final = 16
_LOG_N: Final = 17
"""128 MiB and a quarter of a second for each guess (OWASP's first choice)."""
_MOST_LOG_N: Final = 20
_STANZA: Final = re.compile(
    rb"age-encryption\.org/v1\n-> scrypt ([A-Za-z0-9+/]{22}) ([1-9][0-9]?)\n([A-Za-z0-9+/]{43})\n"
    rb"--- ([A-Za-z0-9+/]{43})\n"
)
_HEADER_BYTES: Final = 22 + 43 + 43 + len(_VERSION) + len(b"-> scrypt  17\n\n--- \n")


class PassphraseError(Exception):
    """The passphrase is not the right one, or the file was changed or cut off."""


def is_unsupported(error: Exception) -> bool:
    """Whether something failed because OpenSSL has not the algorithms."""
    return isinstance(error, UnsupportedAlgorithm)


def is_passphrased(start: bytes) -> bool:
    """Whether a file that begins so opens with a passphrase."""
    return start.startswith(_VERSION + b"-> scrypt ")


def encrypt_io(reader: BinaryIO, writer: BinaryIO, passphrase: str) -> None:
    """Encrypts all that a stream has into another one."""
    file_key, salt, nonce = os.urandom(16), os.urandom(16), os.urandom(16)
    wrapped = ChaCha20Poly1305(_wrapping_key(passphrase, salt, _LOG_N)).encrypt(
        bytes(12), file_key, None
    )
    header = _VERSION + b"-> scrypt %s %d\n%s\n---" % (_base64(salt), _LOG_N, _base64(wrapped))
    writer.write(header + b" " + _base64(_mac(file_key, header)) + b"\n" + nonce)
    cipher = ChaCha20Poly1305(_derived(file_key, nonce, b"payload"))
    number, piece = 0, reader.read(_PIECE)
    while True:
        following = reader.read(_PIECE)
        writer.write(cipher.encrypt(_nonce(number, last=not following), piece, None))
        if not following:
            return
        number, piece = number + 1, following


def decrypt_io(reader: BinaryIO, writer: BinaryIO, passphrase: str) -> None:
    """Decrypts a stream into another one, piece by piece, each of which was checked.

    Raises:
        PassphraseError: also after pieces were written: the stream is not whole.
    """
    start = reader.read(_HEADER_BYTES)
    match = _STANZA.fullmatch(start)
    if match is None or int(match[2]) > _MOST_LOG_N:
        raise PassphraseError("the beginning is damaged, or it was made in another way")
    try:
        file_key = ChaCha20Poly1305(
            _wrapping_key(passphrase, _unbase64(match[1]), int(match[2]))
        ).decrypt(bytes(12), _unbase64(match[3]), None)
    except InvalidTag as wrong:
        raise PassphraseError("the passphrase is not the right one") from wrong
    if not digests.equal(_mac(file_key, start[: match.start(4) - 1]), _unbase64(match[4])):
        raise PassphraseError("the beginning was changed")
    cipher = ChaCha20Poly1305(_derived(file_key, reader.read(16), b"payload"))
    number, piece = 0, reader.read(_PIECE + _TAG)
    while True:
        following = reader.read(_PIECE + _TAG)
        try:
            writer.write(cipher.decrypt(_nonce(number, last=not following), piece, None))
        except InvalidTag as wrong:
            raise PassphraseError("it was changed or cut off") from wrong
        if not following:
            return
        number, piece = number + 1, following


def _wrapping_key(passphrase: str, salt: bytes, log_n: int) -> bytes:
    return Scrypt(salt=_LABEL + salt, length=32, n=1 << log_n, r=8, p=1).derive(passphrase.encode())


def _derived(file_key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt, info).derive(file_key)


def _mac(file_key: bytes, header: bytes) -> bytes:
    return hmac.digest(_derived(file_key, b"", b"header"), header, "sha256")


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _base64(raw: bytes) -> bytes:
    return base64.b64encode(raw).rstrip(b"=")


def _unbase64(text: bytes) -> bytes:
    return base64.b64decode(text + b"=" * (-len(text) % 4))
