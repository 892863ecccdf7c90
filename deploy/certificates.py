"""An installation's own certificate authority, and the certificates that it signs."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.private_files import write_private
from servicekit.security.certificates import first_end
from servicekit.security.tls import Tls

_CA_LIFE: Final = datetime.timedelta(days=3650)
# A device whose clock is a little behind must accept a certificate made just now.
_BACKDATE: Final = datetime.timedelta(hours=1)
_LAST: Final = datetime.timedelta(days=7)
"""A certificate whose CA's key is lost stays until so much of its life is left."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a certificate is for."""

    subject: str
    life: datetime.timedelta
    """It is made anew when two thirds of it are over."""
    is_client: bool = False
    """Whether it also says who connects."""


# Browsers refuse server certificates that live longer than 398 days.
SERVER: Final = Kind("Evergreen gateway", datetime.timedelta(days=397))
INSIDE: Final = Kind("Evergreen, inside", datetime.timedelta(days=1826), is_client=True)


def now() -> datetime.datetime:
    """The time, in UTC."""
    return datetime.datetime.now(datetime.UTC)


class AuthorityError(Exception):
    """A CA cannot sign, and a new one would be trusted by nobody; the message says what to do."""


def is_for(certificate: bytes, key: bytes, url: str) -> bool:
    """Whether a certificate and its private key, both in PEM, serve the host of a URL."""
    host = urlsplit(url).hostname or ""
    try:
        found = x509.load_pem_x509_certificate(certificate)
        private = serialization.load_pem_private_key(key, None)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        wanted = set(_alternative_names([host]))
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return False
    above = x509.DNSName(f"*.{host.partition('.')[2]}")
    return (
        now() < found.not_valid_after_utc
        and private.public_key() == found.public_key()
        and (wanted <= set(names) or above in names)
    )


