"""Secrets of every kind are planted and used, rightly and wrongly, and looked for afterwards: in
logs, in files, in the audit log, in answers, in backups, and in every row of the database."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from cli.backup.archive import reading
from cli.backup.crypt import Key
from cli.main import app
from tests.e2e.pages import Pages
from tests.e2e.test_audit_cli import evergreen
from tests.e2e.test_backup import rows
from tests.e2e.test_second_factor import set_up
from tests.e2e.world import DOCUMENT, Org, make_org, ok
from tests.support.stack import PATIENCE, Stack, until

NOT_SHOWN = ("/api/users", "/api/tokens", "/api/directories", "/api/sso-providers")
NOT_SHOWN += ("/api/scim-sources", "/api/forwarders", "/api/enrollment-tokens")
NOT_SHOWN += ("/api/event-credentials", "/api/service-accounts", "/api/audit", "/api/audit/export")
NOT_SHOWN += ("/api/policies", "/api/policy-variables", "/api/policy-sets", "/api/effective-policy")


@dataclass
class Planted:
    """What must be found nowhere."""

    org: Org
    mark: str = field(default_factory=lambda: f"mark {uuid4().hex}")
    """What is no secret, and is found, as the secrets would be."""
    secrets: dict[str, str] = field(default_factory=dict)

    def new(self, name: str) -> str:
        """A secret of our own."""
        self.secrets[name] = f"planted {uuid4().hex} {name}"
        return self.secrets[name]

    def given(self, name: str, value: str) -> str:
        """A secret that the product has made."""
        assert len(value) >= 9, f"{name}: {value!r}"
        self.secrets[name] = value
        return value


@pytest.fixture(scope="module")
def planted(stack: Stack) -> Iterator[Planted]:
    with stack.first_owner() as root:
        found = Planted(make_org(stack, root, "Planted"))
        _people(found)
        _programs(found)
        _others(found)
        _devices(found)
        # A mark that the log gets after all the others.
        last = {"name": found.mark, "role": "Auditor"}
        ok(found.org.owner.post("/api/service-accounts", json=last))

        def logged() -> bool:
            return found.mark in found.org.owner.get("/api/audit/export").text

        until(logged, PATIENCE, "the log does not have the last entry")
        # The setting that seals policies from the beginning is off in the release before it.
        seal = ["policies", "seal", "--home", str(stack.home)]
        done = CliRunner().invoke(app, seal)
        assert done.exit_code == 0, done.output
        assert _found(found.secrets, done.output) == []
        assert CliRunner().invoke(app, [*seal, "--check"]).exit_code == 0
        yield found


def _people(planted: Planted) -> None:
    """Passwords right, wrong, misplaced and malformed; sessions, invitations, second factors."""
    org, stack = planted.org, planted.org.stack
    email = f"anna-{uuid4().hex[:8]}@school.example"
    password = planted.new("password")
    user = {"email": email, "role": "Auditor", "tenantId": org.id}
    ok(org.root.post("/api/users", json={**user, "password": password}))
    session = stack.login(email, password)
    planted.given("access token", session["token"])
    planted.given("refresh token", session["refreshToken"])
    with stack.client() as client:
        wrong = {"email": email, "password": planted.new("wrong password")}
        assert client.post("/auth/login", json=wrong).status_code == 401
        turned = {"email": planted.new("password as address"), "password": email}
        assert client.post("/auth/login", json=turned).status_code in {400, 401}
        for body in (
            {"email": email, "password": {"is": planted.new("password in an object")}},
            {"email": email, "pasword": planted.new("password in an unknown field")},
            {"email": email, "password": planted.new("password of many") * 400},
            [planted.new("password in a list")],
        ):
            assert client.post("/auth/login", json=body).status_code in {400, 401, 413}
        broken = f'{{"email": "{email}", "password": "{planted.new("password in half a body")}'
        assert client.post("/auth/login", content=broken).status_code == 400
        client.get("/api/users", headers={"authorization": f"Bearer {planted.new('bearer')}"})
        client.get("/api/users", headers={"cookie": f"session={uuid4().hex}planted"})
        refresh = {"refreshToken": planted.new("refresh token of nobody")}
        assert client.post("/auth/refresh", json=refresh).status_code in {400, 401}
    guest = {**user, "email": f"bert-{uuid4().hex[:8]}@school.example"}
    invited = ok(org.root.post("/api/users", json=guest))
    planted.given("invitation", invited["invitationToken"])
    with Pages(stack) as pages:
        pages.login(email, password)
        app, codes = set_up(pages)
        planted.given("recovery code", codes[0])
        planted.given("app's key", app.key.hex())
        with stack.client() as client:
            login = {"email": email, "password": password, "otp": codes[0]}
            planted.given(
                "session with a code", ok(client.post("/auth/login", json=login))["token"]
            )
        changed = pages.send(
            "/auth/account",
            "password",
            **{"current": planted.new("wrong old password"), "password": planted.new("next one")},
        )
        assert changed.status_code in {400, 401, 403}, changed.text


def _programs(planted: Planted) -> None:
    org, stack = planted.org, planted.org.stack
    mine = {"name": "Script", "scopes": ["users:read"]}
    token = ok(org.owner.post("/api/tokens", json=mine))
    planted.given("API token", token["token"])
    with stack.client(token["token"]) as program:
        ok(program.get("/api/users"))
        assert program.post("/api/users", json={}).status_code in {400, 403}
    source = ok(org.owner.post("/api/scim-sources", json={"name": "Entra"}))
    theirs = {"name": "Entra", "scimSourceId": source["id"]}
    token = ok(org.owner.post("/api/tokens", json=theirs))
    planted.given("SCIM token", token["token"])
    with stack.client(token["token"]) as program:
        program.headers["content-type"] = "application/scim+json"
        person = {"userName": "x@nowhere.example", "password": planted.new("password by SCIM")}
        assert program.post("/scim/v2/Users", json=person).status_code < 500
    reader = ok(org.root.post("/api/event-credentials", json={"name": "S", "tenantId": org.id}))
    planted.given("event credential", reader["secret"])


def _others(planted: Planted) -> None:
    """What opens other servers, of which none answers."""
    org = planted.org
    directory = {
        "name": "Directory",
        "kind": "openldap",
        "urls": ["ldaps://127.0.0.1:1"],
        "bindDn": "cn=evergreen",
        "bindPassword": planted.new("password for binding"),
        "baseDn": "dc=school",
    }
    made = ok(org.owner.post("/api/directories", json=directory))
    org.owner.post(f"/api/directories/{made['id']}/test", json={})
    directory["bindPassword"] = planted.new("password of a refused directory")
    assert org.owner.post("/api/directories", json={**directory, "urls": ["x"]}).status_code == 400
    provider = {
        "name": "Provider",
        "issuer": "https://login.planted.example",
        "clientId": "evergreen",
        "clientSecret": planted.new("client secret"),
    }
    made = ok(org.owner.post("/api/sso-providers", json=provider))
    org.owner.post(f"/api/sso-providers/{made['id']}/test", json={})
    header = {"name": "Authorization", "value": planted.new("header of a forwarder")}
    webhook = {"url": "https://siem.planted.example/", "headers": [header]}
    forwarder = {"name": "SIEM", "kind": "webhook", "webhook": webhook}
    made = ok(org.owner.post("/api/forwarders", json=forwarder))
    planted.given("signing secret", made["secret"])
    webhook["headers"] = [{"name": "A b", "value": planted.new("header with a bad name")}]
    assert org.owner.post("/api/forwarders", json=forwarder).status_code == 400


def _devices(planted: Planted) -> None:
    org, stack = planted.org, planted.org.stack
    token = org.enrollment_token()
    planted.given("enrollment secret", token["secret"])
    agent = org.agent(pre_shared_key=token["preSharedKey"])
    agent.enroll()
    planted.given("device token", agent.device_token)
    document = copy.deepcopy(DOCUMENT)
    wifi: dict[str, Any] = document["network"]["wifi"][0]
    wifi["passphrase"] = planted.new("passphrase")
    org.publish(document)
    agent.pull()
    named = {"orgId": org.id, "name": "wifi", "secret": True, "value": planted.new("named secret")}
    made = ok(org.owner.post("/api/policy-variables", json=named))
    wifi["passphrase"] = "{{secret.wifi}}"
    policy = {"name": "Named", "orgId": org.id, "signed": True, "bundle": {"template": document}}
    ok(org.owner.post("/api/policies", json=policy))
    agent.pull()
    change = {"value": planted.new("next named secret"), "apply": "NOW"}
    ok(org.owner.patch(f"/api/policy-variables/{made['id']}", json=change))
    agent.pull()
    broken = {"value": planted.new("bad named secret") + "\n", "apply": "NOW"}
    assert org.owner.patch(f"/api/policy-variables/{made['id']}", json=broken).status_code == 400
    agent.report_state()
    bad = copy.deepcopy(document)
    bad["network"]["wifi"][0] |= {"passphrase": planted.new("bad passphrase"), "security": "x"}
    answer = org.root.post("/api/policies", json={"name": "P", "orgId": org.id, "bundle": bad})
    assert answer.status_code == 400
    with stack.client() as client:
        nobody = {"authorization": f"Bearer {planted.new('token of no device')}"}
        client.post("/api/v1/devices/policy", json={"device_id": agent.device_id}, headers=nobody)


def _found(secrets: dict[str, str], text: str) -> list[str]:
    return [name for name, secret in secrets.items() if secret in text]


def test_no_log_and_no_file_has_one(stack: Stack, planted: Planted) -> None:
    """The logs, what was shown, and what lies in the home beside its secrets and the database."""
    home = stack.home
    paths = [home.with_name(f"{home.name}.out"), *home.rglob("*")]
    kept = ("secrets", "postgres")
    read = [
        path
        for path in paths
        if path.is_file() and not set(kept) & set(path.relative_to(home.parent).parts)
    ]
    assert any(path.suffix == ".log" for path in read)
    found = {
        str(path.relative_to(home.parent)): names
        for path in read
        if (names := _found(planted.secrets, path.read_text(errors="replace")))
    }
    assert found == {}


def test_no_answer_shows_one_again(planted: Planted) -> None:
    """Neither to the Owner who has typed it, nor in the audit log."""
    for path in NOT_SHOWN:
        answer = planted.org.owner.get(path)
        assert answer.status_code == 200, (path, answer.text)
        assert _found(planted.secrets, answer.text) == [], path


def test_no_row_has_one(stack: Stack, planted: Planted) -> None:
    """In any table, as text or as bytes; sums and sealed ones do not tell it."""
    tables = rows(
        stack,
        "SELECT table_schema AS schema, table_name AS name FROM information_schema.tables"
        " WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog',"
        " 'information_schema') ORDER BY 1, 2",
    )
    assert {"identity", "audit", "enrollment", "policy"} <= {table["schema"] for table in tables}
    sought = {**planted.secrets, "mark": planted.mark}
    clear = {name: [secret, secret.encode().hex()] for name, secret in sought.items()}
    patterns = [text for texts in clear.values() for text in texts]
    found: dict[str, set[str]] = {}
    for schema, name in tables:
        # One statement a table: what stands anywhere in a row.
        with_one = rows(
            stack,
            "SELECT p.text FROM unnest($1::text[]) AS p (text) WHERE EXISTS (SELECT"
            f' FROM "{schema}"."{name}" AS t WHERE position(p.text IN t::text) > 0)',
            patterns,
        )
        for row in with_one:
            names = [one for one, texts in clear.items() if row["text"] in texts]
            found.setdefault(f"{schema}.{name}", set()).update(names)
    assert {"identity.service_account", "audit.entry"} <= {
        table for table, names in found.items() if "mark" in names
    }
    assert {table: names for table, names in found.items() if names != {"mark"}} == {}


def test_no_backup_has_one(stack: Stack, planted: Planted, tmp_path: Path) -> None:
    """Closed, it shows nothing at all; who opens it finds the rows, and no secret in them."""
    passphrase, archive = "correct horse battery", tmp_path / "one.backup"
    (tmp_path / "passphrase").write_text(passphrase + "\n")
    key = ("--passphrase-file", tmp_path / "passphrase", "--home", stack.home)
    made = evergreen("backup", "create", "-o", archive, *key)
    assert made.returncode == 0, made.stderr
    closed = archive.read_bytes()
    assert not [one for one in (planted.mark, *planted.secrets.values()) if one.encode() in closed]
    sought = {**planted.secrets, "mark": planted.mark}
    found: dict[str, set[str]] = {}
    with reading(archive, Key(passphrase)) as opened:
        for table, pieces in opened.tables():
            content = b"".join(pieces)
            names = {
                name
                for name, secret in sought.items()
                if secret.encode() in content or secret.encode().hex().encode() in content
            }
            if names:
                found[table.name] = names
        for name, content in opened.files.items():
            if names := set(_found(planted.secrets, content.decode(errors="replace"))):
                found[name] = names
    assert {"identity.service_account", "audit.entry"} <= set(found)
    assert {table: names for table, names in found.items() if names != {"mark"}} == {}
