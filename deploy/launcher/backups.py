"""Backups on a schedule as a process, where the environment asks for them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.launcher.events import parse_service
from deploy.launcher.home import Home
from deploy.launcher.process import ProcessSpec
from deploy.schedule import Schedule

SETTINGS = "EVERGREEN_BACKUP_"
_PASSED_ON = (SETTINGS, "AWS_", "SSH_AUTH_SOCK")
"""What stores of backups are reached with, beside files."""


def are_scheduled(environment: Mapping[str, str]) -> bool:
    """Whether backups, or rehearsals of a restore, are to be made.

    Raises:
        ValueError: a schedule is none, or it is not said where backups are kept.
    """
    asked = False
    for name in (f"{SETTINGS}SCHEDULE", f"{SETTINGS}REHEARSE_SCHEDULE"):
        if text := environment.get(name, "").strip():
            asked = True
            try:
                Schedule.read(text)
            except ValueError as error:
                raise ValueError(f"{name}: {error}.") from error
    if asked and not environment.get(f"{SETTINGS}TARGET", "").strip():
        raise ValueError(f"{SETTINGS}TARGET is not set; without it nothing can be backed up.")
    return asked


def process(home: Home) -> ProcessSpec:
    """The process that waits, and runs `evergreen backup run` when it is due."""
    environment = {n: value for n, value in os.environ.items() if n.startswith(_PASSED_ON)}
    return ProcessSpec(
        name="backup",
        argv=(sys.executable, "-P", "-m", "cli.entry", "backup", "schedule"),
        parse=parse_service,
        # Paths in settings are meant from where the product was started.
        cwd=Path.cwd(),
        env=environment | {"EVERGREEN_HOME": str(home.root)},
        # A backup under way removes what it has made so far.
        grace=15.0,
    )
