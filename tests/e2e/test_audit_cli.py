"""`evergreen audit` and `evergreen migrate` against the running product."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx

from deploy.launcher.home import Home
from servicekit.security import mode
from tests.e2e.world import PASSWORD, Org, assert_error, ok
from tests.support import programs
from tests.support.stack import PATIENCE, Stack, until


def evergreen(
    *arguments: str | Path, seconds: float = PATIENCE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the real command, with nothing on its standard input."""
    return programs.evergreen(arguments, _environment(environment), seconds)


def running(*arguments: str | Path) -> subprocess.Popen[str]:
    """The real command, for a test that answers it."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        _command(arguments), env=_environment({}), stdin=pipe, stdout=pipe, text=True
    )


def _command(arguments: Iterable[str | Path]) -> list[str]:
    return [sys.executable, "-m", "cli.main", *map(str, arguments)]


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    everywhere = (mode.FIPS, mode.SUITES)
    kept = {
        k: v for k, v in os.environ.items() if k in everywhere or not k.startswith("EVERGREEN_")
    }
    return {**kept, "COLUMNS": "200", **more}


def as_superuser(stack: Stack, *statements: str) -> None:
    """Runs SQL with all rights, the log's triggers out of the way."""
    home = Home(stack.home)

    async def run() -> None:
        connection = await asyncpg.connect(
            f"postgresql://postgres@/evergreen?host={home.run_directory() / 'postgres'}",
            password=(home.secrets / "postgres_superuser").read_text().strip(),
        )
        try:
            async with connection.transaction():
                await connection.execute("ALTER TABLE audit.entry DISABLE TRIGGER ALL")
                for statement in statements:
                    await connection.execute(statement)
                await connection.execute("ALTER TABLE audit.entry ENABLE ALWAYS TRIGGER only_grows")
        finally:
            await connection.close()

    asyncio.run(run())


def some_entries(org: Org) -> None:
    """Lets an administrator act, and waits until the log has it."""
    for _ in range(3):
        ok(org.root.post(f"/api/policies/{org.policy()['id']}/publish", json={}))

    def logged() -> bool:
        answer = ok(org.root.get("/api/audit", params={"orgId": org.id}))
        return [e["action"] for e in answer["entries"]].count("policy.published") >= 3

    until(logged, PATIENCE, "the entries did not arrive")


def test_an_installation_is_reached_where_the_environment_says(
    stack: Stack, tmp_path: Path
) -> None:
    """As in containers, where its address leads away; its certificate has to be for it."""

    def checkpoint(url: str, **environment: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "bootstrap.json").write_text(json.dumps(stack.bootstrap | {"url": url}))
        return evergreen("audit", "checkpoint", "--home", tmp_path, **environment)

    there = f"127.0.0.1:{stack.port}"
    found = checkpoint("https://localhost:1", EVERGREEN_CONNECT=there)
    assert found.returncode == 0, found.stderr
    for url, environment, said in (
        ("https://localhost:1", {}, "cannot be reached"),
        ("https://other.example", {"EVERGREEN_CONNECT": there}, "is not trusted"),
        ("https://localhost:1", {"EVERGREEN_CONNECT": "gateway"}, "gateway is not an address"),
    ):
        refused = checkpoint(url, **environment)
        assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr


def test_the_log_is_verified_through_the_public_api(stack: Stack, org: Org, tmp_path: Path) -> None:
    """Sound as it is; a change made with a superuser's rights is found and named."""
    some_entries(org)
    home = ("--home", stack.home)
    checkpoint, keys = tmp_path / "checkpoint.txt", tmp_path / "keys.pem"
    assert evergreen("audit", "checkpoint", "-o", checkpoint, *home).returncode == 0
    assert evergreen("audit", "keys", "-o", keys, *home).returncode == 0
    assert checkpoint.read_text().startswith("evergreen audit checkpoint v1\n")
    arguments = ("audit", "verify", "--checkpoint", checkpoint, "--public-key", keys, *home)
    sound = evergreen(*arguments)
    assert sound.returncode == 0, sound
    assert "Nothing was changed." in sound.stdout
    where = f"WHERE tenant_id = '{org.id}' AND sequence = 3"
    as_superuser(
        stack,
        "CREATE TABLE audit.put_back AS TABLE audit.entry",
        f"UPDATE audit.entry SET record = replace(record, '@', '%') {where}",
    )
    try:
        changed = evergreen(*arguments)
        alone = evergreen(*arguments, "--org", org.id)
    finally:
        as_superuser(
            stack,
            f"UPDATE audit.entry SET record = (SELECT record FROM audit.put_back {where}) {where}",
            "DROP TABLE audit.put_back",
        )
    for found in (changed, alone):
        assert found.returncode == 1, found
        assert f"TAMPERED  tenant {org.id}: changed: entry 3 " in found.stdout
    assert evergreen(*arguments).returncode == 0


