"""What a backup and a restore have to know of identity's schema.

After going back in time nobody is logged in: sessions end, and the key that signs users' tokens is
made anew, for a token of a session that began after the backup cannot be recognised. Users are what
they were last known to be, with their second factors, and credentials and API tokens that were
revoked stay revoked. Keys of API tokens stay, for the services refuse a token that the database
does not know (`servicekit.peers.api_tokens`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from contract.access import Role
from contract.events.identity.programs import (
    ApiTokenRevoked,
    ApiTokenRotated,
    EventCredentialRevoked,
    ServiceAccountDeleted,
)
from contract.events.identity.sign_in import InvitationAccepted
from servicekit.data.backup import Connection, Recorded, Tables, Tenants
from services.identity.directories.domain import SEALED_FOR as DIRECTORY_SEALED_FOR
from services.identity.mail.domain import SEALED_FOR as MAIL_SEALED_FOR
from services.identity.scim.restored import KnownScim, bring_scim
from services.identity.second_factor.domain import SEALED_FOR as FACTORS_SEALED_FOR
from services.identity.second_factor.restored import KnownFactors, bring_factors
from services.identity.sources.restored import KnownSources, close_sources
from services.identity.sso.domain import SEALED_FOR as SSO_SEALED_FOR
from services.identity.token_keys.tokens import SEALED_FOR

TABLES: Final = Tables(
    # Failed logins of the last hours, and logins that are under way. Mails that waited are not sent
    # after a restore, and links for new passwords open nothing: neither is in a backup.
    made_anew=frozenset(
        {
            "guess",
            "login_challenge",
            "spent_challenge",
            "sso_used",
            "mail",
            "mail_server",
            "password_reset",
        }
    ),
    sealed={"signing_key": SEALED_FOR},
    secrets={
        "directory": DIRECTORY_SEALED_FOR,
        "sso_provider": SSO_SEALED_FOR,
        "totp": FACTORS_SEALED_FOR,
        "recovery_code": FACTORS_SEALED_FOR,
    },
    passing={"mail": MAIL_SEALED_FOR},
    signs_of_use=frozenset({"tenant"}),
)


@dataclass(frozen=True, slots=True)
class Login:
    """What opens an account: the hashes of its password and of its open invitation."""

    password_hash: str | None = field(repr=False)
    prepared_hash: str | None = field(repr=False)
    invitation_hash: bytes | None = field(repr=False)
    invitation_expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class KnownUser:
    """A user as last known; what is empty is not known."""

    at: datetime
    role: str = ""
    status: str = ""
    tenant_id: UUID | None = None
    voided: bool = False
    """Whether an invitation has ended the password of the backup, or was itself used."""
    login: Login | None = None
    origin: str = ""
    disabled_by: str = ""
    kept_from_sources: bool = False


@dataclass(slots=True)
class Known:
    """What is known of users and of integrators' credentials since the backup."""

    users: dict[UUID, KnownUser] = field(default_factory=dict)
    revoked_credentials: set[UUID] = field(default_factory=set)
    ended_tokens: set[UUID] = field(default_factory=set)
    deleted_service_accounts: set[UUID] = field(default_factory=set)
    factors: KnownFactors = field(default_factory=KnownFactors)
    sources: KnownSources = field(default_factory=KnownSources)
    scim: KnownScim = field(default_factory=KnownScim)

    def user(self, user_id: UUID, user: KnownUser) -> None:
        """Takes what is known of a user; the newest counts, and what it does not say stays."""
        known = self.users.get(user_id)
        if known is None:
            self.users[user_id] = user
            return
        older, newer = (known, user) if known.at <= user.at else (user, known)
        self.users[user_id] = (
            newer
            if newer.login
            else replace(
                newer,
                role=newer.role or older.role,
                status=newer.status or older.status,
                tenant_id=newer.tenant_id or older.tenant_id,
                origin=newer.origin or older.origin,
                voided=newer.voided or older.voided,
            )
        )

    async def read(self, connection: Connection) -> None:
        """Takes what a database knows that is about to be replaced."""
        now = await connection.fetchval("SELECT now()")
        for row in await connection.fetch(
            "SELECT id, tenant_id, role, status, password_hash,"
            # An older database has no such column.
            " to_jsonb(account) ->> 'prepared_hash' AS prepared_hash, invitation_hash,"
            " coalesce(to_jsonb(account) ->> 'origin', 'local') AS origin,"
            " coalesce(to_jsonb(account) ->> 'disabled_by', '') AS disabled_by,"
            " coalesce((to_jsonb(account) ->> 'kept_from_sources')::boolean, false) AS kept,"
            " invitation_expires_at FROM identity.account"
        ):
            login = Login(
                password_hash=row["password_hash"],
                prepared_hash=row["prepared_hash"],
                invitation_hash=row["invitation_hash"],
                invitation_expires_at=row["invitation_expires_at"],
            )
            self.user(
                row["id"],
                KnownUser(
                    now,
                    row["role"],
                    row["status"],
                    row["tenant_id"],
                    login=login,
                    origin=row["origin"],
                    disabled_by=row["disabled_by"],
                    kept_from_sources=row["kept"],
                ),
            )
        if await connection.fetchval("SELECT to_regclass('identity.user_tombstone')") is not None:
            # Who was deleted was deactivated before; the backup may have the user active.
            for row in await connection.fetch("SELECT id FROM identity.user_tombstone"):
                self.user(row["id"], KnownUser(now, status="disabled"))
        await self.factors.read(connection)
        await self.sources.read(connection)
        await self.scim.read(connection)
        if await _has_credentials(connection):
            credentials = await connection.fetch(
                "SELECT id FROM identity.event_credential WHERE revoked_at IS NOT NULL"
            )
            self.revoked_credentials.update(row["id"] for row in credentials)
        if await _has_tokens(connection):
            # One that was rotated has a successor that the backup may not have: it ends, too.
            ended = await connection.fetch(
                "SELECT id FROM identity.api_token WHERE ended_because IS NOT NULL"
            )
            self.ended_tokens.update(row["id"] for row in ended)
            deleted = await connection.fetch(
                "SELECT id FROM identity.service_account WHERE deleted_at IS NOT NULL"
            )
            self.deleted_service_accounts.update(row["id"] for row in deleted)

    def learn(self, entry: Recorded) -> None:
        """Takes an entry of the audit log."""
        after = entry.after
        self.factors.learn(entry)
        self.sources.learn(entry)
        self.scim.learn(entry)
        if entry.kind == "users" and "status" in after:
            role, status = Role(after["role"]).value, str(after["status"])
            # A deleted user who is in the backup comes back, and stays out.
            status = "disabled" if status == "deleted" else status
            voided = status == "invited"
            tenant_id = UUID(after["tenantId"]) if after.get("tenantId") else None
            origin = str(after.get("origin") or "")
            known = KnownUser(entry.at, role, status, tenant_id, voided, origin=origin)
            self.user(UUID(entry.name), known)
        elif entry.action == InvitationAccepted.NAME:
            self.user(UUID(entry.name), KnownUser(entry.at, voided=True))
        elif entry.action == EventCredentialRevoked.NAME:
            self.revoked_credentials.add(UUID(entry.name))
        elif entry.action in {ApiTokenRevoked.NAME, ApiTokenRotated.NAME}:
            self.ended_tokens.add(UUID(entry.name))
        elif entry.action == ServiceAccountDeleted.NAME:
            self.deleted_service_accounts.add(UUID(entry.name))


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a restore did to logins, and the tenants that came back."""

    sessions: int
    """Sessions that ended."""
    tenants: Tenants
    default_tenant: str
    """The organisation that the first start made, if it is still there."""
    has_owner: bool
    """Whether an Owner of the root tenant can log in."""


async def installation(connection: Connection) -> UUID | None:
    """What names an installation, and what is restored from its backups: its root tenant."""
    found: UUID | None = await connection.fetchval(
        "SELECT id FROM identity.tenant WHERE kind = 'root'"
    )
    return found


async def has_started(connection: Connection) -> bool:
    """Whether the service has run since the restore: it has made its users' key then."""
    started: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM identity.signing_key WHERE purpose = 'users')"
    )
    return started


