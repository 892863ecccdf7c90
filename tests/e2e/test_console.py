"""A day with the released web console, by a stand-in that sends exactly its requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote_plus
from uuid import uuid4

import httpx
import pytest

from tests.e2e.console import Console, as_json
from tests.e2e.pages import Pages, link_in
from tests.e2e.world import PASSWORD, Org, ok
from tests.support.stack import PATIENCE, Stack, until

OpenConsole = Callable[[], Console]


@pytest.fixture
def open_console(stack: Stack) -> Iterator[OpenConsole]:
    """Opens browsers with the console."""
    opened: list[Console] = []

    def open_one() -> Console:
        opened.append(Console(stack))
        return opened[-1]

    yield open_one
    for console in opened:
        console.close()


@pytest.fixture
def console(open_console: OpenConsole, org: Org) -> Console:
    """The console of an organisation's Owner, signed in."""
    found = open_console()
    assert found.sign_in(person(org, "Owner"), PASSWORD) == ""
    return found


def person(org: Org, role: str) -> str:
    """A new user's address."""
    email = f"{role.lower()}-{uuid4().hex[:8]}@school.example"
    body = {"email": email, "role": role, "tenantId": org.id, "password": PASSWORD}
    ok(org.root.post("/api/users", json=body))
    return email


def test_a_session_outlives_a_reload_and_other_people(org: Org, open_console: OpenConsole) -> None:
    """Two at once, each with a session of their own; each refreshes it and stays who they are."""
    first, second = open_console(), open_console()
    assert not first.reload()
    owner, admin = person(org, "Owner"), person(org, "Admin")
    assert first.sign_in(owner, PASSWORD) == ""
    assert second.sign_in(admin, PASSWORD) == ""
    for _ in range(2):
        for console, email in ((first, owner), (second, admin)):
            assert console.reload()
            assert console.refresh()
            assert console.session is not None
            assert console.session["email"] == email
            assert console.session["tenantId"] == org.id
            expires = datetime.fromisoformat(console.session["expiresAt"].replace("Z", "+00:00"))
            assert 3000 < (expires - datetime.now(UTC)).total_seconds() <= 3600
            assert console.json("GET", "/api/devices")["devices"] == []


def test_a_wrong_password_is_told_as_that(org: Org, open_console: OpenConsole) -> None:
    """The form shows our words, and nobody is signed in."""
    console = open_console()
    shown = console.sign_in(person(org, "Owner"), "not the password")
    assert shown == "the e-mail address or the password is wrong"
    assert console.sign_in("nobody@school.example", "not the password") == shown
    assert "password" in console.sign_in("nobody@school.example", "x" * 2000)
    assert not console.reload()
    assert "session" not in console.client.cookies


def test_signing_out_ends_the_session(console: Console, stack: Stack) -> None:
    """Here, with its tokens, and for a second time without harm."""
    token, refresh = (console.client.cookies[name] for name in ("session", "session_refresh"))
    console.sign_out()
    assert not {"session", "session_refresh"} & set(console.client.cookies)
    assert not console.reload()
    assert not console.refresh()
    console.sign_out()
    with stack.client(token) as client:
        until(
            lambda: client.get("/api/tenants").status_code == 401,
            PATIENCE,
            "the token is taken after the session has ended",
        )
        assert client.post("/auth/refresh", json={"refreshToken": refresh}).status_code == 401


def test_a_session_goes_on_after_its_first_hour(console: Console) -> None:
    """A page that is opened again has no token any more, and gets one; so does a sign-out."""
    del console.client.cookies["session"]
    assert console.reload()
    assert "session" in console.client.cookies
    del console.client.cookies["session"]
    refresh = console.client.cookies["session_refresh"]
    console.sign_out()
    console.client.cookies.set("session_refresh", refresh, "localhost.local", "/api/auth")
    assert not console.reload()


