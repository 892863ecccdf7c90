"""Second factors through the gateway, as a browser without JavaScript uses them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest

from tests.e2e.pages import Pages, hidden
from tests.e2e.test_audit_cli import evergreen, running
from tests.e2e.test_console import person
from tests.e2e.world import PASSWORD, Org, ok
from tests.support.authenticator import App
from tests.support.stack import PATIENCE, Stack


def app_on(page: str) -> App:
    """The authenticator app, from what the page shows."""
    found = re.search(r'<code class="key">([A-Z2-7 ]+)</code>', page)
    assert found, page
    return App(found[1])


def recovery_codes(page: str) -> list[str]:
    return [unescape(one) for one in re.findall(r"<li><code>([^<]+)</code></li>", page)]


def set_up(pages: Pages) -> tuple[App, list[str]]:
    """Sets up an app on the account's page; half a minute ago, so that later codes still work."""
    shown = pages.send("/auth/account", "set-up-app")
    assert shown.status_code == 200
    assert "<svg" in shown.text
    app = app_on(shown.text)
    answer = pages.post("confirm-app", form=hidden(shown.text, "form"), code=app.code(-1))
    assert answer.headers["location"] == "/auth/account?done=factor", answer.text
    return app, recovery_codes(shown.text)


@pytest.fixture
def pages(stack: Stack) -> Iterator[Pages]:
    with Pages(stack) as found:
        yield found


def test_a_browser_signs_in_with_two_steps(pages: Pages, stack: Stack, org: Org) -> None:
    """Where one wanted to be; the cookie of the first step opens nothing and goes with the
    second."""
    email = person(org, "Auditor")
    pages.login(email, PASSWORD)
    assert "password alone" in pages.open("/auth/account").text
    app, codes = set_up(pages)
    assert len(codes) == 10
    assert "Recovery codes left: 10" in pages.open("/auth/account?done=factor").text
    assert pages.send("/auth/account", "logout").status_code == 303

    answer = pages.send("/login", "login", email=email, password=PASSWORD, next="/auth/account")
    where = "/auth/second-factor?next=/auth/account"
    assert (answer.status_code, answer.headers["location"]) == (303, where)
    (cookie,) = [one for one in answer.headers.get_list("set-cookie") if "evergreen_login" in one]
    for attribute in ("HttpOnly", "Secure", "SameSite=strict", "Path=/", "Max-Age=600"):
        assert attribute.lower() in cookie.lower()
    assert "session" not in pages.client.cookies
    assert pages.open("/auth/account").status_code == 303
    page = pages.open(where)
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert hidden(page.text, "next") == "/auth/account"

    wrong = pages.send(where, "code", code="000000")
    assert wrong.status_code == 401
    assert "UTC" in wrong.text
    answer = pages.send(where, "code", code=app.code(), next="/auth/account")
    assert answer.headers["location"] == "/auth/account"
    assert "__Host-evergreen_login" not in pages.client.cookies
    assert email in pages.open("/auth/account").text
    # A second login, with a recovery code.
    with Pages(stack, "de") as other:
        other.login(email, PASSWORD)
        assert "Zweiter Schritt" in other.open("/auth/second-factor").text
        answer = other.send("/auth/second-factor", "code", code=codes[3].upper())
        assert answer.headers["location"] == "/auth/signed-in"
        assert "Codes: 9" in other.open("/auth/account").text.replace("scodes", " Codes")


def test_the_second_step_ends_after_five_wrong_codes(pages: Pages, org: Org) -> None:
    """Then one begins again with the password; nobody else's cookie is of use."""
    email = person(org, "Auditor")
    pages.login(email, PASSWORD)
    app, _ = set_up(pages)
    pages.send("/auth/account", "logout")
    assert pages.open("/auth/second-factor").headers["location"] == "/login?done=again"
    pages.login(email, PASSWORD)
    token = hidden(pages.open("/auth/second-factor").text, "form")
    for _ in range(5):
        assert pages.post("code", form=token, code="000000").status_code in {303, 401}
    answer = pages.post("code", form=token, code=app.code())
    assert answer.headers["location"] == "/login?done=again"
    assert "took too long" in pages.open("/login?done=again").text
    pages.client.cookies.set("__Host-evergreen_login", "A" * 43)
    assert pages.open("/auth/second-factor").headers["location"] == "/login?done=again"


