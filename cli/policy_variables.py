"""`evergreen variables` and `evergreen secrets`: values that templates of policies name."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import ALL, Tenant, org_or_above
from cli.session import session
from cli.tables import moment, show_list

if TYPE_CHECKING:
    from cli.client import Api

variables = typer.Typer(
    name="variables",
    help="Variables that policies name: {{var.NAME}}.",
    no_args_is_help=True,
)
secrets = typer.Typer(
    name="secrets",
    help="Secrets that policies name, {{secret.NAME}}: set, and shown by nothing.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="Its name.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Now = Annotated[
    bool,
    typer.Option(
        "--now",
        help="Publish the policies that name it and are in force, so that devices get the value.",
    ),
]
Rollout = Annotated[
    bool,
    typer.Option(
        "--rollout",
        help="Roll them out to 1, 10, 50 and 100 percent of the devices, a day each.",
    ),
]
Urgent = Annotated[
    bool,
    typer.Option(
        "--urgent",
        help="Also in a freeze: with --now or --rollout, or where policies above take it.",
    ),
]
Overridable = Annotated[
    bool | None,
    typer.Option(
        "--overridable/--not-overridable",
        help="Whether organisations below may have their own value of this name in its place.",
        show_default=False,
    ),
]

_FAILED: Final = 2
_PATH: Final = "/api/policy-variables"
_VARIABLES: Final = ("NAME", "OVERRIDABLE", "VALUE", "SET (UTC)", "BY")
_SECRETS: Final = ("NAME", "OVERRIDABLE", "FINGERPRINT", "SET (UTC)", "BY")


@variables.command("list")
def list_variables(
    org: Tenant = "",
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show the variables of an organisation or reseller."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _listed(api, org, secret=False)
        show_list(found, _VARIABLES, lambda one: _row(one, "value"), as_json=as_json)


@secrets.command("list")
def list_secrets(
    org: Tenant = "",
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show which secrets there are; fingerprints tell values from each other."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _listed(api, org, secret=True)
        show_list(found, _SECRETS, lambda one: _row(one, "fingerprint"), as_json=as_json)


@variables.command("set")
def set_variable(
    name: Name,
    value: Annotated[str, typer.Argument(help="The value.")],
    now: Now = False,
    rollout: Rollout = False,
    urgent: Urgent = False,
    overridable: Overridable = None,
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Add a variable, or give it another value."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        how = _how(now=now, rollout=rollout, urgent=urgent, overridable=overridable)
        _set(api, org, name, value, how, secret=False)


@secrets.command("set")
def set_secret(
    name: Name,
    now: Now = False,
    rollout: Rollout = False,
    urgent: Urgent = False,
    overridable: Overridable = None,
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Add a secret, or give it another value, which is read from standard input or asked for."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        how = _how(now=now, rollout=rollout, urgent=urgent, overridable=overridable)
        _set(api, org, name, _asked(name), how, secret=True)


@variables.command("unset")
def unset_variable(
    name: Name,
    urgent: Urgent = False,
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Delete a variable. Refused while a policy names it."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        _unset(api, org, name, secret=False, urgent=urgent)


@secrets.command("unset")
def unset_secret(
    name: Name,
    urgent: Urgent = False,
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Delete a secret. Refused while a policy names it."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        _unset(api, org, name, secret=True, urgent=urgent)


def _listed(api: Api, org: str, *, secret: bool) -> list[Any]:
    tenant = org_or_above(api, org)
    found = api.pages(_PATH, "variables", ALL, orgId=tenant)
    return [one for one in found if one["orgId"] == tenant and one.get("secret", False) is secret]


def _row(one: Any, value: str) -> tuple[str, ...]:
    return (
        one["name"],
        "yes" if one.get("overridable") else "-",
        one.get(value, ""),
        moment(one["updatedAt"]),
        one.get("updatedBy", ""),
    )


def _named(api: Api, tenant: str, name: str) -> Any:
    """What a tenant calls so; `None` for nothing."""
    found = api.pages(_PATH, "variables", ALL, orgId=tenant)
    return next((one for one in found if one["name"] == name and one["orgId"] == tenant), None)


def _how(*, now: bool, rollout: bool, urgent: bool, overridable: bool | None) -> dict[str, Any]:
    """How a value comes to devices, as members of a request."""
    if now and rollout:
        raise CliError("give --now or --rollout, not both")
    apply = "ROLLOUT" if rollout else "NEXT_PUBLISH"
    how: dict[str, Any] = {"apply": "NOW" if now else apply, "urgent": urgent}
    return how if overridable is None else {**how, "overridable": overridable}


def _set(api: Api, org: str, name: str, value: str, how: dict[str, Any], *, secret: bool) -> None:
    tenant = org_or_above(api, org)
    known = _named(api, tenant, name)
    if known is None:
        new = {key: how[key] for key in how if key != "apply"}
        body = {"orgId": tenant, "name": name, "secret": secret, "value": value, **new}
        done = api.post(_PATH, body)
    else:
        _check_kind(known, secret=secret)
        done = api.patch(f"{_PATH}/{known['id']}", {"value": value, "etag": known["etag"], **how})
    typer.echo(f"{name} is set.")
    for policy in done.get("takenBy", []):
        typer.echo(f"  {policy}, of a tenant above: devices get the value now")
    for policy in done.get("policies", []):
        typer.echo(f"  {policy['policyName']}: {_said(policy)}")
    for advice in done.get("warnings", []):
        where = f"{advice['policyName']}, {advice['field']}"
        typer.echo(f"warning: {where} {advice['message']}", err=True)
    _warn(done)


def _warn(done: Any) -> None:
    if done.get("secret", False) and not done.get("sealedWhenPublished", False):
        typer.echo(
            "The secret itself is sealed. Policies that are published with it lie open in the"
            " database, as long as EVERGREEN_POLICY_SECRETS of the policy service is open.",
            err=True,
        )


def _said(policy: Any) -> str:
    if not policy.get("inForce", False):
        return "is not in force"
    if policy.get("hasUnpublishedChanges", False):
        return "has unpublished changes: devices get the value with its next publish"
    if rollout := policy.get("rolloutId"):
        return f"comes to devices by the rollout {rollout}"
    if policy.get("hasOlderValue", False):
        return "devices get the value with its next publish"
    return "is in force with the value"


def _unset(api: Api, org: str, name: str, *, secret: bool, urgent: bool) -> None:
    known = _named(api, org_or_above(api, org), name)
    if known is None:
        raise CliError(f"nothing is called {name}")
    _check_kind(known, secret=secret)
    more = {"urgent": "true"} if urgent else {}
    api.delete(f"{_PATH}/{known['id']}", etag=known["etag"], **more)
    typer.echo(f"{name} is deleted.")


def _check_kind(known: Any, *, secret: bool) -> None:
    if known.get("secret", False) is not secret:
        there = "secrets" if known.get("secret", False) else "variables"
        raise CliError(f"{known['name']} is one of the {there}; use `evergreen {there}`")


def _asked(name: str) -> str:
    if sys.stdin.isatty():
        return str(
            typer.prompt(f"Value of {name}", hide_input=True, confirmation_prompt=True, err=True)
        )
    return sys.stdin.read().rstrip("\r\n")