async def repair(connection: Connection, known: Known) -> Repaired:
    """Ends what was open, and brings users and credentials to what they were last known to be."""
    sessions: str = await connection.execute(
        "UPDATE identity.session SET ended_at = now(), changed_xid = pg_current_xact_id()"
        " WHERE ended_at IS NULL"
    )
    await connection.execute("DELETE FROM identity.signing_key WHERE purpose = 'users'")
    await _bring_users(connection, known)
    if await _has_column(connection, "seen_at"):
        # Nobody could be seen between the backup and now.
        await connection.execute("UPDATE identity.account SET seen_at = now()")
    if await _has_column(connection, "origin"):
        await _bring_origins(connection, known)
    await bring_factors(connection, known.factors)
    await close_sources(connection, known.sources)
    await bring_scim(connection, known.scim)
    # An older archive has no such table.
    if await _has_credentials(connection):
        await connection.execute(
            "UPDATE identity.event_credential SET revoked_at = now()"
            " WHERE id = ANY ($1) AND revoked_at IS NULL",
            list(known.revoked_credentials),
        )
    if await _has_tokens(connection):
        # After the users, whose tokens may have ended with what they are now.
        await connection.execute(
            "UPDATE identity.api_token SET ends_at = now(), ended_because = 'revoked',"
            " changed_xid = pg_current_xact_id() WHERE id = ANY ($1) AND ends_at > now()",
            list(known.ended_tokens),
        )
        await connection.execute(
            "UPDATE identity.service_account SET deleted_at = now(), deleted_by = 'restore'"
            " WHERE id = ANY ($1) AND deleted_at IS NULL",
            list(known.deleted_service_accounts),
        )
    default = await connection.fetchval("SELECT id FROM identity.tenant WHERE code = 'default'")
    return Repaired(
        int(sessions.rsplit(" ", 1)[1]),
        await _tenants(connection),
        str(default or ""),
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM identity.account a JOIN identity.tenant t"
            " ON t.id = a.tenant_id WHERE t.kind = 'root' AND a.role = 'Owner'"
            " AND a.status = 'active' AND a.password_hash IS NOT NULL)"
        ),
    )


