"""Identity's pages in a real browser, with and without JavaScript."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.e2e.world import PASSWORD, Org, make_org, ok
from tests.external.browser import Browser
from tests.external.conftest import OpenBrowser
from tests.support.stack import Stack

NEW = "another password for tests"


@pytest.fixture
def org(stack: Stack) -> Iterator[Org]:
    with stack.first_owner() as root:
        yield make_org(stack, root, "Pages")


def invited(org: Org) -> dict[str, Any]:
    email = f"emil-{uuid4().hex[:8]}@school.example"
    return ok(org.owner.post("/api/users", json={"email": email, "role": "Admin"}))


def submit(browser: Browser, form: str, **fields: str) -> None:
    for name, value in fields.items():
        browser.find(f"#{name}").type(value)
    browser.find(f'form[action="/auth/forms/{form}"] button').click()


def test_a_link_carries_its_code_into_the_form(stack: Stack, org: Org, browser: Browser) -> None:
    """And no further: the address bar has lost it, and the field is out of the way."""
    made = invited(org)
    browser.open(made["invitationLink"])
    assert browser.url == f"{stack.url}/auth/accept"
    assert not browser.find("#token").shown
    assert browser.active().attribute("id") == "password"
    submit(browser, "accept", password=NEW, repeat="something else")
    assert "not the same" in browser.find(".problems").text
    assert browser.active().attribute("class") == "problems"
    assert browser.find("#repeat").attribute("aria-invalid") == "true"
    submit(browser, "accept", password=NEW, repeat=NEW)
    browser.until_at("/auth/signed-in")
    assert made["email"] in browser.text
    browser.open(f"{stack.url}/auth/account")
    submit(browser, "password", current=NEW, password=PASSWORD, repeat=PASSWORD)
    assert "Your password is changed." in browser.find(".notice").text
    submit(browser, "logout")
    browser.until_at("/login")
    assert "You are signed out." in browser.text
    assert "session" not in browser.cookies
    submit(browser, "login", email=made["email"], password=PASSWORD)
    browser.until_at("/auth/signed-in")


def test_everything_works_without_javascript(
    stack: Stack, org: Org, open_browser: OpenBrowser
) -> None:
    """The person pastes the link; in German."""
    made = invited(org)
    with open_browser(language="de", javascript=False) as browser:
        browser.open(made["invitationLink"])
        assert browser.find("html").attribute("lang") == "de"
        assert browser.find("#token").value() == ""
        submit(browser, "accept", token=made["invitationLink"], password=NEW, repeat=NEW)
        browser.until_at("/auth/signed-in")
        assert made["email"] in browser.text
        browser.open(f"{stack.url}/auth/account")
        submit(browser, "logout")
        browser.until_at("/login")
        submit(browser, "login", email=made["email"], password="das ist es nicht")
        assert "Passwort ist falsch" in browser.find(".problems").text
        assert browser.title.startswith("Fehler: ")
        submit(browser, "login", password=NEW)
        browser.until_at("/auth/signed-in")
        again = ok(org.owner.post(f"/api/users/{made['id']}/invite", json={}))
        browser.open(f"{stack.url}/auth/account")
        browser.until_at("/login")
        browser.open(f"{stack.url}/auth/forgot")
        submit(browser, "reset", token=again["invitationToken"], password=PASSWORD, repeat=PASSWORD)
        browser.until_at("/auth/signed-in")


@pytest.mark.parametrize("javascript", [True, False])
def test_an_owner_copies_a_link(
    stack: Stack, org: Org, open_browser: OpenBrowser, javascript: bool
) -> None:
    """One button for each person; the page is usable as the others are."""
    made = invited(org)
    with open_browser(language="en", javascript=javascript) as browser:
        browser.open(f"{stack.url}/auth/invitations")
        browser.until_at("/login")
        submit(browser, "login", email=stack.email, password=stack.password)
        browser.until_at("/auth/invitations")
        assert made["email"] in browser.text
        browser.find(f'button[aria-describedby="user-{made["id"]}"]').click()
        link = browser.find("#link").value()
        assert link.startswith(f"{stack.url}/auth/accept#token=")
        if javascript:
            browser.size(340, 700)
            wide = "return document.documentElement.scrollWidth <= window.innerWidth"
            assert browser.run(wide)
            assert browser.run(_LOW_CONTRAST) == []
            assert browser.run(_UNLABELLED) == []


def test_pages_are_usable_by_everybody(stack: Stack, browser: Browser) -> None:
    """With the keyboard, on a narrow screen, and with enough contrast."""
    for path in ("/login", "/auth/accept", "/auth/forgot"):
        browser.open(f"{stack.url}{path}")
        browser.size(340, 700)
        wide = "return document.documentElement.scrollWidth <= window.innerWidth"
        assert browser.run(wide), path
        assert browser.run(_LOW_CONTRAST) == [], path
        assert browser.run(_UNLABELLED) == [], path
        assert browser.run("return getComputedStyle(document.querySelector('h1')).fontSize")


_UNLABELLED = """
return [...document.querySelectorAll('input:not([type=hidden])')]
  .filter((one) => one.offsetParent && !one.labels.length).map((one) => one.name);
"""
# WCAG 2.2, 1.4.3: text against what is behind it, 4.5 to 1.
_LOW_CONTRAST = """
const light = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).map(Number)
    .map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (one) => {
  for (; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (!/, 0\\)$/.test(colour)) return colour;
  }
  return 'rgb(255, 255, 255)';
};
return [...document.querySelectorAll('main *, header *')]
  .filter((one) => [...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
  .filter((one) => {
    const pair = [light(getComputedStyle(one).color), light(behind(one))].sort((a, b) => b - a);
    return (pair[0] + 0.05) / (pair[1] + 0.05) < 4.5;
  }).map((one) => one.textContent);
"""
