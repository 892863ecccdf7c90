"""`evergreen keys` against the running product: keys are rotated under calls."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt

from tests.e2e.test_audit_cli import evergreen
from tests.e2e.world import Org, ok
from tests.support.stack import Stack, until

_PURPOSES = ("users", "devices", "audit")


def _keys(stack: Stack) -> list[dict[str, Any]]:
    done = evergreen("keys", "list", "--json", "--home", stack.home)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _active(stack: Stack) -> dict[str, str]:
    return {key["purpose"]: key["keyId"] for key in _keys(stack) if key["state"] == "active"}


def _key_of(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


def test_keys_are_rotated_without_one_refused_call(stack: Stack, org: Org, tmp_path: Path) -> None:
    """New tokens count at once, old ones go on, and the audit log verifies across its keys."""
    old = _active(stack)
    assert set(old) == {*_PURPOSES, "tokens", "policies"}
    kept = tmp_path / "checkpoint.txt"
    assert evergreen("audit", "checkpoint", "-o", kept, "--home", stack.home).returncode == 0
    old_session = stack.login()["token"]
    old_device = org.device().device_token
    signed: dict[str, set[str]] = {"users": set(), "devices": set()}
    stop = threading.Event()
    calls = 0

    def as_user() -> None:
        token = stack.login()["token"]
        signed["users"].add(_key_of(token))
        for bearer in (token, old_session):
            with stack.client(bearer) as client:
                ok(client.get("/api/devices"))

    def as_device() -> None:
        token = org.device().device_token
        signed["devices"].add(_key_of(token))
        for bearer in (token, old_device):
            with stack.client(bearer) as client:
                answer = client.post("/api/v1/devices/policy", json={"current_version": ""})
            assert answer.status_code in {200, 304}, answer.text

    def again_and_again(work: Callable[[], None]) -> None:
        nonlocal calls
        while not stop.is_set():
            work()
            calls += 1
            time.sleep(0.3)

    with ThreadPoolExecutor() as pool:
        running = [pool.submit(again_and_again, work) for work in (as_user, as_device)]
        try:
            for purpose in _PURPOSES:
                done = evergreen("keys", "rotate", purpose, "--home", stack.home)
                assert done.returncode == 0, done.stderr

            def rotated() -> bool:
                for task in running:
                    if task.done():
                        task.result()
                return all(len(keys) == 2 for keys in signed.values())

            until(rotated, 120, "the new keys do not sign", pause=0.5)
        finally:
            stop.set()
        for task in running:
            task.result()
    assert calls > 10

    def all_active() -> dict[str, str]:
        found = _active(stack)
        return found if all(found[purpose] != old[purpose] for purpose in _PURPOSES) else {}

    now = until(all_active, 60, "a new key does not sign", pause=0.5)
    assert now["policies"] == old["policies"]
    assert signed == {purpose: {old[purpose], now[purpose]} for purpose in signed}
    with stack.client(old_session) as client:
        ok(client.get("/api/devices"))

    verified = evergreen("audit", "verify", "--checkpoint", kept, "--home", stack.home)
    assert verified.returncode == 0, verified.stdout
    shown = evergreen("keys", "list", "--home", stack.home).stdout
    assert [line.split()[:2] for line in shown.splitlines() if line.startswith("audit")] == [
        ["audit", "retired"],
        ["audit", "active"],
    ]
    made = ok(org.root.get("/api/audit", params={"action": "identity.key_rotated"}))["entries"]
    assert {now["users"], now["devices"]} <= {entry["after"]["keyId"] for entry in made}


def test_a_key_that_nobody_can_follow_is_not_rotated(stack: Stack) -> None:
    """The command says why; an unknown purpose is named."""
    for purpose, why in (
        ("events", "NATS knows one at a time"),
        ("cookies", "there are no keys of cookies"),
    ):
        done = evergreen("keys", "rotate", purpose, "--home", stack.home)
        assert done.returncode == 2
        assert why in done.stderr