def test_an_organisations_owner_lists_and_exports(stack: Stack, org: Org, tmp_path: Path) -> None:
    """With an address, a CA and a password file, from any machine; only what is theirs."""
    some_entries(org)
    email = ok(org.owner.get("/auth/session"))["email"]
    secret = tmp_path / "password"
    secret.write_text(PASSWORD + "\n")
    place = ("--url", stack.url, "--ca-file", stack.ca_file)
    who = (*place, "--email", email, "--password-file", secret)
    table = evergreen("audit", "list", "--action", "policy.published", *who)
    assert table.returncode == 0, table
    assert table.stdout.count("policy.published") >= 3
    both = ("--action", "policy.*", "--action", "identity.user_created", "--search", "policies/")
    found = evergreen("audit", "list", *both, "--outcome", "success", "--json", *who).stdout
    actions = {json.loads(line)["action"] for line in found.split("\n") if line}
    assert actions == {"policy.created", "policy.published"}
    wrong = evergreen("audit", "list", "--action", "policies", *who)
    assert wrong.returncode == 2
    assert "actions[0]: must be an action, or all of a context (policy.*)" in wrong.stderr
    lines = evergreen("audit", "list", "--limit", "2", "--json", *who).stdout.splitlines()
    assert [json.loads(line)["orgId"] for line in lines] == [org.id] * 2
    export = tmp_path / "audit.jsonl"
    assert evergreen("audit", "export", "--output", export, *who).returncode == 0
    offline = evergreen("audit", "verify", "--from-export", export)
    assert offline.returncode == 0, offline
    assert "in 1 chain," in offline.stdout
    csv = evergreen("audit", "export", "--format", "csv", *who)
    assert csv.stdout.lstrip("\ufeff").startswith("occurredAt,tenantId,sequence,")


def test_commands_say_plainly_what_is_wrong(stack: Stack, tmp_path: Path) -> None:
    """One sentence on standard error, and the exit code for `could not`."""
    wrong = tmp_path / "password"
    wrong.write_text("wrong")
    who = ("--email", stack.email, "--password-file", wrong)
    away = ("--url", "https://127.0.0.1:1", *who)
    untrusted = ("--url", stack.url, *who)
    for arguments, sentence in [
        (("--home", tmp_path), "there is no installation in"),
        (("--home", stack.home, "--password-file", wrong), "password"),
        (away, "cannot be reached"),
        (untrusted, "name its CA with --ca-file"),
        (("--url", "nonsense", *who), "nonsense"),
        (("--home", stack.home, "--org", "x"), "no tenant with the code or id x"),
    ]:
        found = evergreen("audit", "verify", *arguments)
        assert found.returncode == 2, found
        assert found.stderr.startswith("evergreen: "), found
        assert sentence in found.stderr, found
        assert len(found.stderr.splitlines()) == 1, found
        assert "Traceback" not in found.stderr


def test_the_schema_is_up_to_date(stack: Stack, tmp_path: Path) -> None:
    """`migrate` finds the installation by its home or by the environment, and runs twice."""
    status = evergreen("migrate", "status", "--check", "--home", stack.home)
    assert status.returncode == 0, status
    assert "audit" in status.stdout
    assert "The schema is up to date." in status.stdout
    machine = json.loads(
        evergreen("migrate", "status", "--json", EVERGREEN_HOME=str(stack.home)).stdout
    )
    assert all(m["appliedAt"] for m in machine["migrations"])
    home = Home(stack.home)
    sockets = home.run_directory() / "postgres"
    url = f"postgresql://evergreen_migrator@/evergreen?host={sockets}"
    environment = {
        "EVERGREEN_MIGRATE_DATABASE_URL": url,
        "EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE": str(home.secrets / "postgres_migrator"),
    }
    up = evergreen("migrate", "up", **environment)
    assert (up.returncode, up.stdout) == (0, "The schema is up to date.\n")
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong")
    environment["EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE"] = str(wrong)
    refused = evergreen("migrate", "up", **environment)
    assert refused.returncode == 1
    assert "refuses the role or its password" in refused.stderr
    nowhere = evergreen("migrate", "status", "--home", tmp_path)
    assert (nowhere.returncode, nowhere.stdout) == (1, "")
    assert "there is no installation" in nowhere.stderr


