"""Identity's pages, as a browser without JavaScript uses them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.e2e.pages import Pages, code_of, hidden
from tests.e2e.test_console import person
from tests.e2e.world import PASSWORD, Org, ok
from tests.support.stack import PATIENCE, Stack, until

NEW = "another password for tests"
ALL = ["/login", "/auth/accept", "/auth/forgot"]


@pytest.fixture
def pages(stack: Stack) -> Iterator[Pages]:
    with Pages(stack) as found:
        yield found


def invited(org: Org) -> dict[str, Any]:
    """A user who is invited, as the inviter is told once."""
    email = f"dora-{uuid4().hex[:8]}@school.example"
    return ok(org.owner.post("/api/users", json={"email": email, "role": "Admin"}))


@pytest.mark.parametrize("path", ALL)
def test_every_page_is_strict_and_in_the_readers_language(stack: Stack, path: str) -> None:
    """No inline script, nothing from elsewhere, no frame, no copy in a cache."""
    for wish, language, word in (("en", "en", "Back to sign-in"), ("de-AT", "de", "Zurück")):
        with Pages(stack, wish) as pages:
            answer = pages.open(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["content-language"] == language
        assert f'<html lang="{language}">' in answer.text
        assert path == "/login" or word in answer.text
        assert answer.text.count("<script") == 1


def test_the_consoles_own_navigation_falls_back_to_our_page(pages: Pages) -> None:
    """Its router asks for its own format, and goes on as a browser when it gets HTML."""
    headers = {"rsc": "1", "next-url": "/dashboard/devices", "sec-fetch-site": "same-origin"}
    answer = pages.client.get("/login?_rsc=1abc", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")


def test_the_pages_files_are_there(pages: Pages) -> None:
    """And are asked for again after an upgrade alone."""
    for name, kind in (("pages.css", "text/css"), ("pages.js", "text/javascript")):
        answer = pages.client.get(f"/auth/assets/{name}")
        assert answer.headers["content-type"].startswith(kind)
        again = pages.client.get(
            f"/auth/assets/{name}", headers={"if-none-match": answer.headers["etag"]}
        )
        assert again.status_code == 304
    assert pages.client.get("/auth/assets/other.html").status_code == 404


def test_signing_in_and_out(pages: Pages, stack: Stack, org: Org) -> None:
    """To the page that says who one is; out again, with the session at its end."""
    email = person(org, "Auditor")
    assert pages.open("/auth/account").headers["location"] == "/login?next=/auth/account"
    answer = pages.login(f"  {email} ", PASSWORD)
    assert (answer.status_code, answer.headers["location"]) == (303, "/auth/signed-in")
    assert email in pages.open("/auth/signed-in").text
    account = pages.open("/auth/account").text
    assert email in account
    assert "Auditor" in account
    assert "School" in account
    assert email in pages.open("/login").text
    token = pages.client.cookies["session"]
    answer = pages.send("/auth/account", "logout")
    assert answer.headers["location"] == "/login?done=signed-out"
    assert "session" not in pages.client.cookies
    assert "You are signed out." in pages.open(answer.headers["location"]).text
    with stack.client(token) as client:
        until(
            lambda: client.get("/api/tenants").status_code == 401, PATIENCE, "the token still works"
        )
    pages.client.cookies.set("session", token)
    assert pages.open("/auth/account").headers["location"].startswith("/login")


def test_a_login_leads_where_one_wanted_to_be(pages: Pages, org: Org) -> None:
    """If that is a page of ours; nowhere else, whatever a link says."""
    email = person(org, "Admin")
    page = pages.open("/login?next=/auth/account").text
    assert hidden(page, "next") == "/auth/account"
    answer = pages.send("/login", "login", email=email, password=PASSWORD, next="/auth/account")
    assert answer.headers["location"] == "/auth/account"
    for evil in ("//evil.example", "https://evil.example/dashboard", "/\\evil.example", "x"):
        assert hidden(pages.client.get("/login", params={"next": evil}).text, "next") == ""
        answer = pages.send("/login", "login", email=email, password=PASSWORD, next=evil)
        assert answer.headers["location"] == "/auth/signed-in"


@pytest.mark.parametrize("language", ["en", "de"])
def test_a_wrong_password_is_told_on_the_page(stack: Stack, org: Org, language: str) -> None:
    """The address stays in its field, the password does not, and there is no session."""
    email = person(org, "Owner")
    with Pages(stack, language) as pages:
        answer = pages.login(email, "wrong & <wrong>")
        assert answer.status_code == 401
        text = {"en": "password is wrong", "de": "Passwort ist falsch"}[language]
        assert text in answer.text
        assert {"en": "Error: ", "de": "Fehler: "}[language] in answer.text
        assert f'value="{email}"' in answer.text
        assert "wrong &" not in answer.text
        assert "session" not in pages.client.cookies
        answer = pages.login("", "")
        assert answer.status_code == 400
        assert answer.text.count('aria-invalid="true"') == 2
        answer = pages.login('"><script>alert(1)</script>', "x")
        assert answer.status_code in {400, 401}
        assert "<script>alert" not in answer.text


def test_an_invitation_is_accepted_once(pages: Pages, stack: Stack, org: Org) -> None:
    """By the pasted link; what is wrong is told before, and the link needs no second pasting."""
    made = invited(org)
    link = code_of(made)
    answer = pages.send("/auth/accept", "accept", token=link, password=NEW, repeat="other")
    assert answer.status_code == 400
    assert "not the same" in answer.text
    assert hidden(answer.text, "token") == made["invitationToken"]
    answer = pages.send("/auth/accept", "accept", token=link, password="short")
    assert answer.status_code == 400
    assert "New password: must have at least 12 characters" in answer.text
    answer = pages.send("/auth/accept", "accept", token=made["invitationToken"], password=NEW)
    assert (answer.status_code, answer.headers["location"]) == (303, "/auth/signed-in")
    assert made["email"] in pages.open("/auth/account").text
    answer = pages.send("/auth/accept", "accept", token=link, password=NEW)
    assert answer.status_code == 401
    assert "not valid any more" in answer.text
    assert f'value="{made["invitationToken"]}"' in answer.text
    assert stack.login(made["email"], NEW)["role"] == "Admin"


def test_a_forgotten_password_is_replaced_with_a_new_invitation(stack: Stack, org: Org) -> None:
    """The page says whom to ask, and takes what one is given."""
    made = invited(org)
    with Pages(stack, "de") as pages:
        pages.send("/auth/accept", "accept", token=code_of(made), password=PASSWORD)
    again = ok(org.owner.post(f"/api/users/{made['id']}/invite", json={}))
    with Pages(stack, "de") as pages:
        page = pages.open("/auth/forgot").text
        assert "Bitten Sie einen Owner" in page
        answer = pages.send("/auth/forgot", "reset", token="x", password=NEW)
        assert answer.status_code == 401
        assert "Diese Einladung gilt nicht mehr" in answer.text
        assert "Passwort vergessen?" in answer.text
        answer = pages.send("/auth/forgot", "reset", token=code_of(again), password=NEW)
        assert answer.status_code == 303
        assert made["email"] in pages.open("/auth/account").text
    stack.login(made["email"], NEW)


def test_the_own_password_is_changed(pages: Pages, stack: Stack, org: Org) -> None:
    """With the old one; other sessions end, this one goes on."""
    email = person(org, "Admin")
    other = stack.login(email, PASSWORD)["token"]
    pages.login(email, PASSWORD)
    answer = pages.send("/auth/account", "password", current="wrong", password=NEW)
    assert answer.status_code == 400
    assert "Current password: is wrong" in answer.text
    answer = pages.send("/auth/account", "password", current=PASSWORD, password=NEW, repeat="")
    assert "not the same" in answer.text
    answer = pages.send("/auth/account", "password", current=PASSWORD, password=NEW)
    assert answer.headers["location"] == "/auth/account?done=password"
    assert "Your password is changed." in pages.open(answer.headers["location"]).text
    with stack.client(other) as client:
        until(lambda: client.get("/api/tenants").status_code == 401, PATIENCE, "it still works")
    stack.login(email, NEW)


@pytest.mark.parametrize(
    "form",
    [
        "login",
        "accept",
        "reset",
        "password",
        "logout",
        "invite",
        "end-session",
        "set-up-app",
        "confirm-app",
        "remove-app",
        "recovery-codes",
        "confirm",
    ],
)
def test_a_form_of_another_site_does_nothing(
    pages: Pages, stack: Stack, org: Org, form: str
) -> None:
    """Each way to tell it by is enough: where it comes from, its token, its cookie."""
    email = person(org, "Owner")
    pages.login(email, PASSWORD)
    session = pages.client.cookies["session"]
    token = hidden(pages.open("/auth/account").text, "form")
    made = invited(org)
    fields = {
        "form": token,
        "email": made["email"],
        "token": made["invitationToken"],
        "user": made["id"],
        "current": PASSWORD,
        "password": NEW,
        "repeat": NEW,
    }
    ours = {"sec-fetch-site": "same-origin", "origin": stack.url}
    foreign: list[tuple[dict[str, str], dict[str, str]]] = [
        ({}, {}),
        ({"sec-fetch-site": "same-site", "origin": "https://students.localhost"}, {}),
        ({"sec-fetch-site": "cross-site", "origin": "https://evil.example"}, {}),
        ({"origin": "null"}, {}),
        (ours, {"form": ""}),
        (ours, {"form": "A" * 22}),
    ]
    for headers, changed in foreign:
        answer = pages.post(form, headers, **{**fields, **changed})
        assert answer.status_code == 403, (headers, changed)
        assert answer.headers["content-type"].startswith("text/html")
        assert "open for too long" in answer.text
        assert pages.client.cookies["session"] == session
    with stack.client() as stranger:
        answer = stranger.post(f"/auth/forms/{form}", data=fields, headers=ours)
    assert answer.status_code in {303, 403}
    assert "session=" not in answer.headers.get("set-cookie", "")
    assert pages.open("/auth/account").status_code == 200
    stack.login(email, PASSWORD)
    still = ok(org.owner.get(f"/api/users/{made['id']}"))
    assert still["status"] == "invited"
    with stack.client() as invitee:
        accepted = {"invitationToken": made["invitationToken"], "password": NEW}
        ok(invitee.post("/auth/accept-invitation", json=accepted))


def test_what_is_no_form_is_refused(pages: Pages, stack: Stack) -> None:
    """JSON, a file, too many fields, broken text: never an error of ours."""
    token = hidden(pages.open("/login").text, "form")
    ours = {"sec-fetch-site": "same-origin"}
    urlencoded = {**ours, "content-type": "application/x-www-form-urlencoded"}

    def send(content: bytes, headers: dict[str, str]) -> httpx.Response:
        return pages.client.post("/auth/forms/login", content=content, headers=headers)

    assert send(b"{}", {**ours, "content-type": "application/json"}).status_code == 400
    assert (
        send(b"a", {**ours, "content-type": "multipart/form-data; boundary=x"}).status_code == 400
    )
    assert send(b"a", ours).status_code == 400
    assert send(b"&".join(b"a%d=" % i for i in range(50)), urlencoded).status_code == 400
    assert send(b"a" * 70_000, urlencoded).status_code == 413
    head = b"form=" + token.encode()
    for body in (
        b"",
        b"&email=%ff%fe&password=%00",
        b"&email=a%00@b&password=x",
        b"&=&&==",
        b"\xff",
    ):
        assert send(head + body, urlencoded).status_code in {400, 401, 403}, body
    for form in ("login", "accept", "reset", "password", "logout", "invite"):
        assert pages.open(f"/auth/forms/{form}").status_code == 303
    assert pages.client.post("/auth/forms/other", data={}, headers=ours).status_code == 404


def test_a_stolen_or_foreign_cookie_opens_no_page(pages: Pages, org: Org) -> None:
    """Nor does a device's token, nor one that is changed."""
    device = org.device().device_token
    user = org.owner.headers["authorization"].removeprefix("Bearer ")
    changed = user[:-9] + ("B" if user[-9] == "A" else "A") + user[-8:]
    for token in (device, changed, "x", "", "a.b.c"):
        pages.client.cookies.set("session", token)
        assert pages.open("/auth/account").status_code == 303
        answer = pages.client.get("/api/auth/session")
        assert (answer.status_code, answer.json()) == (200, {"session": None})
    pages.client.cookies.set("session", user)
    assert pages.open("/auth/account").status_code == 200
    assert pages.client.get("/api/auth/session").json()["session"]["role"] == "Owner"


def test_logins_by_pages_are_in_the_audit_log(pages: Pages, org: Org) -> None:
    """With the address that they came from, as those of programs."""
    email = person(org, "Admin")
    pages.login(email, "wrong wrong wrong")
    pages.login(email, PASSWORD)
    pages.send("/auth/account", "logout")

    def seen() -> set[str]:
        entries = ok(org.owner.get("/api/audit"))["entries"]
        mine = [e for e in entries if email in str(e)]
        assert all(e["sourceIp"] for e in mine if e["action"].startswith("identity.log"))
        return {e["action"] for e in mine}

    wanted = {"identity.login_failed", "identity.login_succeeded", "identity.logged_out"}
    until(lambda: wanted <= seen(), PATIENCE, "the log lacks some of it")
