"""Directories, providers of single sign-on, and the e-mail domains that lead to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Final
from uuid import UUID

from contract.access import Role
from contract.events.base import EMAIL, ID, TENANT_ID, Action, Since
from contract.events.identity.users import UserAction


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedRole:
    """What a group may do."""

    group: str
    role: Role
    tenant_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectorySnapshot:
    """A directory; never its password."""

    name: str
    kind: str
    tenant_id: UUID
    enabled: bool
    urls: tuple[str, ...]
    tls: str
    ca_sha256: Annotated[str, "The digest of the CAs in PEM; empty for the system's."]
    bind_dn: str
    base_dn: str
    user_filter: str
    id_attribute: str
    email_attribute: str
    name_attribute: str
    group_base_dn: str
    group_mode: str
    sync_minutes: int
    grace_hours: int
    role_mappings: tuple[MappedRole, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryTest:
    """How far a try came."""

    name: str
    ok: bool
    last_step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectorySync:
    """What came of a sync."""

    name: str
    error: Annotated[str, "Why it failed; empty when it did not."]
    deactivates: Annotated[int, "How many users it deactivates, or would."]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedPerson:
    """Whom a directory let in and this system did not, and why."""

    email: str
    reason: str
    source: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class SsoProviderSnapshot:
    """A provider of single sign-on; never its secret."""

    name: str
    tenant_id: UUID
    enabled: bool
    issuer: str
    client_id: str
    scopes: tuple[str, ...]
    groups_claim: str
    email_claim: str
    hosted_domain: str
    just_in_time: bool
    session_hours: int
    login_button: bool
    trusts_mfa: bool
    role_mappings: tuple[MappedRole, ...]
    single_logout: Annotated[
        bool, Since("0.3.0"), "Whether signing out here leads to the provider, too."
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SsoTest:
    """How far a try came."""

    name: str
    ok: bool
    last_step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkedAccount:
    """A user who has a password here and signs in with a provider, too."""

    email: str
    source: UUID
    provider: Annotated[str, "The provider's name."]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailDomainSnapshot:
    """Whose e-mail addresses a domain has."""

    domain: str
    tenant_id: UUID
    source_id: UUID | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _DirectoryAction(Action):
    RESOURCE: ClassVar[str] = "directories/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _SsoProviderAction(Action):
    RESOURCE: ClassVar[str] = "sso-providers/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _EmailDomainAction(Action):
    """The id is the tenant's."""

    RESOURCE: ClassVar[str] = "email-domains/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryCreated(_DirectoryAction):
    """A directory was added."""

    NAME: ClassVar[str] = "identity.directory_created"
    after: DirectorySnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryUpdated(_DirectoryAction):
    """A directory was changed."""

    NAME: ClassVar[str] = "identity.directory_updated"
    before: DirectorySnapshot
    after: DirectorySnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryDeleted(_DirectoryAction):
    """A directory was deleted; its users were deactivated."""

    NAME: ClassVar[str] = "identity.directory_deleted"
    before: DirectorySnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryTested(_DirectoryAction):
    """An Owner tried a directory."""

    NAME: ClassVar[str] = "identity.directory_tested"
    after: DirectoryTest


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectorySyncFailed(_DirectoryAction):
    """A directory could not be compared with its users; told once until it works again."""

    NAME: ClassVar[str] = "identity.directory_sync_failed"
    after: DirectorySync


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectorySyncHeld(_DirectoryAction):
    """A sync would deactivate too many users; nothing is changed until an Owner confirms it."""

    NAME: ClassVar[str] = "identity.directory_sync_held"
    after: DirectorySync


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectorySyncConfirmed(_DirectoryAction):
    """An Owner confirmed a held sync."""

    NAME: ClassVar[str] = "identity.directory_sync_confirmed"
    after: DirectorySync


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryLoginRefused(_DirectoryAction):
    """A directory knew a person and the password, and no login came of it."""

    NAME: ClassVar[str] = "identity.directory_login_refused"
    after: RefusedPerson


@dataclass(frozen=True, slots=True, kw_only=True)
class SsoProviderCreated(_SsoProviderAction):
    """A provider of single sign-on was added."""

    NAME: ClassVar[str] = "identity.sso_provider_created"
    after: SsoProviderSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class SsoProviderUpdated(_SsoProviderAction):
    """A provider was changed."""

    NAME: ClassVar[str] = "identity.sso_provider_updated"
    before: SsoProviderSnapshot
    after: SsoProviderSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class SsoProviderDeleted(_SsoProviderAction):
    """A provider was deleted; its users were deactivated."""

    NAME: ClassVar[str] = "identity.sso_provider_deleted"
    before: SsoProviderSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class SsoProviderTested(_SsoProviderAction):
    """An Owner tried a provider."""

    NAME: ClassVar[str] = "identity.sso_provider_tested"
    after: SsoTest