def check_pair(chain: bytes, key: bytes, at: datetime.datetime) -> datetime.datetime:
    """Until when a chain with its key, both PEM, can be served.

    Raises:
        ValueError: it cannot; the message says why.
    """
    try:
        certificate = x509.load_pem_x509_certificates(chain)[0]
    except ValueError as error:
        raise ValueError("the chain is no certificate in PEM") from error
    try:
        public = serialization.load_pem_private_key(key, None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError("the key is no private key in PEM without a password") from error
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    der = serialization.Encoding.DER
    if certificate.public_key().public_bytes(der, spki) != public.public_bytes(der, spki):
        raise ValueError("the key is not the certificate's")
    if certificate.not_valid_after_utc <= at:
        raise ValueError(f"the certificate ended on {certificate.not_valid_after_utc:%Y-%m-%d}")
    return certificate.not_valid_after_utc


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA: the file with the certificates that devices and services trust, and its key.

    The file holds one certificate, the key's own. While the CA is being replaced it holds two:
    `begin` adds that of the next key, so that everyone learns it; `switch` lets the next key sign;
    `end` removes the old one. Each step can be repeated, and is one rename at its end, so that one
    that was killed leaves the step before or the step after.
    """

    certificate_file: Path
    key_file: Path

    @property
    def next_key_file(self) -> Path:
        """The key that is to sign after the next `switch`, if there is one."""
        return self.key_file.with_name("next.key")

    @classmethod
    def ensure_in(
        cls,
        directory: Path,
        name: str = "Evergreen inside CA",
        at: datetime.datetime | None = None,
    ) -> Authority:
        """The CA in a directory, `ca.crt` and `ca.key`; made once only, for others trust it.

        Its key may be gone, as long as nothing has to be signed.
        """
        found = cls(directory / "ca.crt", directory / "ca.key")
        if not found.certificate_file.exists():
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            key = _kept_or_new_key(found.key_file)
            write_private(found.certificate_file, _pem(_ca_certificate(key, name, at or now())))
        return found

    def signs_until(self) -> datetime.datetime | None:
        """When the CA that signs ends, in UTC; `None` where the key is not that of one of them.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file is not what it should be.
            TypeError: the key is of another kind.
        """
        signer = _of_key(self._trusted(), _load_key(self.key_file))
        return signer.not_valid_after_utc if signer else None

    def begin(self, name: str, at: datetime.datetime | None = None) -> bool:
        """Makes the next CA and adds it to those that are trusted; answers whether it was new."""
        at = at or now()
        key = _kept_or_new_key(self.next_key_file)
        trusted = self._trusted()
        if _of_key(trusted, key) is not None:
            return False
        made = _ca_certificate(key, f"{name[:50]} of {at:%Y-%m-%d}", at)
        self._trust([*trusted, made])
        return True

    def switch(self) -> bool:
        """Lets the next CA sign from now on; both are trusted. Answers whether there was one."""
        if not self.next_key_file.exists():
            return False
        if _of_key(self._trusted(), _load_key(self.next_key_file)) is None:
            return False  # `begin` was killed: nobody knows it yet
        self.next_key_file.replace(self.key_file)
        return True

    def end(self) -> bool:
        """Trusts nothing any more but the CA that signs; answers whether that is a change."""
        trusted = self._trusted()
        if self.next_key_file.exists() or not self.key_file.exists() or len(trusted) == 1:
            return False
        own = _of_key(trusted, _load_key(self.key_file))
        if own is None:
            return False
        self._trust([own])
        return True

    def ensure(self, directory: Path, *names: str, kind: Kind = INSIDE) -> Tls:
        """The certificate of a party inside the walls, with the CA beside it."""
        files = Tls(directory / "ca.crt", directory / "tls.crt", directory / "tls.key")
        ca = self.certificate_file.read_text(encoding="ascii")
        if not files.ca_file.exists() or files.ca_file.read_text(encoding="ascii") != ca:
            write_private(files.ca_file, ca)
        self.ensure_files(files.certificate_file, files.key_file, names, kind, now())
        return files

    def ensure_files(
        self,
        certificate_file: Path,
        key_file: Path,
        names: Sequence[str],
        kind: Kind,
        at: datetime.datetime,
    ) -> bool:
        """Makes a certificate, or makes it anew when it is due or is for other names.

        Where the CA's key is lost and the next CA is begun, it stays as it is to its last week:
        devices know the CA that signed it, and the next one only when somebody told them.

        Returns:
            Whether it was made.

        Raises:
            AuthorityError: it is due, and the CA's key is gone or another one's.
        """
        if self.next_key_file.exists() and not self.key_file.exists():
            with contextlib.suppress(OSError, ValueError):
                if at + _LAST < first_end(certificate_file):
                    return False
            self.switch()
        trusted = self._trusted()
        signer = self._signer(trusted)
        if _is_good(certificate_file, key_file, signer or trusted[0], names, kind, at):
            return False
        ca_key = self._key()
        if signer is None:
            raise AuthorityError(
                f"{self.key_file} is not the key of the CA {self.certificate_file}: put its own"
                " key there, from a backup or a copy"
            )
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(key, signer, ca_key, names, kind, at)
        write_private(key_file, _private_pem(key))
        write_private(certificate_file, _pem(certificate))
        return True

    def _signer(self, trusted: Sequence[x509.Certificate]) -> x509.Certificate | None:
        """The certificate of the key, if there is one."""
        try:
            return _of_key(trusted, self._key())
        except AuthorityError:
            return None

    def _key(self) -> ec.EllipticCurvePrivateKey:
        try:
            return _load_key(self.key_file)
        except (OSError, ValueError, TypeError) as error:
            raise AuthorityError(
                f"the key of the CA {self.certificate_file} cannot be read from {self.key_file},"
                " and what trusts that CA would not trust a new one: put the key back, from a"
                " backup or a copy; or tell everyone another CA first (evergreen certificates"
                " rollover)"
            ) from error

    def _trusted(self) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates(self.certificate_file.read_bytes())

    def _trust(self, certificates: Sequence[x509.Certificate]) -> None:
        mode = self.certificate_file.stat().st_mode & 0o777
        write_private(self.certificate_file, "".join(map(_pem, certificates)))
        self.certificate_file.chmod(mode)


def first_end_of(certificate: str) -> str:
    """When the first certificate of a PEM text ends, for a person."""
    try:
        found = x509.load_pem_x509_certificates(certificate.encode())
    except ValueError:
        return "now"
    return f"{min(one.not_valid_after_utc for one in found):%Y-%m-%d}"


def issued_by(certificate: str, trusted: str) -> bool:
    """Whether one of the CAs in a PEM text has signed a certificate."""
    try:
        found = x509.load_pem_x509_certificate(certificate.encode())
        authorities = x509.load_pem_x509_certificates(trusted.encode())
    except ValueError:
        return False
    for authority in authorities:
        with contextlib.suppress(ValueError, TypeError, InvalidSignature):
            found.verify_directly_issued_by(authority)
            return True
    return False


def _of_key(
    certificates: Sequence[x509.Certificate], key: ec.EllipticCurvePrivateKey
) -> x509.Certificate | None:
    return next((one for one in certificates if one.public_key() == key.public_key()), None)


def _kept_or_new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if path.exists():
        return _load_key(path)
    key = ec.generate_private_key(ec.SECP256R1())
    write_private(path, _private_pem(key))
    return key


def _is_good(
    certificate_file: Path,
    key_file: Path,
    ca: x509.Certificate,
    names: Sequence[str],
    kind: Kind,
    at: datetime.datetime,
) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        key = _load_key(key_file)
        certificate.verify_directly_issued_by(ca)
        covered = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        # Whatever is missing or broken here is repaired by a new certificate.
        return False
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    # Those of a CA that ends are as short as its rest; new ones would be no longer.
    is_as_long_as_its_ca = ends >= ca.not_valid_after_utc > at
    return (
        (at < ends - (ends - begins) / 3 or is_as_long_as_its_ca)
        and ends <= at + kind.life + _BACKDATE
        and certificate.public_key() == key.public_key()
        and set(_alternative_names(names)) == set(covered)
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
        .not_valid_before(at - min(_BACKDATE, kind.life / 24))
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
