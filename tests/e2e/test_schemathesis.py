"""Schemathesis, over the published description of the API, through the gateway.

Whoever calls and whatever is sent: no 5xx, no answer outside the description, nothing accepted
that the description refuses, nothing refused that it allows, no credentials overlooked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.e2e.world import PASSWORD, Org, ok
from tests.support.paths import LONG, ROOT
from tests.support.stack import Stack

pytestmark = pytest.mark.long

HOOKS = Path(__file__).parent / "schemathesis_hooks.py"
DEVICES_CALLS = (
    "^(attestBoot|createChallenge|(create|activate)TpmEnrollment"
    "|pullPolicy|reportState|reportEvents)$"
)
"""They have a run of their own, and large bodies; `test_access.py` has who is refused there."""
CALLERS = 8
"""Every caller has a rate limit of its own; so many together are never refused for it."""

CONFIG = """
hooks = "{hooks}"
# The same requests every time, as far as they do not hold what the product answered.
seed = 20261124
tls-verify = "{ca_file}"
# Python 3.11 cannot parse source in two threads at once, as Hypothesis does.
workers = 1
request-timeout = 35
continue-on-failure = true
suppress-health-check = ["all"]

[output.truncation]
max-lines = 40
max-payload-size = 2000

[generation]
max-examples = {examples}
# Failures are reproduced from the printed request; one that is found is not made smaller first.
no-shrink = true
database = "none"

