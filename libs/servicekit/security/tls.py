"""Mutual TLS inside the walls: who is at the other end stands in its certificate.

One CA of the installation's own signs a certificate for the gateway and for each service; the
name in it (a DNS name, as `gateway` or `policy`) is what counts, not the address it comes from.
A certificate that was replaced on the disk is used from the next handshake of a listener on;
a service's own channels to others (`servicekit.rpc.channels`) take it over with a later call.
"""

from __future__ import annotations

import asyncio
import importlib
import ssl
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from servicekit.security import fips

if TYPE_CHECKING:
    import grpc

GATEWAY: Final = "gateway"
"""The name in the gateway's certificate."""
_SAN: Final = "x509_subject_alternative_name"


@dataclass(frozen=True, slots=True)
class Tls:
    """The files of one party."""

    ca_file: Path
    certificate_file: Path
    key_file: Path

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a gRPC listener; who has no certificate of the CA gets no connection."""
        import grpc  # noqa: PLC0415 - the launcher has files of certificates, and no gRPC

        require_grpc_tls()
        known = self.stamp()

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal known
            try:
                found = self.stamp()
                if found == known:
                    return None
                configuration = self._configuration()
            except OSError:
                return None  # in the middle of being replaced: the next handshake looks again
            known = found
            return configuration

        return grpc.dynamic_ssl_server_credentials(
            self._configuration(),
            changed,  # type: ignore[arg-type]  # the stubs forget that it may answer None
            require_client_authentication=True,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a channel to another service."""
        import grpc  # noqa: PLC0415 - as above

        require_grpc_tls()
        return grpc.ssl_channel_credentials(
            self.ca_file.read_bytes(),
            self.key_file.read_bytes(),
            self.certificate_file.read_bytes(),
        )

    def server_context(self) -> ssl.SSLContext:
        """As `server_credentials`, for a listener of asyncio."""
        known = self.stamp()
        current = self._context()

        def renew(connection: ssl.SSLObject | ssl.SSLSocket, _name: Any, _context: Any) -> None:
            nonlocal known, current
            try:
                found = self.stamp()
                if found != known:
                    current, known = self._context(), found
            except (OSError, ssl.SSLError):
                pass  # as above
            connection.context = current

        listening = self._context()
        listening.sni_callback = renew
        return listening

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.ca_file)
        context.load_cert_chain(self.certificate_file, self.key_file)
        return context

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        import grpc  # noqa: PLC0415 - as above

        pair = self.key_file.read_bytes(), self.certificate_file.read_bytes()
        return grpc.ssl_server_certificate_configuration([pair], self.ca_file.read_bytes())

    def stamp(self) -> tuple[int, ...]:
        """Another one when any of the files was replaced.

        Raises:
            OSError: one is missing, maybe because it is just being replaced.
        """
        files = (self.ca_file, self.certificate_file, self.key_file)
        return tuple(file.stat().st_mtime_ns for file in files)


def require_grpc_tls() -> None:
    """Checks that gRPC may be used for TLS.

    Raises:
        FipsError: in FIPS mode, where its TLS is not the system's OpenSSL's.
    """
    extension = importlib.import_module("grpc._cython.cygrpc")
    fips.require_tls_of(extension, "grpcio")


def grpc_peer(auth_context: Mapping[str, Iterable[bytes]], accepted: Collection[str]) -> str | None:
    """Which of the accepted names the certificate of a gRPC peer has, if any."""
    return _first(
        (name.decode("ascii", "replace") for name in auth_context.get(_SAN, ())), accepted
    )


def transport_peer(transport: asyncio.BaseTransport, accepted: Collection[str]) -> str | None:
    """Which of the accepted names the certificate of a TLS connection's peer has, if any."""
    certificate = transport.get_extra_info("peercert") or {}
    names = certificate.get("subjectAltName", ())
    return _first((value for kind, value in names if kind == "DNS"), accepted)


def _first(names: Iterable[str], accepted: Collection[str]) -> str | None:
    return next((name for name in names if name in accepted), None)
