"""The public address, as a device sees it: name, certificate, clock, HTTP/2, proxies."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cli.doctor.finding import Check, Finding, Severity, completed, judged, skipped, warning
from cli.doctor.machine import is_loopback
from servicekit.call import H_HOPS
from servicekit.ids import now
from servicekit.security.certificates import valid_until
from servicekit.security.mode import FipsError
from servicekit.security.tls import require_grpc_tls

NAMES: Final = (
    "address", "name", "port", "certificate", "server", "ready", "clock", "proxies", "http2"
)  # fmt: skip
"""The checks of an address; before each stands which address it is."""

_TIMEOUT: Final = 10.0
_MAX_SKEW: Final = timedelta(seconds=30)
_SOON: Final = timedelta(days=14)
# X509_V_ERR_… of OpenSSL.
_NOT_YET: Final = 9
_EXPIRED: Final = 10
_WRONG_NAME: Final = frozenset({62, 63, 64})


@dataclass(frozen=True, slots=True)
class Public:
    """The public address, and what is known of it."""

    url: str
    ca_file: Path | None = None
    trusted_proxies: int = 0
    connect: str = ""
    """HOST:PORT of the gateway, where the public address leads nowhere from here."""
    what: str = "public"
    """What the names of the checks begin with."""

    @property
    def host(self) -> str:
        """The host's name."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port."""
        return urlsplit(self.url).port or 443

    @property
    def is_local(self) -> bool:
        """Whether the address is for this machine alone."""
        return bool(self.connect) or is_loopback(self.host)

    @property
    def there(self) -> tuple[str, int]:
        """Where to connect to."""
        host, _, port = self.connect.rpartition(":")
        return (host, int(port)) if host else (self.host, self.port)


def checks(public: Public, clock: Callable[[], datetime] = now) -> list[Check]:
    """All checks, each only when those before it make sense of it."""
    return completed([f"{public.what}.{name}" for name in NAMES], list(_checks(public, clock)))


def _checks(public: Public, clock: Callable[[], datetime]) -> Iterator[Check]:
    def check(name: str, found: Iterable[Finding], seen: str = "") -> Check:
        return judged(f"{public.what}.{name}", found, seen)

    yield (made := check("address", form(public), public.url))
    if made.findings:
        return
    addresses: list[str] = []
    unknown = list(known(public, addresses))
    yield (made := check("name", unknown, ", ".join(addresses)))
    if made.status == "error":
        return
    yield (made := check("port", reachable(public, addresses), str(public.there[1])))
    if made.findings:
        return
    ends: list[datetime] = []
    found = list(certificate(public, clock, ends))
    yield check("certificate", found, f"good until {ends[0]:%Y-%m-%d}" if ends else "")
    if any(finding.severity is Severity.ERROR for finding in found):
        return
    yield from answers(public, clock)


def form(public: Public) -> Iterator[Finding]:
    """Whether it can be an address at all."""
    fix = "Set PUBLIC_URL to the address that devices and browsers use: https://HOST[:PORT]"
    try:
        url = urlsplit(public.url)
        fits = url.scheme == "https" and url.hostname and url.path in {"", "/"} and not url.query
        _ = url.port
    except ValueError:
        fits = False
    if not fits:
        yield Finding("PUBLIC_URL_MALFORMED", f"the public address is {public.url!r}", fix)


def known(public: Public, addresses: list[str]) -> Iterator[Finding]:
    """Whether the name is known; notes its addresses."""
    try:
        found = socket.getaddrinfo(*public.there, type=socket.SOCK_STREAM)
    except OSError as error:
        yield Finding(
            "PUBLIC_URL_UNKNOWN_HOST",
            f"no name server knows {public.there[0]}: {error.strerror}",
            "Add the name to your DNS, or correct PUBLIC_URL.",
        )
        return
    addresses += dict.fromkeys(str(address[0]) for *_, address in found)
    if not public.is_local and all(is_loopback(address) for address in addresses):
        yield warning(
            "PUBLIC_URL_LOOPBACK",
            f"{public.host} is {' and '.join(addresses)} here, this machine itself: whether devices"
            " elsewhere find it cannot be told",
            "Ask from another machine: PUBLIC_URL=… evergreen doctor. If /etc/hosts says so, the"
            " name's server has to say the machine's own address.",
        )


