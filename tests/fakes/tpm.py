"""A TPM 2.0 in software: what it tells of its keys, quotes, and credentials that it gives away.

It stands for TPMs where tests need many, or wrong ones; `tests/external/test_tpm.py` has swtpm.
"""

from __future__ import annotations

import base64
import datetime
import secrets
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.x509.oid import NameOID

_EK_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_AK_ATTRIBUTES = 0x00050472
_EK_ATTRIBUTES = 0x000300B2
_ALL = b"\xff\xff\xff"
OF_ENDORSEMENT_KEYS = x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.23.133.8.1")])


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _number(value: int, size: int) -> bytes:
    return value.to_bytes(size, "big")


@dataclass
class Maker:
    """A maker of TPMs, with a root and a CA below it."""

    name: str = "Maker"
    root_key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    ca_key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def __post_init__(self) -> None:
        self.root = self._issue(f"{self.name} root", self.root_key.public_key(), None, ca=True)
        self.ca = self._issue(f"{self.name} CA", self.ca_key.public_key(), self.root, ca=True)

    def _issue(
        self,
        name: str,
        key: Any,
        issuer: x509.Certificate | None,
        *,
        ca: bool,
        days: int = 3650,
        extension: x509.ExtensionType | None = None,
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=3650)
        signer = self.root_key if issuer is None or issuer.issuer == issuer.subject else self.ca_key
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.subject if issuer else subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + datetime.timedelta(days=3650 + days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if extension is not None:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(signer, hashes.SHA256())

    @property
    def root_pem(self) -> str:
        """The root, as an administrator adds it."""
        return self.root.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def chain(self) -> list[bytes]:
        """What stands between a TPM's certificate and the root."""
        return [self.ca.public_bytes(serialization.Encoding.DER)]

    def certify(
        self,
        key: Any,
        *,
        days: int = 3650,
        ca: bool = False,
        extension: x509.ExtensionType | None = OF_ENDORSEMENT_KEYS,
    ) -> bytes:
        """A certificate of an endorsement key, unless it is to be another one."""
        made = self._issue("TPM", key, self.ca, ca=ca, days=days, extension=extension)
        return made.public_bytes(serialization.Encoding.DER)


class SigningKey:
    """A restricted signing key of a TPM, ECDSA P-256."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        numbers = self._key.public_key().public_numbers()
        self.public = (
            b"\x00\x23\x00\x0b"
            + _number(_AK_ATTRIBUTES, 4)
            + _sized(b"")
            + b"\x00\x10\x00\x18\x00\x0b\x00\x03\x00\x10"
            + _sized(_number(numbers.x, 32))
            + _sized(_number(numbers.y, 32))
        )

    @property
    def name(self) -> bytes:
        """The TPM's name of the key."""
        return b"\x00\x0b" + sha256(self.public).digest()

    def quote(self, extra: bytes, pcrs: dict[int, bytes], reset_count: int = 1) -> dict[str, str]:
        """A quote over registers of the SHA-256 bank, as evidence has it."""
        digest = sha256(b"".join(pcrs[index] for index in range(24))).digest()
        quote = (
            b"\xffTCG\x80\x18"
            + _sized(b"\x00\x0b" + sha256(b"qualified" + self.name).digest())
            + _sized(extra)
            + _number(1234, 8)
            + _number(reset_count, 4)
            + _number(0, 4)
            + b"\x01"
            + _number(42, 8)
            + _number(1, 4)
            + b"\x00\x0b\x03"
            + _ALL
            + _sized(digest)
        )
        r, s = decode_dss_signature(self._key.sign(quote, ec.ECDSA(hashes.SHA256())))
        signature = b"\x00\x18\x00\x0b" + _sized(_number(r, 32)) + _sized(_number(s, 32))
        return {
            "version": "2.0",
            "quote": base64.b64encode(quote).decode(),
            "signature": base64.b64encode(signature).decode(),
        }


class Tpm:
    """A TPM with an RSA endorsement key and one signing key."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(65537, 2048)
        modulus = self._key.public_key().public_numbers().n
        self.ek_public = (
            b"\x00\x01\x00\x0b"
            + _number(_EK_ATTRIBUTES, 4)
            + _sized(_EK_POLICY)
            + b"\x00\x06\x00\x80\x00\x43\x00\x10"
            + _number(2048, 2)
            + _number(0, 4)
            + _sized(_number(modulus, 256))
        )
        self.ak = SigningKey()
        self.pcrs = {index: sha256(bytes([index])).digest() for index in range(24)}
        self.reset_count = 1

    @property
    def ek(self) -> rsa.RSAPublicKey:
        """The endorsement key, as its maker certifies it."""
        return self._key.public_key()

    @property
    def ek_sha256(self) -> bytes:
        """The digest by which the backend knows it."""
        spki = self.ek.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return sha256(spki).digest()

    def give_away(self, blob: bytes, encrypted_seed: bytes) -> bytes | None:
        """The secret of a credential; `None` when it is not for this TPM and its signing key."""
        label = b"IDENTITY\0"
        pad = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label)
        try:
            seed = self._key.decrypt(encrypted_seed, pad)
        except ValueError:
            return None
        size = int.from_bytes(blob[:2], "big")
        code, encrypted = blob[2 : 2 + size], blob[2 + size :]
        name = self.ak.name
        if _mac(_kdf(seed, b"INTEGRITY", b"", 256), encrypted + name) != code:
            return None
        key = _kdf(seed, b"STORAGE", name, 128)
        block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
        plain, feedback = b"", bytes(16)
        for at in range(0, len(encrypted), 16):
            part = encrypted[at : at + 16]
            plain += bytes(a ^ b for a, b in zip(block.update(feedback), part, strict=False))
            feedback = part.ljust(16, b"\0")
        return plain[2 : 2 + int.from_bytes(plain[:2], "big")]

    def evidence(
        self, nonce: bytes, device_id: object, *, bare: bool = False, ak: SigningKey | None = None
    ) -> dict[str, Any]:
        """Evidence for a challenge; `bare` is over the nonce alone, as the released agent's."""
        key = ak or self.ak
        extra = nonce if bare else sha256(nonce + str(device_id).encode() + key.name).digest()
        return {
            "nonce": base64.b64encode(nonce).decode(),
            "ak_public": base64.b64encode(key.public).decode(),
            "quotes": [key.quote(extra, self.pcrs, self.reset_count)],
            "pcrs": {str(index): value.hex() for index, value in self.pcrs.items()},
        }


def proof_of(secret: bytes, device_id: object) -> bytes:
    """What a device shows of the secret."""
    return sha256(secret + str(device_id).encode()).digest()


def some_nonce() -> bytes:
    """A nonce that a device chose."""
    return secrets.token_bytes(32)


def _kdf(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    counted = _number(1, 4) + label + b"\0" + context + _number(bits, 4)
    return _mac(key, counted)[: bits // 8]


def _mac(key: bytes, data: bytes) -> bytes:
    mac = hmac.HMAC(key, hashes.SHA256())
    mac.update(data)
    return mac.finalize()
