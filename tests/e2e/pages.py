"""A browser without JavaScript on identity's own pages."""

from __future__ import annotations

import re
from html import unescape
from typing import Any, Self

import httpx

from tests.support.stack import Stack


class Pages:
    """Opens pages and sends their forms, with cookies; redirects are not followed."""

    def __init__(self, stack: Stack, language: str = "en") -> None:
        self._url = stack.url
        self.client = stack.client()
        self.client.headers["accept-language"] = language
        self.cookies: httpx.Cookies = self.client.cookies

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cookies = httpx.Cookies(self.client.cookies)
        self.client.close()

    def open(self, path: str) -> httpx.Response:
        return self.client.get(path, headers={"sec-fetch-site": "none", "accept": "text/html"})

    def send(
        self, page: str, name: str, headers: dict[str, str] | None = None, **fields: str
    ) -> httpx.Response:
        """Opens a page and sends one of its forms; a new password is repeated."""
        token = hidden(self.open(page).text, "form")
        if "repeat" not in fields and name != "login":
            fields["repeat"] = fields.get("password", "")
        return self.post(name, headers, **{"form": token, **fields})

    def post(
        self, name: str, headers: dict[str, str] | None = None, **fields: str
    ) -> httpx.Response:
        """Sends a form as a browser does from a page of the same origin."""
        if headers is None:
            headers = {"sec-fetch-site": "same-origin", "origin": self._url}
        return self.client.post(f"/auth/forms/{name}", data=fields, headers=headers)

    def login(self, email: str, password: str) -> httpx.Response:
        return self.send("/login", "login", email=email, password=password)


def hidden(page: str, name: str) -> str:
    """The value of a hidden field."""
    found = re.search(rf'<input type="hidden"[^>]* name="{name}" value="([^"]*)"', page)
    assert found, page
    return unescape(found[1])


def link_in(page: str) -> str:
    """The link of an invitation that the page shows."""
    found = re.search(r'<input id="link"[^>]* value="([^"]*)"', page)
    assert found, page
    return unescape(found[1])


def code_of(invited: dict[str, Any]) -> str:
    """What the invited person was given."""
    return str(invited["invitationLink"])
