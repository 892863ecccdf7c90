"""Identity's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from servicekit.keys.settings import KeySettings
from servicekit.outgoing.addresses import Rules, read_allowed, read_denied
from servicekit.outgoing.guard import Proxy
from services.identity.directories.domain import PORTS

_NOWHERE: Final = Rules("none", (), read_denied("0.0.0.0/0,::/0"), "EVERGREEN_OUTBOUND")


class IdentitySettings(KeySettings):
    """The settings of the identity service."""

    admin_email: str = Field(
        default="owner@localhost", description="E-mail address of the first Owner."
    )
    admin_password_file: Path | None = Field(
        default=None, description="File with the first Owner's password; read at the first start."
    )
    device_token_days: int = Field(
        default=400, ge=2, le=3650, description="How long a device token is valid."
    )
    session_days: int = Field(
        default=30, ge=1, le=365, description="How long a session can be refreshed."
    )
    password_min: int = Field(
        default=15,
        ge=12,
        le=64,
        description="How many characters a new password has at least.",
    )
    breached_passwords: Path | None = Field(
        default=None,
        description="File with the sorted SHA-1 digests of passwords that nobody may set, as Have I"
        " Been Pwned publishes them; it is read here, and nothing is sent anywhere.",
    )
    inactive_days: int = Field(
        default=0,
        ge=0,
        le=3650,
        description="After how many days without a login or a refresh a user is deactivated; 0 for"
        " never.",
    )
    archive_days: int = Field(
        default=90,
        ge=1,
        le=3650,
        description="How long an archived organisation can be restored before it is deleted.",
    )
    public_url: str = Field(
        default="",
        description="Where browsers reach the gateway (https://HOST[:PORT]); for the links of"
        " invitations, and to know pages of its own.",
    )
    former_public_urls: str = Field(
        default="",
        description="Its addresses of before, with commas between them, that still lead there.",
    )
    console_url: str = Field(
        default="",
        description="Where the web console runs, if it does: then people go there after a login.",
    )
    events_url: str = Field(
        default="", description="Where integrators reach NATS (tls://HOST:PORT), to be shown."
    )
    events_issuer_file: Path | None = Field(
        default=None,
        description="File with the seed of the key that NATS takes integrators' permissions from.",
    )
    nats_gatekeeper_password_file: Path | None = Field(
        default=None, description="File with the password of identity's user for that."
    )
    ldap_threads: int = Field(
        default=4,
        ge=2,
        le=64,
        description="How many conversations with directories (LDAP) may be under way for logins;"
        " half as many more with directories that are slow or fail.",
    )
    ldap_seconds: int = Field(
        default=8,
        ge=2,
        le=30,
        description="What one of them may take as a whole, however the directory's server answers.",
    )
    ldap_private: Literal["root", "all", "none"] = Field(
        default="root",
        description="Whose directories may be at private addresses: those of the root tenant, of"
        " all tenants, or nobody's.",
    )
    ldap_allow: str = Field(
        default="",
        description="Where directories may be whatever else forbids it: HOST:PORT or CIDR:PORT,"
        " with commas between them.",
    )
    sso_private: Literal["root", "all", "none"] = Field(
        default="root",
        description="Whose providers of single sign-on may be at private addresses: those of the"
        " root tenant, of all tenants, or nobody's.",
    )
    sso_allow: str = Field(
        default="",
        description="Where providers may be whatever else forbids it: HOST:PORT or CIDR:PORT, with"
        " commas between them.",
    )
    sso_proxy: str = Field(
        default="",
        description="What providers at public addresses are reached through, by CONNECT:"
        " http://HOST:PORT.",
    )
    allow_insecure_sso: bool = Field(
        default=False,
        description="Whether a provider on this machine may be without TLS (http://127.0.0.1); for"
        " tests alone.",
    )

    @model_validator(mode="after")
    def _says_where(self) -> Self:
        _ = self.ldap_rules, self.sso_rules, Proxy.read(self.sso_proxy)
        return self

    @property
    def sso_rules(self) -> Rules:
        """Where providers may be."""
        if not self.outbound:
            return _NOWHERE
        return Rules(self.sso_private, read_allowed(self.sso_allow))

    @property
    def ldap_rules(self) -> Rules:
        """Where directories may be."""
        if not self.outbound:
            return _NOWHERE
        return Rules(self.ldap_private, read_allowed(self.ldap_allow), ports=PORTS)
