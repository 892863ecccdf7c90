"""The review of access: who and what may log in."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from typing import ClassVar, Final

from contract.access import Role
from evergreen.v1 import identity_pb2
from services.audit.reports.domain import (
    Column,
    Kind,
    Parameters,
    Row,
    Summary,
    Table,
    days_between,
)
from services.audit.reports.kinds.base import (
    ORG,
    Asked,
    Page,
    bars,
    figures,
    org_cells,
    time_of,
)

_CREATED: Final = ("identity.user_created", "identity.user_invited")
_INACTIVE: Final = "inactive"
_NEVER: Final = "neverLoggedIn"
_UNKNOWN: Final = "loginsUnknown"
_ONLY_OWNER: Final = "onlyOwner"


class AccessReview:
    """Users with their rights and logins, and credentials of programs."""

    KIND: ClassVar = Kind(
        name="access-review",
        title="Review of access",
        about="Who may log in with which role, who has not for some days, and what programs log in"
        " with. Who made a user or changed a role is what the audit log says. Users of tenants"
        " above, who may do the same here, and service accounts are not in it.",
        tables=(
            Table(
                "rows",
                "Users",
                (
                    *ORG,
                    Column("userId", ""),
                    Column("email", "E-mail"),
                    Column("role", "Role"),
                    Column("status", "Status"),
                    Column("origin", "From"),
                    Column("mfa", "Second factor"),
                    Column("createdAt", "Created"),
                    Column("createdBy", "By"),
                    Column("lastLoginAt", "Last login"),
                    Column("daysSinceLogin", "Days since"),
                    Column("openSessions", "Sessions", total=True),
                    Column("roleChangedAt", "Role changed"),
                    Column("roleChangedBy", "By"),
                    Column("flag", "Flag", coded=True),
                ),
            ),
            Table(
                "credentials",
                "Credentials of programs",
                (
                    *ORG,
                    Column("kind", "Kind"),
                    Column("id", ""),
                    Column("name", "Name"),
                    Column("createdBy", "Created by"),
                    Column("createdAt", "Created"),
                    Column("expiresAt", "Ends"),
                    Column("lastUsedAt", "Last used"),
                    Column("revokedAt", "Revoked"),
                ),
            ),
        ),
        made_from=("identity", "enrollment", "audit"),
        areas=("users", "enrollment", "events"),
        defaults=Parameters(inactive_days=90),
        takes=("inactiveDays",),
    )

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._roles: Counter[str] = Counter()
        self._flags: Counter[str] = Counter()
        self._users = self._without_factor = self._credentials = 0

    async def pages(self) -> AsyncGenerator[Page, None]:
        """The users of each tenant by id, and then the credentials."""
        asked = self._asked
        for org in asked.orgs:
            owners = 0
            async for users in asked.sources.users(org.id):
                owners += sum(map(_owns, users))
            async for users in asked.sources.users(org.id):
                resources = [f"users/{user.user_id}" for user in users]
                made = await asked.log.acts(org.id, _CREATED, resources, None, None)
                roles = await asked.log.role_changes(org.id, resources)
                rows: list[Row] = []
                for user, resource in zip(users, resources, strict=True):
                    acts = [made.get((resource, action)) for action in _CREATED]
                    by = next((act.actor for act in acts if act), "")
                    login = time_of(user, "last_login_at")
                    changed = roles.get(resource)
                    rows.append(
                        (
                            *org_cells(org),
                            user.user_id,
                            user.email,
                            user.role,
                            user.status,
                            user.origin,
                            ", ".join(user.factors) or "none",
                            time_of(user, "created_at"),
                            by,
                            login,
                            days_between(login, asked.as_of) if login else None,
                            user.open_sessions,
                            changed.at if changed else None,
                            changed.actor if changed else "",
                            self._flagged(user, only_owner=owners == 1 and _owns(user)),
                        )
                    )
                yield 0, rows
        for org in asked.orgs:
            async for found in asked.sources.credentials(org.id):
                yield (
                    1,
                    [
                        self._credential(
                            (
                                *org_cells(org),
                                one.kind,
                                one.credential_id,
                                one.name,
                                one.created_by,
                                time_of(one, "created_at"),
                                time_of(one, "expires_at"),
                                time_of(one, "last_used_at"),
                                time_of(one, "revoked_at"),
                            )
                        )
                        for one in found
                    ],
                )
            async for tokens in asked.sources.tokens(org.id):
                created = ("enrollment.token_created",)
                resources = [f"enrollment-tokens/{one.token_id}" for one in tokens]
                made = await asked.log.acts(org.id, created, resources, None, None)
                token_rows: list[Row] = []
                for token, resource in zip(tokens, resources, strict=True):
                    act = made.get((resource, created[0]))
                    token_rows.append(
                        self._credential(
                            (
                                *org_cells(org),
                                "enrollment token",
                                token.token_id,
                                token.name,
                                act.actor if act else "",
                                time_of(token, "created_at"),
                                time_of(token, "expires_at"),
                                time_of(token, "last_used_at"),
                                time_of(token, "revoked_at"),
                            )
                        )
                    )
                yield 1, token_rows
            yield (
                1,
                [
                    self._credential(
                        (
                            *org_cells(org),
                            "forwarder",
                            str(one.id),
                            one.name,
                            one.created_by,
                            one.created_at,
                            None,
                            one.last_used_at,
                            None,
                        )
                    )
                    for one in await asked.log.forwarders(org.id)
                ],
            )

    def _credential(self, row: Row) -> Row:
        self._credentials += 1
        return row

    def _flagged(self, user: identity_pb2.UserFacts, *, only_owner: bool) -> str:
        """What a reviewer should look at."""
        self._users += 1
        self._roles[user.role] += 1
        is_active = user.status == "active"
        # Who comes from elsewhere has a second factor there, or has none.
        self._without_factor += is_active and not user.factors
        flags = []
        login = time_of(user, "last_login_at")
        if is_active and login is None:
            flags.append(_NEVER if user.logins_known else _UNKNOWN)
        elif is_active and login is not None:
            most = self._asked.parameters.inactive_days or 0
            if days_between(login, self._asked.as_of) >= most:
                flags.append(_INACTIVE)
        if only_owner:
            flags.append(_ONLY_OWNER)
        self._flags.update(flags)
        return ", ".join(flags)

    def summary(self) -> Summary:
        """How many there are, and how many a reviewer should look at."""
        return Summary(
            figures(
                {
                    "users": self._users,
                    "inactive": self._flags[_INACTIVE],
                    "never logged in": self._flags[_NEVER],
                    "active without a second factor here": self._without_factor,
                    "credentials of programs": self._credentials,
                }
            ),
            "Users by role",
            bars(self._roles, [role.value for role in Role]),
        )


def _owns(user: identity_pb2.UserFacts) -> bool:
    return user.role == Role.OWNER.value and user.status == "active"
