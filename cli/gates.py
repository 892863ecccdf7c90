"""`evergreen gates`: what is asked of devices' boots, and what those get that fall short."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.confirm import DryRun, Expect, confirmed
from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import ALL, Below, Org, codes_of, group_of, org_id, serials_of, tenant_id
from cli.policies import found_policy
from cli.session import session
from cli.tables import counted, moment, show_list

if TYPE_CHECKING:
    from cli.client import Api

app = typer.Typer(
    name="gates",
    help="Attestation gates: list, preview, enforce, observe, switch off.",
    no_args_is_help=True,
)

Group = Annotated[
    str, typer.Option("--group", help="A group, by its alias; all devices when not given.")
]
AtLeast = Annotated[
    str | None,
    typer.Option("--at-least", help="The least verdict: SELF_CONSISTENT, KNOWN_TPM or VERIFIED."),
]
Grace = Annotated[
    int | None,
    typer.Option("--grace-hours", help="The hours in which a device may be without evidence."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]

_FAILED: Final = 2
_PATH: Final = "/api/attestation-gate"
_GATE_COLUMNS: Final = (
    "ORGANISATION",
    "GROUP",
    "MODE",
    "AT LEAST",
    "SHARE",
    "RESTRICTED",
    "HELD",
    "CHANGED (UTC)",
)
_COLUMNS: Final = ("SERIAL", "VERDICT", "ATTESTED (UTC)", "ENROLLED (UTC)", "ID")


@app.command("list")
def list_gates(
    enforced: Annotated[
        bool, typer.Option("--enforced", help="Only those that are enforced.")
    ] = False,
    held: Annotated[bool, typer.Option("--held", help="Only those that are held.")] = False,
    org: Below = "",
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """List the gates of an organisation, or of all organisations that you see."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        asked = {
            "orgId": tenant_id(api, org),
            "mode": "ENFORCE" if enforced else "",
            "onlyHeld": "true" if held else "",
        }
        wanted = {name: value for name, value in asked.items() if value}
        found = list(api.pages("/api/attestation-gates", "gates", ALL, **wanted))
        codes = {} if as_json or not found else codes_of(api)
        show_list(found, _GATE_COLUMNS, lambda one: _gate_row(one, codes), as_json=as_json)