def test_entries_are_proved_through_the_public_api(stack: Stack, org: Org, tmp_path: Path) -> None:
    """By a file that needs nothing else; a kept checkpoint fits the log as it is later."""
    some_entries(org)
    home = ("--home", stack.home)
    tree, keys, proof = (tmp_path / name for name in ("tree", "keys.pem", "x.tlog-proof"))
    assert evergreen("audit", "checkpoint", "--tree", "-o", tree, *home).returncode == 0
    assert evergreen("audit", "keys", "-o", keys, *home).returncode == 0
    origin = tree.read_text().splitlines()[0]
    notes = evergreen("audit", "keys", "--notes", *home)
    assert notes.stdout.startswith(f"{origin}+")
    assert origin.startswith("localhost/audit/")
    followed = tmp_path / "followed"
    assert evergreen("audit", "follow", followed, *home).returncode == 0
    first = tree_size(followed)
    some_entries(org)
    until(
        lambda: (
            evergreen("audit", "follow", followed, *home).returncode == 0
            and tree_size(followed) >= first + 3
        ),
        PATIENCE,
        "the tree does not grow",
    )
    followed.write_text(followed.read_text().replace("localhost/audit/", "other/audit/"))
    assert evergreen("audit", "follow", followed, *home).returncode == 2
    published = {"action": "policy.published"}
    entry = ok(org.auditor.get("/api/audit", params=published))["entries"][0]
    made = evergreen("audit", "prove", entry["id"], "-o", proof, *home)
    assert made.returncode == 0, made.stderr
    assert ok_text(org.auditor.get(f"/api/audit/entries/{entry['id']}/proof")).startswith(
        "c2sp.org/tlog-proof@v1\n"
    )
    alone = evergreen("audit", "check-proof", proof, "--public-key", keys)
    assert alone.returncode == 0, alone
    assert f"{entry['actor']}: policy.published" in alone.stdout
    both = evergreen("audit", "check-proof", proof, "--checkpoint", tree, *home)
    assert both.returncode == 0, both
    # One organisation's entries alone: a tree does not say which leaves are its own.
    one = evergreen("audit", "verify", "--checkpoint", tree, "--org", org.id, *home)
    assert (one.returncode, "verify as root" in one.stdout) == (2, True), one
    whole = evergreen("audit", "verify", "--checkpoint", tree, *home)
    assert whole.returncode == 0, whole
    unknown = evergreen("audit", "prove", str(uuid4()), *home)
    assert (unknown.returncode, "no such audit entry" in unknown.stderr) == (2, True)
    forged = tree.read_text().replace(f"\n{tree_size(tree)}\n", f"\n{tree_size(tree) - 1}\n")
    tree.write_text(forged)
    refused = evergreen("audit", "check-proof", proof, "--checkpoint", tree, *home)
    assert (refused.returncode, "forged" in refused.stdout) == (1, True)
    for path in ("0/000", "entries/x000/000.p/1", "0/000.p/1", "1/000.p/1"):
        assert org.auditor.get(f"/api/audit/log/tile/{path}").status_code in {200, 404}
    assert "path" in assert_error(org.auditor.get("/api/audit/log/tile/a/b"), 400)["message"]
    assert "x" in assert_error(org.auditor.get("/api/audit/log/tile/0/000?x=1"), 400)["message"]
    assert "from" in assert_error(org.auditor.get("/api/audit/log/consistency"), 400)["message"]
    assert len(org.auditor.get("/api/audit/log/tile/entries/000.p/1").content) == 34


def ok_text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    return answer.text


def tree_size(path: Path) -> int:
    return int(path.read_text().splitlines()[1])