def test_cookies_are_for_the_browser_alone(
    stack: Stack, org: Org, open_console: OpenConsole
) -> None:
    """No script reads them, no other site's page sends them, and the refresh token goes nowhere
    but where it is needed. A program's login sets none."""
    console = open_console()
    body = json.dumps({"email": person(org, "Owner"), "password": PASSWORD})
    answer = console.fetch("POST", "/api/auth/login", body)
    found = {}
    for line in answer.headers.get_list("set-cookie"):
        name, _, more = line.partition("=")
        found[name] = {part.strip().lower() for part in more.split(";")[1:]}
    assert found.keys() == {"session", "session_refresh", "__Host-evergreen_device"}
    for name, attributes in found.items():
        assert {"httponly", "secure", "samesite=strict"} <= attributes, name
        path = "path=/api/auth" if name == "session_refresh" else "path=/"
        assert path in attributes, name
    assert answer.headers["cache-control"] == "no-store"
    with stack.client() as program:
        answer = program.post("/auth/login", json=json.loads(body))
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("path", ["/api/auth/login", "/api/auth/refresh", "/api/auth/logout"])
def test_other_sites_do_not_sign_anybody_in_or_out(console: Console, path: str) -> None:
    """Not with the cookie, and not without one."""
    body = json.dumps({"email": "x@school.example", "password": PASSWORD})
    for headers in (
        {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
        {"origin": "https://students.localhost", "sec-fetch-site": "same-site"},
        {},
        {"sec-fetch-site": "same-origin", "content-type": "text/plain"},
    ):
        sent = {"content-type": "application/json", **headers}
        answer = console.client.post(path, content=body, headers=sent)
        assert answer.status_code == 403, (headers, answer.text)
        assert "set-cookie" not in answer.headers
    assert console.reload()


def test_devices_are_found(console: Console, org: Org) -> None:
    """With each of the page's filters, also by a text with a space."""
    agent = org.device()
    agent.report_state()
    other = org.device()
    other.report_state()
    serial = agent.hardware.serial

    def listed(query: str) -> list[str]:
        return [one["hostname"] for one in console.json("GET", f"/api/devices{query}")["devices"]]

    until(lambda: len(listed("")) == 2, PATIENCE, "the devices are not listed")
    assert len(listed("?search=" + quote_plus(agent.hardware.model))) == 2
    assert listed(f"?search={serial}") == [serial]
    assert listed(f"?status=online&search={serial}") == [serial]
    assert listed(f"?status=offline&search={serial}") == []
    assert listed("?status=decommissioned") == []
    for device in console.json("GET", "/api/devices")["devices"]:
        assert {"id", "hostname", "model", "osVersion", "policyVersion"} <= device.keys()
        assert device["health"] in {"healthy", "warning", "critical"}
        assert device["lastSeen"]
        detail = console.json("GET", f"/api/devices/{device['id']}")
        assert {"serialNumber", "installedApps", "healthSnapshot", "updates"} <= detail.keys()
    console.json("POST", f"/api/devices/{agent.device_id}/sync", {})
    console.json("POST", f"/api/devices/{agent.device_id}/decommission", {})


def test_a_signed_policy_is_what_devices_get(console: Console, org: Org) -> None:
    """Created as a draft, edited, opened again; `signed` gives it to the devices, and a draft
    after that leaves what they have."""
    agent = org.device()
    applied = len(agent.applied)
    draft = console.save(console.form())
    assert not draft["signed"]
    assert not agent.pull()
    assert len(agent.applied) == applied
    form = console.open_policy(draft["id"])
    assert form["homepageUrl"] == "https://www.evergreenos.dev"
    form |= {"homepageUrl": "https://school.example", "wifiSecurity": "wpa3", "signed": True}
    body = console.body(form, draft["id"])
    refused = console.fetch("PATCH", f"/api/policies/{draft['id']}", as_json(body))
    assert refused.status_code == 400
    assert "passphrase" in refused.json()["error"]
    assert not agent.pull()
    # The editor has no field for the passphrase: it is given once, by the API.
    body["signed"] = False
    body["bundle"]["configuration"]["network"]["wifiNetworks"][0]["passphrase"] = "wifi secret 1"
    ok(org.admin.patch(f"/api/policies/{draft['id']}", json=body))
    assert console.save(form, draft["id"])["signed"]
    assert agent.pull()
    assert agent.document is not None
    assert agent.document["browser"]["homepage"] == "https://school.example"
    assert agent.document["security"]["selinux_enforce"] is True
    (wifi,) = agent.document["network"]["wifi"].shown()
    assert (wifi["ssid"], wifi["security"]) == ("EvergreenNet", "sae")
    assert wifi["passphrase"] == "wifi secret 1"
    again = console.open_policy(draft["id"])
    assert {**form, "version": again["version"]} == again
    again |= {"homepageUrl": "https://draft.example", "signed": False}
    console.save(again, draft["id"])
    assert not agent.pull()
    assert agent.document["browser"]["homepage"] == "https://school.example"
    (listed,) = console.json("GET", "/api/policies")["policies"]
    assert listed["id"] == draft["id"]


def test_events_are_seen_searched_and_exported(console: Console, org: Org) -> None:
    """The page drops what lacks a time, and searches with spaces."""
    agent = org.device()
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    payloads = {
        "app.installed": {"message": "the calculator is installed"},
        "policy.error": {"message": "disk is full", "severity": "error"},
    }
    events = [
        {"id": str(number), "type": kind, "timestamp": now, "payload": payload}
        for number, (kind, payload) in enumerate(payloads.items())
    ]
    with console._stack.client(agent.device_token) as device:
        body = {"device_id": agent.device_id, "events": events}
        ok(device.post("/api/v1/devices/events", json=body))

    def listed(query: str = "") -> list[dict[str, Any]]:
        found = console.json("GET", f"/api/events{query}")["events"]
        return [one for one in found if one.get("timestamp")]

    until(lambda: len(listed()) == 2, PATIENCE, "the events are not listed")
    (found,) = listed("?search=the+calculator")
    assert found["message"] == "the calculator is installed"
    assert found["timestamp"] == found["occurredAt"]
    assert (found.get("actionType") or found["action"]) == "app.installed"
    assert [one["severity"] for one in listed("?severity=error")] == ["error"]
    assert listed("?search=disk+is&severity=info") == []
    for kind in ("csv", "json"):
        answer = console.fetch("GET", f"/api/events/export?search=the+calculator&format={kind}")
        assert answer.status_code == 200
        assert "the calculator is installed" in answer.text
        assert "disk is full" not in answer.text


def test_an_invited_person_sets_a_password_on_our_page(
    console: Console, open_console: OpenConsole, stack: Stack, org: Org
) -> None:
    """From the invitation in the console to the invited one's own console; the role is changed
    there, and the person is deactivated."""
    email = f"carla-{uuid4().hex[:8]}@school.example"
    made = console.json("POST", "/api/users", {"email": email, "role": "Auditor"})
    assert made["status"] == "invited"
    assert made["invitationLink"] == f"{stack.url}/auth/accept#token={made['invitationToken']}"
    (listed,) = [
        user for user in console.json("GET", "/api/users")["users"] if user["email"] == email
    ]
    assert not {"invitationLink", "invitationToken"} & {k for k, v in listed.items() if v}
    # The console shows no link: the page for that does, with the console's session.
    with Pages(stack) as inviter:
        inviter.client.cookies = httpx.Cookies(console.client.cookies)
        link = link_in(inviter.send("/auth/invitations", "invite", user=made["id"]).text)
    with Pages(stack) as pages:
        accepted = pages.send("/auth/accept", "accept", token=link, password=PASSWORD)
        assert accepted.status_code == 303
    carla = open_console()
    carla.client.cookies = httpx.Cookies(pages.cookies)
    assert carla.reload()
    assert carla.session is not None
    assert (carla.session["email"], carla.session["role"]) == (email, "Auditor")
    refused = carla.fetch("POST", "/api/users", json.dumps({"email": email, "role": "Owner"}))
    assert refused.status_code == 403
    console.json("PATCH", f"/api/users/{made['id']}", {"role": "Admin"})
    until(lambda: not carla.reload(), PATIENCE, "the session goes on with the old role")
    assert carla.sign_in(email, PASSWORD) == ""
    assert carla.session["role"] == "Admin"
    console.json("POST", f"/api/users/{made['id']}/deactivate", {})
    until(lambda: not carla.reload(), PATIENCE, "a disabled user's session goes on")
    assert "wrong" in carla.sign_in(email, PASSWORD)


def test_tenants_are_made_and_changed(stack: Stack, open_console: OpenConsole) -> None:
    """As an Owner above all organisations does."""
    console = open_console()
    assert console.sign_in(stack.email, stack.password) == ""
    name = f"School {uuid4().hex[:6]}"
    made = console.json("POST", "/api/tenants", {"name": name, "reseller": False})
    body = {"name": f"{name} B", "parentId": made["parentId"], "reseller": False}
    console.json("PATCH", f"/api/tenants/{made['id']}", body)
    tenants = {one["id"]: one for one in console.json("GET", "/api/tenants")["tenants"]}
    assert tenants[made["id"]]["name"] == f"{name} B"
    assert tenants[made["id"]]["parentId"] in tenants
