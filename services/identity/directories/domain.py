"""Directories: their rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias
from urllib.parse import urlsplit
from uuid import UUID

from contract.events.identity.sources import DirectorySnapshot, MappedRole
from servicekit.errors import invalid_field
from servicekit.etags import etag_of
from servicekit.security.digests import sha256_hex
from services.identity.sources.domain import EVERYBODY, RoleMapping, Source

Kind: TypeAlias = Literal["ad", "openldap", "custom"]
Tls: TypeAlias = Literal["ldaps", "starttls"]
GroupMode: TypeAlias = Literal["in-chain", "walk", "none"]
SyncStatus: TypeAlias = Literal["", "ok", "failed", "held"]

SEALED_FOR: Final = "directory-password"
"""What the passwords of accounts that search are sealed for."""
LOGIN: Final = "{login}"
"""Stands in a filter for what was typed as the address."""
SYNC_MINUTES: Final = 15
SYNC_MINUTES_LEAST: Final = 5
GRACE_HOURS: Final = 24
MOST: Final = 10
"""Directories and providers that a tenant may have."""
PORTS: Final = frozenset({389, 636, 3268, 3269})
"""Ports of the system that directories may have; the last two are those of global catalogues."""
_PORTS: Final[Mapping[str, int]] = {"ldaps": 636, "ldap": 389}
_SCHEMES: Final[Mapping[Tls, str]] = {"ldaps": "ldaps", "starttls": "ldap"}
_OCTETS: Final = 65_536


@dataclass(frozen=True, slots=True)
class Reading:
    """How people, their ids and their groups are found."""

    user_filter: str
    id_attribute: str
    email_attribute: str
    name_attribute: str
    group_mode: GroupMode


READINGS: Final[Mapping[Kind, Reading]] = {
    "ad": Reading(
        "(&(objectCategory=person)(objectClass=user)(|(userPrincipalName={login})(mail={login})))",
        "objectGUID",
        "mail",
        "displayName",
        "in-chain",
    ),
    "openldap": Reading(
        "(&(objectClass=inetOrgPerson)(mail={login}))", "entryUUID", "mail", "cn", "walk"
    ),
    "custom": Reading("(mail={login})", "entryUUID", "mail", "cn", "walk"),
}


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory; its password stands sealed beside it."""

    source: Source
    kind: Kind
    urls: tuple[str, ...]
    tls: Tls
    ca_pem: str
    bind_dn: str
    sealed_secrets: bytes = field(repr=False)
    base_dn: str
    reading: Reading
    group_base_dn: str
    sync_minutes: int
    mappings: tuple[RoleMapping, ...]
    synced_at: datetime | None = None
    sync_status: SyncStatus = ""
    sync_error: str = ""
    sync_held: int | None = None
    """From how many users the held sync would take access."""
    sync_pass: UUID | None = None
    """The pass that has the directory, if one does."""
    users: int = 0

    @property
    def id(self) -> UUID:
        """The directory's id, which is its source's."""
        return self.source.id

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that the mappings name, each once."""
        return tuple(dict.fromkeys(row.group for row in self.mappings if row.group != EVERYBODY))

    @property
    def etag(self) -> str:
        """Changes with every change of the directory, but not with syncs."""
        return etag_of(self.id, self.source.updated_at, self.source.enabled)

    def snapshot(self) -> DirectorySnapshot:
        """What events say of it."""
        return DirectorySnapshot(
            name=self.source.name,
            kind=self.kind,
            tenant_id=self.source.tenant_id,
            enabled=self.source.enabled,
            urls=self.urls,
            tls=self.tls,
            ca_sha256=sha256_hex(self.ca_pem.encode()) if self.ca_pem else "",
            bind_dn=self.bind_dn,
            base_dn=self.base_dn,
            user_filter=self.reading.user_filter,
            id_attribute=self.reading.id_attribute,
            email_attribute=self.reading.email_attribute,
            name_attribute=self.reading.name_attribute,
            group_base_dn=self.group_base_dn,
            group_mode=self.reading.group_mode,
            sync_minutes=self.sync_minutes,
            grace_hours=self.source.grace // timedelta(hours=1),
            role_mappings=tuple(
                MappedRole(group=row.group, role=row.role, tenant_id=row.tenant_id)
                for row in self.mappings
            ),
        )


@dataclass(frozen=True, slots=True)
class Server:
    """Where one server of a directory listens."""

    host: str
    port: int
    url: str


def tls_of(urls: Sequence[str]) -> Tls:
    """How connections are encrypted where nothing else is said."""
    return "ldaps" if all(url.lower().startswith("ldaps:") for url in urls) else "starttls"


def server_of(url: str) -> Server:
    """The server of an address.

    Raises:
        ValueError: it is none of `ldaps://HOST[:PORT]` and `ldap://HOST[:PORT]`; the text says why.
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as broken:
        raise ValueError(f"is no address: {broken}") from broken
    scheme = parts.scheme.lower()
    if scheme not in _PORTS or not host or not url.isprintable() or " " in url:
        raise ValueError("must be ldaps://HOST[:PORT] or ldap://HOST[:PORT]")
    if parts.username is not None or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError("must have nothing but host and port")
    if port == 0:
        raise ValueError(f"must have a port from 1 to {_OCTETS - 1}")
    return Server(host, port or _PORTS[scheme], url)


def check_urls(urls: Sequence[str], tls: Tls) -> None:
    """Refuses addresses that are none, or do not fit the encryption.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    for number, url in enumerate(urls):
        try:
            server_of(url)
        except ValueError as broken:
            raise invalid_field(f"urls[{number}]", str(broken)) from broken
        if not url.lower().startswith(f"{_SCHEMES[tls]}:"):
            raise invalid_field(
                f"urls[{number}]", f"must begin with {_SCHEMES[tls]}:// where tls is {tls}"
            )


def check_mappings(rows: Sequence[RoleMapping], mode: GroupMode) -> None:
    """Refuses rows that can never match.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    seen = set()
    for number, row in enumerate(rows):
        if not row.group:
            raise invalid_field(f"roleMappings[{number}].group", "must not be blank")
        if mode == "none" and row.group != EVERYBODY:
            raise invalid_field(
                f"roleMappings[{number}].group",
                f"must be {EVERYBODY}, for groupMode is none and no groups are read",
            )
        key = (row.group, row.role, row.tenant_id)
        if key in seen:
            raise invalid_field(f"roleMappings[{number}]", "is there twice")
        seen.add(key)
