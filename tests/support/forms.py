"""Forms of other programs' pages, sent as a browser without scripts sends them."""

from __future__ import annotations

import re
from html import unescape
from urllib.parse import urljoin

import httpx


def form_of(page: httpx.Response) -> tuple[str, dict[str, str]]:
    """Where the first form of a page goes, and its hidden fields."""
    action = re.search(r'<form[^>]* action="([^"]+)"', page.text)
    assert action, page.text
    hidden = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page.text))
    return urljoin(str(page.url), unescape(action[1])), hidden
