"""What a row of the access table can say, and what it cannot: a contradiction fails at import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Audience(Enum):
    """Whose credentials an RPC takes."""

    PUBLIC = "public"
    """Anyone; a token, if given, is not looked at."""
    DEVICE = "device"
    """A device with a valid token of its own."""
    DEVICE_LAPSED = "device-lapsed"
    """A device whose token may have expired up to 90 days ago."""
    USER = "user"
    """A logged-in user with one of the rule's roles."""
    GUEST_OR_USER = "guest-or-user"
    """Anyone; a token that is given must be a user's, and the service is told whose. Only addresses
    have this."""
    SCIM = "scim"
    """A SCIM source with a token of its own. Only addresses have this."""
    INTERNAL = "internal"
    """Another service, over the internal listener that the gateway never reaches."""


class Role(Enum):
    """What a user may do in the user's tenant and all below it."""

    OWNER = "Owner"
    ADMIN = "Admin"
    AUDITOR = "Auditor"


class RateClass(Enum):
    """Which of the gateway's rates counts a call; the gateway's settings say how many it allows."""

    DEVICE = "device"
    """Per device, and per organisation for all its devices together."""
    USER = "user"
    """Per user."""
    LOGIN = "login"
    """Per client address, as all below it; each in a bucket of its own, so that a flood of one kind
    takes no other kind down."""
    REFRESH = "refresh"
    INVITATION = "invitation"
    ENROLL = "enroll"
    OPEN = "open"
    """Everything else that needs no token."""
    PUBLISHED = "published"
    """What an installation publishes of its audit log, which programs may read to its end."""
    PAGES = "pages"
    """What browsers read without a token: pages, their files, whose session it is."""
    SCIM = "scim"
    """Per token of a SCIM source."""


SESSION_RATES: Final = frozenset({RateClass.LOGIN, RateClass.REFRESH, RateClass.INVITATION})
"""The rates of calls that begin a session or go on with one."""


class Body(Enum):
    """Which limit a request's body has; the gateway's settings say how many bytes that is."""

    USUAL = "usual"
    STATE = "state"
    """A device's state."""
    EVENTS = "events"
    """A device's batch of events."""
    FORM = "form"
    """A form of a page, or a login of a browser."""
    SCIM = "scim"
    """A person or a group of a SCIM source, or a change of one."""
    DIALOGUE = "dialogue"
    """No limit and no waiting for its end: a stream that both sides write."""


ENDLESS: Final = 0.0
"""The timeout of a download: it lasts as long as its reader takes."""


def read_scope(area: str) -> str:
    """What an API token needs to read an area."""
    return f"{area}:read"


def write_scope(area: str) -> str:
    """What an API token needs to change an area; it may read it then, too."""
    return f"{area}:write"


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """An answer that is a file, `google.api.HttpBody` in the proto."""

    about: str
    """What it is, for the API's documentation."""
    media: tuple[str, ...]
    """Its media types; more than one where the request chooses."""
    list_of: str = ""
    """The message that its JSON form is a list of."""
    agent_form_of: str = ""
    """The message that its JSON form is, with the names that the agent knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row of the table.

    Raises:
        ValueError: the row contradicts itself.
    """

    context: str = ""
    """The bounded context that serves the RPC; the table fills it in."""
    audience: Audience
    roles: frozenset[Role] = frozenset()
    """The roles that may call it; only for `Audience.USER`."""
    callers: frozenset[str] = frozenset()
    """The contexts whose services may call it; only for `Audience.INTERNAL`."""
    area: str = ""
    """What it is about, in scopes of API tokens; the table fills it in. Empty where only a user who
    is logged in may call, and no token."""
    writes: bool = False
    """Whether it changes state; every such call of a user is found in the audit log."""
    rate: RateClass | None = None
    """What it counts against at the gateway; nothing for `Audience.INTERNAL` alone."""
    timeout: float | None = None
    """Seconds that the gateway waits for the answer; `None` is the gateway's setting, `ENDLESS` is
    for streams."""
    body: Body = Body.USUAL
    """The limit of the request's body."""
    strict: bool = False
    """Whether a JSON call with names that no field has is refused.

    What users send is: a misspelt name would otherwise be a wish that is silently not heard.
    Devices are not, for released agents may send more than this release knows.
    """
    agent_form: bool = False
    """Whether its JSON form is the agent's: snake_case, and served over plain HTTP by the service
    itself, not transcoded by the gateway."""
    unchanged: bool = False
    """Whether its JSON form answers 304 to a caller that has everything already."""
    file: File | None = None
    """The file that it answers; `None` for a message."""
    fresh: bool = False
    """Whether the caller has to have logged in, or confirmed who it is, just before: for what opens
    an account or the installation to others. The released web console calls nothing of it, for it
    could not ask."""
    offered: bool = True
    """Whether this release does what the RPC says; else it checks the caller and answers 501."""

    @property
    def scope(self) -> str:
        """What an API token needs to call it; empty where no token may."""
        if not self.area:
            return ""
        return write_scope(self.area) if self.writes else read_scope(self.area)

    def __post_init__(self) -> None:
        internal = self.audience is Audience.INTERNAL
        wrong = {
            "only an address takes both": self.audience is Audience.GUEST_OR_USER,
            "roles are for users": bool(self.roles) is not (self.audience is Audience.USER),
            "freshness is for users": self.fresh and self.audience is not Audience.USER,
            "areas are for users": bool(self.area) and self.audience is not Audience.USER,
            "callers are for internal RPCs": bool(self.callers) is not internal,
            "the rate is another audience's": self.rate not in _RATES[self.audience],
            "the gateway serves no internal RPC": internal
            and (self.timeout, self.body, self.file) != (None, Body.USUAL, None),
            "the timeout is below 0": self.timeout is not None and self.timeout < 0,
            "only what the gateway transcodes is strict": self.strict
            and (internal or self.agent_form),
            "users do not speak the agent's form": self.agent_form
            and self.audience in {Audience.USER, Audience.INTERNAL},
            # Of a transcoded call the gateway knows the RPC only after its body.
            "this body's limit needs the agent's form": self.body is not Body.USUAL
            and not (self.agent_form and self.body in {Body.STATE, Body.EVENTS}),
            "304 is for reads in the agent's form": self.unchanged
            and (self.writes or not self.agent_form),
            "a file in the agent's form": self.agent_form and self.file is not None,
        }
        _refuse(self, wrong)


