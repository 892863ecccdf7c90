"""When certificates end."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from cryptography import x509


def valid_until(certificate: bytes) -> datetime:
    """When a certificate ends, in UTC; the certificate is in DER.

    Raises:
        ValueError: it is none.
    """
    return x509.load_der_x509_certificate(certificate).not_valid_after_utc


def first_end(file: Path) -> datetime:
    """When the first of the certificates in a PEM file ends, in UTC.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds none.
    """
    return first_end_of(file.read_bytes())


def first_end_of(pem: bytes) -> datetime:
    """When the first of the certificates in PEM ends, in UTC.

    Raises:
        ValueError: there is none, or one cannot be read.
    """
    return min(_ends(pem))


def last_end_of(pem: bytes) -> datetime:
    """When the last of the certificates in PEM ends, in UTC.

    Raises:
        ValueError: there is none, or one cannot be read.
    """
    return max(_ends(pem))


def _ends(pem: bytes) -> list[datetime]:
    try:
        return [found.not_valid_after_utc for found in x509.load_pem_x509_certificates(pem)]
    except Exception as error:
        # `InvalidVersion` and others of the library's own are no `ValueError`.
        raise ValueError("no certificate, or one that cannot be read") from error
