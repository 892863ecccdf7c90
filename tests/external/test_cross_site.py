"""A page of a sibling subdomain, in a real browser: `SameSite=Strict` does not keep it out."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from tests.external.browser import Browser
from tests.external.conftest import OpenBrowser
from tests.gateway.certificates import Certificate
from tests.support.stack import PATIENCE, Stack, until

_OURS = "evergreen.school.example"
_SIBLING = "students.school.example"
_FORM = """<!DOCTYPE html><title>Homework</title>
<form method="post" enctype="text/plain" action="{action}">
<input name='{{"email":"pupil@school.example","role":"Owner","x":"' value='"}}'>
<button>Win a prize</button></form>"""


@contextmanager
def _page(directory: Path, html: str) -> Iterator[int]:
    """Serves one page over TLS, as a school's server for pupils does."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *args: object) -> None:
            pass

    certificate = Certificate.make(directory, "sibling")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate_file, certificate.private_key_file)
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def _fetch(browser: Browser, path: str, body: dict[str, str]) -> int:
    """The status of a page's own call."""
    script = """
    return fetch(arguments[0], {method: "POST", credentials: "include", body: arguments[1],
      headers: {"content-type": "application/json"}}).then(answer => answer.status)
    """
    return int(browser.run(script, path, json.dumps(body)))


def test_a_form_on_a_sibling_makes_no_owner_and_our_own_page_does(
    stack: Stack, open_browser: OpenBrowser, tmp_path: Path
) -> None:
    """The browser sends the cookie with both; only one of them is a page of ours."""
    ours = f"https://{_OURS}:{stack.port}"
    rules = f"MAP {_OURS} 127.0.0.1,MAP {_SIBLING} 127.0.0.1"
    with (
        _page(tmp_path, _FORM.format(action=f"{ours}/api/users")) as port,
        open_browser(arguments=(f"--host-resolver-rules={rules}",)) as browser,
        stack.first_owner() as api,
    ):
        browser.open(f"{ours}/docs")
        login = {"email": stack.email, "password": stack.password}
        assert _fetch(browser, "/api/auth/login", login) == 200
        assert browser.cookies["session"]["sameSite"] == "Strict"

        browser.open(f"https://{_SIBLING}:{port}/")
        browser.find("button").click()
        browser.until_at("/api/users")
        # That the cookie came along is why it is refused so.
        until(lambda: "CROSS_SITE_REQUEST" in browser.text, PATIENCE, "it was not refused")
        assert "pupil@school.example" not in api.get("/api/users").text

        browser.open(f"{ours}/docs")
        new = {"email": f"teacher-{stack.port}@school.example", "role": "Admin"}
        assert _fetch(browser, "/api/users", new) == 200
        assert new["email"] in api.get("/api/users").text
