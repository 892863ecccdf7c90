"""What end-to-end tests need of a running product: organisations, users, devices, policies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from tests.fakes.agent import Agent, Hardware
from tests.support.stack import Stack

PASSWORD = "a password for tests"

DOCUMENT: dict[str, Any] = {
    "apps": {"required": [{"id": "org.gnome.Calculator", "branch": "stable", "source": "flathub"}]},
    "updates": {
        "channel": "stable",
        "reboot_required": False,
        "maintenance_windows": ["Sat 02:00-04:00"],
    },
    "browser": {
        "homepage": "https://school.example/?a=1&b=<2>",
        "extensions": [],
        "allow_dev_tools": False,
        "managed_bookmarks": [{"name": "Übung \u2028 \U0001f332", "url": "https://x.example"}],
    },
    "network": {
        "wifi": [
            {
                "ssid": 'Room "12"',
                "passphrase": "the wifi secret",
                "security": "wpa-psk",
                "hidden": False,
                "metered": False,
                "eap": {},
            }
        ],
        "vpns": None,
        "vpn_dns": None,
    },
    "security": {
        "selinux_enforce": True,
        "ssh_enabled": False,
        "usbguard": True,
        "usbguard_rules": ["allow id 1d6b:*"],
        "allow_root_login": False,
    },
}


@dataclass
class Org:
    """An organisation of the test's own, with its Owner's client."""

    stack: Stack
    id: str
    code: str
    root: httpx.Client
    """The first Owner, who sees everything."""

    @cached_property
    def owner(self) -> httpx.Client:
        """The organisation's own Owner."""
        return self.user("Owner")

    @cached_property
    def admin(self) -> httpx.Client:
        """An Admin of the organisation."""
        return self.user("Admin")

    @cached_property
    def auditor(self) -> httpx.Client:
        """An Auditor of the organisation."""
        return self.user("Auditor")

    def user(self, role: str) -> httpx.Client:
        """A new user with a session."""
        email = f"{role.lower()}-{uuid4().hex[:8]}@school.example"
        ok(
            self.root.post(
                "/api/users",
                json={"email": email, "role": role, "tenantId": self.id, "password": PASSWORD},
            )
        )
        return self.stack.client(self.stack.login(email, PASSWORD)["token"])

    @cached_property
    def pre_shared_key(self) -> str:
        """A pre-shared key of the organisation."""
        return str(self.enrollment_token()["preSharedKey"])

    def enrollment_token(self, **more: Any) -> dict[str, Any]:
        """A new enrollment token."""
        return ok(
            self.root.post(
                "/api/enrollment-tokens", json={"orgId": self.id, "name": "Tests", **more}
            )
        )

    def agent(self, **more: Any) -> Agent:
        """A device that has not enrolled yet."""
        if "pre_shared_key" not in more:
            more["pre_shared_key"] = self.pre_shared_key
        hardware = more.pop("hardware", None) or Hardware(serial=f"SN-{uuid4().hex[:10]}")
        return Agent(
            self.stack.url,
            pinned_key=more.pop("pinned_key", Path(self.stack.bootstrap["policy_public_key_file"])),
            ca_file=self.stack.ca_file,
            hardware=hardware,
            **more,
        )

    def device(self, **more: Any) -> Agent:
        """An enrolled device."""
        agent = self.agent(**more)
        agent.enroll()
        return agent

    def policy(self, bundle: dict[str, Any] | None = None) -> dict[str, Any]:
        """A new policy that is not published."""
        return ok(
            self.root.post(
                "/api/policies",
                json={"name": "Policy", "orgId": self.id, "bundle": bundle or DOCUMENT},
            )
        )

    def publish(self, bundle: dict[str, Any] | None = None) -> dict[str, Any]:
        """A new policy in force."""
        return ok(self.root.post(f"/api/policies/{self.policy(bundle)['id']}/publish", json={}))


def make_org(stack: Stack, root: httpx.Client, name: str = "School") -> Org:
    """A new organisation below the root."""
    made = ok(root.post("/api/tenants", json={"name": f"{name} {uuid4().hex[:6]}"}))
    return Org(stack, made["id"], made["code"], root)


def ok(answer: httpx.Response) -> dict[str, Any]:
    """The JSON body of a success."""
    assert answer.status_code == 200, f"{answer.request.url}: {answer.status_code} {answer.text}"
    body: dict[str, Any] = answer.json()
    return body


def assert_error(answer: httpx.Response, status: int, name: str = "") -> dict[str, Any]:
    """The body of an error, which has the one shape."""
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    assert answer.headers["content-type"].startswith("application/json")
    body: dict[str, Any] = answer.json()
    assert {"code", "status", "message", "error", "details", "requestId"} <= set(body), body
    assert body["error"] == body["message"]
    assert body["message"]
    assert body["requestId"] == answer.headers.get("x-request-id", body["requestId"])
    if name:
        assert body["status"] == name
    return body
