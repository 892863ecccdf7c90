"""Native HTTP: the one table of all addresses that the gateway routes and that are no RPC's.

What it does not name is not there. The JSON of RPCs, the agent's form included, follows from the
access table and the protos.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from contract.rows import CONSOLE, ENDLESS, GATEWAY, Address, Audience, Body, Part, RateClass

_GET: Final = ("GET", "HEAD")
_POST: Final = ("POST",)
_LOGIN_SECONDS: Final = 45.0
# Calls about the whole product: readiness, documentation, health and reflection.
_ANYBODYS: Final = "identity"


def _page(path: str) -> Address:
    return Address(
        path=path,
        verbs=_GET,
        served_by="identity",
        rate=RateClass.PAGES,
        body=Body.FORM,
        cookies=True,
    )


def _submit(path: str, rate: RateClass, *, checks_origin: bool = False) -> Address:
    return Address(
        path=path,
        verbs=_POST,
        served_by="identity",
        rate=rate,
        timeout=_LOGIN_SECONDS,
        body=Body.FORM,
        cookies=True,
        checks_origin=checks_origin,
    )


def _shown(path: str) -> Address:
    return Address(path=path, verbs=_GET, served_by=_ANYBODYS, rate=RateClass.OPEN)


def _reflection(service: str) -> Address:
    return Address(
        path=f"/{service}/*",
        verbs=_POST,
        served_by=_ANYBODYS,
        needs=Part.REFLECTION,
        audience=Audience.USER,
        rate=RateClass.USER,
        timeout=ENDLESS,
        body=Body.DIALOGUE,
        is_grpc=True,
    )


def _consoles(path: str) -> Address:
    return Address(path=path, served_by=CONSOLE, needs=Part.CONSOLE)


FORMS: Final = (
    _submit("/auth/forms/accept", RateClass.INVITATION, checks_origin=True),
    _submit("/auth/forms/reset", RateClass.INVITATION, checks_origin=True),
    _submit("/auth/forms/*", RateClass.LOGIN, checks_origin=True),
    # Where someone comes who reloads a form that was refused.
    replace(_page("/auth/forms/*"), checks_origin=True),
)
"""Where the pages' forms go."""

GRPC: Final = (
    # Not `Watch`, which lasts as long as its caller likes.
    Address(
        path="/grpc.health.v1.Health/Check",
        verbs=_POST,
        served_by=_ANYBODYS,
        rate=RateClass.OPEN,
        is_grpc=True,
    ),
    _reflection("grpc.reflection.v1.ServerReflection"),
    _reflection("grpc.reflection.v1alpha.ServerReflection"),
)
"""gRPC services of the ecosystem."""

PAGES: Final = (
    _page("/login"),
    _page("/auth/accept"),
    _page("/auth/forgot"),
    _page("/auth/account"),
    _page("/auth/second-factor"),
    _page("/auth/confirm"),
    _page("/auth/invitations"),
    _page("/auth/signed-in"),
    _page("/auth/signed-out"),
    _page("/auth/assets/*"),
    # They ask a provider of single sign-on, which may take its time.
    replace(_page("/auth/sso/start"), rate=RateClass.LOGIN, timeout=_LOGIN_SECONDS),
    replace(_page("/auth/sso/*"), rate=RateClass.LOGIN, timeout=_LOGIN_SECONDS),
    # What providers themselves send, without a browser.
    replace(_submit("/auth/sso/*", RateClass.OPEN), cookies=False),
    # The console's own `/api/auth/…` keeps one session for all its users and loses it with a
    # reload, so four of its addresses are identity's; the console gets the rest.
    _page("/api/auth/session"),
    _submit("/api/auth/login", RateClass.LOGIN),
    _submit("/api/auth/refresh", RateClass.REFRESH),
    _submit("/api/auth/logout", RateClass.PAGES),
)
"""Identity's pages, and what the console's pages ask of it."""

SCIM: Final = (
    Address(
        path="/scim/v2/*",
        verbs=("GET", "POST", "PUT", "PATCH", "DELETE"),
        served_by="identity",
        audience=Audience.SCIM,
        rate=RateClass.SCIM,
        timeout=30,
        body=Body.SCIM,
    ),
)
"""What identity providers send people and groups to (RFC 7644)."""

OF_CONSOLE: Final = (
    # A logout without a token has nothing to end; the console's server sends such ones.
    Address(path="/auth/logout", verbs=_POST, served_by=GATEWAY),
    _consoles("/"),
    _consoles("/favicon.ico"),
    _consoles("/dashboard[/*]"),
    _consoles("/_next[/*]"),
    _consoles("/api/auth[/*]"),
    # Where a browser that only knows our address finds something.
    Address(path="/", verbs=_GET, served_by=GATEWAY, needs=Part.NO_CONSOLE, rate=RateClass.PAGES),
)
"""The web console's pages, and what the gateway answers in its place."""

PORTAL: Final = (
    Address(path="/healthz", verbs=_GET, served_by=GATEWAY),
    _shown("/readyz"),
    # The version is for users: what is known to be wrong with it is nobody else's business.
    replace(_shown("/api/version"), audience=Audience.GUEST_OR_USER),
    _shown("/openapi.json"),
    _shown("/asyncapi.json"),
    _shown("/api/policy-schema.json"),
    _shown("/docs"),
    _shown("/docs/*"),
)
"""Whether the product works, which release it is, and its documentation."""

HTTP: Final = (*FORMS, *GRPC, *PAGES, *SCIM, *OF_CONSOLE, *PORTAL)
"""Every address that is no RPC's."""
