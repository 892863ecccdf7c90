"""Providers of single sign-on: their rules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode, urlsplit, urlunsplit
from uuid import UUID

from contract.events.identity.sources import MappedRole, SsoProviderSnapshot
from servicekit.errors import Code, DomainError, invalid_field
from servicekit.etags import etag_of
from services.identity.sources.domain import EVERYBODY, RoleMapping, Source, check_mappings

SEALED_FOR: Final = "sso-secret"
"""What the secrets of clients are sealed for."""
START: Final = "/auth/sso/start"
CALLBACK: Final = "/auth/sso/{provider}/callback"
"""Where people come back: each provider has an address of its own, so that none answers for
another (RFC 9700, section 4.4)."""
LOGOUT: Final = "/auth/sso/{provider}/backchannel-logout"
SIGNED_OUT: Final = "/auth/signed-out"
"""Where people come back to who signed out there, too."""
SESSION_HOURS: Final = 12
SCOPES: Final = ("profile", "email")
OPENID: Final = "openid"
GROUPS_CLAIM: Final = "groups"
EMAIL_CLAIM: Final = "email"
MOST_SHOWN: Final = 20
"""Buttons on a page."""
_GOOGLE: Final = "https://accounts.google.com"
_ENTRA: Final = re.compile(r"https://login\.microsoftonline\.(?:com|us)/([^/]+)/v2\.0")
_FOR_ALL: Final = frozenset({"common", "organizations", "consumers"})
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_SCOPE: Final = re.compile(r"[!#-\[\]-~]+").fullmatch
_DOMAIN: Final = re.compile(
    r"[a-z0-9]([a-z0-9-]*[a-z0-9])?([.][a-z0-9]([a-z0-9-]*[a-z0-9])?)*"
).fullmatch


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider; the secret of the client stands sealed beside it."""

    source: Source
    issuer: str
    client_id: str
    sealed_secrets: bytes = field(repr=False)
    ca_pem: str
    scopes: tuple[str, ...]
    groups_claim: str
    email_claim: str
    hosted_domain: str
    just_in_time: bool
    login_button: bool
    trusts_mfa: bool
    """Whether it answers for a second factor, so that none of ours is asked for."""
    single_logout: bool
    """Whether signing out here leads to it, to sign out there, too."""
    mappings: tuple[RoleMapping, ...]
    users: int = 0

    @property
    def id(self) -> UUID:
        """The provider's id, which is its source's."""
        return self.source.id

    @property
    def keeps_roles(self) -> bool:
        """Whether users keep the role that they were invited with: no row says another one."""
        return not self.mappings

    @property
    def entra_tenant(self) -> str:
        """The tenant of Microsoft Entra that tokens must be of; empty for another provider."""
        found = _ENTRA.fullmatch(self.issuer)
        return found[1] if found else ""

    @property
    def groups(self) -> frozenset[str]:
        """The groups that the mappings name."""
        return frozenset(row.group for row in self.mappings if row.group != EVERYBODY)

    @property
    def etag(self) -> str:
        """Changes with every change of the provider."""
        return etag_of(self.id, self.source.updated_at, self.source.enabled)

    def snapshot(self) -> SsoProviderSnapshot:
        """What events say of it."""
        return SsoProviderSnapshot(
            name=self.source.name,
            tenant_id=self.source.tenant_id,
            enabled=self.source.enabled,
            issuer=self.issuer,
            client_id=self.client_id,
            scopes=self.scopes,
            groups_claim=self.groups_claim,
            email_claim=self.email_claim,
            hosted_domain=self.hosted_domain,
            just_in_time=self.just_in_time,
            session_hours=int(self.source.grace.total_seconds() // 3600),
            login_button=self.login_button,
            trusts_mfa=self.trusts_mfa,
            single_logout=self.single_logout,
            role_mappings=tuple(
                MappedRole(group=row.group, role=row.role, tenant_id=row.tenant_id)
                for row in self.mappings
            ),
        )


def scopes_of(wanted: Sequence[str]) -> tuple[str, ...]:
    """What a provider is asked for: `openid` and each wish once."""
    return tuple(dict.fromkeys((OPENID, *wanted)))


def url_fault(url: str, *, insecure: bool) -> str:
    """What is wrong with an address of a provider; empty when nothing is.

    Args:
        insecure: whether a provider on this machine may be without TLS.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as broken:
        return f"is no address: {broken}"
    if not host or not url.isprintable() or not url.isascii() or " " in url or "\\" in url:
        return "must be https://HOST[:PORT][/PATH]"
    if parts.username is not None or parts.fragment or port == 0:
        return "must have nothing but host, port and path"
    if parts.scheme == "http" and insecure and host in _LOOPBACK:
        return ""
    return "" if parts.scheme == "https" else "must begin with https://"


def check_provider(provider: Provider, *, insecure: bool) -> None:
    """Refuses what could never work, or would let in everybody.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    issuer = provider.issuer
    if fault := url_fault(issuer, insecure=insecure):
        raise invalid_field("issuer", fault)
    if urlsplit(issuer).query:
        raise invalid_field("issuer", "must have nothing but host, port and path")
    if provider.entra_tenant.lower() in _FOR_ALL:
        raise invalid_field(
            "issuer",
            "must name one tenant of Microsoft Entra: with common everybody's would be let in",
        )
    for number, scope in enumerate(provider.scopes):
        if not _SCOPE(scope):
            raise invalid_field(f"scopes[{number}]", "must be one word")
    hosted = provider.hosted_domain
    if hosted and not _DOMAIN(hosted):
        raise invalid_field("hostedDomain", "must be a domain, such as linden.example")
    if issuer.rstrip("/") == _GOOGLE and not hosted:
        raise invalid_field(
            "hostedDomain", "is required for Google, where everybody in the world has an account"
        )
    if provider.just_in_time and not provider.mappings:
        raise invalid_field("justInTime", "needs roleMappings, which say what the new users may do")
    check_mappings(provider.mappings)


def with_parameters(url: str, asked: Mapping[str, str]) -> str:
    """An address with further parameters."""
    parts = urlsplit(url)
    query = "&".join(filter(None, (parts.query, urlencode(asked))))
    return urlunsplit(parts._replace(query=query))


def changed() -> DomainError:
    """The provider is another one by now than the one that was asked."""
    return DomainError(Code.UNAVAILABLE, "PROVIDER_CHANGED", "the provider was changed; try again")
