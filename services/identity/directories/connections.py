"""Encrypted connections to a directory's servers."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import ldap3

from servicekit.outgoing.addresses import FORBIDDEN, NotConnectedError
from services.identity.directories.asking import (
    AwayError,
    Bounded,
    Frames,
    Job,
    Settings,
    context_for,
)
from services.identity.directories.domain import Server, server_of

_CONNECT_SECONDS: Final = 3
_ANSWER_SECONDS: Final = 5
_ADDRESSES: Final = 4


class _Tls(ldap3.Tls):  # type: ignore[misc]  # ldap3 has no types
    """TLS by Python's own rules: OpenSSL checks the CA and the name, also of an IP address."""

    def __init__(self, context: ssl.SSLContext, name: str, job: Job) -> None:
        super().__init__(validate=ssl.CERT_REQUIRED)
        self._job = job
        self._context = context
        self._name = name
        self.fault: Exception | None = None

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:
        """Encrypts a connection's socket."""
        try:
            connection.socket = self._context.wrap_socket(
                connection.socket, server_hostname=self._name, do_handshake_on_connect=False
            )
            connection.socket.do_handshake()
            connection.socket.frames = Frames(self._job)
        except Exception as error:
            self.fault = error
            raise OSError(str(error)) from error


@contextmanager
def told(job: Job, step: str, where: str, tls: _Tls | None = None) -> Iterator[None]:
    """Turns what goes wrong in the library into a sentence."""
    try:
        yield
    except AwayError:
        raise
    except Exception as error:
        if job.expired or job.left <= 0:
            raise AwayError(step, f"{where} took too long to answer") from None
        fault = tls.fault if tls is not None else None
        if isinstance(fault, ssl.SSLCertVerificationError):
            raise AwayError("tls", f"{where} is not trusted: {fault.verify_message}") from None
        if fault is not None:
            raise AwayError("tls", f"{where}: TLS failed: {_brief(fault)}") from None
        raise AwayError(step, f"{where}: {_brief(error)}") from None


class Connector:
    """Connects to a directory's servers, in their order."""

    def __init__(self, settings: Settings, job: Job, tell: Callable[[str, str], None]) -> None:
        self._settings = settings
        self._job = job
        self._tell = tell
        self._context = context_for(settings.ca_pem)

    def open(self, dn: str, password: str) -> Any:
        """An encrypted connection to the first server that answers, not bound yet."""
        fault: AwayError | None = None
        for url in self._settings.urls:
            try:
                return self._reach(server_of(url), dn, password)
            except AwayError as error:
                fault = error
                self._job.check()
        raise fault or AwayError("resolve", "the directory has no servers")

    def _reach(self, server: Server, dn: str, password: str) -> Any:
        addresses = self._addresses(server)
        self._tell("resolve", f"{server.host} is {', '.join(addresses)}")
        fault: AwayError | None = None
        for address in addresses:
            self._job.check()
            try:
                return self._connect(server, address, dn, password)
            except AwayError as error:
                fault = error
        raise fault or AwayError("resolve", f"{server.host} has no address")

    def _addresses(self, server: Server) -> list[str]:
        guard, host, port = self._settings.guard, server.host, server.port
        try:
            found = self._job.wait_for(guard.addresses(host, port, root=self._settings.root))
        except TimeoutError:
            raise AwayError("resolve", f"{host}: the name servers took too long") from None
        except NotConnectedError as error:
            if error.reason != FORBIDDEN:
                raise AwayError("resolve", f"{host} has no address") from None
            why = self._job.wait_for(guard.refusal(host, port, root=self._settings.root))
            raise AwayError("resolve", f"{host} must not be connected to: {why}") from None
        return [str(address) for address in found[:_ADDRESSES]]

    def _connect(self, server: Server, address: str, dn: str, password: str) -> Any:
        tls = _Tls(self._context, server.host, self._job)
        left = max(1, int(self._job.left))
        connection = ldap3.Connection(
            ldap3.Server(
                address,
                port=server.port,
                use_ssl=not self._settings.starttls,
                tls=tls,
                get_info=ldap3.NONE,
                connect_timeout=min(_CONNECT_SECONDS, left),
            ),
            user=dn,
            # As bytes: the library refuses some texts, and changes others.
            password=password.encode(),
            client_strategy=ldap3.SYNC,
            authentication=ldap3.SIMPLE,
            receive_timeout=min(_ANSWER_SECONDS, left),
            auto_referrals=False,
            auto_range=False,
            check_names=False,
            raise_exceptions=False,
        )
        self._job.connection = connection
        try:
            self._encrypt(connection, server, tls)
        except BaseException:
            connection.strategy.close()
            raise
        return connection

    def _encrypt(self, connection: Any, server: Server, tls: _Tls) -> None:
        where = f"{server.host}:{server.port}"
        with told(self._job, "connect", where, tls):
            connection.open(read_server_info=False)
        self._tell("connect", f"{where} answers")
        if self._settings.starttls:
            plain = connection.socket
            timeout = plain.gettimeout()
            connection.socket = Bounded(fileno=plain.detach())
            connection.socket.frames = Frames(self._job)
            connection.socket.settimeout(timeout)
            with told(self._job, "tls", where, tls):
                connection.start_tls(read_server_info=False)
        if not isinstance(connection.socket, ssl.SSLSocket):
            # Whatever the library thinks: nothing is sent in the clear.
            raise AwayError("tls", f"{where} does not encrypt")
        self._tell("tls", _certificate(connection.socket))


def _certificate(found: ssl.SSLSocket) -> str:
    """What a server's certificate says."""
    known: Mapping[str, Any] = found.getpeercert() or {}
    names = ", ".join(str(name) for _, name in known.get("subjectAltName", ()))
    return f"{found.version()}, for {names or 'no name'}, until {known.get('notAfter', '?')}"


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"