@dataclass(frozen=True, slots=True, kw_only=True)
class SsoLoginRefused(_SsoProviderAction):
    """A provider recognised a person, or gave an answer, and no login came of it."""

    NAME: ClassVar[str] = "identity.sso_login_refused"
    after: RefusedPerson


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountLinked(UserAction):
    """A user with a password here signs in with a provider, too."""

    NAME: ClassVar[str] = "identity.account_linked"
    after: LinkedAccount


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountUnlinked(UserAction):
    """A user signs in with the password alone again, or comes from a SCIM source no more."""

    NAME: ClassVar[str] = "identity.account_unlinked"
    before: LinkedAccount


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailDomainAssigned(_EmailDomainAction):
    """An e-mail domain was assigned to a tenant."""

    NAME: ClassVar[str] = "identity.email_domain_assigned"
    after: EmailDomainSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailDomainUpdated(_EmailDomainAction):
    """People with addresses of a domain log in elsewhere from now on."""

    NAME: ClassVar[str] = "identity.email_domain_updated"
    before: EmailDomainSnapshot
    after: EmailDomainSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailDomainDeleted(_EmailDomainAction):
    """An e-mail domain was taken back."""

    NAME: ClassVar[str] = "identity.email_domain_deleted"
    before: EmailDomainSnapshot


_DIRECTORY: Final = DirectorySnapshot(
    name="School directory",
    kind="ad",
    tenant_id=TENANT_ID,
    enabled=True,
    urls=("ldaps://dc1.school.example",),
    tls="ldaps",
    ca_sha256="b" * 64,
    bind_dn="evergreen@school.example",
    base_dn="DC=school,DC=example",
    user_filter="(&(objectClass=user)(mail={login}))",
    id_attribute="objectGUID",
    email_attribute="mail",
    name_attribute="displayName",
    group_base_dn="",
    group_mode="in-chain",
    sync_minutes=15,
    grace_hours=24,
    role_mappings=(
        MappedRole(
            group="CN=EG-Admins,OU=Groups,DC=school,DC=example",
            role=Role.ADMIN,
            tenant_id=TENANT_ID,
        ),
    ),
)
_SYNC: Final = DirectorySync(name="School directory", error="", deactivates=12)
_PROVIDER: Final = SsoProviderSnapshot(
    name="School sign-in",
    tenant_id=TENANT_ID,
    enabled=True,
    issuer="https://login.school.example/realms/school",
    client_id="evergreen",
    scopes=("openid", "profile", "email"),
    groups_claim="groups",
    email_claim="email",
    hosted_domain="",
    just_in_time=True,
    session_hours=12,
    login_button=False,
    trusts_mfa=False,
    role_mappings=(MappedRole(group="eg-admins", role=Role.ADMIN, tenant_id=TENANT_ID),),
)
_DOMAIN: Final = EmailDomainSnapshot(domain="school.example", tenant_id=TENANT_ID, source_id=None)
EXAMPLES: Final[tuple[Action, ...]] = (
    DirectoryCreated(id=ID, after=_DIRECTORY),
    DirectoryUpdated(id=ID, before=_DIRECTORY, after=replace(_DIRECTORY, enabled=False)),
    DirectoryDeleted(id=ID, before=_DIRECTORY),
    DirectoryTested(id=ID, after=DirectoryTest(name="School directory", ok=False, last_step="tls")),
    DirectorySyncFailed(
        id=ID,
        after=DirectorySync(name="School directory", error="no server answered", deactivates=0),
    ),
    DirectorySyncHeld(id=ID, after=_SYNC),
    DirectorySyncConfirmed(id=ID, after=_SYNC),
    DirectoryLoginRefused(id=ID, after=RefusedPerson(email=EMAIL, reason="NO_ROLE", source=ID)),
    SsoProviderCreated(id=ID, after=_PROVIDER),
    SsoProviderUpdated(id=ID, before=_PROVIDER, after=replace(_PROVIDER, enabled=False)),
    SsoProviderDeleted(id=ID, before=_PROVIDER),
    SsoLoginRefused(id=ID, after=RefusedPerson(email=EMAIL, reason="NO_ROLE", source=ID)),
    AccountLinked(id=ID, after=LinkedAccount(email=EMAIL, source=ID, provider="School sign-in")),
    AccountUnlinked(id=ID, before=LinkedAccount(email=EMAIL, source=ID, provider="School sign-in")),
    SsoProviderTested(id=ID, after=SsoTest(name="School sign-in", ok=False, last_step="keys")),
    EmailDomainAssigned(id=TENANT_ID, after=_DOMAIN),
    EmailDomainUpdated(id=TENANT_ID, before=_DOMAIN, after=replace(_DOMAIN, source_id=ID)),
    EmailDomainDeleted(id=TENANT_ID, before=_DOMAIN),
)
"""One of each."""
