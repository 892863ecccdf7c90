"""What identity tells: tenants, users, sessions and event credentials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, ClassVar, Final, Literal, TypeAlias
from uuid import UUID

from contract.access import Role
from contract.events.base import (
    AT,
    EMAIL,
    ID,
    TENANT_ID,
    Action,
    CallsRefused,
    KeyRotation,
    Outcome,
    Since,
    resources,
)

TenantKind: TypeAlias = Literal["root", "reseller", "org"]
TenantStatus: TypeAlias = Literal["active", "archived", "deleting", "deleted"]
UserStatus: TypeAlias = Literal["active", "invited", "disabled", "deleted"]
UserOrigin: TypeAlias = Literal["local", "directory", "sso", "scim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSnapshot:
    """A tenant."""

    name: str
    code: str
    kind: TenantKind
    parent_id: UUID | None
    language: Annotated[
        str, Since("0.3.0"), "The language of mails; empty for that of the tenant above."
    ] = ""
    time_zone: Annotated[
        str, Since("0.3.0"), "The time zone of mails (IANA); empty for that of the tenant above."
    ] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantStanding:
    """A tenant, and whether it is in use."""

    name: str
    code: str
    kind: TenantKind
    parent_id: UUID | None
    status: TenantStatus
    purge_at: Annotated[datetime | None, "When it is deleted, unless it is restored before."]


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantCodes:
    """The codes that pre-shared keys of a tenant may begin with."""

    name: str
    code: str
    old_codes: Annotated[tuple[str, ...], "Codes that it had before and that still work."]


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRemains:
    """What stays of a deleted tenant."""

    name: str
    code: str
    kind: TenantKind
    parent_id: UUID
    erased_rows: Annotated[Mapping[str, object], "Rows that each service deleted."]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserSnapshot:
    """A user."""

    email: str
    role: Role
    status: UserStatus
    tenant_id: UUID
    origin: Annotated[UserOrigin, Since("0.2.0"), "Where the user comes from."] = "local"
    groups: Annotated[
        tuple[str, ...],
        Since("0.2.0"),
        "The groups of the directory or provider that decided role and tenant.",
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginAttempt:
    """Who tried, and why it failed where somebody else's server judged it."""

    email: str
    reason: Annotated[
        str,
        Since("0.2.0"),
        "What a directory said, as `AD_533`; `CODE_WRONG` or `CODE_USED` where the password was"
        " right and the second factor was not; `LOCAL_LOGIN_OFF` where it was right and only Owners"
        " have passwords here; else empty.",
    ] = ""
    source: Annotated[UUID | None, Since("0.2.0"), "The directory or provider that was asked."] = (
        None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorChange:
    """A second factor, and whose it is."""

    email: str
    method: Literal["totp", "passkey"]
    factor_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorOwner:
    """Whose second factors."""

    email: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInPolicySnapshot:
    """How people of a tenant log in."""

    mfa: Literal["off", "owners", "admins", "all"]
    mfa_required_from: Annotated[
        datetime | None, "From when on they do not get in without one; null with `off`."
    ]
    local_login: Annotated[
        Literal["all", "owners-only"],
        Since("0.3.0"),
        "Who logs in with a password or passkey of here, where a directory or provider is used.",
    ] = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryCodesLeft:
    """Whose recovery codes, and how many can still be used."""

    email: str
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedRecoveryCode:
    """A recovery code that works no more, and how many can still be used."""

    email: str
    code_id: UUID
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """Whose password is being guessed: how many attempts failed, and until when they count."""

    email: str
    failures: int
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSession:
    """The session that was opened."""

    email: str
    session_id: UUID
    methods: Annotated[
        tuple[str, ...],
        Since("0.2.0"),
        "How the user logged in: `pwd` or `sso`, and `otp` or `recovery` beside it; `mfa` where a"
        " provider answers for a second factor; or `passkey`.",
    ] = ()
    source: Annotated[
        UUID | None, Since("0.2.0"), "The directory or provider that recognised the user."
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedSession:
    """The session that has ended."""

    session_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedSessions:
    """Whose sessions have ended, and how many."""

    email: str
    count: int
    session_id: Annotated[UUID | None, "Where it was one."]
    by: Annotated[str, "`backchannel` where a provider ended them; else empty."] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReusedSession:
    """The session that was ended for it."""

    session_id: UUID
    session_ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EventCredentialSnapshot:
    """A credential that reads events; never its secret."""

    name: str
    tenant_id: UUID
    expires_at: datetime | None
    revoked_at: datetime | None
    held_by: Annotated[str, Since("0.2.0")]
    orphaned_at: Annotated[datetime | None, Since("0.2.0")]


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
class MailTest:
    """How a try of the mail server went."""

    address: str
    ok: bool
    error: Annotated[str, "The step, and the codes of the server's answer."] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkedAccount:
    """A user who has a password here and signs in with a provider, too."""

    email: str
    source: UUID
    provider: Annotated[str, "The provider's name."]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimSourceSnapshot:
    """A SCIM source."""

    name: str
    tenant_id: UUID
    enabled: bool
    role_mappings: tuple[MappedRole, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimHolding:
    """From how many users a SCIM source takes access, or would."""

    name: str
    users: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimPerson:
    """A person as a SCIM source says it."""

    source: UUID
    user_name: str
    email: str
    active: bool
    external_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimGroup:
    """A group as a SCIM source says it."""

    source: UUID
    display_name: str
    external_id: str
    members: Annotated[int, "How many people are in it."]
    added: Annotated[tuple[UUID, ...], "Who came in, at most 100 of them."] = ()
    removed: Annotated[tuple[UUID, ...], "Who left, at most 100 of them."] = ()


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
class _ScimSourceAction(Action):
    RESOURCE: ClassVar[str] = "scim-sources/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _ScimPersonAction(Action):
    RESOURCE: ClassVar[str] = "scim-people/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _ScimGroupAction(Action):
    RESOURCE: ClassVar[str] = "scim-groups/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _EmailDomainAction(Action):
    """The id is the tenant's."""

    RESOURCE: ClassVar[str] = "email-domains/{id}"


ApiTokenEnd: TypeAlias = Literal["revoked", "rotated", "holder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiTokenSnapshot:
    """An API token; never what opens anything."""

    name: str
    tenant_id: UUID
    role: Role
    scopes: tuple[str, ...]
    held_by: Annotated[str, "The user, by the e-mail address, or the service account, by its name."]
    service_account_id: UUID | None
    expires_at: datetime
    ends_at: Annotated[datetime, "Until when it works: earlier, where somebody ended it."]
    ended_because: Annotated[
        ApiTokenEnd | None,
        "Who or what ended it: somebody, a rotation, or that its holder may no longer do what it"
        " may.",
    ]
    source_id: Annotated[UUID | None, Since("0.3.0"), "The SCIM source that it is for."] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccountSnapshot:
    """A program that calls the API."""

    name: str
    role: Role
    tenant_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class _TenantAction(Action):
    RESOURCE: ClassVar[str] = "tenants/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _UserAction(Action):
    RESOURCE: ClassVar[str] = "users/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _EventCredentialAction(Action):
    RESOURCE: ClassVar[str] = "event-credentials/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _ApiTokenAction(Action):
    RESOURCE: ClassVar[str] = "tokens/{id}"

    @property
    def related(self) -> Sequence[str]:
        """The service account that holds it."""
        held = getattr(self, "after", None) or getattr(self, "before", None)
        return resources("service-accounts", [getattr(held, "service_account_id", None)])


@dataclass(frozen=True, slots=True, kw_only=True)
class _ServiceAccountAction(Action):
    RESOURCE: ClassVar[str] = "service-accounts/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantCreated(_TenantAction):
    """A tenant was added."""

    NAME: ClassVar[str] = "identity.tenant_created"
    after: TenantSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantUpdated(_TenantAction):
    """A tenant's name or code was changed."""

    NAME: ClassVar[str] = "identity.tenant_updated"
    before: TenantSnapshot
    after: TenantSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantCodeDropped(_TenantAction):
    """An old code of a tenant works no longer."""

    NAME: ClassVar[str] = "identity.tenant_code_dropped"
    before: TenantCodes
    after: TenantCodes


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantArchived(_TenantAction):
    """A tenant was archived: its devices and users are out, its data stays for a while."""

    NAME: ClassVar[str] = "identity.tenant_archived"
    before: TenantStanding
    after: TenantStanding


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRestored(_TenantAction):
    """An archived tenant was restored."""

    NAME: ClassVar[str] = "identity.tenant_restored"
    before: TenantStanding
    after: TenantStanding


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantDeletionRequested(_TenantAction):
    """An archived tenant is being deleted. An event of the tenant above it."""

    NAME: ClassVar[str] = "identity.tenant_deletion_requested"
    before: TenantStanding
    after: TenantStanding


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantDeleted(_TenantAction):
    """Nothing is left of a tenant but its name. An event of the tenant above it."""

    NAME: ClassVar[str] = "identity.tenant_deleted"
    before: TenantStanding
    after: TenantRemains


@dataclass(frozen=True, slots=True, kw_only=True)
class UserCreated(_UserAction):
    """A user was added."""

    NAME: ClassVar[str] = "identity.user_created"
    after: UserSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class UserUpdated(_UserAction):
    """A user got another role or e-mail address."""

    NAME: ClassVar[str] = "identity.user_updated"
    before: UserSnapshot
    after: UserSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class UserMovedAway(_UserAction):
    """A user left the tenant for another one. An event of the tenant that was left."""

    NAME: ClassVar[str] = "identity.user_moved_away"
    before: UserSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class UserMovedIn(_UserAction):
    """A user came to the tenant from another one. An event of the tenant that was entered."""

    NAME: ClassVar[str] = "identity.user_moved_in"
    after: UserSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class UserDeleted(_UserAction):
    """A deactivated user was deleted; the e-mail address is free again."""

    NAME: ClassVar[str] = "identity.user_deleted"
    before: UserSnapshot
    after: UserSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class UserDeactivated(_UserAction):
    """A user was disabled."""

    NAME: ClassVar[str] = "identity.user_deactivated"
    before: UserSnapshot
    after: UserSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class UserReactivated(_UserAction):
    """An administrator no longer keeps a user of a directory out."""

    NAME: ClassVar[str] = "identity.user_reactivated"
    before: UserSnapshot
    after: UserSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class UserInvited(_UserAction):
    """A user was invited (again)."""

    NAME: ClassVar[str] = "identity.user_invited"
    before: UserSnapshot
    after: UserSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordReset(_UserAction):
    """An operator ended a user's password on the server's machine; the user is invited anew."""

    NAME: ClassVar[str] = "identity.password_reset"
    before: UserSnapshot
    after: UserSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginSucceeded(_UserAction):
    """A user logged in."""

    NAME: ClassVar[str] = "identity.login_succeeded"
    after: OpenedSession


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginFailed(_UserAction):
    """Somebody tried to log in as a user and could not."""

    NAME: ClassVar[str] = "identity.login_failed"
    OUTCOME: ClassVar[Outcome] = "failed"
    after: LoginAttempt


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedLogin:
    """With what address somebody tried."""

    email: Annotated[str, "Empty where what was typed does not look like an address."]
    reason: Literal["UNKNOWN_ADDRESS"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginRefused(Action):
    """Somebody tried to log in with an address that no user has; told in the root tenant's log.

    Of a network (a /24 or /64) once in ten minutes; the others are in `identity.logins_refused`.
    """

    NAME: ClassVar[str] = "identity.login_refused"
    OUTCOME: ClassVar[Outcome] = "refused"
    RESOURCE: ClassVar[str] = "logins/{id}"
    after: RefusedLogin


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedLogins:
    """How many tried, and from where."""

    count: int
    sources: Annotated[tuple[str, ...], "The ten networks with the most attempts."]
    reason: Literal["UNKNOWN_ADDRESS"]
    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginsRefused(Action):
    """Further logins of ten minutes with addresses that no user has."""

    NAME: ClassVar[str] = "identity.logins_refused"
    OUTCOME: ClassVar[Outcome] = "refused"
    RESOURCE: ClassVar[str] = "logins/{id}"
    after: RefusedLogins


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountUnderAttack(_UserAction):
    """A hundred logins of a user failed within a day; told once a day."""

    NAME: ClassVar[str] = "identity.account_under_attack"
    after: Attack


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedOut(_UserAction):
    """A user logged out."""

    NAME: ClassVar[str] = "identity.logged_out"
    after: EndedSession


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionsEnded(_UserAction):
    """Sessions of a user were ended, by the user or by somebody who manages users."""

    NAME: ClassVar[str] = "identity.sessions_ended"
    after: EndedSessions


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordChanged(_UserAction):
    """A user changed the own password."""

    NAME: ClassVar[str] = "identity.password_changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordResetRequested(_UserAction):
    """Somebody asked for a link with which the user sets a new password; it was sent to the user's
    address."""

    NAME: ClassVar[str] = "identity.password_reset_requested"
    after: FactorOwner


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondFactorEnabled(_UserAction):
    """A user confirmed a second factor, or another one in its place."""

    NAME: ClassVar[str] = "identity.mfa_enabled"
    after: FactorChange


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondFactorDisabled(_UserAction):
    """A second factor of a user opens nothing any more."""

    NAME: ClassVar[str] = "identity.mfa_disabled"
    after: FactorChange


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryCodesCreated(_UserAction):
    """A user made recovery codes; those that there were work no more."""

    NAME: ClassVar[str] = "identity.recovery_codes_created"
    after: RecoveryCodesLeft


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryCodeUsed(_UserAction):
    """A user logged in with a recovery code."""

    NAME: ClassVar[str] = "identity.recovery_code_used"
    after: UsedRecoveryCode


@dataclass(frozen=True, slots=True, kw_only=True)
class PasskeyAdded(_UserAction):
    """A user added a passkey."""

    NAME: ClassVar[str] = "identity.passkey_added"
    after: FactorChange


@dataclass(frozen=True, slots=True, kw_only=True)
class PasskeyRemoved(_UserAction):
    """A passkey of a user opens nothing any more."""

    NAME: ClassVar[str] = "identity.passkey_removed"
    after: FactorChange


@dataclass(frozen=True, slots=True, kw_only=True)
class PasskeyCounterBehind(_UserAction):
    """A passkey was refused: its device has counted less than before, as a copy of it would."""

    NAME: ClassVar[str] = "identity.passkey_counter_behind"
    after: FactorChange


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondFactorsReset(_UserAction):
    """An Owner, or an operator on the server's machine, removed all second factors of a user."""

    NAME: ClassVar[str] = "identity.mfa_reset"
    after: FactorOwner


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInPolicyUpdated(_TenantAction):
    """A tenant asks others for a second factor, or from another day on; or others log in with what
    they have here."""

    NAME: ClassVar[str] = "identity.sign_in_policy_updated"
    before: SignInPolicySnapshot
    after: SignInPolicySnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfirmed(_UserAction):
    """A user confirmed with the password, and the second factor, who uses a session."""

    NAME: ClassVar[str] = "identity.session_confirmed"
    after: OpenedSession


@dataclass(frozen=True, slots=True, kw_only=True)
class InvitationAccepted(_UserAction):
    """An invited user set a password and logged in."""

    NAME: ClassVar[str] = "identity.invitation_accepted"
    after: OpenedSession


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshTokenReused(_UserAction):
    """A refresh token was used twice; its session was ended."""

    NAME: ClassVar[str] = "identity.refresh_token_reused"
    OUTCOME: ClassVar[Outcome] = "refused"
    after: ReusedSession


@dataclass(frozen=True, slots=True, kw_only=True)
class EventCredentialCreated(_EventCredentialAction):
    """A credential that reads events was made."""

    NAME: ClassVar[str] = "identity.event_credential_created"
    after: EventCredentialSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class EventCredentialRevoked(_EventCredentialAction):
    """A credential that reads events was revoked; its connections are cut."""

    NAME: ClassVar[str] = "identity.event_credential_revoked"
    before: EventCredentialSnapshot
    after: EventCredentialSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class EventCredentialOrphaned(_EventCredentialAction):
    """The holder of a credential that reads events was disabled; its connections are cut."""

    NAME: ClassVar[str] = "identity.event_credential_orphaned"
    before: EventCredentialSnapshot
    after: EventCredentialSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class EventCredentialTakenOver(_EventCredentialAction):
    """A credential that reads events got another holder; one that was orphaned works again."""

    NAME: ClassVar[str] = "identity.event_credential_taken_over"
    before: EventCredentialSnapshot
    after: EventCredentialSnapshot


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
class MailTested(_TenantAction):
    """An Owner of the root tenant had a mail sent for a try."""

    NAME: ClassVar[str] = "identity.mail_tested"
    after: MailTest


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
class AccountLinked(_UserAction):
    """A user with a password here signs in with a provider, too."""

    NAME: ClassVar[str] = "identity.account_linked"
    after: LinkedAccount


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountUnlinked(_UserAction):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimSourceCreated(_ScimSourceAction):
    """A SCIM source was added."""

    NAME: ClassVar[str] = "identity.scim_source_created"
    after: ScimSourceSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimSourceUpdated(_ScimSourceAction):
    """A SCIM source was changed."""

    NAME: ClassVar[str] = "identity.scim_source_updated"
    before: ScimSourceSnapshot
    after: ScimSourceSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimSourceDeleted(_ScimSourceAction):
    """A SCIM source was deleted, and its users were disabled."""

    NAME: ClassVar[str] = "identity.scim_source_deleted"
    before: ScimSourceSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimSourceHeld(_ScimSourceAction):
    """A SCIM source would take access from many users: an Owner has to confirm."""

    NAME: ClassVar[str] = "identity.scim_source_held"
    after: ScimHolding


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimSourceConfirmed(_ScimSourceAction):
    """An Owner let a SCIM source take access from those who were held."""

    NAME: ClassVar[str] = "identity.scim_source_confirmed"
    after: ScimHolding


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimPersonCreated(_ScimPersonAction):
    """A SCIM source sent a person."""

    NAME: ClassVar[str] = "identity.scim_person_created"
    after: ScimPerson


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimPersonUpdated(_ScimPersonAction):
    """A SCIM source changed a person."""

    NAME: ClassVar[str] = "identity.scim_person_updated"
    before: ScimPerson
    after: ScimPerson


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimPersonDeleted(_ScimPersonAction):
    """A SCIM source has a person no more."""

    NAME: ClassVar[str] = "identity.scim_person_deleted"
    before: ScimPerson


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimGroupCreated(_ScimGroupAction):
    """A SCIM source sent a group."""

    NAME: ClassVar[str] = "identity.scim_group_created"
    after: ScimGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimGroupUpdated(_ScimGroupAction):
    """A SCIM source changed a group or its members."""

    NAME: ClassVar[str] = "identity.scim_group_updated"
    before: ScimGroup
    after: ScimGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimGroupDeleted(_ScimGroupAction):
    """A SCIM source has a group no more."""

    NAME: ClassVar[str] = "identity.scim_group_deleted"
    before: ScimGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiTokenCreated(_ApiTokenAction):
    """An API token was made."""

    NAME: ClassVar[str] = "identity.api_token_created"
    after: ApiTokenSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiTokenRotated(_ApiTokenAction):
    """An API token got a successor, and works on for as long as was asked for."""

    NAME: ClassVar[str] = "identity.api_token_rotated"
    before: ApiTokenSnapshot
    after: ApiTokenSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiTokenRevoked(_ApiTokenAction):
    """An API token was ended before its time."""

    NAME: ClassVar[str] = "identity.api_token_revoked"
    before: ApiTokenSnapshot
    after: ApiTokenSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiTokenExpiresSoon(_ApiTokenAction):
    """An API token without a successor expires within two weeks."""

    NAME: ClassVar[str] = "identity.api_token_expires_soon"
    after: ApiTokenSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiTokenExpired(_ApiTokenAction):
    """An API token has expired."""

    NAME: ClassVar[str] = "identity.api_token_expired"
    after: ApiTokenSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccountCreated(_ServiceAccountAction):
    """A service account was made."""

    NAME: ClassVar[str] = "identity.service_account_created"
    after: ServiceAccountSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccountUpdated(_ServiceAccountAction):
    """A service account got another name or role."""

    NAME: ClassVar[str] = "identity.service_account_updated"
    before: ServiceAccountSnapshot
    after: ServiceAccountSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccountDeleted(_ServiceAccountAction):
    """A service account was deleted; its API tokens have ended."""

    NAME: ClassVar[str] = "identity.service_account_deleted"
    before: ServiceAccountSnapshot


_TENANT: Final = TenantSnapshot(
    name="North school",
    code="north",
    kind="org",
    parent_id=TENANT_ID,
)
_IN_USE: Final = TenantStanding(
    name="North school",
    code="north",
    kind="org",
    parent_id=TENANT_ID,
    status="active",
    purge_at=None,
)
_ARCHIVED: Final = replace(_IN_USE, status="archived", purge_at=AT)
_CODES: Final = TenantCodes(name="North school", code="north", old_codes=())
_DELETING: Final = replace(_ARCHIVED, status="deleting")
_USER: Final = UserSnapshot(email=EMAIL, role=Role.ADMIN, status="active", tenant_id=TENANT_ID)
_OPENED: Final = OpenedSession(email=EMAIL, session_id=TENANT_ID)
_FACTOR: Final = FactorChange(email=EMAIL, method="totp", factor_id=ID)
_CREDENTIAL: Final = EventCredentialSnapshot(
    name="SIEM",
    tenant_id=TENANT_ID,
    expires_at=AT,
    revoked_at=None,
    held_by=EMAIL,
    orphaned_at=None,
)
_ORPHAN: Final = replace(_CREDENTIAL, orphaned_at=AT)
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


_SCIM_SOURCE: Final = ScimSourceSnapshot(
    name="Entra",
    tenant_id=TENANT_ID,
    enabled=True,
    role_mappings=(MappedRole(group="eg-admins", role=Role.ADMIN, tenant_id=TENANT_ID),),
)
_SCIM_PERSON: Final = ScimPerson(
    source=ID, user_name=EMAIL, email=EMAIL, active=True, external_id="5f1c"
)
_SCIM_GROUP: Final = ScimGroup(source=ID, display_name="eg-admins", external_id="77ab", members=3)
_TOKEN: Final = ApiTokenSnapshot(
    name="Nightly report",
    tenant_id=TENANT_ID,
    role=Role.ADMIN,
    scopes=("devices:read", "policies:write"),
    held_by=EMAIL,
    service_account_id=None,
    expires_at=AT,
    ends_at=AT,
    ended_because=None,
)
_SERVICE_ACCOUNT: Final = ServiceAccountSnapshot(
    name="Inventory sync", role=Role.ADMIN, tenant_id=TENANT_ID
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRotated(KeyRotation):
    """The next key that signs tokens was made."""

    NAME: ClassVar[str] = "identity.key_rotated"


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityCallsRefused(CallsRefused):
    """Calls of a user to identity were refused.

    Told every ten seconds, once for each user, RPC and reason. `ROLE_MAY_NOT`: the user's role may
    not do this. `FOREIGN_TENANT`: the call names a tenant that exists, and is not below the user's.
    """

    NAME: ClassVar[str] = "identity.calls_refused"


EXAMPLES: Final[tuple[Action, ...]] = (
    TenantCreated(id=ID, after=_TENANT),
    TenantUpdated(id=ID, before=_TENANT, after=_TENANT),
    TenantCodeDropped(id=ID, before=replace(_CODES, old_codes=("nord",)), after=_CODES),
    TenantArchived(id=ID, before=_IN_USE, after=_ARCHIVED),
    TenantRestored(id=ID, before=_ARCHIVED, after=_IN_USE),
    TenantDeletionRequested(id=ID, before=_ARCHIVED, after=_DELETING),
    TenantDeleted(
        id=ID,
        before=_DELETING,
        after=TenantRemains(
            name="North school",
            code="north",
            kind="org",
            parent_id=TENANT_ID,
            erased_rows={"identity": 12, "enrollment": 340, "telemetry": 90210},
        ),
    ),
    UserCreated(id=ID, after=_USER),
    UserUpdated(id=ID, before=_USER, after=_USER),
    UserMovedAway(id=ID, before=_USER),
    UserMovedIn(id=ID, after=_USER),
    UserDeactivated(id=ID, before=_USER, after=_USER),
    UserDeleted(
        id=ID,
        before=replace(_USER, status="disabled"),
        after=replace(_USER, status="deleted"),
    ),
    UserReactivated(
        id=ID,
        before=replace(_USER, status="disabled", origin="directory"),
        after=replace(_USER, status="disabled", origin="directory"),
    ),
    UserInvited(id=ID, before=_USER, after=_USER),
    PasswordReset(id=ID, before=_USER, after=replace(_USER, status="invited")),
    LoginSucceeded(id=ID, after=_OPENED),
    LoginFailed(id=ID, after=LoginAttempt(email=EMAIL)),
    LoginRefused(id=ID, after=RefusedLogin(email=EMAIL, reason="UNKNOWN_ADDRESS")),
    LoginsRefused(
        id=ID,
        after=RefusedLogins(
            count=12, sources=("192.0.2.0/24",), reason="UNKNOWN_ADDRESS", since=AT, until=AT
        ),
    ),
    AccountUnderAttack(id=ID, after=Attack(email=EMAIL, failures=100, until=AT)),
    LoggedOut(id=ID, after=EndedSession(session_id=TENANT_ID)),
    SessionsEnded(id=ID, after=EndedSessions(email=EMAIL, count=1, session_id=TENANT_ID)),
    PasswordChanged(id=ID),
    PasswordResetRequested(id=ID, after=FactorOwner(email=EMAIL)),
    MailTested(id=ID, after=MailTest(address=EMAIL, ok=False, error="CONNECTION_REFUSED")),
    SecondFactorEnabled(id=ID, after=_FACTOR),
    SecondFactorDisabled(id=ID, after=_FACTOR),
    PasskeyAdded(id=ID, after=replace(_FACTOR, method="passkey")),
    PasskeyRemoved(id=ID, after=replace(_FACTOR, method="passkey")),
    PasskeyCounterBehind(id=ID, after=replace(_FACTOR, method="passkey")),
    SecondFactorsReset(id=ID, after=FactorOwner(email=EMAIL)),
    SignInPolicyUpdated(
        id=ID,
        before=SignInPolicySnapshot(mfa="off", mfa_required_from=None),
        after=SignInPolicySnapshot(mfa="owners", mfa_required_from=AT),
    ),
    SessionConfirmed(id=ID, after=_OPENED),
    RecoveryCodesCreated(id=ID, after=RecoveryCodesLeft(email=EMAIL, left=10)),
    RecoveryCodeUsed(id=ID, after=UsedRecoveryCode(email=EMAIL, code_id=TENANT_ID, left=9)),
    InvitationAccepted(id=ID, after=_OPENED),
    RefreshTokenReused(id=ID, after=ReusedSession(session_id=TENANT_ID, session_ended=True)),
    EventCredentialCreated(id=ID, after=_CREDENTIAL),
    EventCredentialRevoked(id=ID, before=_CREDENTIAL, after=replace(_CREDENTIAL, revoked_at=AT)),
    EventCredentialOrphaned(id=ID, before=_CREDENTIAL, after=_ORPHAN),
    EventCredentialTakenOver(
        id=ID, before=_ORPHAN, after=replace(_CREDENTIAL, held_by="owner@school.example")
    ),
    ApiTokenCreated(id=ID, after=_TOKEN),
    ApiTokenRotated(id=ID, before=_TOKEN, after=replace(_TOKEN, ended_because="rotated")),
    ApiTokenRevoked(id=ID, before=_TOKEN, after=replace(_TOKEN, ended_because="revoked")),
    ApiTokenExpiresSoon(id=ID, after=_TOKEN),
    ApiTokenExpired(id=ID, after=_TOKEN),
    ServiceAccountCreated(id=ID, after=_SERVICE_ACCOUNT),
    ServiceAccountUpdated(
        id=ID, before=_SERVICE_ACCOUNT, after=replace(_SERVICE_ACCOUNT, role=Role.AUDITOR)
    ),
    ServiceAccountDeleted(id=ID, before=_SERVICE_ACCOUNT),
    KeyRotated.example("users"),
    IdentityCallsRefused.example("UserService/CreateUser"),
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
    ScimSourceCreated(id=ID, after=_SCIM_SOURCE),
    ScimSourceUpdated(id=ID, before=_SCIM_SOURCE, after=replace(_SCIM_SOURCE, enabled=False)),
    ScimSourceDeleted(id=ID, before=_SCIM_SOURCE),
    ScimSourceHeld(id=ID, after=ScimHolding(name="Entra", users=40)),
    ScimSourceConfirmed(id=ID, after=ScimHolding(name="Entra", users=40)),
    ScimPersonCreated(id=ID, after=_SCIM_PERSON),
    ScimPersonUpdated(id=ID, before=_SCIM_PERSON, after=replace(_SCIM_PERSON, active=False)),
    ScimPersonDeleted(id=ID, before=_SCIM_PERSON),
    ScimGroupCreated(id=ID, after=_SCIM_GROUP),
    ScimGroupUpdated(id=ID, before=_SCIM_GROUP, after=replace(_SCIM_GROUP, members=4, added=(ID,))),
    ScimGroupDeleted(id=ID, before=_SCIM_GROUP),
    SsoProviderTested(id=ID, after=SsoTest(name="School sign-in", ok=False, last_step="keys")),
    EmailDomainAssigned(id=TENANT_ID, after=_DOMAIN),
    EmailDomainUpdated(id=TENANT_ID, before=_DOMAIN, after=replace(_DOMAIN, source_id=ID)),
    EmailDomainDeleted(id=TENANT_ID, before=_DOMAIN),
)
"""One of each; this is the list of what identity sends."""