def reachable(public: Public, addresses: Iterable[str]) -> Iterator[Finding]:
    """Whether something listens at the addresses."""
    errors = []
    port = public.there[1]
    for address in addresses:
        try:
            socket.create_connection((address, port), _TIMEOUT).close()
            return
        except OSError as error:
            errors.append(f"{address}: {error.strerror or error}")
    yield Finding(
        "PUBLIC_URL_UNREACHABLE",
        f"nothing listens at {public.url} ({'; '.join(errors)})",
        "Start Evergreen; if it runs, the port in PUBLIC_URL is wrong, the name leads to another"
        " machine, or a firewall or a router does not let calls in.",
    )


def certificate(
    public: Public, clock: Callable[[], datetime] = now, ends: list[datetime] | None = None
) -> Iterator[Finding]:
    """Whether devices accept the certificate, and for how long they will; notes its end."""
    try:
        context = _context(public)
    except (OSError, ssl.SSLError) as error:
        yield Finding(
            "CA_FILE_UNREADABLE",
            f"{public.ca_file} cannot be used: {error}",
            "Give the right file.",
        )
        return
    try:
        found = _handshake(public, context)
    except ssl.SSLCertVerificationError as error:
        yield _rejected(public, error)
        return
    except (OSError, ssl.SSLError) as error:
        yield Finding(
            "NOT_TLS",
            f"{public.url} does not speak TLS: {error}",
            "PUBLIC_URL must lead to the gateway, or to a proxy that terminates TLS for it.",
        )
        return
    if ends is not None:
        ends.append(found)
    left = found - clock()
    if left < _SOON:
        yield warning(
            "CERTIFICATE_EXPIRES_SOON",
            f"the certificate of {public.host} ends in {max(left.days, 0)} days",
            "Renew it. (A certificate of the own CA is renewed by itself while Evergreen runs.)",
        )


def _context(public: Public) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(public.ca_file) if public.ca_file else None)


def _handshake(public: Public, context: ssl.SSLContext) -> datetime:
    """Connects; answers until when the certificate is valid."""
    with (
        socket.create_connection(public.there, _TIMEOUT) as plain,
        context.wrap_socket(plain, server_hostname=public.host) as connection,
    ):
        return valid_until(connection.getpeercert(binary_form=True) or b"")


def _rejected(public: Public, error: ssl.SSLCertVerificationError) -> Finding:
    code = error.verify_code
    said = error.verify_message
    if code == _EXPIRED:
        return Finding(
            "CERTIFICATE_EXPIRED",
            f"the certificate of {public.host} has expired",
            "Renew it; devices refuse to talk until then. If it has not expired, the clock of this"
            " machine is wrong.",
        )
    if code == _NOT_YET:
        return Finding(
            "CERTIFICATE_NOT_YET_VALID",
            f"the certificate of {public.host} is not valid yet",
            "Correct the clock of this machine, or of the one that made the certificate.",
        )
    if code in _WRONG_NAME:
        return Finding(
            "CERTIFICATE_WRONG_NAME",
            f"the certificate is not for {public.host}: {said}",
            "Get a certificate with this name, or set PUBLIC_URL to a name that it has.",
        )
    return Finding(
        "CERTIFICATE_UNTRUSTED",
        f"the certificate of {public.host} leads to no CA that is trusted: {said}",
        "Serve the whole chain (fullchain.pem, not cert.pem). With the own CA, give its ca.crt with"
        " --ca-file, as devices need it too.",
    )


