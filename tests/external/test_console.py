"""A console behind `make run`, in a real browser: a stand-in that asks what the console asks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.external.browser import Browser
from tests.external.conftest import OpenBrowser
from tests.support import stack as test_stack
from tests.support.stack import PATIENCE, Stack, until

# As the console's: a session that is not there leads to /login, which its router asks for in a
# format of its own before it goes there as a browser.
_PAGE = b"""<!DOCTYPE html><title>Console</title><p id="who"></p><button id="out">Sign out</button>
<button id="renew">Renew</button>
<script>
const call = (verb, path) => fetch(path, {method: verb, credentials: 'include',
  headers: {'Content-Type': 'application/json'}}).then((answer) => answer.json());
const show = async ({session}) => {
  if (!session) {
    await fetch('/login?_rsc=1abc', {headers: {RSC: '1'}});
    return location.replace('/login');
  }
  const {devices} = await call('GET', '/api/devices');
  document.getElementById('who').textContent = `${session.email} ${devices.length}`;
};
call('GET', '/api/auth/session').then(show);
document.getElementById('out').onclick = () => call('POST', '/api/auth/logout').then(show);
document.getElementById('renew').onclick = () => call('POST', '/api/auth/refresh')
  .then(({session}) => { document.getElementById('who').textContent = `renewed ${session.role}`; });
</script>"""


class _Console(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(_PAGE)))
        self.end_headers()
        self.wfile.write(_PAGE)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def with_console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The product with a console under its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Console)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = tmp_path_factory.mktemp("console") / "home"
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        with test_stack.running(home, CONSOLE_URL=url) as stack:
            yield stack
    finally:
        server.shutdown()


def _sign_in(browser: Browser, stack: Stack) -> None:
    browser.open(f"{stack.url}/dashboard/devices")
    browser.until_at("/login")
    browser.find("#email").type(stack.email)
    browser.find("#password").type(stack.password)
    browser.find("button").click()
    browser.until_at("/dashboard")


def _shows(browser: Browser, text: str) -> None:
    until(lambda: text in browser.text, PATIENCE, f"{text!r} is not shown", pause=0.1)


def test_the_console_is_used_by_two_at_once(with_console: Stack, open_browser: OpenBrowser) -> None:
    """Each signs in on our page, reloads, renews the session, and signs out alone."""
    stack = with_console
    with open_browser() as first, open_browser(language="de") as second:
        for browser in (first, second):
            _sign_in(browser, stack)
            _shows(browser, f"{stack.email} 0")
        for browser in (first, second, first):
            browser.find("#renew").click()
            _shows(browser, "renewed Owner")
            browser.open(f"{stack.url}/dashboard/policies")
            _shows(browser, stack.email)
        first.find("#out").click()
        first.until_at("/login")
        assert "session" not in first.cookies
        second.open(f"{stack.url}/dashboard/devices")
        _shows(second, stack.email)


def test_signed_in_people_find_the_console(with_console: Stack, browser: Browser) -> None:
    """From the pages for their account."""
    _sign_in(browser, with_console)
    browser.open(f"{with_console.url}/auth/account")
    browser.find('a[href="/dashboard"]').click()
    browser.until_at("/dashboard")
    browser.open(f"{with_console.url}/auth/signed-in")
    browser.until_at("/dashboard")