@app.command()
def show(
    group: Group = "",
    org: Org = "",
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show what is asked, and how many devices have the other policy."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = api.get(_PATH, **_target(api, org, group))
        if as_json:
            typer.echo(json.dumps(found, ensure_ascii=False))
        else:
            _tell(api, found)


@app.command()
def preview(
    at_least: AtLeast = None,
    grace_hours: Grace = None,
    group: Group = "",
    org: Org = "",
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """List the devices that fall short, or would of another demand."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        asked = _query(_asked(api, org, group, at_least, grace_hours))
        counts = api.get(f"{_PATH}/preview", **asked, pageSize="1")
        found = list(api.pages(f"{_PATH}/preview", "devices", ALL, **asked))
        serials = {} if as_json else serials_of(api, [one["deviceId"] for one in found])
        show_list(found, _COLUMNS, lambda one: _row(one, serials), as_json=as_json)
        if not as_json:
            _tell_counts(counts)


@app.command()
def enforce(
    otherwise: Annotated[
        str | None,
        typer.Option(
            "--otherwise", help="The policy that devices get that fall short, by name or id."
        ),
    ] = None,
    max_percent: Annotated[
        int | None,
        typer.Option("--max-percent", help="The share of the devices that may have it."),
    ] = None,
    at_least: AtLeast = None,
    grace_hours: Grace = None,
    group: Group = "",
    expect: Expect = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needs --expect.")] = False,
    dry_run: DryRun = False,
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Give devices that fall short another policy; you confirm the number of them.

    It also ends the hold of a gate.
    """
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        asked = _query(_asked(api, org, group, at_least, grace_hours))
        counts = api.get(f"{_PATH}/preview", **asked, pageSize="1")
        _tell_counts(counts)
        count = int(counts["fallingShort"])
        if not confirmed(
            "give them the other policy", count, yes=yes, expect=expect, dry_run=dry_run
        ):
            return
        body: dict[str, Any] = {
            "mode": "ENFORCE",
            "atLeast": counts["atLeast"],
            "graceHours": counts["graceHours"],
            "expectedDevices": count,
            **_target(api, org, group),
        }
        if otherwise is not None:
            body["otherwisePolicyId"] = found_policy(api, org, otherwise)["id"]
        if max_percent is not None:
            body["maxPercent"] = max_percent
        _tell(api, api.patch(_PATH, body))


@app.command()
def observe(
    at_least: AtLeast = None,
    grace_hours: Grace = None,
    group: Group = "",
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Only show which devices fall short; those with the other policy get their own one back."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        asked = _asked(api, org, group, at_least, grace_hours)
        _tell(api, api.patch(_PATH, {"mode": "OBSERVE", **asked}))


@app.command()
def off(
    group: Group = "",
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Ask for nothing; devices with the other policy get their own one back."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        _tell(api, api.patch(_PATH, {"mode": "OFF", **_target(api, org, group)}))


def _target(api: Api, org: str, group: str) -> dict[str, Any]:
    found = {"orgId": org_id(api, org)}
    if group:
        found["groupId"] = group_of(api, found["orgId"], group)["id"]
    return found


def _asked(
    api: Api, org: str, group: str, at_least: str | None, grace_hours: int | None
) -> dict[str, Any]:
    asked = _target(api, org, group)
    if at_least is not None:
        asked["atLeast"] = at_least
    if grace_hours is not None:
        asked["graceHours"] = grace_hours
    if at_least == "":
        raise CliError("--at-least takes SELF_CONSISTENT, KNOWN_TPM or VERIFIED")
    return asked


def _query(asked: dict[str, Any]) -> dict[str, str]:
    """What is asked as query parameters; also 0 hours are given."""
    return {name: str(value) for name, value in asked.items()}


def _tell(api: Api, found: Any) -> None:
    grace = counted(found["graceHours"], "hour")
    typer.echo(f"{found['mode']}: at least {found['atLeast']}, {grace} to send evidence")
    if found["mode"] == "ENFORCE":
        name = api.get(f"/api/policies/{found['otherwisePolicyId']}")["name"]
        typer.echo(
            f"otherwise {name} v{found['otherwiseVersion']},"
            f" for at most {found['maxPercent']} % of the devices"
        )
        restricted = counted(found["restrictedDevices"], "device")
        typer.echo(f"{restricted} restricted: they have it, or get it by their next polls")
    if found["held"]:
        typer.echo(
            f"held: {found['held']}; no more devices get it until you enforce the gate again"
        )


def _tell_counts(counts: Any) -> None:
    typer.echo(
        f"{counts['fallingShort']} of {counts['devicesInUse']} devices in use fall short of"
        f" {counts['atLeast']}, {counts['inGrace']} still have time"
    )


def _gate_row(found: Any, codes: Mapping[str, str]) -> tuple[str, ...]:
    is_enforced = found["mode"] == "ENFORCE"
    return (
        codes.get(found["orgId"], found["orgId"]),
        found["groupAlias"] or found["groupId"] or "-",
        found["mode"],
        found["atLeast"],
        f"{found['maxPercent']} %" if is_enforced else "-",
        str(found["restrictedDevices"]) if is_enforced else "-",
        found["held"] or "-",
        moment(found.get("updatedAt")),
    )


def _row(found: Any, serials: Mapping[str, str]) -> tuple[str, ...]:
    return (
        serials.get(found["deviceId"], "-"),
        found["verdict"],
        moment(found.get("attestedAt")),
        moment(found.get("enrolledAt")),
        found["deviceId"],
    )
