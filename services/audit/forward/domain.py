"""What a forwarder is, which entries it takes, and when it tries again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit
from uuid import UUID

from servicekit.errors import FieldViolation, invalid, invalid_field
from servicekit.etags import etag_of
from servicekit.outgoing.addresses import FORBIDDEN, NotConnectedError

SEALED_FOR: Final = "audit-forward"
"""The purpose for which the master key seals what forwarders keep secret."""
MOST_PER_INSTALLATION: Final = 100
MOST_QUARANTINED: Final = 1_000
"""Messages of a forwarder that were not delivered; then it holds at the next one."""
TOLD_AFTER: Final = timedelta(minutes=15)
"""So long a forwarder fails before the log says so."""
CONFIRMED_AFTER: Final = timedelta(seconds=60)
"""So long after the kernel of a syslog receiver has it, a message counts as received."""
LONGEST_WAIT: Final = timedelta(hours=1)
ATTEMPTS: Final = 6
"""With a message that the target refuses, before it is quarantined."""
_DELAYS: Final = (5, 30, 120, 600, 1800, 3600)
JITTER: Final = 0.2
_PATTERN: Final = re.compile(r"\*|[a-z]{1,40}\.(\*|[a-z0-9_]{1,80})")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_SD_ID: Final = re.compile(r"[!#-<>-\\^-~]{1,32}")
_HOST: Final = re.compile(r"[A-Za-z0-9._:%-]{1,253}")
_OWN_HEADERS: Final = frozenset(
    {
        "connection", "content-encoding", "content-length", "content-type", "expect", "host",
        "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te",
        "trailer", "transfer-encoding", "upgrade", "webhook-id", "webhook-signature",
        "webhook-timestamp",
    }
)  # fmt: skip
"""What messages have anyway, or what is the connection's."""


class Kind(StrEnum):
    """How entries are sent."""

    WEBHOOK = "webhook"
    SYSLOG = "syslog"


class Format(StrEnum):
    """What is sent of an entry."""

    CLOUDEVENTS = "cloudevents"
    OCSF = "ocsf"
    SPLUNK_HEC = "splunk-hec"
    JSON = "json"
    CEF = "cef"


class Transport(StrEnum):
    """What carries syslog."""

    TLS = "tls"
    TCP = "tcp"
    UDP = "udp"


class Disabled(StrEnum):
    """Why a forwarder is disabled."""

    NOT = ""
    BY_USER = "BY_USER"
    GONE = "GONE"
    ADDRESS_REFUSED = "ADDRESS_REFUSED"
    SECRET_UNREADABLE = "SECRET_UNREADABLE"


class Outcome(StrEnum):
    """How an action went."""

    SUCCESS = "success"
    REFUSED = "refused"
    FAILED = "failed"


_OUTCOMES: Final[Mapping[str, Outcome]] = {
    "identity.login_failed": Outcome.FAILED,
    "identity.refresh_token_reused": Outcome.REFUSED,
    "enrollment.refused": Outcome.REFUSED,
    "enrollment.reenrollment_refused": Outcome.REFUSED,
}
"""Of records that do not say it themselves; all others tell of a success."""


def outcome_of(record: Mapping[str, Any]) -> Outcome:
    """How the action of a record went."""
    data = record.get("data")
    said = data.get("outcome") if isinstance(data, Mapping) else None
    action = data.get("action") if isinstance(data, Mapping) else None
    try:
        return Outcome(str(said))
    except ValueError:
        return _OUTCOMES.get(str(action), Outcome.SUCCESS)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries are sent."""

    actions: tuple[str, ...] = ()
    excluded_actions: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()

    @property
    def takes_all(self) -> bool:
        """Whether nothing is left out."""
        return not (self.actions or self.excluded_actions or self.outcomes)

    def takes(self, record: Mapping[str, Any]) -> bool:
        """Whether an entry is sent."""
        data = record.get("data")
        action = str(data.get("action")) if isinstance(data, Mapping) else ""
        if self.actions and not _matches(action, self.actions):
            return False
        if _matches(action, self.excluded_actions):
            return False
        return not self.outcomes or outcome_of(record) in self.outcomes


def _matches(action: str, patterns: Sequence[str]) -> bool:
    context = action.partition(".")[0]
    return any(pattern in ("*", action, f"{context}.*") for pattern in patterns)


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where and how messages are posted; header values and the key are secrets."""

    url: str
    format: Format = Format.CLOUDEVENTS
    batch: int = 1
    headers: tuple[str, ...] = ()
    ca_pem: str = ""
    client_certificate_pem: str = ""
    timeout_seconds: int = 15

    @property
    def parts(self) -> SplitResult:
        """The URL's parts."""
        return urlsplit(self.url)

    @property
    def port(self) -> int:
        """The port that is connected to."""
        return self.parts.port or (443 if self.parts.scheme == "https" else 80)

    @property
    def host(self) -> str:
        """The host that is connected to."""
        return self.parts.hostname or ""

    @property
    def where(self) -> tuple[str, str, int]:
        """To whom secrets go."""
        return self.parts.scheme, self.host, self.port

    @property
    def target(self) -> str:
        """Where to, without a query."""
        return self.parts._replace(query="").geturl()


