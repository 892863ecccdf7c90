"""`bootstrap.json`: what the first start made, for the administrator and for scripts."""

from __future__ import annotations

import asyncio
import json
import ssl
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.launcher.errors import LauncherError
from deploy.launcher.home import Home, password
from deploy.private_files import write_private

TENANT_CODE: Final = "default"
ADMIN_PASSWORD: Final = "admin_password"
ENROLLMENT_SECRET: Final = "enrollment_secret"
_END: Final = "-----END PUBLIC KEY-----\n"


@dataclass(frozen=True, slots=True)
class Api:
    """The public API behind the gateway."""

    url: str
    ca_file: Path

    def call(self, path: str, body: Any = None, token: str = "") -> bytes:
        """Sends a GET, or a POST of `body` as JSON; answers the body of the answer.

        Raises:
            LauncherError: the answer is no success.
        """
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(  # noqa: S310 - the URL is always the gateway's
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers=headers,
        )
        context = ssl.create_default_context(cafile=str(self.ca_file))
        # A proxy of the shell's environment has no business between here and this machine.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with opener.open(request, timeout=30) as answer:
                found: bytes = answer.read()
                return found
        except OSError as error:
            raise LauncherError(f"{path} through the gateway failed: {error}") from error


async def write(home: Home, api: Api, email: str) -> dict[str, str]:
    """Writes the file on the first start; on a later one only brings its address up to date.

    Raises:
        LauncherError: the API does not answer as it should.
    """
    found = await asyncio.to_thread(api.call, "/api/v1/policy-keys.pem")
    write_private(home.policy_public_key_file, _in_order(home, found.decode("ascii")))
    # Public by nature; devices and scripts of other users may read it.
    home.policy_public_key_file.chmod(0o644)
    facts = _read(home.bootstrap_file)
    if not facts:
        owners_password = home.secret(ADMIN_PASSWORD, password)
        secret = home.secret(ENROLLMENT_SECRET, password)
        facts = {
            "url": api.url,
            "ca_file": str(api.ca_file),
            "email": email,
            "password": owners_password,
            "tenant_id": await asyncio.to_thread(_tenant_id, api, email, owners_password),
            "tenant_code": TENANT_CODE,
            "enrollment_secret": secret,
            "pre_shared_key": f"{TENANT_CODE}:{secret}",
            "policy_public_key_file": str(home.policy_public_key_file),
        }
        write_private(home.bootstrap_file, json.dumps(facts, indent=2) + "\n")
    current = facts | {
        "url": api.url,
        "ca_file": str(api.ca_file),
        "policy_public_key_file": str(home.policy_public_key_file),
    }
    if current != facts:
        write_private(home.bootstrap_file, json.dumps(current, indent=2) + "\n")
    return current


def _in_order(home: Home, keys: str) -> str:
    """Keys in PEM, the one first that was first until now: an agent pins that one, and devices with
    the first start's enrollment secret go on with it after a rotation."""
    try:
        before = home.policy_public_key_file.read_text(encoding="ascii")
    except OSError:
        return keys
    first, end, _ = before.partition(_END)
    if end and first + end in keys:
        return first + end + keys.replace(first + end, "", 1)
    return keys


def _tenant_id(api: Api, email: str, password: str) -> str:
    """The id of the first start's organisation."""
    session = json.loads(api.call("/auth/login", {"email": email, "password": password}))
    token = session["token"]
    page = ""
    while True:
        query = f"?pageToken={page}" if page else ""
        answer = json.loads(api.call(f"/api/tenants{query}", token=token))
        for tenant in answer.get("tenants", ()):
            if tenant.get("code") == TENANT_CODE:
                api.call("/auth/logout", {}, token)
                return str(tenant["id"])
        page = answer.get("nextPageToken", "")
        if not page:
            raise LauncherError(f"There is no organisation with the code {TENANT_CODE}.")


def _read(path: Path) -> dict[str, str]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
