"""`evergreen alerts`: what is the matter, when something is an alert, and who is told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.directories import tenants_by_id
from cli.durations import rfc3339
from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import Below, tenant_id
from cli.session import session
from cli.tables import moment, table

if TYPE_CHECKING:
    from cli.client import Api

app = typer.Typer(
    name="alerts", help="See what is the matter, and say who is told.", no_args_is_help=True
)
rules = typer.Typer(
    name="rules",
    help="When something is an alert, and who gets a mail.",
    no_args_is_help=True,
)
app.add_typer(rules)

_FAILED: Final = 2
_PATH: Final = "/api/alerts"
_RULES: Final = "/api/alert-rules"
_COLUMNS: Final = ("RAISED (UTC)", "RESOLVED (UTC)", "KIND", "WHAT", "SUBJECT", "ORGANISATION")
_RULE_COLUMNS: Final = ("KIND", "ON", "THRESHOLDS", "PAUSED UNTIL (UTC)")

Tenant = Annotated[
    str,
    typer.Option(
        "--org", help="The tenant, by its code or id; yours when not given.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Kind = Annotated[str, typer.Argument(help="The kind; `evergreen alerts rules show` lists them.")]


@app.command("list")
def list_alerts(
    past: Annotated[bool, typer.Option("--all", help="Show those that are resolved, too.")] = False,
    kind: Annotated[str, typer.Option(help="Only this kind.")] = "",
    org: Below = "",
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of alerts.")] = 100,
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show open alerts, the newest first."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        asked = {"kind": kind, "orgId": tenant_id(api, org)}
        wanted = asked | ({} if past else {"open": "true"})
        found = list(api.pages(_PATH, "alerts", limit, **wanted))
        codes = {} if as_json or not found else _codes(api)
        _show(found if as_json else None, table(_COLUMNS, [_row(one, codes) for one in found]))


@rules.command("show")
def show_rules(
    org: Tenant = "",
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show what counts for a tenant."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = api.get(_RULES, orgId=tenant_id(api, org))
        if as_json:
            _show([found], ())
            return
        _show(None, table(_RULE_COLUMNS, [_rule_row(one) for one in found["rules"]]))
        recipients = found.get("recipients", {})
        people = [
            *(f"all with the role {role}" for role in recipients.get("roles", [])),
            *recipients.get("emails", []),
        ]
        typer.echo(f"Mails go to: {', '.join(people) or 'nobody'}.")
        if found.get("inherited"):
            typer.echo("These rules are those of a tenant above.")


@rules.command("set")
def set_rule(
    kind: Kind,
    threshold: Annotated[
        list[str] | None,
        typer.Option("--threshold", "-t", help="NAME=NUMBER, such as percent=20."),
    ] = None,
    enabled: Annotated[
        bool | None, typer.Option("--on/--off", help="Whether there are such alerts.")
    ] = None,
    pause_until: Annotated[
        str,
        typer.Option(
            help="Raise nothing until then: 2026-08-31, or 2026-08-31T07:00:00+02:00.",
            show_default=False,
        ),
    ] = "",
    resume: Annotated[bool, typer.Option("--resume", help="End a pause.")] = False,
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Change when something is an alert."""
    with told(_FAILED):
        rule: dict[str, Any] = {}
        if threshold:
            rule["thresholds"] = dict(_threshold(text) for text in threshold)
        if enabled is not None:
            rule["enabled"] = enabled
        if pause_until:
            rule["pausedUntil"] = rfc3339(pause_until, "--pause-until")
        if resume:
            rule["resume"] = True
        if not rule:
            raise CliError("say what to change: --threshold, --on, --off, --pause-until, --resume")
        with session(home, url, ca_file, email, password_file) as api:
            found = _change(api, org, {"rules": [{"kind": kind, **rule}]})
        changed = next(one for one in found["rules"] if one["kind"] == kind)
        _show(None, table(_RULE_COLUMNS, [_rule_row(changed)]))


@rules.command("mail")
def set_mail(
    to: Annotated[
        list[str] | None, typer.Option("--to", help="An address; repeat it for more.")
    ] = None,
    role: Annotated[
        list[str] | None,
        typer.Option("--role", help="All with this role: Owner, Admin or Auditor."),
    ] = None,
    nobody: Annotated[bool, typer.Option("--nobody", help="Send no mails.")] = False,
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Say who gets a mail; those not named get none any more."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        if bool(to or role) == nobody:
            raise CliError("give --to or --role, or else --nobody")
        recipients = {"emails": list(to or []), "roles": list(role or [])}
        _change(api, org, {"recipients": recipients})
        people = ", ".join([*recipients["roles"], *recipients["emails"]])
        typer.echo(f"Mails go to: {people or 'nobody'}.")


@rules.command("inherit")
def inherit(
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Remove the tenant's own rules: those of the tenant above count."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        _change(api, org, {"inherit": True})
        typer.echo("The tenant has no rules of its own.")


def _change(api: Api, org: str, body: dict[str, Any]) -> Any:
    tenant = tenant_id(api, org)
    return api.patch(_RULES, body | ({"orgId": tenant} if tenant else {}))


def _threshold(text: str) -> tuple[str, int]:
    name, equals, value = text.partition("=")
    if not equals or not value.isdecimal():
        raise CliError(f"--threshold is NAME=NUMBER, not {text!r}")
    return name, int(value)


def _show(found: Sequence[Any] | None, lines: Sequence[str]) -> None:
    for line in lines if found is None else (json.dumps(o, ensure_ascii=False) for o in found):
        typer.echo(line)


def _codes(api: Api) -> dict[str, str]:
    """The codes of tenants; none where an API token may read alerts alone."""
    with suppress(CliError):
        return tenants_by_id(api)
    return {}


def _row(one: Any, codes: Mapping[str, str]) -> list[str]:
    return [
        moment(one["raisedAt"]),
        moment(one.get("resolvedAt")),
        one["kind"],
        one["text"],
        one.get("subject") or "-",
        codes.get(one["orgId"], one["orgId"]),
    ]


def _rule_row(one: Any) -> list[str]:
    thresholds = ", ".join(
        f"{name} {value}" for name, value in one.get("thresholds", {}).items() if value is not None
    )
    return [
        one["kind"],
        "yes" if one.get("enabled") else "no",
        thresholds or "-",
        moment(one.get("pausedUntil")),
    ]
