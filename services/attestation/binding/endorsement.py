"""Endorsement keys of TPMs, and secrets that only the TPM with such a key gives away.

An endorsement key (EK) is made by the TPM's maker and only decrypts. It decrypts a credential for a
device that shows, at the same time, a signing key of the same TPM by its name: so a secret that
comes back ties that key to the TPM. "TPM 2.0 Library, Part 1: Architecture", 24 ("Credential
Protection") and annexes B and C; "TCG EK Credential Profile" 2.5, B.3 and B.4 (templates).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives import hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from servicekit.security.digests import sha256
from services.attestation.evidence.signatures import CURVES, HASHES, STRONG, digest
from services.attestation.evidence.structures import (
    DIGEST_BYTES,
    Alg,
    MalformedError,
    Reader,
)

SECRET_BYTES: Final = 32
_ATTRIBUTES: Final = frozenset({0x000300B2, 0x000300F2})
"""fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt; of the newer
templates userWithAuth, too."""
_POLICIES: Final = frozenset(
    map(
        bytes.fromhex,
        (
            # PolicyA with SHA-256, PolicyB with SHA-256, SHA-384 and SHA-512.
            "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa",
            "ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0",
            "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419ca"
            "cb47ba09699646150f9fc000f3f80e12",
            "b8221ca69e8550a4914de3faa6a18c072cc01208073a928d5d66d59ef79e49a4"
            "29c41a6b269571d57edb25fbdb183842"
            "5608b413cd616a5f6db5b6071af99bea",
        ),
    )
)
_AES: Final = 0x0006
_CFB: Final = 0x0043
_AES_BITS: Final = frozenset({128, 256})
_RSA_BITS: Final = frozenset({2048, 3072, 4096})
_EXPONENT: Final = 65537
_LABEL: Final = b"IDENTITY\0"


class EndorsementError(ValueError):
    """A key that is none of a TPM's endorsement keys."""


@dataclass(frozen=True, slots=True)
class EndorsementKey:
    """An endorsement key."""

    name_alg: int
    aes_bits: int
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey

    @property
    def sha256(self) -> bytes:
        """The digest that stands for the key everywhere: of its SubjectPublicKeyInfo."""
        return sha256(self.spki)

    @property
    def spki(self) -> bytes:
        """The key as certificates have it, in DER."""
        return self.key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )


@dataclass(frozen=True, slots=True)
class Credential:
    """A secret for one TPM and one of its keys."""

    blob: bytes
    """TPMS_ID_OBJECT: an HMAC, and the secret, encrypted."""
    encrypted_seed: bytes = field(repr=False)
    """The content of a TPM2B_ENCRYPTED_SECRET."""


def read_endorsement_key(data: bytes) -> EndorsementKey:
    """Reads the public area of an endorsement key (TPMT_PUBLIC).

    Raises:
        EndorsementError: it is none of the templates of the TCG.
    """
    try:
        return _read(Reader(data))
    except (MalformedError, ValueError) as broken:
        raise EndorsementError(str(broken)) from broken


def _read(reader: Reader) -> EndorsementKey:
    kind, name_alg = reader.integer(2), reader.integer(2)
    attributes, policy = reader.integer(4), reader.sized()
    if name_alg not in STRONG or attributes not in _ATTRIBUTES or policy not in _POLICIES:
        raise EndorsementError("no template of an endorsement key")
    if reader.integer(2) != _AES:
        raise EndorsementError("no AES")
    aes_bits = reader.integer(2)
    if aes_bits not in _AES_BITS or reader.integer(2) != _CFB or reader.integer(2) != Alg.NULL:
        raise EndorsementError("no AES in CFB mode, or a scheme")
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    if kind == Alg.RSA:
        bits, exponent, modulus = reader.integer(2), reader.integer(4), reader.sized()
        number = int.from_bytes(modulus, "big")
        if bits not in _RSA_BITS or number.bit_length() != bits or exponent not in {0, _EXPONENT}:
            raise EndorsementError("an RSA key of another size")
        if number % 2 == 0:
            raise EndorsementError("no modulus")
        key = rsa.RSAPublicNumbers(_EXPONENT, number).public_key()
    elif kind == Alg.ECC:
        curve = CURVES.get(reader.integer(2))
        if curve is None or reader.integer(2) != Alg.NULL:
            raise EndorsementError("another curve")
        x, y = (int.from_bytes(reader.sized(), "big") for _ in range(2))
        key = ec.EllipticCurvePublicNumbers(x, y, curve()).public_key()
    else:
        raise EndorsementError("neither an RSA nor an ECC key")
    reader.end()
    return EndorsementKey(name_alg, aes_bits, key)


def new_secret() -> bytes:
    """A secret for a credential."""
    return secrets.token_bytes(SECRET_BYTES)


def make_credential(endorsement: EndorsementKey, name: bytes, secret: bytes) -> Credential:
    """Encrypts a secret for the TPM that has both the endorsement key and the key of the name."""
    seed, encrypted_seed = _share_seed(endorsement)
    hashed = endorsement.name_alg
    key = _kdfa(hashed, seed, b"STORAGE", name, endorsement.aes_bits)
    encrypted = _cfb(key, len(secret).to_bytes(2, "big") + secret)
    mac_key = _kdfa(hashed, seed, b"INTEGRITY", b"", 8 * DIGEST_BYTES[Alg(hashed)])
    mac = hmac.HMAC(mac_key, HASHES[hashed]())
    mac.update(encrypted + name)
    code = mac.finalize()
    return Credential(len(code).to_bytes(2, "big") + code + encrypted, encrypted_seed)


def _share_seed(endorsement: EndorsementKey) -> tuple[bytes, bytes]:
    """A seed that the TPM gets to know, and how it is told."""
    hashed = HASHES[endorsement.name_alg]
    size = DIGEST_BYTES[Alg(endorsement.name_alg)]
    if isinstance(endorsement.key, rsa.RSAPublicKey):
        seed = secrets.token_bytes(size)
        pad = padding.OAEP(padding.MGF1(hashed()), hashed(), _LABEL)
        return seed, endorsement.key.encrypt(seed, pad)
    own = ec.generate_private_key(endorsement.key.curve)
    shared = own.exchange(ec.ECDH(), endorsement.key)
    mine, theirs = own.public_key().public_numbers(), endorsement.key.public_numbers()
    width = (endorsement.key.curve.key_size + 7) // 8
    x, y, other = (number.to_bytes(width, "big") for number in (mine.x, mine.y, theirs.x))
    # KDFe: one block is as long as the seed.
    block = (1).to_bytes(4, "big") + shared + _LABEL + x + other
    point = b"".join(width.to_bytes(2, "big") + part for part in (x, y))
    return digest(endorsement.name_alg, block), point


def _kdfa(hashed: int, key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDFa: the counter mode of NIST SP 800-108, with an HMAC."""
    found = b""
    counter = 0
    while len(found) < bits // 8:
        counter += 1
        mac = hmac.HMAC(key, HASHES[hashed]())
        mac.update(counter.to_bytes(4, "big") + label + b"\0" + context + bits.to_bytes(4, "big"))
        found += mac.finalize()
    return found[: bits // 8]


def _cfb(key: bytes, data: bytes) -> bytes:
    """AES in CFB mode from zeros (full blocks of feedback), which `cryptography` has no more."""
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - CFB is made of it
    found = b""
    feedback = bytes(16)
    for at in range(0, len(data), 16):
        part = data[at : at + 16]
        feedback = bytes(a ^ b for a, b in zip(block.update(feedback), part, strict=False))
        found += feedback
    return found
