"""The page with the links of invitations, as a browser without JavaScript uses it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.e2e.pages import Pages, hidden, link_in
from tests.e2e.test_console import person
from tests.e2e.test_pages import NEW, invited
from tests.e2e.world import PASSWORD, Org, make_org, ok
from tests.support.stack import PATIENCE, Stack, until

PAGE = "/auth/invitations"


@pytest.fixture
def pages(stack: Stack) -> Iterator[Pages]:
    with Pages(stack) as found:
        yield found


@pytest.mark.parametrize(
    ("role", "language", "button"), [("Owner", "en", "New link"), ("Admin", "de", "Neuer Link")]
)
def test_who_invited_in_the_console_gets_the_link(
    stack: Stack, org: Org, role: str, language: str, button: str
) -> None:
    """From the own account; the link works once, the one before no more, and the log has it."""
    made = invited(org)
    email = person(org, role)
    with Pages(stack, language) as pages:
        answer = pages.open(PAGE)
        assert answer.headers["location"] == "/login?next=/auth/invitations"
        answer = pages.send(
            "/login", "login", email=email, password=PASSWORD, next="/auth/invitations"
        )
        assert answer.headers["location"] == PAGE
        assert f'href="{PAGE}"' in pages.open("/auth/account").text
        answer = pages.open(PAGE)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.text.count("<script") == 1
        for text in (made["email"], "Admin, School", button):
            assert text in answer.text
        assert 'id="link"' not in answer.text
        answer = pages.send(PAGE, "invite", user=made["id"])
        assert answer.status_code == 200
        link = link_in(answer.text)
        assert link.startswith(f"{stack.url}/auth/accept#token=")
        assert 'id="link"' not in pages.open(PAGE).text
    with Pages(stack) as invitee:
        old = invitee.send("/auth/accept", "accept", token=made["invitationLink"], password=NEW)
        assert old.status_code == 401
        answer = invitee.send("/auth/accept", "accept", token=link, password=NEW)
        assert answer.status_code == 303
    with Pages(stack) as pages:
        pages.login(email, PASSWORD)
        assert made["email"] not in pages.open(PAGE).text

    def logged() -> bool:
        return any(
            (entry["action"], entry["actor"]) == ("identity.user_invited", email)
            and made["id"] in str(entry)
            for entry in ok(org.owner.get("/api/audit"))["entries"]
        )

    until(logged, PATIENCE, "the log lacks the invitation")


def test_an_auditor_sees_and_gets_nothing(pages: Pages, stack: Stack, org: Org) -> None:
    """403 on the page, and the invitation that there is stays."""
    made = invited(org)
    pages.login(person(org, "Auditor"), PASSWORD)
    account = pages.open("/auth/account").text
    assert PAGE not in account
    answer = pages.open(PAGE)
    assert answer.status_code == 403
    assert "Only Owners and Admins" in answer.text
    assert made["email"] not in answer.text
    answer = pages.post("invite", form=hidden(account, "form"), user=made["id"])
    assert answer.status_code == 403
    assert made["email"] not in answer.text
    assert "token=" not in answer.text
    with Pages(stack) as invitee:
        link = made["invitationLink"]
        assert invitee.send("/auth/accept", "accept", token=link, password=NEW).status_code == 303


def test_an_admin_takes_over_nobody(pages: Pages, stack: Stack, org: Org) -> None:
    """An invited Owner, and who was ever active, are an Owner's to invite again."""
    email = f"owner-{uuid4().hex[:8]}@school.example"
    owner = ok(org.owner.post("/api/users", json={"email": email, "role": "Owner"}))
    reset = invited(org)
    with Pages(stack) as invitee:
        invitee.send("/auth/accept", "accept", token=reset["invitationLink"], password=PASSWORD)
    ok(org.owner.post(f"/api/users/{reset['id']}/invite", json={}))
    pages.login(person(org, "Admin"), PASSWORD)
    page = pages.open(PAGE).text
    for made in (owner, reset):
        assert made["email"] in page
        assert f'value="{made["id"]}"' not in page
        answer = pages.send("/auth/account", "invite", user=made["id"])
        assert answer.status_code == 403
        assert "Only an Owner may invite this person again." in answer.text
        assert 'id="link"' not in answer.text


def test_other_tenants_are_not_there(pages: Pages, stack: Stack, org: Org) -> None:
    """Neither in the list nor by their ids; a user whose id is none is no error of ours."""
    other = make_org(stack, org.root, "Other")
    theirs = invited(other)
    pages.login(person(org, "Owner"), PASSWORD)
    assert theirs["email"] not in pages.open(PAGE).text
    for user, status in (
        (theirs["id"], 404),
        (str(uuid4()), 404),
        ("x", 400),
        ("", 400),
    ):
        answer = pages.send("/auth/account", "invite", user=user)
        assert answer.status_code == status, user
        assert 'id="link"' not in answer.text
        assert theirs["email"] not in answer.text
    assert pages.open(f"{PAGE}?before=x").status_code == 400
    assert pages.open(f"{PAGE}?before={theirs['id']}").status_code == 200
    with Pages(stack) as invitee:
        link = theirs["invitationLink"]
        assert invitee.send("/auth/accept", "accept", token=link, password=NEW).status_code == 303
    # The root's Owner sees both.
    mine, second = invited(org), invited(other)
    with Pages(stack) as root:
        root.login(stack.email, stack.password)
        seen, path = "", PAGE
        while path:
            page = root.open(path).text
            seen += page
            found = re.search(r'href="(/auth/invitations\?before=[^"]+)"', page)
            path = found[1] if found else ""
        assert mine["email"] in seen
        assert second["email"] in seen


def test_the_list_has_pages(pages: Pages, org: Org) -> None:
    """Fifty people each; everybody is on one of them."""
    emails = [invited(org)["email"] for _ in range(51)]
    pages.login(person(org, "Owner"), PASSWORD)
    first = pages.open(PAGE).text
    found = re.search(r'href="(/auth/invitations\?before=[^"]+)"', first)
    assert found
    second = pages.open(found[1]).text
    assert "More invitations" not in second
    assert [email in first for email in emails] == [False] + [True] * 50
    assert [email in second for email in emails] == [True] + [False] * 50