def test_a_form_of_another_site_takes_no_code(pages: Pages, stack: Stack, org: Org) -> None:
    """The second step asks where its form comes from, as every form does."""
    email = person(org, "Auditor")
    pages.login(email, PASSWORD)
    app, _ = set_up(pages)
    pages.send("/auth/account", "logout")
    pages.login(email, PASSWORD)
    token = hidden(pages.open("/auth/second-factor").text, "form")
    for form in ("code", "set-up", "confirm-login"):
        for headers, given in (
            ({"sec-fetch-site": "cross-site", "origin": "https://evil.example"}, token),
            ({"sec-fetch-site": "same-origin", "origin": stack.url}, "A" * 22),
        ):
            answer = pages.post(form, headers, form=given, code=app.code())
            assert answer.status_code == 403
            assert "session" not in pages.client.cookies
    assert pages.post("code", form=token, code=app.code()).status_code == 303


def test_the_console_and_programs_say_what_is_missing(pages: Pages, stack: Stack, org: Org) -> None:
    """The console's own form works for those without a factor, and leads the others to /login."""
    email = person(org, "Admin")
    login = {"email": email, "password": PASSWORD}
    ours = {"sec-fetch-site": "same-origin", "origin": stack.url}
    ok(pages.client.post("/api/auth/login", json=login, headers=ours))
    app, codes = set_up(pages)
    with stack.client() as client:
        for path in ("/api/auth/login", "/auth/login"):
            answer = client.post(path, json=login, headers=ours)
            assert answer.status_code == 401
            assert answer.json()["details"][0]["reason"] == "OTP_NEEDED"
            assert "/login" in answer.json()["message"]
            assert "set-cookie" not in answer.headers
        ok(client.post("/auth/login", json={**login, "otp": app.code()}))
        ok(client.post("/auth/login", json={**login, "otp": codes[0]}))


def test_recovery_codes_are_made_anew_and_the_app_removed(
    pages: Pages, stack: Stack, org: Org
) -> None:
    """On the account's page, which lists and ends sessions, too."""
    email = person(org, "Auditor")
    pages.login(email, PASSWORD)
    _, codes = set_up(pages)
    page = pages.send("/auth/account", "recovery-codes")
    anew = recovery_codes(page.text)
    assert len(anew) == 10
    assert not set(codes) & set(anew)
    with stack.client() as client:
        login = {"email": email, "password": PASSWORD, "otp": anew[0]}
        other = ok(client.post("/auth/login", json=login))
    text = pages.open("/auth/account").text
    assert "(this browser)" in text
    (session,) = re.findall(r'name="session" value="([^"]+)"', text)
    answer = pages.send("/auth/account", "end-session", session=session)
    assert answer.headers["location"] == "/auth/account?done=session"
    with stack.client() as client:
        refresh = {"refreshToken": other["refreshToken"]}
        assert client.post("/auth/refresh", json=refresh).status_code == 401
    assert pages.send("/auth/account", "end-session", session="no id").status_code == 400
    answer = pages.send("/auth/account", "remove-app")
    assert answer.headers["location"] == "/auth/account?done=no-factor"
    assert "open nothing any more" in pages.open("/auth/account?done=no-factor").text
    stack.login(email, PASSWORD)


