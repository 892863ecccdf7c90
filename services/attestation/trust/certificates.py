"""Certificates of endorsement keys, and the roots that they lead to.

`cryptography`'s verifier is for servers and clients: it refuses certificates of TPMs for their
extended key usage. So the steps are taken one by one, up to a certificate that is pinned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

MOST_BYTES: Final = 8192
"""Of a certificate; those of TPMs have one to two thousand."""
_MOST_BETWEEN: Final = 8
_MOST_STEPS: Final = 4
_OF_ENDORSEMENT_KEYS: Final = x509.ObjectIdentifier("2.23.133.8.1")
"""tcg-kp-EKCertificate, the usage of a certificate of an endorsement key."""
_MAKER_OF_TPM: Final = x509.ObjectIdentifier("2.23.133.2.1")
"""tcg-at-tpmManufacturer, by which it names the maker."""
_WEAK_HASHES: Final = (hashes.MD5, hashes.SHA1)
_LEAST_RSA_BITS: Final = 2048
_LEAST_EC_BITS: Final = 256
MOST_PARSED: Final = 1_000
"""Roots that are kept parsed: more than there can be."""
_PADDING: Final = frozenset({b"", b"\0", b"\xff"})
"""What fills a TPM's memory behind a certificate, as a set of its bytes."""
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for a certificate, some of it only when a part of it is read."""


class CertificateError(ValueError):
    """What is no certificate, or none that can be used here."""


@dataclass(frozen=True, slots=True)
class Root:
    """A certificate that is trusted as it is."""

    sha256: bytes
    certificate: bytes
    """In DER."""


@dataclass(frozen=True, slots=True)
class NewRoot:
    """What is shown of a certificate that is to be trusted."""

    sha256: bytes
    certificate: bytes
    subject: str
    not_before: datetime
    not_after: datetime


def read_root(pem: str) -> NewRoot:
    """Reads one certificate of a CA.

    Raises:
        CertificateError: it is none.
    """
    try:
        (certificate,) = x509.load_pem_x509_certificates(pem.encode())
        if not _is_ca(certificate):
            raise CertificateError("must be the certificate of a CA")
        if not _has_strong_key(certificate):
            raise CertificateError(
                f"must have an RSA key of {_LEAST_RSA_BITS} bits or more, or an elliptic one of"
                f" {_LEAST_EC_BITS}"
            )
        der = certificate.public_bytes(serialization.Encoding.DER)
        return NewRoot(
            sha256=certificate.fingerprint(hashes.SHA256()),
            certificate=der,
            subject=certificate.subject.rfc4514_string()[:500],
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )
    except CertificateError:
        raise
    except _UNREADABLE as broken:
        raise CertificateError("must be one certificate in PEM") from broken


@dataclass(frozen=True, slots=True)
class Certified:
    """What a certificate says: the key (SubjectPublicKeyInfo), and the root that it leads to."""

    spki: bytes
    root: bytes | None
    """The root's SHA-256; `None` when the certificate leads to none of them."""
    expired: bool


def follow(
    der: bytes, chain: Sequence[bytes], roots: Mapping[bytes, Root], now: datetime
) -> Certified:
    """Follows a certificate to one of the roots, if it is one of an endorsement key.

    A maker's CA may certify other keys, too, and who holds one of these can take a secret out of
    its credential without a TPM. That a certificate has expired does not make its key another one:
    it is told, not refused.

    Args:
        der: the certificate of an endorsement key.
        chain: what may stand between it and a root.
        roots: by SHA-256.

    Raises:
        CertificateError: the certificate, or one of the chain, cannot be read.
    """
    if len(chain) > _MOST_BETWEEN:
        raise CertificateError("too many certificates")
    try:
        certificate = _load(der)
        between = [_load(part) for part in chain]
        trusted = {key: _load_root(root.certificate) for key, root in roots.items()}
        spki = certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        root: bytes | None = None
        steps: list[x509.Certificate] = []
        if _is_of_endorsement_key(certificate):
            root, steps = _root_of(certificate, between, trusted)
    except _UNREADABLE as broken:
        raise CertificateError(str(broken)) from broken
    expired = any(
        not step.not_valid_before_utc <= now <= step.not_valid_after_utc
        for step in (certificate, *steps)
    )
    return Certified(spki, root, expired)


def _is_of_endorsement_key(certificate: x509.Certificate) -> bool:
    """Whether a certificate says so; one without any extended usage, by the TPM that it names."""
    if _is_ca(certificate):
        return False
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return _names_tpm(certificate)
    return _OF_ENDORSEMENT_KEYS in usages


def _names_tpm(certificate: x509.Certificate) -> bool:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return any(
        name.get_attributes_for_oid(_MAKER_OF_TPM)
        for name in names.get_values_for_type(x509.DirectoryName)
    )


def _root_of(
    certificate: x509.Certificate,
    between: Sequence[x509.Certificate],
    roots: Mapping[bytes, _Pinned],
) -> tuple[bytes | None, list[x509.Certificate]]:
    steps: list[x509.Certificate] = []
    current = certificate
    for _ in range(_MOST_STEPS):
        issued_by = current.issuer
        for key, root in roots.items():
            if issued_by == root.subject and _issued(current, root.certificate):
                return key, [*steps, root.certificate]
        issuer = next((found for found in between if _issued(current, found)), None)
        if issuer is None:
            break
        steps.append(issuer)
        current = issuer
    return None, steps


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if certificate.issuer != issuer.subject or not _is_ca(issuer):
        return False
    try:
        # An attacker who finds a collision, or the key's factors, makes certificates of its own.
        if isinstance(certificate.signature_hash_algorithm, _WEAK_HASHES):
            return False
        if not _has_strong_key(issuer):
            return False
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        found = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except (x509.ExtensionNotFound, ValueError):
        return False
    return found.value.ca


def _has_strong_key(certificate: x509.Certificate) -> bool:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size >= _LEAST_RSA_BITS
    return not isinstance(key, ec.EllipticCurvePublicKey) or key.key_size >= _LEAST_EC_BITS


@dataclass(frozen=True, slots=True)
class _Pinned:
    """A root as it was read."""

    certificate: x509.Certificate
    subject: x509.Name


@lru_cache(maxsize=MOST_PARSED)
def _load_root(der: bytes) -> _Pinned:
    """Reads a root, once: all of them are compared with each certificate."""
    certificate = _load(der)
    return _Pinned(certificate, certificate.subject)


def _load(der: bytes) -> x509.Certificate:
    if len(der) > MOST_BYTES:
        raise ValueError("a certificate that is too long")
    return x509.load_der_x509_certificate(_without_padding(der))


def _without_padding(der: bytes) -> bytes:
    """A certificate as it was read from a TPM's memory, which may be larger than it.

    What is behind the outer SEQUENCE is left out if it is padding; all else is left to the parser,
    which takes DER alone.
    """
    if len(der) < 4 or der[:2] != b"\x30\x82":
        return der
    end = 4 + int.from_bytes(der[2:4], "big")
    rest = der[end:]
    return der[:end] if rest[:1] in _PADDING and rest == rest[:1] * len(rest) else der
