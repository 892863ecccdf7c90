"""An installation's own certificate authority, and the certificates that it signs."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.launcher.home import write_private
from servicekit.tls import Tls

_CA_LIFE: Final = datetime.timedelta(days=3650)
# A device whose clock is a little behind must accept a certificate made just now.
_BACKDATE: Final = datetime.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a certificate is for."""

    subject: str
    life: datetime.timedelta
    renew_before: datetime.timedelta
    """It is made anew when this much of its life is left."""
    is_client: bool = False
    """Whether it also says who connects."""


# Browsers refuse server certificates that live longer than 398 days.
SERVER: Final = Kind("Evergreen gateway", datetime.timedelta(days=397), datetime.timedelta(days=30))
INSIDE: Final = Kind(
    "Evergreen, inside", datetime.timedelta(days=1826), datetime.timedelta(days=730), is_client=True
)


def now() -> datetime.datetime:
    """The time, in UTC."""
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA: its certificate, which devices and services trust, and its key."""

    certificate_file: Path
    key_file: Path

    @classmethod
    def ensure_in(
        cls,
        directory: Path,
        name: str = "Evergreen inside CA",
        at: datetime.datetime | None = None,
    ) -> Authority:
        """The CA in a directory, `ca.crt` and `ca.key`; made once only, for others trust it."""
        found = cls(directory / "ca.crt", directory / "ca.key")
        if not (found.certificate_file.exists() and found.key_file.exists()):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            key = ec.generate_private_key(ec.SECP256R1())
            write_private(found.key_file, _private_pem(key))
            write_private(found.certificate_file, _pem(_ca_certificate(key, name, at or now())))
        return found

    def ensure(self, directory: Path, *names: str) -> Tls:
        """The certificate of a party inside the walls, with the CA beside it."""
        files = Tls(directory / "ca.crt", directory / "tls.crt", directory / "tls.key")
        ca = self.certificate_file.read_text(encoding="ascii")
        if not files.ca_file.exists() or files.ca_file.read_text(encoding="ascii") != ca:
            write_private(files.ca_file, ca)
        self.ensure_files(files.certificate_file, files.key_file, names, INSIDE, now())
        return files

    def ensure_files(
        self,
        certificate_file: Path,
        key_file: Path,
        names: Sequence[str],
        kind: Kind,
        at: datetime.datetime,
    ) -> None:
        """Makes a certificate, or makes it anew when it is due or does not cover `names`."""
        ca = x509.load_pem_x509_certificate(self.certificate_file.read_bytes())
        if _is_good(certificate_file, key_file, ca, names, at + kind.renew_before):
            return
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(key, ca, _load_key(self.key_file), names, kind, at)
        write_private(key_file, _private_pem(key))
        write_private(certificate_file, _pem(certificate))


def _is_good(
    certificate_file: Path,
    key_file: Path,
    ca: x509.Certificate,
    names: Sequence[str],
    until: datetime.datetime,
) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        key = _load_key(key_file)
        certificate.verify_directly_issued_by(ca)
        covered = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        # Whatever is missing or broken here is repaired by a new certificate.
        return False
    return (
        until < certificate.not_valid_after_utc
        and certificate.public_key() == key.public_key()
        and set(_alternative_names(names)) <= set(covered)
    )


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{path} holds no EC key")
    return key


def _ca_certificate(
    key: ec.EllipticCurvePrivateKey, common_name: str, at: datetime.datetime
) -> x509.Certificate:
    name = _name(common_name[:64])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - _BACKDATE)
        .not_valid_after(at + _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _certificate(
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    names: Sequence[str],
    kind: Kind,
    at: datetime.datetime,
) -> x509.Certificate:
    uses = [ExtendedKeyUsageOID.SERVER_AUTH]
    if kind.is_client:
        uses.append(ExtendedKeyUsageOID.CLIENT_AUTH)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(kind.subject))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - _BACKDATE)
        .not_valid_after(min(at + kind.life, ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
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


def _alternative_names(names: Sequence[str]) -> list[x509.GeneralName]:
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
