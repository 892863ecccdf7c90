"""The local certificate authority and the gateway's certificate, made once and kept."""

from __future__ import annotations

import datetime
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.launcher.home import write_private

_CA_LIFE = datetime.timedelta(days=3650)
# Browsers refuse server certificates that live longer than 398 days.
_SERVER_LIFE = datetime.timedelta(days=397)
_RENEW_BEFORE = datetime.timedelta(days=30)
# A device whose clock is a little behind must accept a certificate made just now.
_BACKDATE = datetime.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Tls:
    """The files of the gateway's TLS."""

    ca_certificate: Path
    server_certificate: Path
    server_key: Path


def host_names() -> list[str]:
    """The names and addresses that the gateway's certificate is good for."""
    names = ["localhost", "127.0.0.1", "::1"]
    # Not getfqdn(): without a name server it waits for many seconds.
    own = socket.gethostname()
    if own and own.isascii() and own not in names:
        names.append(own)
    return names


def ensure(directory: Path, names: list[str], now: datetime.datetime) -> Tls:
    """Makes the CA and the server certificate, or renews the latter when it is due.

    The server certificate is made anew, by the same CA, within 30 days of its end, or when it
    does not cover `names`; the CA is made once only, for devices and browsers trust it.
    """
    files = Tls(directory / "ca.crt", directory / "server.crt", directory / "server.key")
    ca_key_file = directory / "ca.key"
    if not (files.ca_certificate.exists() and ca_key_file.exists()):
        ca_key = ec.generate_private_key(ec.SECP256R1())
        write_private(ca_key_file, _private_pem(ca_key))
        write_private(files.ca_certificate, _pem(_ca_certificate(ca_key, now)))
        files.server_certificate.unlink(missing_ok=True)
    if not _is_good(files, names, now):
        ca_key = _load_key(ca_key_file)
        ca = x509.load_pem_x509_certificate(files.ca_certificate.read_bytes())
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _server_certificate(key, ca, ca_key, names, now)
        write_private(files.server_key, _private_pem(key))
        write_private(files.server_certificate, _pem(certificate))
    # The certificates are public, and a person's browser has to be able to import the CA.
    files.ca_certificate.chmod(0o644)
    files.server_certificate.chmod(0o644)
    return files


def renew_at(files: Tls) -> datetime.datetime:
    """When the server certificate is due for renewal."""
    certificate = x509.load_pem_x509_certificate(files.server_certificate.read_bytes())
    return certificate.not_valid_after_utc - _RENEW_BEFORE


def _is_good(files: Tls, names: list[str], now: datetime.datetime) -> bool:
    try:
        ca = x509.load_pem_x509_certificate(files.ca_certificate.read_bytes())
        certificate = x509.load_pem_x509_certificate(files.server_certificate.read_bytes())
        key = _load_key(files.server_key)
        certificate.verify_directly_issued_by(ca)
        covered = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        # Whatever is missing or broken here is repaired by a new certificate.
        return False
    return (
        now < renew_at(files)
        and certificate.public_key() == key.public_key()
        and set(_alternative_names(names)) <= set(covered)
    )


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{path} holds no EC key")
    return key


def _ca_certificate(key: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> x509.Certificate:
    name = _name(f"Evergreen local CA on {socket.gethostname()}"[:64])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _server_certificate(
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    names: list[str],
    now: datetime.datetime,
) -> x509.Certificate:
    end = min(now + _SERVER_LIFE, ca.not_valid_after_utc)
    return (
        x509.CertificateBuilder()
        .subject_name(_name("Evergreen gateway"))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternative_names(names)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
        .sign(ca_key, hashes.SHA256())
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative_names(names: list[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
