"""What the launcher says before the start and after it: where things are, what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from deploy.launcher.errors import LauncherError
from deploy.launcher.home import Home
from servicekit.build import PRODUCT, VERSION
from servicekit.security import fips


def heading(home: Home) -> str:
    """The first line of a start, and the FIPS module that does the cryptography."""
    module = f"{named}\n" if (named := fips.named()) else ""
    return f"\n{PRODUCT} {VERSION} in {home.root}\n{module}"


def ready(home: Home, logs: Path, facts: Mapping[str, str], events: str, seconds: float) -> str:
    """What a person does first."""
    url = facts["url"]
    curl = f"curl -sS --cacert {shlex.quote(facts['ca_file'])} -H 'Content-Type: application/json'"
    read = f"""import json; f = json.load(open("{home.bootstrap_file}")); print("""
    key = f"""{read}f["pre_shared_key"])"""
    login = f"""{read}json.dumps({{k: f[k] for k in ("email", "password")}}))"""
    return f"""
Evergreen is ready after {seconds:.1f} s.

  Gateway       {url}
  Sign in       {url}/login
  API docs      {url}/docs
  Events        {events}
  CA            {facts["ca_file"]}
  Credentials   {home.bootstrap_file}  ({facts["email"]}, password, pre-shared key)
  Logs          {logs}

Log in as the owner:
  LOGIN=$(python3 -c {shlex.quote(login)})
  {curl} \\
    {url}/auth/login -d "$LOGIN"

Enroll a device:
  KEY=$(python3 -c {shlex.quote(key)})
  {curl} \\
    {url}/api/v1/devices/enroll -d '{{"serial": "DEMO-1", "pre_shared_key": "'$KEY'"}}'

Ctrl-C stops everything; the next start continues with the same data.
"""


def failure(error: LauncherError, logs: Path | None) -> str:
    """Why the start failed and what to do."""
    lines = ["", f"Evergreen could not be started: {error.message}"]
    if error.log:
        # Of each try the same, mostly.
        said = list(dict.fromkeys(error.log))
        lines += ["", "  It said last:", *(f"    {line}" for line in said)]
        if logs is not None:
            lines += [f"  The whole of it is in {logs}."]
    if error.advice:
        lines += ["", error.advice]
    return "\n".join(lines) + "\n"