async def _bring_users(connection: Connection, known: Known) -> None:
    """Brings users to what they were last known to be.

    Where only the log of it is known, not the login itself, a password that was ended stays so:
    the user has to be invited again. Nobody is added: that would give, not take away.
    """
    await connection.executemany(
        "UPDATE identity.account SET role = $2, status = $3, password_hash = $4,"
        " invitation_hash = $5, invitation_expires_at = $6, updated_at = now() WHERE id = $1"
        " AND (role, status, password_hash, invitation_hash) IS DISTINCT FROM ($2, $3, $4, $5)",
        [
            (
                user_id,
                user.role,
                user.status,
                user.login.password_hash,
                user.login.invitation_hash,
                user.login.invitation_expires_at,
            )
            for user_id, user in known.users.items()
            if user.login
        ],
    )
    moved = [(user_id, user.tenant_id) for user_id, user in known.users.items() if user.tenant_id]
    await connection.executemany(
        # Into an organisation that came back, too; else out.
        "UPDATE identity.account a SET tenant_id = coalesce(t.id, a.tenant_id),"
        " status = CASE WHEN t.id IS NULL THEN 'disabled' ELSE a.status END"
        " FROM (SELECT 1) one LEFT JOIN identity.tenant t ON t.id = $2"
        " WHERE a.id = $1 AND a.tenant_id <> $2",
        moved,
    )
    if await _has_column(connection, "prepared_hash"):
        await connection.executemany(
            "UPDATE identity.account SET prepared_hash = $2 WHERE id = $1 AND password_hash = $3",
            [
                (user_id, user.login.prepared_hash, user.login.password_hash)
                for user_id, user in known.users.items()
                if user.login
            ],
        )
    await connection.executemany(
        "UPDATE identity.account SET role = coalesce(nullif($2, ''), role),"
        " status = CASE WHEN $3 = 'disabled' THEN 'disabled' WHEN $4 THEN 'invited'"
        " ELSE status END,"
        " password_hash = CASE WHEN $4 THEN NULL ELSE password_hash END,"
        " invitation_hash = CASE WHEN $4 THEN NULL ELSE invitation_hash END,"
        " invitation_expires_at = CASE WHEN $4 THEN NULL ELSE invitation_expires_at END,"
        " updated_at = now() WHERE id = $1",
        [
            (user_id, user.role, user.status, user.voided)
            for user_id, user in known.users.items()
            if not user.login
        ],
    )


