"""What the launcher says before the start and after it: where things are, what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from deploy.launcher.errors import LauncherError
from deploy.launcher.home import Home


def heading(home: Home) -> str:
    """The first line of a start."""
    return f"\nEvergreen Selfhost Backend {version('evergreen-backend')} in {home.root}\n"


def ready(home: Home, facts: Mapping[str, str], events: str, seconds: float) -> str:
    """What a person does first."""
    url = facts["url"]
    file = shlex.quote(str(home.bootstrap_file))
    curl = f"curl -sS --cacert {shlex.quote(facts['ca_file'])} -H 'Content-Type: application/json'"
    key = f"""import json; print(json.load(open("{home.bootstrap_file}"))["pre_shared_key"])"""
    return f"""
Evergreen is ready after {seconds:.1f} s.

  Gateway       {url}  (the API's description: {url}/docs)
  Events        {events}
  CA            {facts["ca_file"]}
  Credentials   {home.bootstrap_file}  ({facts["email"]}, the enrollment secret)
  Logs          {home.logs}

Log in as the owner:
  {curl} \\
    {url}/auth/login -d @{file}

Enroll a device:
  KEY=$(python3 -c {shlex.quote(key)})
  {curl} \\
    {url}/api/v1/devices/enroll -d '{{"serial": "DEMO-1", "pre_shared_key": "'$KEY'"}}'

Ctrl-C stops everything; the next start goes on from here.
"""


def failure(error: LauncherError, logs: Path | None) -> str:
    """Why the start failed and what to do."""
    lines = ["", f"Evergreen could not be started: {error.message}"]
    if error.log:
        lines += ["", "  It said last:", *(f"    {line}" for line in error.log)]
        if logs is not None:
            lines += [f"  The whole of it is in {logs}."]
    if error.advice:
        lines += ["", error.advice]
    return "\n".join(lines) + "\n"