@dataclass(frozen=True, slots=True)
class Syslog:
    """Where and how messages of RFC 5424 are sent; the key is a secret."""

    host: str
    port: int
    transport: Transport = Transport.TLS
    format: Format = Format.JSON
    framing: str = "octet-counting"
    max_bytes: int = 8192
    facility: int = 13
    sd_id: str = "evergreen@32473"
    ca_pem: str = ""
    server_name: str = ""
    client_certificate_pem: str = ""

    @property
    def where(self) -> tuple[str, str, int]:
        """To whom secrets go."""
        return self.transport, self.host, self.port

    @property
    def target(self) -> str:
        """Where to."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.transport}://{host}:{self.port}"


Config = Webhook | Syslog


@dataclass(frozen=True, slots=True)
class Secrets:
    """What lies sealed."""

    signing: tuple[str, ...] = ()
    """The secrets that sign a webhook's messages, the newest first."""
    headers: Mapping[str, str] = field(default_factory=dict)
    client_key_pem: str = ""

    def to_bytes(self) -> bytes:
        """As they are sealed."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Secrets:
        """As they were before they were sealed.

        Raises:
            ValueError: they are no secrets of a forwarder.
        """
        try:
            read = json.loads(raw)
            return cls(tuple(read["signing"]), read["headers"], read["client_key_pem"])
        except (KeyError, TypeError) as broken:
            raise ValueError("not the secrets of a forwarder") from broken


@dataclass(frozen=True, slots=True)
class State:
    """How a forwarder does, as the database has it."""

    failing_since: datetime | None = None
    told: bool = False
    attempts: int = 0
    next_attempt_at: datetime | None = None
    last_error: str = ""
    last_success_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Lag:
    """What waits."""

    backlog: int = 0
    oldest: datetime | None = None
    quarantined: int = 0


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A message that a target refused for good."""

    id: UUID
    entry_id: UUID
    chain_id: UUID
    sequence: int
    reason: str
    attempts: int
    quarantined_at: datetime
    delivered_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Forwarder:
    """Where entries of a tenant, and by default of those below it, are sent."""

    id: UUID
    tenant_id: UUID
    name: str
    kind: Kind
    enabled: bool
    disabled_reason: Disabled
    below_too: bool
    filter: Filter
    config: Config
    sealed_secrets: bytes = field(repr=False)
    second_secret_until: datetime | None
    start_at: str
    revision: int
    created_at: datetime
    created_by: str
    updated_at: datetime
    state: State = State()

    @property
    def etag(self) -> str:
        """Changes with every change of the configuration."""
        return etag_of(self.id, self.revision)

    @property
    def status(self) -> str:
        """`active`, `failing` or `disabled`."""
        if not self.enabled:
            return "disabled"
        return "failing" if self.state.failing_since else "active"


def warnings_of(config: Config) -> list[str]:
    """What to know about a configuration."""
    found = []
    if isinstance(config, Webhook) and config.parts.scheme == "http":
        found.append("http:// is not encrypted")
    if isinstance(config, Syslog) and config.transport is not Transport.TLS:
        found.append(f"{config.transport} is not encrypted")
    if isinstance(config, Syslog) and config.transport is Transport.UDP:
        found.append("UDP loses messages silently")
    return found


def check_filter(given: Filter) -> Filter:
    """A filter of a request.

    Raises:
        DomainError: INVALID_ARGUMENT with the field.
    """
    for name, patterns in (
        ("actions", given.actions),
        ("excludedActions", given.excluded_actions),
    ):
        if not all(map(_PATTERN.fullmatch, patterns)):
            raise invalid_field(
                f"filter.{name}", "must be actions such as policy.published, or policy.*"
            )
    if not set(given.outcomes) <= set(Outcome):
        raise invalid_field("filter.outcomes", f"must be of {', '.join(Outcome)}")
    return Filter(*map(tuple, map(dict.fromkeys, (
        given.actions, given.excluded_actions, given.outcomes
    ))))  # fmt: skip