GATEWAY: Final = "gateway"
CONSOLE: Final = "console"


class Part(Enum):
    """A part of an installation that some addresses need."""

    CONSOLE = "console"
    """The web console under the gateway's address."""
    NO_CONSOLE = "no console"
    REFLECTION = "reflection"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One row of native HTTP: an address, or several, that the gateway routes and that is no RPC of
    ours.

    Raises:
        ValueError: the row contradicts itself.
    """

    path: str
    """`/docs` alone, `/docs/*` all below it, `/docs[/*]` both."""
    verbs: tuple[str, ...] = ()
    """The HTTP methods that it takes; none named are all."""
    served_by: str
    """The bounded context that serves it, `CONSOLE`, or `GATEWAY` itself."""
    needs: Part | None = None
    """Without this part of an installation the address is not there."""
    audience: Audience = Audience.PUBLIC
    """Anyone, a user of any role, or both; or a SCIM source."""
    rate: RateClass | None = None
    """What it counts against; `None` only for what no service of ours serves."""
    timeout: float | None = None
    """As an RPC's."""
    body: Body = Body.USUAL
    """The limit of the request's body."""
    cookies: bool = False
    """Whether cookies are passed on. A bearer token is passed on to nobody but the console."""
    checks_origin: bool = False
    """Whether it finds out itself that a page of ours sent the request; else the gateway does."""
    is_grpc: bool = False
    """Whether it is a gRPC service of the ecosystem: health, reflection."""

    def __post_init__(self) -> None:
        ours = self.served_by not in {GATEWAY, CONSOLE}
        wrong = {
            "an address begins with a slash": not self.path.startswith("/"),
            "an address is for anyone, for users or for SCIM sources": self.audience
            not in {Audience.PUBLIC, Audience.GUEST_OR_USER, Audience.USER, Audience.SCIM},
            "the rate is another audience's": self.rate not in _RATES[self.audience]
            and (ours or self.rate is not None),
            "the timeout is below 0": self.timeout is not None and self.timeout < 0,
            "only services of ours have these bounds": not ours
            and (self.timeout, self.body, self.cookies) != (None, Body.USUAL, False),
            "a service of ours names its HTTP methods": ours and not self.verbs,
            "bodies of agents are for RPCs": self.body in {Body.STATE, Body.EVENTS},
            "a dialogue is gRPC": self.body is Body.DIALOGUE and not self.is_grpc,
            "gRPC is a POST without cookies": self.is_grpc
            and (self.verbs, self.cookies) != (("POST",), False),
            "who gets cookies asks for no token": self.cookies
            and self.audience is not Audience.PUBLIC,
            "only what gets cookies checks the origin": self.checks_origin and not self.cookies,
        }
        _refuse(self, wrong)

    @property
    def reads(self) -> bool:
        """Whether it changes nothing."""
        return bool(self.verbs) and set(self.verbs) <= {"GET", "HEAD"}


def _refuse(row: Rule | Address, wrong: Mapping[str, bool]) -> None:
    if found := [what for what, is_wrong in wrong.items() if is_wrong]:
        raise ValueError(f"{'; '.join(found)}: {row}")


_DEVICE_RATES: Final[frozenset[RateClass | None]] = frozenset({RateClass.DEVICE})
_ADDRESS_RATES: Final[frozenset[RateClass | None]] = frozenset(RateClass) - {
    RateClass.DEVICE,
    RateClass.USER,
    RateClass.SCIM,
}
_RATES: Final[Mapping[Audience, frozenset[RateClass | None]]] = {
    Audience.PUBLIC: _ADDRESS_RATES,
    Audience.GUEST_OR_USER: _ADDRESS_RATES,
    Audience.DEVICE: _DEVICE_RATES,
    Audience.DEVICE_LAPSED: _DEVICE_RATES,
    Audience.USER: frozenset({RateClass.USER}),
    Audience.SCIM: frozenset({RateClass.SCIM}),
    Audience.INTERNAL: frozenset({None}),
}