def test_a_new_password_does_not_open_the_account(pages: Pages, stack: Stack, org: Org) -> None:
    """An invitation in place of a lost password asks for the second factor, too."""
    email = person(org, "Auditor")
    pages.login(email, PASSWORD)
    app, _ = set_up(pages)
    found = ok(org.owner.get("/api/users"))["users"]
    (user,) = [one for one in found if one["email"] == email]
    again = ok(org.owner.post(f"/api/users/{user['id']}/invite", json={}))
    with Pages(stack) as other:
        new = "another password for tests"
        answer = other.send("/auth/accept", "accept", token=again["invitationToken"], password=new)
        assert answer.headers["location"] == "/auth/second-factor"
        assert "session" not in other.client.cookies
        answer = other.send("/auth/second-factor", "code", code=app.code())
        assert answer.headers["location"] == "/auth/signed-in"
        assert email in other.open("/auth/account").text


def test_the_command_line_asks_for_a_code(stack: Stack, org: Org, tmp_path: Path) -> None:
    """From the environment where nobody can be asked; and sets up, shows and removes an app."""
    email = person(org, "Auditor")
    secret = tmp_path / "password"
    secret.write_text(PASSWORD)
    who = ("--home", stack.home, "--email", email, "--password-file", secret)

    def factors(*arguments: str, otp: str = "", expected: int = 0) -> str:
        done = evergreen("factors", *arguments, *who, **({"EVERGREEN_OTP": otp} if otp else {}))
        assert done.returncode == expected, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "authenticator app: none" in factors("show")
    assert "on standard input" in factors("add-app", expected=2)
    with running("factors", "add-app", *who) as command:
        assert command.stdin is not None
        assert command.stdout is not None
        app = App(parse_qs(urlsplit(command.stdout.readline()).query)["secret"][0])
        codes = [command.stdout.readline().strip() for _ in range(10)]
        assert all("-" in code for code in codes)
        said, _ = command.communicate(f"{app.code(-1)}\n", timeout=PATIENCE)
        assert "since 20" in said
    said = factors("show", expected=2)
    assert "EVERGREEN_OTP" in said
    assert "EVERGREEN_API_TOKEN" in said
    assert "recovery codes left: 10" in factors("show", otp=app.code(0))
    assert "the code is wrong" in factors("show", otp="000000", expected=2)
    assert "give --yes" in factors("remove-app", otp=codes[0], expected=2)
    assert "authenticator app: none" in factors("remove-app", "--yes", otp=app.code(1))
    assert "recovery codes left: 0" in factors("show")


def test_a_policy_leads_to_setting_one_up(pages: Pages, stack: Stack, org: Org) -> None:
    """Who gets in only with a second factor sets one up between password and session; API tokens
    go on."""
    email = person(org, "Auditor")
    made = ok(org.owner.post("/api/tokens", json={"name": "x", "scopes": ["users:read"]}))
    path = f"/api/tenants/{org.id}/sign-in-policy"
    with stack.first_owner() as root:
        ok(root.patch(path, json={"mfa": "all", "graceDays": 3}))
        pages.login(email, PASSWORD)
        assert "asks for a second factor from 20" in pages.open("/auth/account").text
        pages.send("/auth/account", "logout")
        ok(root.patch(path, json={"graceDays": 0}))
    with stack.client() as client:
        for login in ("/auth/login", "/api/auth/login"):
            body = {"email": email, "password": PASSWORD}
            ours = {"sec-fetch-site": "same-origin", "origin": stack.url}
            answer = client.post(login, json=body, headers=ours)
            assert answer.status_code == 401
            assert answer.json()["details"][0]["reason"] == "SECOND_FACTOR_REQUIRED"
    answer = pages.login(email, PASSWORD)
    assert answer.headers["location"] == "/auth/second-factor"
    page = pages.open("/auth/second-factor")
    assert "A second factor is needed" in page.text
    token = hidden(page.text, "form")
    shown = pages.post("set-up", form=token)
    assert len(recovery_codes(shown.text)) == 10
    app = app_on(shown.text)
    wrong = pages.post("confirm-login", form=token, code="000000")
    assert wrong.status_code == 400
    assert app_on(wrong.text).key == app.key
    assert "session" not in pages.client.cookies
    answer = pages.post("confirm-login", form=token, code=app.code())
    assert answer.headers["location"] == "/auth/signed-in"
    assert email in pages.open("/auth/account").text
    with stack.client(made["token"]) as client:
        ok(client.get("/api/users"))
    refused = pages.send("/auth/account", "remove-app")
    assert refused.status_code == 400
    assert "takes the place" in refused.text


