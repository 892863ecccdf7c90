"""A stand-in for the released web console: its requests, as a browser sends them."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import httpx

from tests.support.stack import Stack


class Console:
    """One browser with the console's pages open; it keeps its cookies."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.client = stack.client()
        self.session: dict[str, Any] | None = None

    def close(self) -> None:
        self.client.close()

    def fetch(self, verb: str, path: str, content: str | None = None) -> httpx.Response:
        """What `fetch` with credentials sends from a page of the same origin."""
        headers = {
            "accept": "application/json",
            "content-type": "application/json",
            "sec-fetch-site": "same-origin",
            "sec-fetch-mode": "cors",
            "sec-fetch-dest": "empty",
            "referer": f"{self._stack.url}/dashboard/devices",
        }
        if verb != "GET":
            headers["origin"] = self._stack.url
        return self.client.request(verb, path, headers=headers, content=content)

    def json(self, verb: str, path: str, body: Any = None) -> dict[str, Any]:
        """The JSON of a success, as the console reads it; it reads JSON of everything."""
        answer = self.fetch(verb, path, None if body is None else as_json(body))
        assert answer.is_success, f"{verb} {path}: {answer.status_code} {answer.text}"
        found: dict[str, Any] = answer.json()
        return found

    # Sessions: `useSessionStore.tsx`.

    def sign_in(self, email: str, password: str) -> str:
        """What the form shows: nothing, or the error."""
        body = as_json({"email": email, "password": password})
        answer = self.fetch("POST", "/api/auth/login", body)
        if not answer.is_success:
            return str(answer.json().get("error") or answer.reason_phrase)
        self._take(answer.json())
        return ""

    def reload(self) -> bool:
        """A page is opened anew: whether it shows the dashboard or goes to the login."""
        self._take(self.json("GET", "/api/auth/session"))
        return self.session is not None

    def refresh(self) -> bool:
        """A minute before the session expires."""
        answer = self.fetch("POST", "/api/auth/refresh")
        if not answer.is_success:
            return False
        refreshed = answer.json()["session"]
        self.session = {**(self.session or {}), **refreshed} if refreshed else None
        return self.session is not None

    def sign_out(self) -> None:
        assert self.json("POST", "/api/auth/logout") == {"session": None}
        self.session = None

    def _take(self, answer: dict[str, Any]) -> None:
        assert answer.keys() == {"session"}
        self.session = answer["session"]
        if self.session is not None:
            assert self.session["role"] in {"Owner", "Admin", "Auditor"}
            assert self.session.keys() == {"role", "email", "tenantId", "expiresAt"}

    # The policy editor: `policies/[policyId]/edit/page.tsx`.

    def form(self, **changes: Any) -> dict[str, Any]:
        """The editor's form as it is for a new policy."""
        assert self.session is not None
        return {
            "name": "Classroom",
            "orgId": self.session["tenantId"],
            "version": "1.0.0",
            "updateChannel": "stable",
            "homepageUrl": "https://www.evergreenos.dev",
            "allowPopups": False,
            "wifiSsid": "EvergreenNet",
            "wifiSecurity": "wpa2",
            "diskEncryption": True,
            "lockAfterMinutes": 5,
            "selectedApps": ["chrome"],
            "signed": False,
            **changes,
        }

    def save(self, form: dict[str, Any], policy_id: str = "") -> dict[str, Any]:
        """Creates a policy, or writes one."""
        body = self.body(form, policy_id)
        if policy_id:
            return self.json("PATCH", f"/api/policies/{policy_id}", body)
        return self.json("POST", "/api/policies", body)

    def body(self, form: dict[str, Any], policy_id: str = "") -> dict[str, Any]:
        """What the editor sends."""
        return {
            "name": form["name"],
            "orgId": form["orgId"],
            "bundle": _bundle(form, policy_id or str(uuid4())),
            "signed": form["signed"],
        }

    def open_policy(self, policy_id: str) -> dict[str, Any]:
        """The editor's form, filled from a policy."""
        data = self.json("GET", f"/api/policies/{policy_id}")
        configuration = data["bundle"]["configuration"]
        (wifi,) = configuration["network"]["wifiNetworks"]
        return {
            "name": data["name"],
            "orgId": data["orgId"],
            "version": data["version"],
            "updateChannel": configuration["updateChannel"],
            "homepageUrl": configuration["browser"]["homepageUrl"],
            "allowPopups": configuration["browser"]["allowPopups"],
            "wifiSsid": wifi["ssid"],
            "wifiSecurity": wifi["security"],
            "diskEncryption": configuration["security"]["diskEncryption"],
            "lockAfterMinutes": configuration["security"]["lockAfterMinutes"],
            "selectedApps": [app["id"] for app in configuration["apps"]],
            "signed": data["signed"],
        }


def _bundle(form: dict[str, Any], policy_id: str) -> dict[str, Any]:
    return {
        "id": policy_id,
        "name": form["name"],
        "version": form["version"],
        "orgId": form["orgId"],
        "configuration": {
            "apps": [{"id": app, "target": "all"} for app in form["selectedApps"]],
            "updateChannel": form["updateChannel"],
            "browser": {"homepageUrl": form["homepageUrl"], "allowPopups": form["allowPopups"]},
            "network": {
                "wifiNetworks": [{"ssid": form["wifiSsid"], "security": form["wifiSecurity"]}]
            },
            "security": {
                "diskEncryption": form["diskEncryption"],
                "lockAfterMinutes": form["lockAfterMinutes"],
            },
        },
        "signature": (
            {"status": "signed", "signer": f"{form['orgId']}-policy-signer"}
            if form["signed"]
            else {"status": "unsigned"}
        ),
    }


def as_json(body: Any) -> str:
    """JSON as browsers write it."""
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)
