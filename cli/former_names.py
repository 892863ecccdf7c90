"""`evergreen former-names`: who still calls by an old public name, as the gateway's log tells."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cli.errors import CliError, told
from cli.options import Home as HomeOption
from cli.options import home_of
from cli.tables import table

_LOG: Final = "gateway.log"


@dataclass(slots=True)
class Caller:
    """Somebody who calls by an old name."""

    name: str
    """The old name."""
    subject: str
    """The id of a device or a user; empty for calls without a token."""
    client: str
    """The address of the last call."""
    agent: str
    last: str
    calls: int = 0


def callers(lines: Iterable[str]) -> list[Caller]:
    """Who called, the latest first; lines of anything else are skipped."""
    found: dict[tuple[str, str], Caller] = {}
    for said in _said(lines):
        name, subject = str(said["former_name"]), str(said.get("subject", ""))
        client, time = str(said.get("client", "")), str(said.get("time", ""))
        key = (name, subject or client)
        caller = found.setdefault(key, Caller(name, subject, client, "", time))
        caller.calls += 1
        if time >= caller.last:
            caller.last, caller.client = time, client
            caller.agent = str(said.get("agent", ""))
    return sorted(found.values(), key=lambda caller: caller.last, reverse=True)


def _said(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        # `docker compose logs` puts the container's name before it.
        begin = line.find("{")
        if begin < 0 or '"former_name"' not in line:
            continue
        with suppress(ValueError):
            said = json.loads(line[begin:])
            if isinstance(said, dict) and "former_name" in said:
                yield said


def lines_of_home(logs: Path) -> Iterator[str]:
    """The gateway's log, with the older files that are still there."""
    for path in sorted(logs.glob(f"{_LOG}*"), reverse=True):
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                yield from file
        except OSError as error:
            raise CliError(f"{path} cannot be read: {error.strerror}") from error


def former_names(
    home: HomeOption = None,
    log: Annotated[
        str,
        typer.Option(help="The gateway's log, - for standard input; the home's if not given."),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")] = False,
) -> None:
    """Show who still calls by a former public name (FORMER_PUBLIC_URLS), the latest first.

    A device in this list does not have the new name yet. The list covers the time of the log: a
    device that was off since the log begins is not in it.
    """
    with told(1):
        found = callers(_lines(home, log))
        if as_json:
            typer.echo(json.dumps([{n: getattr(c, n) for n in Caller.__slots__} for c in found]))
            return
        rows = [
            (c.subject or "(no token)", c.name, str(c.calls), c.last, c.client, c.agent)
            for c in found
        ]
        for line in table(("CALLER", "NAME", "CALLS", "LAST", "ADDRESS", "AGENT"), rows):
            typer.echo(line)
        typer.echo(f"{len(found)} callers by a former name.", err=True)


def _lines(home: Path | None, log: str) -> Iterable[str]:
    if log == "-":
        return sys.stdin
    if log:
        try:
            return Path(log).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise CliError(f"{log} cannot be read: {error.strerror}") from error
    # Comes with what runs without containers.
    from deploy.launcher.home import Home  # noqa: PLC0415

    place = Home(home_of(home))
    logs = Path(place.remembered().get("logs") or place.logs)
    if not logs.is_dir():
        raise CliError(f"there is no log of a gateway in {logs}; give one with --log")
    return lines_of_home(logs)