[phases.coverage]
# All but QUERY, which Envoy takes only with a content type.
unexpected-methods = ["GET", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE"]

[phases.stateful]
max-steps = 4

[checks.negative_data_rejection]
# The usual ones, and 413: too large is wrong, too. An outdated etag may be told first.
expected-statuses = [400, 401, 403, 404, 405, 409, 412, 413, 429]

[checks.positive_data_acceptance]
# The usual ones but 5xx, and 412: an etag that was made up is none of today's.
expected-statuses = ["2xx", "3xx", 401, 403, 404, 409, 412, 429]

# The released console's server logs out without any token; then there is no session to end.
[[operations]]
include-operation-id = "logout"
checks.ignored_auth.enabled = false

# Evidence is taken whatever it says: base64 that is none, and values of any length.
[[operations]]
include-operation-id-regex = "^(attestBoot|createTpmEnrollment|activateTpmEnrollment)$"
checks.negative_data_rejection.expected-statuses = [200, 400, 401, 403, 404, 405, 413, 429]
"""

SHORT = """
# `make test-long` covers every operation, with 3,500 requests more: each costs 40 ms of CPU.
[[operations]]
include-operation-id-regex = "^(?!({covered})$)"
phases.coverage.enabled = false

# Bundles have more fields than all else together.
[[operations]]
include-operation-id-regex = "^(createPolicy|updatePolicy)$"
generation.max-examples = 12
"""
COVERED = (
    *("attestBoot", "createChallenge", "pullPolicy", "reportState", "reportEvents"),
    *("logout", "changePassword", "createUser", "listDevices"),
)
"""Each kind of request once: what devices send, sessions, a body with rules, a list's filters.

None with thousands of values: to make them up takes a minute.
"""
REFUSED = "^$" if LONG else "^(?!get|list|export|download)"
"""What has a body, which is made up at length to be refused; `test_access.py` has that it is."""
PUBLIC = ".*" if LONG else "^(login|refreshSession|acceptInvitation|enrollDevice|list|get)"
"""What needs no token, and reading, which is refused without one."""


@pytest.fixture(scope="module")
def school(stack: Stack, root: httpx.Client) -> Org:
    """A reseller's only school: users, a policy in force, devices with reports."""
    reseller = ok(root.post("/api/tenants", json={"name": "Reseller", "reseller": True}))
    made = ok(root.post("/api/tenants", json={"name": "School", "parentId": reseller["id"]}))
    org = Org(stack, made["id"], made["code"], root)
    org.publish()
    org.policy()
    return org


def users(stack: Stack, root: httpx.Client, org: Org, role: str) -> dict[str, Any]:
    """Sessions of several users of one role in the reseller, which sees its school."""
    reseller = ok(root.get(f"/api/tenants/{org.id}"))["parentId"]
    tokens, spared = [], [reseller, org.id]
    for _ in range(CALLERS):
        email = f"{uuid4().hex[:12]}@reseller.example"
        user = {"email": email, "role": role, "tenantId": reseller, "password": PASSWORD}
        spared.append(ok(root.post("/api/users", json=user))["id"])
        tokens.append(stack.login(email, PASSWORD)["token"])
    return {"tokens": tokens, "devices": {}, "spared": spared}


def devices(org: Org) -> dict[str, Any]:
    """Tokens of several devices of the school."""
    # Another run may have revoked the school's own token, and have made another key sign.
    token = org.enrollment_token()
    image = {"pre_shared_key": token["preSharedKey"], "pinned_key": token["policyKeyPem"]}
    agents = [org.device(**image) for _ in range(CALLERS)]
    for agent in agents:
        agent.report_state()
        agent.record("app.installed", {"message": "an app"})
        agent.send_events()
    tokens = {agent.device_token: agent.device_id for agent in agents}
    return {"tokens": list(tokens), "devices": tokens, "spared": list(tokens.values())}


def run(
    stack: Stack,
    directory: Path,
    callers: dict[str, Any],
    *arguments: str,
    examples: int,
) -> None:
    """Runs Schemathesis as these callers, and shows what it says when it finds something."""
    with stack.client() as client:
        description = client.get("/openapi.json").json()
    for item in description["paths"].values():
        for operation in item.values():
            # "Any other error" would allow everything: here, each status has to be named.
            del operation["responses"]["default"]
    described = directory / "openapi.json"
    described.write_text(json.dumps(description))
    contract = directory / "contract.json"
    contract.write_text(json.dumps(callers))
    config = directory / "schemathesis.toml"
    text = CONFIG.format(hooks=HOOKS, ca_file=stack.ca_file, examples=examples)
    config.write_text(text if LONG else text + SHORT.format(covered="|".join(COVERED)))
    command = [str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(config)]
    command += ["run", str(described), "--url", stack.url, *arguments]
    done = subprocess.run(
        command,
        cwd=directory,
        env={
            **os.environ,
            "EVERGREEN_CONTRACT": str(contract),
            "PYTHONHASHSEED": "0",
            # What Hypothesis knows of Unicode takes seconds to compute.
            "HYPOTHESIS_STORAGE_DIRECTORY": str(ROOT / ".hypothesis"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(600)
def test_as_owner(stack: Stack, root: httpx.Client, school: Org, tmp_path: Path) -> None:
    """An Owner may do everything: the whole API, and calls that follow from others' answers.

    Logging out would end the run's own sessions; it has a test of its own below.
    """
    devices(school)
    callers = users(stack, root, school, "Owner")
    arguments = ["--exclude-operation-id", "logout"]
    arguments += ["--exclude-operation-id-regex", DEVICES_CALLS]
    run(stack, tmp_path, callers, *arguments, examples=3)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("operation", ["logout", "changePassword"])
def test_ending_a_session(
    stack: Stack, root: httpx.Client, school: Org, tmp_path: Path, operation: str
) -> None:
    """What ends a session is tried with sessions that nobody needs."""
    callers = users(stack, root, school, "Owner")
    run(stack, tmp_path, callers, "--include-operation-id", operation, examples=20)


@pytest.mark.timeout(300)
def test_as_auditor(stack: Stack, root: httpx.Client, school: Org, tmp_path: Path) -> None:
    """An Auditor reads; every write is refused as the description says."""
    callers = users(stack, root, school, "Auditor")
    arguments = ["--phases", "examples,fuzzing", "--exclude-operation-id", "logout"]
    arguments += ["--exclude-operation-id-regex", f"{DEVICES_CALLS}|{REFUSED}"]
    run(stack, tmp_path, callers, *arguments, examples=1)


@pytest.mark.timeout(300)
def test_as_device(stack: Stack, school: Org, tmp_path: Path) -> None:
    """A device's calls, in the agent's JSON: all phases, with devices that take turns."""
    arguments = ["--include-tag", "DeviceService", "--exclude-operation-id", "enrollDevice"]
    run(stack, tmp_path, devices(school), *arguments, examples=12)


@pytest.mark.timeout(300)
def test_without_credentials(stack: Stack, tmp_path: Path) -> None:
    """Nobody in particular gets what is public, and 401 for everything else."""
    nobody: dict[str, Any] = {"tokens": [], "devices": {}, "spared": []}
    arguments = ["--phases", "examples,fuzzing", "--include-operation-id-regex", PUBLIC]
    run(stack, tmp_path, nobody, *arguments, examples=1)
