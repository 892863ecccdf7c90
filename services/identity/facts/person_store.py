"""What identity holds about one person, for an export. Hashes and keys stay."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection
from servicekit.rpc.persons import Person, Table

_OF_ACCOUNT: Final = "account_id = ANY ($2)"
_JOINED: Final = "JOIN identity.account a ON a.id = o.account_id"

TABLES: Final = (
    Table(
        kind="account",
        source="identity.account",
        own="id = ANY ($2)",
        shown=(
            "id", "email", "role", "status", "origin", "disabled_by", "created_at", "updated_at",
            "activated_at", "last_login_at", "seen_at", "invitation_expires_at",
            "password_hash IS NOT NULL AS has_a_password",
        ),
    ),
    Table(
        kind="deleted account",
        source="identity.user_tombstone",
        own="id = ANY ($2)",
        shown=("id", "email", "role", "created_at", "deleted_at", "deleted_by"),
    ),
    Table(
        kind="session",
        source="identity.session",
        own=_OF_ACCOUNT,
        shown=(
            "id", "created_at", "expires_at", "ended_at", "last_seen_at", "authenticated_at",
            "methods", "source_id", "source_ip", "user_agent",
        ),
    ),
    Table(
        kind="known browser or network",
        source=f"identity.familiar o {_JOINED}",
        key=(("o.account_id", "uuid"), ("o.kind", "text"), ("o.key", "bytea")),
        of_tenant="a.tenant_id = $1",
        own="o.account_id = ANY ($2)",
        shown=("o.kind AS kind", "o.seen_at AS seen_at"),
    ),
    Table(
        kind="authenticator app",
        source=f"identity.totp o {_JOINED}",
        key=(("o.id", "uuid"),),
        of_tenant="a.tenant_id = $1",
        own="o.account_id = ANY ($2)",
        shown=("o.id AS id", "o.created_at AS created_at", "o.confirmed_at AS confirmed_at"),
    ),
    Table(
        kind="recovery code",
        source=f"identity.recovery_code o {_JOINED}",
        key=(("o.id", "uuid"),),
        of_tenant="a.tenant_id = $1",
        own="o.account_id = ANY ($2)",
        shown=("o.id AS id", "o.used_at AS used_at"),
    ),
    Table(
        kind="passkey",
        source=f"identity.passkey o {_JOINED}",
        key=(("o.id", "uuid"),),
        of_tenant="a.tenant_id = $1",
        own="o.account_id = ANY ($2)",
        shown=(
            "o.id AS id", "o.name AS name", "o.site AS site", "o.created_at AS created_at",
            "o.last_used_at AS last_used_at",
        ),
    ),
    Table(
        kind="link for a new password",
        source=f"identity.password_reset o {_JOINED}",
        key=(("o.account_id", "uuid"),),
        of_tenant="a.tenant_id = $1",
        own="o.account_id = ANY ($2)",
        shown=("o.email AS email", "o.expires_at AS expires_at"),
    ),
    Table(
        kind="person of a source",
        source="identity.external_identity o JOIN identity.source s ON s.id = o.source_id",
        key=(("o.source_id", "uuid"), ("o.subject", "text")),
        of_tenant="o.tenant_id = $1",
        own="o.account_id = ANY ($2)",
        whole=True,
        shown=(
            "o.account_id AS account_id", "s.kind AS source_kind", "s.name AS source_name",
            "o.groups_seen AS groups_seen", "o.last_login_at AS last_login_at",
            "o.seen_at AS seen_at", "o.missing_since AS missing_since", "o.lost_at AS lost_at",
        ),
        searched=("o.subject AS subject", "o.email_seen AS email_seen"),
    ),
    Table(
        kind="person of SCIM",
        source="identity.scim_person o JOIN identity.source s ON s.id = o.source_id",
        key=(("o.id", "uuid"),),
        of_tenant="o.tenant_id = $1",
        own="EXISTS (SELECT FROM identity.external_identity e WHERE e.source_id = o.source_id"
        " AND e.subject = o.id::text AND e.account_id = ANY ($2))",
        whole=True,
        shown=(
            "o.id AS id", "s.name AS source_name", "o.active AS active", "o.problem AS problem",
            "o.created_at AS created_at", "o.updated_at AS updated_at",
            "o.deleted_at AS deleted_at",
            "ARRAY(SELECT g.display_name FROM identity.scim_member m"
            " JOIN identity.scim_group g ON g.id = m.group_id"
            " WHERE m.person_id = o.id ORDER BY g.display_name) AS groups",
        ),
        searched=(
            "o.user_name AS user_name", "o.external_id AS external_id", "o.email AS email",
            "o.attributes AS attributes",
        ),
        json=frozenset({"attributes"}),
    ),
    Table(
        kind="API token",
        source="identity.api_token",
        own=_OF_ACCOUNT,
        shown=(
            "id", "role", "scopes", "created_at", "expires_at", "ends_at", "ended_because",
            "last_used_at",
        ),
        searched=("name", "held_by", "created_by", "last_used_from"),
    ),
    Table(
        kind="event credential",
        source="identity.event_credential",
        own="holder_id = ANY ($2)",
        shown=(
            "id", "created_at", "expires_at", "revoked_at", "orphaned_at", "last_used_at",
        ),
        searched=("name", "held_by", "created_by"),
    ),
    Table(
        kind="service account",
        source="identity.service_account",
        shown=("id", "role", "created_at", "deleted_at"),
        searched=("name", "created_by", "deleted_by"),
    ),
    Table(
        kind="mail",
        source="identity.mail",
        own="lower(address) = ANY ($3)",
        shown=(
            "id", "kind", "created_at", "expires_at", "ended_at", "outcome", "attempts",
        ),
        searched=("address", "details", "last_error"),
        json=frozenset({"details"}),
    ),
    Table(
        kind="e-mail domain",
        source="identity.email_domain",
        key=(("domain", "text"),),
        shown=("domain", "created_at"),
        searched=("assigned_by",),
    ),
    Table(
        kind="organisation",
        source="identity.tenant",
        of_tenant="id = $1",
        shown=("id", "created_at", "archived_at", "deletion_requested_at"),
        searched=("name", "archived_by", "deletion_requested_by"),
    ),
    Table(
        kind="deleted organisation",
        source="identity.tenant_tombstone",
        of_tenant="id = $1",
        shown=("id", "created_at", "archived_at", "deleted_at"),
        searched=("name", "archived_by", "deleted_by"),
    ),
    Table(
        kind="directory",
        source="identity.directory o",
        key=(("o.id", "uuid"),),
        of_tenant="o.tenant_id = $1",
        shown=("o.id AS id",),
        searched=(
            "o.bind_dn AS bind_dn", "o.base_dn AS base_dn", "o.group_base_dn AS group_base_dn",
            "o.user_filter AS user_filter", "o.sync_error AS sync_error",
        ),
    ),
    Table(
        kind="source of people",
        source="identity.source",
        shown=("id", "kind", "created_at"),
        searched=("name",),
    ),
    Table(
        kind="group of SCIM",
        source="identity.scim_group",
        shown=("id", "created_at", "updated_at"),
        searched=("display_name", "external_id"),
    ),
    Table(
        kind="group of a source",
        source="identity.role_mapping",
        key=(("source_id", "uuid"), ("position", "integer")),
        shown=("source_id", "role"),
        searched=("external_group",),
    ),
)  # fmt: skip
"""What may hold something about a person, in the order of an export."""


async def accounts_of(connection: Connection, tenant_id: UUID, person: Person) -> list[UUID]:
    """The ids of a person's accounts that a tenant knows: those that have an address, or had it
    when they were deleted, and those that a source knows by it. What a person who moved left in the
    tenant is among it, too.

    Args:
        connection: sees all tenants: the account of a person who moved is another one's now.
    """
    rows = await connection.fetch(
        "WITH called AS (SELECT id FROM identity.account WHERE email = ANY ($2)"
        " UNION SELECT id FROM identity.user_tombstone WHERE email = ANY ($2))"
        " SELECT id FROM identity.account WHERE tenant_id = $1 AND email = ANY ($2)"
        " UNION SELECT id FROM identity.user_tombstone WHERE tenant_id = $1 AND email = ANY ($2)"
        " UNION SELECT account_id FROM identity.external_identity"
        " WHERE tenant_id = $1 AND lower(email_seen) = ANY ($2)"
        " UNION SELECT account_id FROM identity.session"
        " WHERE tenant_id = $1 AND account_id IN (SELECT id FROM called)"
        " UNION SELECT account_id FROM identity.api_token"
        " WHERE tenant_id = $1 AND account_id IN (SELECT id FROM called)"
        " UNION SELECT holder_id FROM identity.event_credential"
        " WHERE tenant_id = $1 AND holder_id IN (SELECT id FROM called)"
        " ORDER BY id",
        tenant_id,
        list(person.emails),
    )
    return [row["id"] for row in rows]
