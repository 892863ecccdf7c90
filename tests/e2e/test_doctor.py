"""`evergreen doctor` on a running product that is well."""

from __future__ import annotations

import json

from tests.e2e.test_audit_cli import evergreen
from tests.stack import Stack


def test_nothing_is_wrong_with_a_healthy_product(stack: Stack) -> None:
    """From the home, and as an administrator sees it from outside. A test's disk may be full."""
    stack.until_ready()
    inside = evergreen("doctor", "--json", "--home", stack.home)
    outside = evergreen(
        "doctor", "--json", "--ca-file", stack.ca_file, PUBLIC_URL=stack.url, TRUSTED_PROXIES="0"
    )
    for done in (inside, outside):
        assert done.stdout, done.stderr
        found = json.loads(done.stdout)["findings"]
        assert [f for f in found if not f["code"].startswith("DISK_")] == []
    assert outside.returncode == 0
