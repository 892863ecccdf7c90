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
        ValueError: there is none.
    """
    found = x509.load_pem_x509_certificates(pem)
    return min(certificate.not_valid_after_utc for certificate in found)
