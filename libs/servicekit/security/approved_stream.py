"""Encryption of a stream with approved algorithms, for a passphrase or for P-256 keys.

It is built as age is (`age_passphrase`). A random file key is wrapped once for each who may open
the file, by AES-256-GCM under a key that PBKDF2-HMAC-SHA256 makes of the passphrase, or HKDF-SHA256
of an agreement between a key of this file alone and the recipient's (SP 800-132, SP 800-56A and
56C). HKDF makes of the file key that of the header's HMAC and that of the payload, which is
AES-256-GCM over pieces of 64 KiB; their nonces count them and mark the last one (SP 800-38D,
8.2.1).

    evergreen-encryption/v1
    -> pbkdf2-sha256 SALT ITERATIONS WRAPPED-KEY
    -> p256 KEY-OF-THIS-FILE RECIPIENT WRAPPED-KEY
    --- HMAC
    16 bytes, then the pieces

Bytes are base64 without padding. Recipients are written as SSH does (`ecdsa-sha2-nistp256 AAAA…`),
their private keys as OpenSSL or SSH writes them.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Sequence
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from servicekit.security import digests

MAGIC: Final = b"evergreen-encryption/v1\n"
RECIPIENT: Final = "ecdsa-sha2-nistp256 "
"""How the public keys begin that this is for."""
_PIECE: Final = 1 << 16
_TAG: Final = 16
_ITERATIONS: Final = 600_000
_MOST_ITERATIONS: Final = 10_000_000
_MOST_HEADER: Final = 1 << 16
_CURVE: Final = ec.SECP256R1()
_PASSPHRASE_LINE: Final = re.compile(
    rb"-> pbkdf2-sha256 ([A-Za-z0-9+/]{22}) ([1-9][0-9]{3,7}) ([A-Za-z0-9+/]{64})"
)
_KEY_LINE: Final = re.compile(
    rb"-> p256 ([A-Za-z0-9+/]{87}) ([A-Za-z0-9+/]{87}) ([A-Za-z0-9+/]{64})"
)
_END_LINE: Final = re.compile(rb"--- ([A-Za-z0-9+/]{43})")


class OpeningError(Exception):
    """The passphrase or the key is not the right one, or the file was changed or cut off."""


class WrongKeyError(OpeningError):
    """The passphrase or the key is not the right one."""


def has_passphrase(start: bytes) -> bool:
    """Whether a file that begins so opens with a passphrase."""
    return start.startswith(MAGIC + b"-> pbkdf2-sha256 ")


def read_recipient(text: str) -> ec.EllipticCurvePublicKey:
    """A public key as SSH writes it.

    Raises:
        ValueError: it is none of P-256.
    """
    try:
        found = serialization.load_ssh_public_key(text.encode())
    except UnsupportedAlgorithm as other:
        raise ValueError(str(other)) from other
    if not isinstance(found, ec.EllipticCurvePublicKey) or found.curve.name != _CURVE.name:
        raise ValueError("it is no key of P-256")
    return found


def read_private_key(text: bytes) -> ec.EllipticCurvePrivateKey:
    """A private key without a passphrase, as OpenSSL or SSH writes it.

    Raises:
        ValueError: it is none of P-256, or has a passphrase.
    """
    load = (
        serialization.load_ssh_private_key
        if b"BEGIN OPENSSH" in text
        else serialization.load_pem_private_key
    )
    try:
        found = load(text, None)
    except (TypeError, UnsupportedAlgorithm) as other:
        raise ValueError(str(other)) from other
    if not isinstance(found, ec.EllipticCurvePrivateKey) or found.curve.name != _CURVE.name:
        raise ValueError("it is no key of P-256")
    return found


def new_key_pair() -> tuple[str, str]:
    """A new recipient, and its private key in PEM."""
    key = ec.generate_private_key(_CURVE)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    private = key.private_bytes(
        Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return public.decode("ascii"), private.decode("ascii")


def encrypt_io(
    reader: BinaryIO,
    writer: BinaryIO,
    passphrase: str,
    recipients: Sequence[ec.EllipticCurvePublicKey] = (),
) -> None:
    """Encrypts all that a stream has into another one, for the recipients, or else the passphrase.

    Raises:
        ValueError: there are more recipients than a file can have.
    """
    file_key, nonce = os.urandom(32), os.urandom(16)
    lines = [_for_key(file_key, one) for one in recipients] or [_for_words(file_key, passphrase)]
    header = MAGIC + b"".join(line + b"\n" for line in lines) + b"---"
    if len(header) > _MOST_HEADER - 64:
        raise ValueError("too many recipients")
    writer.write(header + b" " + _base64(_mac(file_key, header)) + b"\n" + nonce)
    cipher = AESGCM(_derived(file_key, nonce, b"payload"))
    number, piece = 0, reader.read(_PIECE)
    while True:
        following = reader.read(_PIECE)
        writer.write(cipher.encrypt(_nonce(number, last=not following), piece, None))
        if not following:
            return
        number, piece = number + 1, following


def decrypt_io(
    reader: BinaryIO,
    writer: BinaryIO,
    passphrase: str,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> None:
    """Decrypts a stream into another one, piece by piece, each of which was checked.

    Raises:
        OpeningError: also after pieces were written: the stream is not whole.
    """
    lines, header, mac = _read_header(reader)
    file_key = _file_key(lines, passphrase, key)
    if not digests.equal(_mac(file_key, header), mac):
        raise OpeningError("the beginning was changed")
    cipher = AESGCM(_derived(file_key, reader.read(16), b"payload"))
    number, piece = 0, reader.read(_PIECE + _TAG)
    while True:
        following = reader.read(_PIECE + _TAG)
        try:
            writer.write(cipher.decrypt(_nonce(number, last=not following), piece, None))
        except (InvalidTag, ValueError) as wrong:
            raise OpeningError("it was changed or cut off") from wrong
        if not following:
            return
        number, piece = number + 1, following


def _read_header(reader: BinaryIO) -> tuple[list[bytes], bytes, bytes]:
    """The lines for those who may open it, all that the HMAC is over, and the HMAC."""
    read = reader.read(len(MAGIC))
    if read != MAGIC:
        raise OpeningError("the beginning is damaged")
    lines: list[bytes] = []
    while True:
        line = bytearray()
        while not line.endswith(b"\n"):
            byte = reader.read(1)
            if not byte or len(read) + len(line) > _MOST_HEADER:
                raise OpeningError("the beginning is damaged or cut off")
            line += byte
        if (end := _END_LINE.fullmatch(line[:-1])) is not None:
            return lines, read + b"---", _unbase64(bytes(end[1]))
        read += line
        lines.append(bytes(line[:-1]))


def _file_key(
    lines: Sequence[bytes], passphrase: str, key: ec.EllipticCurvePrivateKey | None
) -> bytes:
    for line in lines:
        words, keys = _PASSPHRASE_LINE.fullmatch(line), _KEY_LINE.fullmatch(line)
        if words is None and keys is None:
            raise OpeningError("the beginning is damaged")
        try:
            if words is not None and passphrase and int(words[2]) <= _MOST_ITERATIONS:
                wrapping = _of_words(passphrase, _unbase64(words[1]), int(words[2]))
                return AESGCM(wrapping).decrypt(bytes(12), _unbase64(words[3]), MAGIC)
            if keys is not None and key is not None:
                point, recipient = _unbase64(keys[1]), _unbase64(keys[2])
                if recipient == _point(key.public_key()):
                    other = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, point)
                    wrapping = _agreed(key, other, point + recipient)
                    return AESGCM(wrapping).decrypt(bytes(12), _unbase64(keys[3]), MAGIC)
        except InvalidTag as wrong:
            raise WrongKeyError("the passphrase or the key is not the right one") from wrong
        except (ValueError, binascii.Error) as broken:
            raise OpeningError("the beginning is damaged") from broken
    raise WrongKeyError("the passphrase or the key is not the right one")


def _for_words(file_key: bytes, passphrase: str) -> bytes:
    salt = os.urandom(16)
    wrapped = AESGCM(_of_words(passphrase, salt, _ITERATIONS)).encrypt(bytes(12), file_key, MAGIC)
    return b"-> pbkdf2-sha256 %s %d %s" % (_base64(salt), _ITERATIONS, _base64(wrapped))


def _for_key(file_key: bytes, recipient: ec.EllipticCurvePublicKey) -> bytes:
    own = ec.generate_private_key(_CURVE)
    point, theirs = _point(own.public_key()), _point(recipient)
    # Each wrapping key is used once, so that its nonce may be nothing but zeros.
    wrapping = _agreed(own, recipient, point + theirs)
    wrapped = AESGCM(wrapping).encrypt(bytes(12), file_key, MAGIC)
    return b"-> p256 %s %s %s" % (_base64(point), _base64(theirs), _base64(wrapped))


def _of_words(passphrase: str, salt: bytes, iterations: int) -> bytes:
    return PBKDF2HMAC(hashes.SHA256(), 32, salt, iterations).derive(passphrase.encode())


def _agreed(
    own: ec.EllipticCurvePrivateKey, other: ec.EllipticCurvePublicKey, parties: bytes
) -> bytes:
    return _derived(own.exchange(ec.ECDH(), other), b"", MAGIC + parties)


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _derived(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt, info).derive(secret)


def _mac(file_key: bytes, header: bytes) -> bytes:
    return digests.hmac_sha256(_derived(file_key, b"", b"header"), header)


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _base64(raw: bytes) -> bytes:
    return base64.b64encode(raw).rstrip(b"=")


def _unbase64(text: bytes) -> bytes:
    """Bytes of base64 that has one form only, or else the file could be changed and still open.

    Raises:
        OpeningError: it has bits that count for nothing.
    """
    raw = base64.b64decode(text + b"=" * (-len(text) % 4))
    if _base64(raw) != text:
        raise OpeningError("the beginning is damaged")
    return raw
