"""What a restore has to repair in identity's schema."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from servicekit.data.backup import Connection, Recorded
from services.identity import restore
from services.identity.restore import Known
from tests.support.backups import ORG, ROOT, STAYS, repairing, seed
from tests.support.servers import TestDatabase

ACCOUNT = "SELECT role, status, password_hash, invitation_hash FROM identity.account WHERE id = $1"
AT = datetime(2026, 11, 1, tzinfo=UTC)


def recorded(name: str, after: dict[str, Any], number: int = 0) -> Recorded:
    """An entry of the audit log about the user."""
    at = AT + timedelta(seconds=number)
    return Recorded(ORG, at, f"identity.{name}", "users", str(STAYS), after)


async def account(connection: Connection) -> tuple[Any, ...]:
    return tuple(await connection.fetchrow(ACCOUNT, STAYS) or ())


async def test_nobody_is_logged_in(database: TestDatabase) -> None:
    """Sessions end, and the users' key is made anew; the devices' key stays."""
    await seed(database)
    async with repairing(database) as connection:
        assert await restore.has_started(connection)
        repaired = await restore.repair(connection, Known())
        assert repaired.sessions == 1
        assert (repaired.tenants.root, repaired.tenants.organisations) == (ROOT, {ORG})
        assert repaired.tenants.all == {ROOT, ORG}
        assert (repaired.default_tenant, repaired.has_owner) == (str(ORG), False)
        assert not await restore.has_started(connection)
        purposes = await connection.fetch("SELECT purpose FROM identity.signing_key")
        assert [row["purpose"] for row in purposes] == ["devices"]
        assert await connection.fetchval("SELECT ended_at FROM identity.session") is not None


async def test_users_are_what_they_were_last(database: TestDatabase) -> None:
    """Who is an Auditor now is no Owner again, and the password of the backup opens nothing."""
    await seed(database)
    known = Known()
    async with repairing(database) as connection:
        await connection.execute(
            "UPDATE identity.account SET role = 'Auditor', password_hash = 'new'"
        )
        await known.read(connection)
        await connection.execute(
            "UPDATE identity.account SET role = 'Owner', password_hash = 'old', tenant_id = $1",
            ROOT,
        )
        assert (await restore.repair(connection, Known())).has_owner
        assert not (await restore.repair(connection, known)).has_owner
        assert await account(connection) == ("Auditor", "active", "new", None)


async def test_the_audit_log_tells_what_users_lost(database: TestDatabase) -> None:
    """It knows no password: where one was ended since, the user has to be invited again."""
    await seed(database)
    cases: list[tuple[dict[str, tuple[str, str] | None], tuple[str | None, ...]]] = [
        ({"user_updated": ("Auditor", "active")}, ("Auditor", "active", "old", None)),
        ({"user_deactivated": ("Owner", "disabled")}, ("Owner", "disabled", "old", None)),
        ({"user_invited": ("Owner", "invited")}, ("Owner", "invited", None, None)),
        (
            {
                "user_invited": ("Owner", "invited"),
                "invitation_accepted": None,
                "user_updated": ("Admin", "active"),
            },
            ("Admin", "invited", None, None),
        ),
    ]
    for later, expected in cases:
        known = Known()
        for number, (name, state) in enumerate(later.items()):
            after = {"role": state[0], "status": state[1]} if state else {"email": "a"}
            known.learn(recorded(name, after, number))
        async with repairing(database) as connection:
            await connection.execute(
                "UPDATE identity.account SET role = 'Owner', status = 'active',"
                " password_hash = 'old'"
            )
            await restore.repair(connection, known)
            assert await account(connection) == expected


async def test_who_left_stays_out(database: TestDatabase) -> None:
    """Who was moved since the backup is where the move led, or out where that organisation is not
    in the backup; who was deleted since comes back deactivated. Both hashes of a password come."""
    await seed(database)
    read = Known()
    async with repairing(database) as connection:
        await connection.execute("UPDATE identity.account SET password_hash = 'a'")
        await connection.execute("UPDATE identity.account SET prepared_hash = 'b'")
        await read.read(connection)
        await connection.execute("UPDATE identity.account SET password_hash = 'old'")
        await restore.repair(connection, read)
        hashes = await connection.fetchrow(
            "SELECT password_hash, prepared_hash FROM identity.account"
        )
        assert tuple(hashes or ()) == ("a", "b")
    user = {"role": "Owner", "status": "active"}
    for name, after, expected in (
        ("user_moved_in", user | {"tenantId": str(ROOT)}, (ROOT, "active")),
        ("user_moved_in", user | {"tenantId": str(uuid4())}, (ORG, "disabled")),
        ("user_deleted", user | {"status": "deleted", "tenantId": str(ORG)}, (ORG, "disabled")),
    ):
        known = Known()
        known.learn(recorded(name, after))
        async with repairing(database) as connection:
            await connection.execute(
                "UPDATE identity.account SET tenant_id = $1, status = 'active'", ORG
            )
            await restore.repair(connection, known)
            row = await connection.fetchrow("SELECT tenant_id, status FROM identity.account")
            assert tuple(row or ()) == expected
    gone = Known()
    async with repairing(database) as connection:
        await connection.execute(
            "INSERT INTO identity.user_tombstone (id, tenant_id, email, deleted_at, deleted_by)"
            " SELECT id, tenant_id, email, now(), 'somebody' FROM identity.account"
        )
        await connection.execute("DELETE FROM identity.account")
        await gone.read(connection)
    assert gone.users[STAYS].status == "disabled"


async def test_revoked_credentials_stay_revoked(database: TestDatabase) -> None:
    """Whether the replaced database or the audit log tells of it."""
    await seed(database)
    read, learned, open_ = uuid4(), uuid4(), uuid4()
    known = Known()
    async with repairing(database) as connection:
        await add_credentials(connection, read, learned, open_)
        await connection.execute(
            "UPDATE identity.event_credential SET revoked_at = now() WHERE id = $1", read
        )
        await known.read(connection)
        known.learn(
            Recorded(
                ORG, AT, "identity.event_credential_revoked", "event-credentials", str(learned), {}
            )
        )
        await connection.execute("UPDATE identity.event_credential SET revoked_at = NULL")
        await restore.repair(connection, known)
        rows = await connection.fetch(
            "SELECT id FROM identity.event_credential WHERE revoked_at IS NULL"
        )
        assert [row["id"] for row in rows] == [open_]


async def add_credentials(connection: Connection, *ids: UUID) -> None:
    await connection.executemany(
        "INSERT INTO identity.event_credential (id, tenant_id, name, secret_hash, created_at,"
        " created_by) VALUES ($1, $2, 'n', sha256('x'), now(), 'a')",
        [(id_, ORG) for id_ in ids],
    )


async def test_whom_an_administrator_kept_out_stays_out(database: TestDatabase) -> None:
    """Whatever a directory of the backup says; who became local since is local, and who came by
    the directory since comes by it again."""
    await seed(database)
    source = uuid4()

    async def come_by_directory(connection: Connection) -> None:
        await connection.execute(
            "INSERT INTO identity.source VALUES"
            " ($1, $2, 'directory', 'AD', true, 24, now(), now())",
            source,
            ORG,
        )
        await connection.execute(
            "INSERT INTO identity.external_identity (source_id, subject, account_id, tenant_id,"
            " email_seen, groups_seen, seen_at) VALUES ($1, 'a', $2, $3, '', '{}', now())",
            source,
            STAYS,
            ORG,
        )
        await connection.execute(
            "UPDATE identity.account SET origin = 'directory', status = 'active',"
            " password_hash = NULL WHERE id = $1",
            STAYS,
        )

    async def state(connection: Connection) -> tuple[Any, ...]:
        row = await connection.fetchrow(
            "SELECT a.origin, a.status, a.disabled_by, count(e.subject) FROM identity.account a"
            " LEFT JOIN identity.external_identity e ON e.account_id = a.id WHERE a.id = $1"
            " GROUP BY a.id",
            STAYS,
        )
        return tuple(row or ())

    @asynccontextmanager
    async def trying(connection: Connection) -> AsyncIterator[None]:
        """Takes back what was done."""
        trial = connection.transaction()
        await trial.start()
        yield
        await trial.rollback()

    async with repairing(database) as connection:
        async with trying(connection):
            known = Known()
            await come_by_directory(connection)
            await connection.execute(
                "UPDATE identity.account SET status = 'disabled', disabled_by = 'admin'"
            )
            await known.read(connection)
            await connection.execute(
                "UPDATE identity.account SET status = 'active', disabled_by = NULL"
            )
            await restore.repair(connection, known)
            assert await state(connection) == ("directory", "disabled", "admin", 1)
        async with trying(connection):
            known = Known()
            await known.read(connection)
            await come_by_directory(connection)
            await restore.repair(connection, known)
            assert (await state(connection))[0::3] == ("local", 0)
        known = Known()
        async with trying(connection):
            await come_by_directory(connection)
            await known.read(connection)
        await connection.execute("UPDATE identity.account SET password_hash = NULL")
        await restore.repair(connection, known)
        assert await state(connection) == ("local", "invited", None, 0)


async def test_sources_that_were_changed_since_let_nobody_in(database: TestDatabase) -> None:
    """A directory that was changed or deleted since comes back disabled, and a domain that was
    taken back or given to another one leads nowhere; the others go on."""
    await seed(database)
    same, changed, gone = (uuid4() for _ in range(3))

    async def state(connection: Connection) -> tuple[set[UUID], list[str]]:
        enabled = await connection.fetch(
            "SELECT id FROM identity.source WHERE enabled AND id = ANY ($1)", [same, changed, gone]
        )
        domains = await connection.fetch(
            "SELECT domain FROM identity.email_domain WHERE source_id IS NOT NULL"
            " AND domain LIKE 'd_.example' ORDER BY domain"
        )
        return {row["id"] for row in enabled}, [row["domain"] for row in domains]

    async with repairing(database) as connection:
        for number, source in enumerate((same, changed, gone)):
            await connection.execute(
                "INSERT INTO identity.source VALUES"
                " ($1, $2, 'directory', 'AD', true, 24, now(), now())",
                source,
                ORG,
            )
            await connection.execute(
                "INSERT INTO identity.email_domain VALUES ($1, $2, $3, 'a', now())",
                f"d{number}.example",
                ORG,
                source,
            )
        domains = ["d0.example", "d1.example", "d2.example"]

        trial = connection.transaction()
        await trial.start()
        known = Known()
        later = connection.transaction()
        await later.start()
        await connection.execute(
            "UPDATE identity.source SET updated_at = now() + interval '1 s' WHERE id = $1", changed
        )
        await connection.execute("DELETE FROM identity.source WHERE id = $1", gone)
        await connection.execute("DELETE FROM identity.email_domain WHERE domain = 'd1.example'")
        await known.read(connection)
        await later.rollback()
        await restore.repair(connection, known)
        assert await state(connection) == ({same}, ["d0.example"])
        await trial.rollback()

        known = Known()
        for action, source in (("updated", changed), ("deleted", gone)):
            name = f"identity.directory_{action}"
            known.learn(Recorded(ORG, AT, name, "directories", str(source), {}))
        await restore.repair(connection, known)
        assert await state(connection) == ({same}, domains)
        name = "identity.email_domain_deleted"
        known.learn(Recorded(ORG, AT, name, "email-domains", str(ORG), {}))
        await restore.repair(connection, known)
        assert await state(connection) == ({same}, [])


async def test_links_that_were_taken_back_stay_so(database: TestDatabase) -> None:
    """Whether the replaced database or the audit log tells of it; the others go on."""
    await seed(database)
    source, other = uuid4(), uuid4()

    async def links(connection: Connection) -> set[UUID]:
        rows = await connection.fetch("SELECT source_id FROM identity.external_identity")
        return {row["source_id"] for row in rows}

    async with repairing(database) as connection:
        for made in (source, other):
            await connection.execute(
                "INSERT INTO identity.source VALUES ($1, $2, 'sso', 'IdP', true, 24, now(), now())",
                made,
                ORG,
            )
            await connection.execute(
                "INSERT INTO identity.external_identity (source_id, subject, account_id, tenant_id,"
                " email_seen, groups_seen, seen_at) VALUES ($1, 'a', $2, $3, '', '{}', now())",
                made,
                STAYS,
                ORG,
            )
        known = Known()
        later = connection.transaction()
        await later.start()
        await connection.execute(
            "DELETE FROM identity.external_identity WHERE source_id = $1", source
        )
        await known.read(connection)
        await later.rollback()
        await restore.repair(connection, known)
        assert await links(connection) == {other}

        known = Known()
        known.learn(recorded("account_unlinked", {}))
        await restore.repair(connection, known)
        assert await links(connection) == set()


async def test_tokens_that_were_ended_stay_so(database: TestDatabase) -> None:
    """As the database that is replaced knows it, or the audit log since the backup: revoked ones,
    rotated ones, and those of service accounts that were deleted. Others go on, and their keys."""
    await seed(database)
    names = ("stays", "revoked", "rotated", "of an account")
    tokens = {name: uuid4() for name in names}
    service = uuid4()
    async with repairing(database) as connection:
        await connection.execute(
            "INSERT INTO identity.signing_key"
            " (key_id, purpose, public_key, sealed_seed, created_at)"
            " VALUES ('t', 'tokens', '', '', now())"
        )
        await connection.execute(
            "INSERT INTO identity.service_account (id, tenant_id, name, role, created_at,"
            " created_by) VALUES ($1, $2, 'CI', 'Admin', now(), 'x')",
            service,
            ORG,
        )
        await connection.executemany(
            "INSERT INTO identity.api_token (id, tenant_id, account_id, service_account_id,"
            " held_by, name, role, scopes, created_at, created_by, expires_at, ends_at) VALUES"
            " ($1, $2, $3, $4, 'x', $5, 'Admin', '{}', now(), 'x', 'infinity', 'infinity')",
            [
                (key, ORG, *((None, service) if name == names[3] else (STAYS, None)), name)
                for name, key in tokens.items()
            ],
        )

    async def works(connection: Connection) -> set[str]:
        rows = await connection.fetch("SELECT name FROM identity.api_token WHERE ends_at > now()")
        return {row["name"] for row in rows}

    def ended(name: str, action: str) -> Recorded:
        return Recorded(ORG, AT, f"identity.{action}", "tokens", str(tokens[name]), {})

    logged = Known()
    for name, action in (
        ("revoked", "api_token_revoked"),
        ("rotated", "api_token_rotated"),
        ("of an account", "api_token_revoked"),
    ):
        logged.learn(ended(name, action))
    logged.learn(
        Recorded(ORG, AT, "identity.service_account_deleted", "service-accounts", str(service), {})
    )
    seen = Known()
    async with repairing(database) as connection:
        await connection.execute(
            "UPDATE identity.api_token SET ended_because = 'revoked', ends_at = now()"
            " WHERE name = ANY ($1)",
            list(names[1:]),
        )
        await connection.execute("UPDATE identity.service_account SET deleted_at = now()")
        await seen.read(connection)
    for known in (logged, seen):
        async with repairing(database) as connection:
            await connection.execute(
                "UPDATE identity.api_token SET ended_because = NULL, ends_at = 'infinity'"
            )
            await connection.execute("UPDATE identity.service_account SET deleted_at = NULL")
            assert await works(connection) == set(names)
            await restore.repair(connection, known)
            assert await works(connection) == {"stays"}
            assert await connection.fetchval(
                "SELECT deleted_at IS NOT NULL FROM identity.service_account"
            )
            purposes = await connection.fetch("SELECT purpose FROM identity.signing_key")
            assert "tokens" in {row["purpose"] for row in purposes}


async def test_second_factors_are_what_they_were_last(database: TestDatabase) -> None:
    """As the database that is replaced has them; or, by the log, what was removed or used since
    opens nothing. No code of the last minute is taken again."""
    await seed(database)
    old, new, code = uuid4(), uuid4(), uuid4()

    async def app(connection: Connection, key: UUID) -> None:
        await connection.execute("DELETE FROM identity.totp")
        await connection.execute(
            "INSERT INTO identity.totp VALUES ($1, $2, 'sealed', now(), now(), 1)", key, STAYS
        )

    async def state(connection: Connection) -> tuple[Any, ...]:
        keys = await connection.fetch(
            "SELECT id, last_step > extract(epoch FROM now()) / 30 AS later FROM identity.totp"
        )
        codes = await connection.fetch(
            "SELECT id FROM identity.recovery_code WHERE used_at IS NULL"
        )
        assert all(row["later"] for row in keys)
        return [row["id"] for row in keys], [row["id"] for row in codes]

    def said(name: str, after: dict[str, Any]) -> Known:
        known = Known()
        known.learn(recorded(name, after))
        return known

    async with repairing(database) as connection:
        await connection.execute(
            "INSERT INTO identity.recovery_code VALUES ($1, $2, 'sealed', NULL)", code, STAYS
        )
        known = Known()
        await app(connection, new)
        await known.read(connection)
        await app(connection, old)
        await restore.repair(connection, Known())
        assert await state(connection) == ([old], [code])
        await restore.repair(connection, known)
        assert await state(connection) == ([new], [code])
        await restore.repair(connection, said("recovery_code_used", {"codeId": str(code)}))
        assert await state(connection) == ([new], [])
        await restore.repair(connection, said("mfa_enabled", {"method": "totp"}))
        assert await state(connection) == ([], [])
        await app(connection, old)
        await restore.repair(connection, said("mfa_disabled", {"method": "totp"}))
        assert await state(connection) == ([], [])


async def test_nobody_is_in_a_group_of_scims_again(database: TestDatabase) -> None:
    """Who left it since, by the database that is replaced or by the audit log, and who went; a
    group has the name that it had last. Others stay."""
    await seed(database)
    source, admins, staff = uuid4(), uuid4(), uuid4()
    anna, bert, carl, dora = (uuid4() for _ in range(4))

    async def backup(connection: Connection) -> None:
        await connection.execute("DELETE FROM identity.source WHERE id = $1", source)
        await connection.execute(
            "INSERT INTO identity.source VALUES ($1, $2, 'scim', 'S', true, 1, now(), now())",
            source,
            ORG,
        )
        for person in (anna, bert, carl, dora):
            await connection.execute(
                "INSERT INTO identity.scim_person (id, source_id, tenant_id, user_name, user_key,"
                " active, email, attributes, created_at, updated_at)"
                " VALUES ($1, $2, $3, $4, $4, true, '', '{}', now(), now())",
                person,
                source,
                ORG,
                str(person),
            )
        for group, name in ((admins, "admins"), (staff, "staff")):
            await connection.execute(
                "INSERT INTO identity.scim_group (id, source_id, tenant_id, display_name,"
                " name_key, created_at, updated_at) VALUES ($1, $2, $3, $4, $4, now(), now())",
                group,
                source,
                ORG,
                name,
            )
            await connection.executemany(
                "INSERT INTO identity.scim_member VALUES ($1, $2, $3)",
                [(group, person, ORG) for person in (anna, bert, carl, dora)],
            )

    async def found(connection: Connection) -> tuple[dict[str, set[UUID]], set[UUID]]:
        rows = await connection.fetch(
            "SELECT g.display_name, m.person_id FROM identity.scim_group g"
            " JOIN identity.scim_member m ON m.group_id = g.id"
        )
        members: dict[str, set[UUID]] = {}
        for row in rows:
            members.setdefault(row["display_name"], set()).add(row["person_id"])
        active = await connection.fetch(
            "SELECT id FROM identity.scim_person WHERE active AND deleted_at IS NULL"
        )
        return members, {row["id"] for row in active}

    known, told = Known(), Known()
    async with repairing(database) as connection:
        await backup(connection)
        await connection.execute(
            "DELETE FROM identity.scim_member WHERE group_id = $1 AND person_id = $2", admins, anna
        )
        await connection.execute("DELETE FROM identity.scim_person WHERE id = $1", bert)
        await connection.execute(
            "UPDATE identity.scim_person SET active = false WHERE id = $1", carl
        )
        await connection.execute(
            "UPDATE identity.scim_group SET display_name = CASE id WHEN $1 THEN 'staff'"
            " ELSE 'admins' END, name_key = CASE id WHEN $1 THEN 'b' ELSE 'a' END",
            admins,
        )
        await known.read(connection)
        for number, (name, kind, one, after) in enumerate(
            (
                ("scim_group_updated", "scim-groups", admins,
                 {"displayName": "x", "externalId": "", "removed": [str(anna)]}),
                ("scim_group_updated", "scim-groups", admins,
                 {"displayName": "old", "externalId": "", "removed": []}),
                ("scim_person_deleted", "scim-people", bert, {}),
                ("scim_person_updated", "scim-people", carl, {"active": False}),
                ("scim_person_updated", "scim-people", anna, {"active": False}),
                ("scim_person_updated", "scim-people", anna, {"active": True}),
                ("scim_person_deleted", "scim-people", dora, {}),
                ("scim_person_created", "scim-people", dora, {"active": True}),
                ("scim_group_deleted", "scim-groups", staff, {}),
            )
        ):  # fmt: skip
            at = AT + timedelta(seconds=number)
            told.learn(Recorded(ORG, at, f"identity.{name}", kind, str(one), after))
        await backup(connection)
        await restore.repair(connection, known)
        assert await found(connection) == (
            {"staff": {carl, dora}, "admins": {anna, carl, dora}},
            {anna, dora},
        )
        await backup(connection)
        await restore.repair(connection, told)
        # Who came back is there again, and in no group.
        assert await found(connection) == ({"old": {carl}}, {anna, dora})


async def test_who_has_passwords_here_is_what_was_said_last(database: TestDatabase) -> None:
    """By the database that is replaced, or by the audit log, also of a release that did not know
    of it."""
    await seed(database)

    async def backup(connection: Connection, local_login: str) -> None:
        await connection.execute("DELETE FROM identity.sign_in_policy")
        await connection.execute(
            "INSERT INTO identity.sign_in_policy (tenant_id, mfa, mfa_required_from, updated_at,"
            " local_login) VALUES ($1, 'off', now(), now(), $2)",
            ORG,
            local_login,
        )

    async def told(after: dict[str, Any]) -> Known:
        known = Known()
        name = "identity.sign_in_policy_updated"
        known.learn(Recorded(ORG, AT, name, "tenants", str(ORG), after))
        return known

    said = {"mfa": "all", "mfaRequiredFrom": None}
    async with repairing(database) as connection:
        known = Known()
        await backup(connection, "owners-only")
        await known.read(connection)
        cases = (
            (known, ("off", "owners-only")),
            (await told(said | {"localLogin": "owners-only"}), ("all", "owners-only")),
            (await told(said), ("all", "all")),
        )
        for one, expected in cases:
            await backup(connection, "all")
            await restore.repair(connection, one)
            found = await connection.fetchrow(
                "SELECT mfa, local_login FROM identity.sign_in_policy"
            )
            assert tuple(found or ()) == expected


async def test_who_was_taken_out_of_a_source_stays_out(database: TestDatabase) -> None:
    """Local and deactivated, also where only the audit log is known; the source does not get the
    user back."""
    await seed(database)
    source, person = uuid4(), uuid4()

    async def backup(connection: Connection) -> None:
        await connection.execute("DELETE FROM identity.source WHERE id = $1", source)
        await connection.execute(
            "INSERT INTO identity.source VALUES ($1, $2, 'scim', 'S', true, 1, now(), now())",
            source,
            ORG,
        )
        await connection.execute(
            "INSERT INTO identity.scim_person (id, source_id, tenant_id, user_name, user_key,"
            " active, email, attributes, created_at, updated_at)"
            " VALUES ($1, $2, $3, 'a', 'a', true, '', '{}', now(), now())",
            person,
            source,
            ORG,
        )
        await connection.execute(
            "INSERT INTO identity.external_identity (source_id, subject, account_id, tenant_id,"
            " email_seen, groups_seen, seen_at) VALUES ($1, $2, $3, $4, '', '{}', now())",
            source,
            str(person),
            STAYS,
            ORG,
        )
        await connection.execute(
            "UPDATE identity.account SET origin = 'scim', status = 'active', password_hash = NULL,"
            " kept_from_sources = false WHERE id = $1",
            STAYS,
        )

    async def state(connection: Connection) -> tuple[Any, ...]:
        row = await connection.fetchrow(
            "SELECT a.origin, a.status, p.problem, count(e.subject), a.kept_from_sources"
            " FROM identity.account a"
            " LEFT JOIN identity.external_identity e ON e.account_id = a.id,"
            " identity.scim_person p WHERE a.id = $1 GROUP BY a.id, p.id",
            STAYS,
        )
        return tuple(row or ())

    async with repairing(database) as connection:
        await backup(connection)
        await connection.execute("DELETE FROM identity.external_identity")
        await connection.execute("UPDATE identity.scim_person SET problem = 'UNLINKED'")
        await connection.execute(
            "UPDATE identity.account SET origin = 'local', status = 'disabled',"
            " kept_from_sources = true WHERE id = $1",
            STAYS,
        )
        known = Known()
        await known.read(connection)
        await backup(connection)
        await restore.repair(connection, known)
        assert await state(connection) == ("local", "disabled", "UNLINKED", 0, True)
        told = Known()
        gone = {"role": "Owner", "status": "disabled", "origin": "local"}
        told.learn(recorded("user_deactivated", gone))
        await backup(connection)
        await restore.repair(connection, told)
        assert (await state(connection))[:2] == ("local", "disabled")
        # Whoever is invited now has to accept it before a source has a say again.
        assert (await state(connection))[3:] == (0, True)
