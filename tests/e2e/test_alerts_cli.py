"""`evergreen alerts`, and what commands over tenants have alike: codes, days, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from cli.durations import rfc3339
from cli.errors import CliError
from cli.main import app
from tests.e2e.world import make_org
from tests.support.stack import Stack, free_port


def run(stack: Stack, *words: str, code: int = 0) -> str:
    """What a command prints, with what it says beside it."""
    done = CliRunner().invoke(app, [*words, "--home", str(stack.home)])
    assert done.exit_code == code, done.output
    return done.output


def test_rules_are_changed_for_a_tenant(stack: Stack, root: httpx.Client) -> None:
    """By its code, until a day; what changes nothing, or is unknown, is named."""
    org = ("--org", make_org(stack, root, "Alerted").code)
    rules = ("alerts", "rules")
    said = run(stack, *rules, "show", *org)
    assert "Mails go to: all with the role Owner." in said
    pause = ("--pause-until", "2127-01-07")
    said = run(stack, *rules, "set", "devices-not-seen", "-t", "percent=25", *pause, *org)
    assert "percent 25" in said
    assert "2127-01-07 00:00:00" in said
    wrong = (
        (("set", "devices-not-seen"), "say what to change: --threshold"),
        (("set", "devices-not-seen", "--pause-until", "soon"), "--pause-until is a day like"),
        (("set", "devices-not-seen", "-t", "hours=3"), "takes percent, count, days"),
        (("set", "nothing", "--off"), "must be one of"),
        (("mail",), "give --to or --role, or else --nobody"),
    )
    for words, told in wrong:
        assert told in run(stack, *rules, *words, *org, code=2)
    shown = json.loads(run(stack, *rules, "show", "--json", *org))
    (rule,) = [one for one in shown["rules"] if one["kind"] == "devices-not-seen"]
    assert rule["thresholds"]["percent"] == 25
    assert run(stack, *rules, "inherit", *org) == "The tenant has no rules of its own.\n"
    assert "KIND" in run(stack, "alerts", "list", "--all", *org)


def test_a_tenant_is_named_by_its_code(stack: Stack, root: httpx.Client) -> None:
    """In the audit log and in reports, too; an id is taken as it is."""
    org = make_org(stack, root, "Coded")
    by_code = run(stack, "audit", "list", "--org", org.code, "--after", "2020-01-01")
    assert "identity.tenant_created" in by_code
    assert "identity.tenant_created" in run(stack, "audit", "list", "--org", org.id)
    assert "KIND" in run(stack, "reports", "list", "--org", org.code)
    for words in (("audit", "list"), ("reports", "list"), ("alerts", "list")):
        said = run(stack, *words, "--org", "nowhere", code=2)
        assert "you see no tenant with the code or id nowhere" in said
    said = run(stack, "audit", "list", "--before", "yesterday", code=2)
    assert "--before is a day like" in said


def test_nothing_listens(tmp_path: Path) -> None:
    """The command says what to do."""
    password = tmp_path / "password"
    password.write_text("a password")
    words = ["--url", f"https://localhost:{free_port()}", "--email", "a@school.example"]
    done = CliRunner().invoke(
        app, ["alerts", "list", *words, "--password-file", str(password)], env={"NO_COLOR": "1"}
    )
    assert done.exit_code == 2
    assert "nothing listens there. Does it run" in done.output


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("", ""),
        ("2026-08-31", "2026-08-31T00:00:00+00:00"),
        ("2026-08-31T08:00:00Z", "2026-08-31T08:00:00+00:00"),
        ("2026-08-31 08:00", "2026-08-31T08:00:00+00:00"),
        ("2026-08-31T08:00:00+02:00", "2026-08-31T08:00:00+02:00"),
    ],
)
def test_times_of_options(text: str, time: str) -> None:
    """A day begins at midnight; what has no offset is in UTC."""
    assert rfc3339(text, "--after") == time
    with pytest.raises(CliError, match="--after is a day like 2026-08-31"):
        rfc3339(f"{text}x", "--after")


def test_schedules_of_reports_are_shown_as_people_say_it(stack: Stack, root: httpx.Client) -> None:
    """A weekday by its name, also beside a schedule for the last day of a month."""
    org = ("--org", make_org(stack, root, "Scheduled").code)
    create = ("reports", "schedules", "create", "devices-not-seen")
    for rhythm in (("week", "--on", "1"), ("month", "--on", "31"), ("day",)):
        run(stack, *create, "--every", *rhythm, *org)
    said = run(stack, "reports", "schedules", "list", *org)
    assert "week on Monday  " in said
    assert "month on day 31  " in said
