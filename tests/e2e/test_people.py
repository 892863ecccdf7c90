"""People of two schools, over REST and at the command line, and the way back of the only Owner."""

from __future__ import annotations

from uuid import uuid4

import httpx

from tests.e2e.pages import Pages
from tests.e2e.test_audit_cli import evergreen
from tests.e2e.world import PASSWORD, assert_error, make_org, ok
from tests.support.stack import PATIENCE, Stack, until


def test_a_person_changes_schools_and_leaves(stack: Stack, root: httpx.Client) -> None:
    """Moved by PATCH with either name of the tenant; deleted only when deactivated, with If-Match
    and validateOnly; the address is free, and both logs tell their half."""
    old, new = make_org(stack, root, "Old school"), make_org(stack, root, "New school")
    address = f"teacher-{uuid4().hex[:8]}@school.example"
    made = ok(
        root.post(
            "/api/users",
            json={"email": address, "role": "Admin", "orgId": old.id, "password": PASSWORD},
        )
    )
    path = f"/api/users/{made['id']}"
    seen = ok(root.patch(path, json={"role": "Admin", "orgId": new.id, "validateOnly": True}))
    assert (seen["tenantId"], ok(root.get(path))["tenantId"]) == (new.id, old.id)
    moved = ok(root.patch(path, json={"role": "Admin", "tenantId": new.id}))
    assert moved["tenantId"] == new.id
    assert_error(root.patch(path, json={}), 400)
    assert_error(root.delete(path), 400)
    ok(root.post(f"{path}/deactivate", json={}))
    etag = root.get(path).headers["etag"]
    assert ok(root.delete(path, params={"validateOnly": "true"}))["status"] == "deleted"
    assert_error(root.delete(path, headers={"If-Match": f'"{moved["etag"]}"'}), 412)
    gone = ok(root.delete(path, headers={"If-Match": etag}))
    assert (gone["email"], gone["status"], gone["deletedBy"]) == (
        address,
        "deleted",
        stack.bootstrap["email"],
    )
    assert_error(root.get(path), 404)
    listed = ok(root.get("/api/users", params={"orgId": new.id, "showDeleted": "true"}))["users"]
    assert address in {user["email"] for user in listed if user["status"] == "deleted"}
    ok(root.post("/api/users", json={"email": address, "role": "Auditor", "orgId": old.id}))

    def told(org_id: str, action: str) -> bool:
        query = {"orgId": org_id, "action": f"identity.{action}"}
        entries = ok(root.get("/api/audit", params=query))["entries"]
        return any(entry["resource"] == f"users/{made['id']}" for entry in entries)

    for org_id, action in (
        (old.id, "user_moved_away"),
        (new.id, "user_moved_in"),
        (new.id, "user_deleted"),
    ):
        until(lambda o=org_id, a=action: told(o, a), PATIENCE, f"{action} did not arrive")


def test_people_at_the_command_line(stack: Stack, root: httpx.Client) -> None:
    """Invited, corrected, moved, deactivated, deleted; and a lost password, on the server."""
    org = make_org(stack, root, "Command line")
    name = uuid4().hex[:8]
    wrong, right = f"{name}-wrong@school.example", f"{name}@school.example"

    def users(*arguments: str, expected: int = 0) -> str:
        done = evergreen("users", *arguments, "--home", stack.home)
        assert done.returncode == expected, done.stdout + done.stderr
        return done.stderr + done.stdout

    assert "/auth/accept#token=" in users("invite", wrong, "--role", "Admin", "--org", org.code)
    users("edit", wrong, expected=2)
    assert right in users("edit", wrong, "--new-email", right, "--dry-run")
    assert "/auth/accept#token=" in users("edit", wrong, "--new-email", right)
    assert "you see no user" in users("show", wrong, expected=2)
    token = users("invite", right).strip().rpartition("#token=")[2]  # the last line
    accepted = {"invitationToken": token, "password": PASSWORD}
    ok(root.post("/auth/accept-invitation", json=accepted))

    assert "Nothing was changed" in users("edit", right, "--role", "Auditor", "--dry-run")
    link = users("reset-password", right).strip().splitlines()[-1]
    assert link.startswith(f"{stack.url}/auth/accept#token=")
    body = {"email": right, "password": PASSWORD}
    assert_error(root.post("/auth/login", json=body), 401)
    accepted["invitationToken"] = link.rpartition("=")[2]
    ok(root.post("/auth/accept-invitation", json=accepted))
    ok(root.post("/auth/login", json=body))

    assert "Auditor" in users("edit", right, "--role", "Auditor")
    assert f'"tenantId": "{org.id}"' in users("show", right)
    assert "deactivate the user first" in users("delete", right, "--yes", expected=2)
    assert "disabled" in users("deactivate", right)
    assert "deleted" in users("delete", right, "--dry-run")
    assert "give --yes" in users("delete", right, expected=2)
    assert "deleted" in users("delete", right, "--yes")
    listed = users("list", "--org", org.code)
    assert listed.split()[:5] == ["EMAIL", "ROLE", "STATUS", "TENANT", "ID"]
    assert right not in listed
    assert "deleted" in users("list", "--org", org.code, "--deleted")


def test_sessions_of_a_browser_and_of_a_program(stack: Stack, root: httpx.Client) -> None:
    """Each shows where it is from, however often it is refreshed; ended by its user and at the
    command line, it opens nothing any more."""
    org = make_org(stack, root, "Sessions")
    email = f"{uuid4().hex[:8]}@school.example"
    person = {"email": email, "role": "Admin", "orgId": org.id, "password": PASSWORD}
    ok(root.post("/api/users", json=person))
    agent = "Mozilla/5.0 (X11; Linux x86_64) " + "x" * 400
    with Pages(stack) as browser, stack.client(stack.login(email, PASSWORD)["token"]) as program:
        browser.client.headers["user-agent"] = agent
        assert browser.login(email, PASSWORD).status_code == 303
        listed = ok(program.get("/auth/sessions"))["sessions"]
        (there,) = [one for one in listed if one["userAgent"].startswith("Mozilla")]
        assert there["userAgent"] == agent[:256]
        assert there["address"] == "127.0.0.1"
        assert [one["current"] for one in listed].count(True) == 1
        ok(program.post(f"/auth/sessions/{there['id']}/end", json={}))
        until(
            lambda: browser.open("/auth/account").status_code == 303,
            PATIENCE,
            "the browser is still logged in",
        )
        shown = evergreen("users", "sessions", email, "--home", stack.home)
        assert shown.returncode == 0, shown.stderr
        assert there["id"] not in shown.stdout
        assert "python-httpx" in shown.stdout
        ended = evergreen("users", "end-sessions", email, "--home", stack.home)
        assert ended.stdout.startswith(f"{email}: sessions ended: ")
        until(
            lambda: program.get("/auth/sessions").status_code == 401,
            PATIENCE,
            "the program is still logged in",
        )