def test_the_account_page_asks_who_it_is(pages: Pages, org: Org) -> None:
    """The password again, and the code; only then the session's token is a fresh one."""
    email = person(org, "Auditor")
    pages.login(email, PASSWORD)
    page = pages.open("/auth/confirm").text
    assert 'name="code"' not in page
    assert pages.send("/auth/confirm", "confirm", password="wrong password!").status_code == 400
    answer = pages.send("/auth/confirm", "confirm", password=PASSWORD)
    assert answer.headers["location"] == "/auth/account?done=confirmed"
    assert "once more" in pages.open("/auth/account?done=confirmed").text
    app, _ = set_up(pages)
    assert 'name="code"' in pages.open("/auth/confirm").text
    missing = pages.send("/auth/confirm", "confirm", password=PASSWORD)
    assert missing.status_code == 401
    assert "Enter a code" in missing.text
    answer = pages.send("/auth/confirm", "confirm", password=PASSWORD, code=app.code())
    assert answer.headers["location"] == "/auth/account?done=confirmed"


def test_operators_and_owners_reset_factors(
    pages: Pages, stack: Stack, org: Org, tmp_path: Path
) -> None:
    """At the command line: as an Owner, or on the server without a login; and the policy, too."""
    email = person(org, "Auditor")

    def run(*arguments: str, expected: int = 0) -> str:
        done = evergreen(*arguments, "--home", stack.home)
        assert done.returncode == expected, done.stdout + done.stderr
        return done.stdout + done.stderr

    for more in ((), ("--on-server",)):
        pages.login(email, PASSWORD)
        set_up(pages)
        assert "password alone" in run("users", "reset-mfa", email, *more)
        stack.login(email, PASSWORD)
    assert "no second factor" in run("users", "reset-mfa", email, "--on-server", expected=2)
    assert "second factor: off" in run("orgs", "sign-in", org.code)
    assert "admins, needed from" in run("orgs", "sign-in", org.code, "--mfa", "admins")
    assert "second factor: off" in run("orgs", "sign-in", org.code, "--mfa", "off")
    assert "mfa: must be" in run("orgs", "sign-in", org.code, "--mfa", "some", expected=2)


def test_it_is_asked_before_people_are_shut_out(stack: Stack, org: Org) -> None:
    """By a rule that passwords here are for Owners; whom it is about is said, then and later."""
    provider = {
        "name": "Sign-in",
        "orgId": org.id,
        "issuer": "https://login.school.example",
        "clientId": "evergreen",
        "clientSecret": "a secret of the provider",
        "loginButton": False,
    }
    ok(org.root.post("/api/sso-providers", json=provider))
    path = f"/api/tenants/{org.id}/sign-in-policy"
    for role in ("Owner", "Admin"):
        user = {"email": f"{uuid4().hex}@school.example", "role": role, "tenantId": org.id}
        ok(org.root.post("/api/users", json={**user, "password": PASSWORD}))
    people = ok(org.root.get(path))["localOnlyUsers"]
    assert people == 1

    def run(*arguments: str, expected: int = 0) -> str:
        done = evergreen("orgs", "sign-in", org.code, *arguments, "--home", stack.home)
        assert done.returncode == expected, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "shuts" not in run()
    refused = run("--local-login", "owners-only", expected=2)
    assert "nobody can be asked here; give --yes" in refused
    assert ok(org.root.get(path))["localLogin"] == "all"
    for words in (("--local-login", "owners-only", "--yes"), ("--local-login", "owners-only"), ()):
        said = run(*words)
        assert "passwords here: owners-only" in said
        assert f"warning: {people} Admin" in said
        assert "owners-only shuts" in said
    assert "shuts" not in run("--local-login", "all")
