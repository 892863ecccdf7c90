"""Keys and signatures of evidence, by `cryptography` alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from services.attestation.evidence.structures import (
    Alg,
    EccUnique,
    MalformedError,
    RsaUnique,
    Scheme,
    Signature,
)

HASHES: Final[dict[int, Callable[[], hashes.HashAlgorithm]]] = {
    # The bank of SHA-1 is replayed and compared; no signature and no name is taken over it.
    Alg.SHA1: hashes.SHA1,
    Alg.SHA256: hashes.SHA256,
    Alg.SHA384: hashes.SHA384,
    Alg.SHA512: hashes.SHA512,
}
STRONG: Final = frozenset({Alg.SHA256, Alg.SHA384, Alg.SHA512})
"""The hashes of schemes and names that are taken."""
_RSA_BITS: Final = frozenset({2048, 3072, 4096})
_EXPONENT: Final = 65537
CURVES: Final[dict[int, Callable[[], ec.EllipticCurve]]] = {
    0x0003: ec.SECP256R1,
    0x0004: ec.SECP384R1,
    0x0005: ec.SECP521R1,
}


def digest(algorithm: int, data: bytes) -> bytes:
    """The hash of the data, by one of the known algorithms."""
    state = hashes.Hash(HASHES[algorithm]())
    state.update(data)
    return state.finalize()


@dataclass(frozen=True, slots=True)
class RsaKey:
    """An RSA key that verifies."""

    key: rsa.RSAPublicKey

    def verify(self, scheme: Scheme, signature: Signature, data: bytes) -> bool:
        """Whether the key signed the data; the schemes are those of the key."""
        hashed = HASHES[scheme.hash]()
        pad: padding.AsymmetricPadding
        if scheme.algorithm == Alg.RSAPSS:
            # TPMs differ in the length of the salt.
            pad = padding.PSS(padding.MGF1(hashed), padding.PSS.AUTO)
        else:
            pad = padding.PKCS1v15()
        try:
            self.key.verify(signature.numbers[0], data, pad, hashed)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class EccKey:
    """A key of an elliptic curve that verifies."""

    key: ec.EllipticCurvePublicKey

    def verify(self, scheme: Scheme, signature: Signature, data: bytes) -> bool:
        """Whether the key signed the data; the schemes are those of the key."""
        size = _coordinate_bytes(self.key.curve)
        if any(not 0 < len(number) <= size for number in signature.numbers):
            return False
        r, s = (int.from_bytes(number, "big") for number in signature.numbers)
        try:
            self.key.verify(encode_dss_signature(r, s), data, ec.ECDSA(HASHES[scheme.hash]()))
        except InvalidSignature:
            return False
        return True


Key = RsaKey | EccKey


def has_good_size(key: RsaUnique | EccUnique) -> bool:
    """Whether a key is of a size and a kind that is taken."""
    if isinstance(key, EccUnique):
        return key.curve in CURVES
    # As the key is, not as it says.
    bits = int.from_bytes(key.modulus, "big").bit_length()
    return key.bits in _RSA_BITS and bits == key.bits and key.exponent in {0, _EXPONENT}


def can_sign(key: RsaUnique | EccUnique, scheme: Scheme) -> bool:
    """Whether a scheme is a strong one, and of this kind of key."""
    mine = {Alg.ECDSA} if isinstance(key, EccUnique) else {Alg.RSASSA, Alg.RSAPSS}
    return scheme.algorithm in mine and scheme.hash in STRONG


def check_shape(key: RsaUnique | EccUnique) -> None:
    """Checks that a key is one, whatever its size.

    Raises:
        MalformedError: the point is not on its curve, or a number is longer than it may be.
    """
    if isinstance(key, RsaUnique):
        if key.modulus[:1] in {b"", b"\0"} or key.modulus[-1] % 2 == 0:
            raise MalformedError("no modulus")
    elif key.curve in CURVES:
        _point(key)


def load(key: RsaUnique | EccUnique) -> Key:
    """The key that verifies, of one whose shape and size were checked."""
    if isinstance(key, EccUnique):
        return EccKey(_point(key))
    return RsaKey(rsa.RSAPublicNumbers(_EXPONENT, int.from_bytes(key.modulus, "big")).public_key())


def _point(key: EccUnique) -> ec.EllipticCurvePublicKey:
    curve = CURVES[key.curve]()
    size = _coordinate_bytes(curve)
    if any(not 0 < len(part) <= size for part in (key.x, key.y)):
        raise MalformedError("a coordinate of another size")
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(key.x, "big"), int.from_bytes(key.y, "big"), curve
    )
    try:
        return numbers.public_key()
    except ValueError as broken:
        raise MalformedError("the point is not on its curve") from broken


def _coordinate_bytes(curve: ec.EllipticCurve) -> int:
    return (curve.key_size + 7) // 8