def check_webhook(given: Webhook) -> Webhook:
    """A webhook of a request.

    Raises:
        DomainError: INVALID_ARGUMENT with the field.
    """
    try:
        parts = urlsplit(given.url)
        _ = parts.port
    except ValueError:
        raise invalid_field("webhook.url", "is not a URL") from None
    wrong = {
        "must begin with https:// or http://": parts.scheme not in {"https", "http"},
        "must name a host": not parts.hostname or not _is_name(parts.hostname),
        "must have no user and no password; put secrets into headers": "@" in parts.netloc,
        "must have no fragment": "#" in given.url,
        "must have no backslash, no blank and only ASCII characters": not given.url.isascii()
        or not given.url.isprintable()
        or bool(set(given.url) & set(' \\"<>^`{|}')),
        "must have a port from 1 to 65535": parts.port == 0,
    }
    for rule, broken in wrong.items():
        if broken:
            raise invalid_field("webhook.url", rule)
    _check_headers(given.headers)
    return given


def _check_headers(names: Sequence[str]) -> None:
    lower = [name.lower() for name in names]
    violations = [
        FieldViolation(f"webhook.headers[{index}].name", rule)
        for index, name in enumerate(names)
        for rule, broken in (
            ("must be the name of a header", _TOKEN.fullmatch(name) is None),
            ("is set by Evergreen itself", name.lower() in _OWN_HEADERS),
            ("must be there once", lower.count(name.lower()) > 1),
        )
        if broken
    ]
    if violations:
        raise invalid(*violations)


def check_header_value(index: int, value: str) -> str:
    """The value of a header.

    Raises:
        DomainError: INVALID_ARGUMENT with the field.
    """
    if not (value.isascii() and value.isprintable() and value == value.strip()):
        raise invalid_field(
            f"webhook.headers[{index}].value",
            "must have only visible ASCII characters, and no blank around them",
        )
    return value


def _is_name(host: str) -> bool:
    """Whether a host can be one in DNS, or is an address."""
    try:
        return bool(host.encode("idna"))
    except UnicodeError:
        return False


def check_syslog(given: Syslog) -> Syslog:
    """A syslog target of a request.

    Raises:
        DomainError: INVALID_ARGUMENT with the field.
    """
    if _HOST.fullmatch(given.host) is None or not _is_name(given.host):
        raise invalid_field("syslog.host", "must be a name or an address, without a port")
    if given.server_name and (
        _HOST.fullmatch(given.server_name) is None or not _is_name(given.server_name)
    ):
        raise invalid_field("syslog.serverName", "must be a name or an address")
    if given.max_bytes < 1024:
        raise invalid_field("syslog.maxBytes", "must be at least 1024")
    if _SD_ID.fullmatch(given.sd_id) is None or "@" not in given.sd_id:
        raise invalid_field(
            "syslog.sdId", "must be NAME@NUMBER, where the number is a private enterprise's"
        )
    if given.transport is not Transport.TLS and (
        given.ca_pem or given.client_certificate_pem or given.server_name
    ):
        raise invalid_field("syslog.transport", "must be tls, where certificates are given")
    return given


def delay(attempts: int, random: float) -> timedelta:
    """How long to wait after so many failed attempts, at least one; without end.

    Args:
        attempts: how often it has failed.
        random: from 0 to 1; the delay is up to 20 % longer or shorter by it.
    """
    seconds = _DELAYS[min(attempts, len(_DELAYS)) - 1]
    return timedelta(seconds=seconds * (1 + JITTER * (2 * random - 1)))


class Fault(StrEnum):
    """Whose fault it is that a message was not taken."""

    TARGET = "target"
    """The lane holds, and tries again without end."""
    MESSAGE = "message"
    """Maybe the message's: after some attempts it is quarantined."""
    GONE = "gone"
    """The target wants no more."""
    ADDRESS = "address"
    """The target's address is not allowed."""


class NotDeliveredError(Exception):
    """A message was not taken."""

    def __init__(
        self,
        fault: Fault,
        reason: str,
        *,
        status: int = 0,
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(reason)
        self.fault = fault
        self.reason = reason
        self.status = status
        self.retry_after = retry_after


_MAYBE_THE_MESSAGE: Final = frozenset({400, 413, 415, 422})
_GONE: Final = 410
_OK: Final = range(200, 300)
_REDIRECTS: Final = range(300, 400)


def not_connected(error: NotConnectedError) -> NotDeliveredError:
    """What a connection that was not made means for a message."""
    fault = Fault.ADDRESS if error.reason == FORBIDDEN else Fault.TARGET
    return NotDeliveredError(fault, error.reason)


def not_delivered(status: int, retry_after: timedelta | None) -> NotDeliveredError | None:
    """What an answer says; `None` when the message was taken."""
    if status in _OK:
        return None
    if status == _GONE:
        return NotDeliveredError(Fault.GONE, "HTTP_410", status=status)
    if status in _MAYBE_THE_MESSAGE:
        return NotDeliveredError(Fault.MESSAGE, f"HTTP_{status}", status=status)
    reason = f"REDIRECTED_{status}" if status in _REDIRECTS else f"HTTP_{status}"
    return NotDeliveredError(Fault.TARGET, reason, status=status, retry_after=retry_after)