async def _bring_origins(connection: Connection, known: Known) -> None:
    """Keeps those out whom an administrator has disabled, whatever a directory says of them, and
    lets those be local again who became so since; who is neither is invited, and comes by the
    directory again."""
    users = known.users.items()
    await connection.execute(
        "UPDATE identity.account SET disabled_by = 'admin'"
        " WHERE id = ANY ($1) AND status = 'disabled'",
        [i for i, user in users if user.status == "disabled" and user.disabled_by != "source"],
    )
    local = [user_id for user_id, user in users if user.origin == "local"]
    if await _has_column(connection, "kept_from_sources"):
        await _keep_from_sources(connection, known)
    await connection.execute(
        "DELETE FROM identity.external_identity i USING identity.account a"
        " WHERE a.id = i.account_id AND a.id = ANY ($1) AND a.origin <> 'local'",
        local,
    )
    await connection.execute(
        "UPDATE identity.account SET origin = 'local' WHERE id = ANY ($1)", local
    )
    await connection.execute(
        "UPDATE identity.account SET status = 'invited' WHERE origin = 'local'"
        " AND status = 'active' AND password_hash IS NULL AND id = ANY ($1)",
        [user_id for user_id, user in users if user.origin not in {"", "local"}],
    )


async def _keep_from_sources(connection: Connection, known: Known) -> None:
    """Lets no source take those over whom an Owner has taken out of one; where only the log of it
    is known, all who were of a source in the backup and are local now."""
    users = known.users.items()
    await connection.executemany(
        "UPDATE identity.account SET kept_from_sources = $2 WHERE id = $1",
        [(user_id, user.kept_from_sources) for user_id, user in users if user.login],
    )
    await connection.execute(
        "UPDATE identity.account SET kept_from_sources = true"
        " WHERE id = ANY ($1) AND origin <> 'local'",
        [user_id for user_id, user in users if user.origin == "local" and not user.login],
    )


async def _tenants(connection: Connection) -> Tenants:
    rows = await connection.fetch("SELECT id, kind FROM identity.tenant")
    return Tenants(
        next((row["id"] for row in rows if row["kind"] == "root"), None),
        frozenset(row["id"] for row in rows if row["kind"] == "org"),
        frozenset(row["id"] for row in rows),
    )


async def _has_column(connection: Connection, name: str) -> bool:
    """Whether users have a column; an older archive does not."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'identity.account'::regclass"
        " AND attname = $1 AND NOT attisdropped)",
        name,
    )
    return found


async def _has_credentials(connection: Connection) -> bool:
    table = await connection.fetchval("SELECT to_regclass('identity.event_credential')")
    return table is not None


async def _has_tokens(connection: Connection) -> bool:
    table = await connection.fetchval("SELECT to_regclass('identity.api_token')")
    return table is not None