def answers(public: Public, clock: Callable[[], datetime] = now) -> Iterator[Check]:
    """Whether it is Evergreen that answers, and what its answers tell."""

    def check(name: str, found: Iterable[Finding], seen: str) -> Check:
        return judged(f"{public.what}.{name}", found, seen)

    host, port = public.there
    try:
        with httpx.Client(
            base_url=f"https://{host}:{port}",
            headers={"Host": urlsplit(public.url).netloc},
            verify=_context(public),
            timeout=_TIMEOUT,
            trust_env=False,
        ) as client:
            name = {"sni_hostname": public.host}
            keys = client.get("/.well-known/jwks.json", extensions=name)
            ready = client.get("/readyz", extensions=name)
            at = clock()
    except httpx.HTTPError as error:
        finding = Finding(
            "PUBLIC_URL_NO_ANSWER",
            f"{public.url} does not answer HTTP: {error}",
            "See the log of the gateway, or of the proxy before it.",
        )
        yield check("server", [finding], "")
        return
    if not _is_evergreen(keys):
        finding = Finding(
            "PUBLIC_URL_WRONG_SERVER",
            f"what answers at {public.url} is not Evergreen (status {keys.status_code})",
            "PUBLIC_URL leads to another server, or a proxy does not pass all paths on.",
        )
        yield check("server", [finding], "")
        return
    yield check("server", [], "it is Evergreen")
    yield check("ready", _not_ready(ready), "every service is")
    yield check("clock", clock_skew(ready.headers.get("date", ""), at), "agrees with this one")
    hops = ready.headers.get(H_HOPS, "")
    if public.connect or not hops.isdigit():
        yield skipped(f"{public.what}.proxies", "asked past the proxies, nobody can tell")
    else:
        yield check("proxies", _proxies(public, hops), f"{public.trusted_proxies} in front")
    yield check("http2", _http2(public), "gRPC gets through")


def _not_ready(ready: httpx.Response) -> Iterator[Finding]:
    if ready.status_code != 200:
        yield Finding(
            "NOT_READY",
            f"Evergreen is not ready: {_message(ready)}",
            "See the logs of the services named; the other findings here may say why.",
        )


def _is_evergreen(answer: httpx.Response) -> bool:
    try:
        return "keys" in answer.json() or "requestId" in answer.json()
    except (ValueError, TypeError):
        return False


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"


def clock_skew(date: str, at: datetime) -> Iterator[Finding]:
    """Whether this clock and that of the server that wrote a `Date` agree."""
    try:
        theirs = parsedate_to_datetime(date).astimezone(UTC)
    except (ValueError, TypeError):
        return
    if abs(skew := at - theirs) > _MAX_SKEW + timedelta(seconds=_TIMEOUT):
        yield Finding(
            "CLOCK_SKEW",
            "the clocks of this machine and of the gateway differ by"
            f" {abs(skew).total_seconds():.0f} seconds",
            "Let both follow a time server (timedatectl set-ntp true): tokens and certificates"
            " count on the time.",
        )


def _proxies(public: Public, hops: str) -> Iterator[Finding]:
    expected = public.trusted_proxies + 1
    if int(hops) < expected:
        yield Finding(
            "PROXY_HEADERS_MISSING",
            f"TRUSTED_PROXIES is {public.trusted_proxies}, but a call arrives with {hops} address"
            f"{'' if hops == '1' else 'es'} instead of {expected}",
            "Let the proxy append the caller's address to X-Forwarded-For (docs/install.md);"
            " without it all devices look like one, and are limited like one.",
        )


def _http2(public: Public) -> Iterator[Finding]:
    """A gRPC call, which goes through only if every hop speaks HTTP/2."""
    roots = public.ca_file.read_bytes() if public.ca_file else None
    try:
        require_grpc_tls()
    except FipsError as refused:
        yield warning("GRPC_NOT_FIPS", f"Nobody looked: {refused.reason}.", f"{refused.advice}.")
        return
    credentials = grpc.ssl_channel_credentials(roots)
    options: Any = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.ssl_target_name_override", public.host),
        ("grpc.default_authority", urlsplit(public.url).netloc),
    ]
    with grpc.secure_channel("{}:{}".format(*public.there), credentials, options) as channel:
        try:
            health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_TIMEOUT
            )
        except grpc.RpcError as error:
            if error.code() in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.NOT_FOUND}:
                return
            details = (error.details() or "").splitlines()
            yield Finding(
                "HTTP2_NOT_PASSED",
                f"gRPC does not get through to the gateway: {details[0][:200] if details else ''}",
                "Let the proxy speak HTTP/2 to clients and to the gateway (docs/install.md has"
                " snippets). JSON over HTTP/1.1 works without.",
            )
