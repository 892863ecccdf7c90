"""Identity's settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from servicekit.keys.settings import KeySettings
from servicekit.outgoing.addresses import Rules, read_allowed, read_denied
from servicekit.outgoing.guard import Proxy
from servicekit.outgoing.wire import client_context
from servicekit.settings import read_secret
from servicekit.times import zone_of
from services.identity.directories.domain import PORTS
from services.identity.mail.domain import (
    MailServer,
    greeting_name,
    read_mailbox,
    read_server_url,
)

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

    smtp_url: str = Field(
        default="",
        repr=False,
        description="The mail server: smtps://[USER@]HOST[:PORT], smtp+starttls://…, or smtp:// for"
        " one that is reached without encryption and without a user. No mail is sent without it.",
    )
    smtp_password_file: Path | None = Field(
        default=None, description="File with the password of the mail server's user."
    )
    smtp_from: str = Field(
        default="", description="Whom mails come from: NAME@HOST, or Name <NAME@HOST>."
    )
    smtp_ca_file: Path | None = Field(
        default=None,
        description="The CA of the mail server's certificate, in PEM; the system's when not given.",
    )
    mail_language: Literal["en", "de"] = Field(
        default="en", description="The language of mails where an organisation says none."
    )
    mail_time_zone: str = Field(
        default="UTC",
        description="The time zone of times in mails where an organisation says none (IANA, as"
        " Europe/Berlin).",
    )

    @model_validator(mode="after")
    def _says_how_mails_go(self) -> Self:
        if zone_of(self.mail_time_zone) is None:
            raise ValueError("EVERGREEN_MAIL_TIME_ZONE is no time zone (IANA, as Europe/Berlin)")
        if not self.smtp_url:
            if self.smtp_password_file or self.smtp_from or self.smtp_ca_file:
                raise ValueError("EVERGREEN_SMTP_URL is needed where the other SMTP settings are")
            return self
        try:
            server = read_server_url(self.smtp_url)
        except ValueError as broken:
            raise ValueError(f"EVERGREEN_SMTP_URL {broken}") from None
        try:
            read_mailbox(self.smtp_from)
        except ValueError as broken:
            raise ValueError(f"EVERGREEN_SMTP_FROM {broken}") from None
        if bool(server.user) != bool(self.smtp_password_file):
            raise ValueError(
                "EVERGREEN_SMTP_PASSWORD_FILE and the user in EVERGREEN_SMTP_URL belong together"
            )
        if server.tls == "none" and self.smtp_ca_file:
            raise ValueError("EVERGREEN_SMTP_CA_FILE is for smtps:// and smtp+starttls://")
        if not self.public_url:
            raise ValueError("EVERGREEN_PUBLIC_URL is needed for the links in mails")
        return self

    @model_validator(mode="after")
    def _says_where(self) -> Self:
        _ = self.ldap_rules, self.sso_rules, Proxy.read(self.sso_proxy)
        return self

    def mail_server(self) -> MailServer | None:
        """Where mails go; `None` where none are sent. Reads the files that the settings name.

        Raises:
            OSError, ValueError: a file is missing, or is none that is meant.
        """
        if not self.smtp_url or not self.outbound:
            return None
        ca_pem = self.smtp_ca_file.read_text(encoding="utf-8") if self.smtp_ca_file else ""
        server = replace(
            read_server_url(self.smtp_url),
            password=read_secret(self.smtp_password_file),
            ca_pem=ca_pem,
            sender=read_mailbox(self.smtp_from),
            name=greeting_name(self.public_url),
        )
        if server.user and not server.password:
            raise ValueError("the file of EVERGREEN_SMTP_PASSWORD_FILE is empty")
        if ca_pem:
            client_context(ca_pem, "", "")
        return server

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
