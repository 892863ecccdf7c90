"""`evergreen enrollment-tokens`: what admits devices to an organisation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.agent_files import CONFIG, KEY, PLACE, AgentFiles, agent_files, backend, is_loopback
from cli.confirm import need_terminal
from cli.durations import later
from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import (
    ALL,
    Below,
    Org,
    codes_of,
    group_of,
    one_named,
    org_id,
    serials_in,
    tenant_id,
)
from cli.session import session
from cli.tables import counted, moment, printable, show_list

if TYPE_CHECKING:
    from cli.client import Api

# Each command imports what it needs itself: `evergreen up`, which is in a hurry, loads this file.

app = typer.Typer(
    name="enrollment-tokens",
    help="Enrollment tokens, whose pre-shared keys admit devices: list, create, revoke.",
    no_args_is_help=True,
)

Token = Annotated[str, typer.Argument(help="The token, by its name or id.")]

_FAILED: Final = 2
_PATH: Final = "/api/enrollment-tokens"
_COLUMNS: Final = ("ORG", "NAME", "USES", "EXPIRES (UTC)", "STATUS", "GROUPS", "ID")


@app.command("list")
def list_tokens(
    org: Below = "",
    active: Annotated[
        bool, typer.Option("--active", help="Only those that still admit devices.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show the enrollment tokens that you can see, newest first; their keys are shown nowhere."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = [one for one in _tokens(api, org) if one["status"] == "active" or not active]
        codes = {} if as_json else codes_of(api)
        aliases = {} if as_json else _aliases(api, found)
        show_list(found, _COLUMNS, lambda one: _row(one, codes, aliases), as_json=as_json)


@app.command()
def show(
    token: Token,
    org: Below = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show one enrollment token as JSON, without its key."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        typer.echo(json.dumps(_found(api, token, org), ensure_ascii=False, indent=2))


@app.command()
def create(
    name: Annotated[str, typer.Option("--name", help="A name for people, as 'Cart 3'.")],
    org: Org = "",
    max_uses: Annotated[
        int,
        typer.Option(
            help="How many devices it admits; any number when not given.", min=0, show_default=False
        ),
    ] = 0,
    expires: Annotated[
        str,
        typer.Option(
            help="When it ends: from now, as 30d or 12h, or a time (RFC 3339); in 90 days when not"
            " given.",
            show_default=False,
        ),
    ] = "",
    group: Annotated[
        list[str] | None,
        typer.Option(help="A group that its devices come into, by its alias. Repeat it."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="A label that its devices get, as room=214. Repeat it."),
    ] = None,
    serial: Annotated[
        list[str] | None,
        typer.Option(help="A serial number that it admits; any when not given. Repeat it."),
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option(
            "--from-file", help="A file with such serial numbers, one a line.", show_default=False
        ),
    ] = None,
    only_expected: Annotated[
        bool, typer.Option("--only-expected", help="It admits expected devices alone.")
    ] = False,
    require_approval: Annotated[
        bool, typer.Option("--require-approval", help="An administrator approves each device.")
    ] = False,
    policy_key: Annotated[
        str,
        typer.Option(
            help="The key for policies that its devices pin, by its id (`evergreen keys list`);"
            " the active one when not given.",
            show_default=False,
        ),
    ] = "",
    agent_config: Annotated[
        Path | None,
        typer.Option(
            metavar="DIRECTORY",
            help=f"Write the agent's {CONFIG} and {KEY} into this directory.",
            show_default=False,
        ),
    ] = None,
    backend_url: Annotated[
        str,
        typer.Option(
            help=f"The gateway's address for devices, in {CONFIG}; the one that this command calls"
            " when not given.",
            show_default=False,
        ),
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="All of the token as JSON, with its key.")
    ] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Create an enrollment token and print its pre-shared key, this once.

    With --agent-config also write what the device agent starts from, the key in it.
    """
    with told(_FAILED):
        if backend_url and agent_config is None:
            raise CliError("--backend-url is for the files of --agent-config")
        body: dict[str, Any] = {
            "name": name,
            "maxUses": max_uses,
            "serials": [*(serial or ()), *serials_in(from_file)],
            "requireApproval": require_approval,
            "labels": _labels(label or ()),
            "onlyExpected": only_expected,
        }
        if expires:
            body["expiresAt"] = later(expires, "--expires", datetime.now(UTC))
        if policy_key:
            body["policyKeyId"] = policy_key
        with session(home, url, ca_file, email, password_file) as api:
            devices_call = backend(backend_url or api.url) if agent_config else ""
            body["orgId"] = org_id(api, org)
            body["groupIds"] = [group_of(api, body["orgId"], one)["id"] for one in group or ()]
            if agent_config is None:
                _hand_over(api.post(_PATH, body), as_json=as_json)
                return
            with agent_files(agent_config) as files:
                made = api.post(_PATH, body)
                # The key first: it cannot be had again if the files cannot be written.
                _hand_over(made, as_json=as_json)
                _write(files, made, devices_call)


@app.command()
def revoke(
    token: Token,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    org: Below = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Revoke an enrollment token: its key admits no more devices. Those that enrolled stay."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, token, org)
        named = f"{printable(found['name'])} of {_code(api, found)}"
        if found["status"] == "revoked":
            typer.echo(f"{named} is revoked already.")
            return
        if not yes:
            need_terminal("--yes")
            question = f"Revoke {named}, which has admitted {counted(found['uses'], 'device')}?"
            typer.confirm(question, abort=True, err=True)
        api.post(f"{_PATH}/{found['id']}/revoke", {"etag": found["etag"]})
        typer.echo(f"{named} is revoked; devices that have enrolled with it stay.")


def _hand_over(made: dict[str, Any], *, as_json: bool) -> None:
    """Prints a new token, alone on standard output."""
    code = made["preSharedKey"].partition(":")[0]
    number = counted(made["maxUses"], "device") if made["maxUses"] else "any number of devices"
    ends, policy_key = moment(made["expiresAt"]), made["policyKeyId"] or "of the installation"
    typer.echo(
        f"{printable(made['name'])} of {code} admits {number} until {ends} UTC. They check policies"
        f" with key {policy_key}.\n"
        "Its pre-shared key goes into the agent's configuration. It is shown this once; keep it"
        " like a password:",
        err=True,
    )
    whole = json.dumps(made, ensure_ascii=False, indent=2)
    typer.echo(whole if as_json else made["preSharedKey"])


def _write(files: AgentFiles, made: dict[str, Any], devices_call: str) -> None:
    """Writes what the agent starts from, and says where it belongs.

    Raises:
        CliError: it cannot be written.
    """
    pem = made.get("policyKeyPem", "")
    if not pem:
        # A policy service of before tokens had keys, in the middle of an upgrade.
        raise CliError(
            "the policy service does not tell its key yet, so no file was written; revoke"
            f" {made['id']} and try again after the upgrade"
        )
    files.write(devices_call, made["preSharedKey"], pem)
    typer.echo(
        f"{files.directory / CONFIG} has the key, too, and {files.directory / KEY} is what devices"
        f" check policies with. Put both into {PLACE} of the image.",
        err=True,
    )
    if is_loopback(devices_call):
        typer.echo(
            f"warning: {CONFIG} names {devices_call}, which devices elsewhere cannot reach:"
            " --backend-url is for an address that they can",
            err=True,
        )


def _labels(pairs: Sequence[str]) -> dict[str, str]:
    """Labels from KEY=VALUE.

    Raises:
        CliError: one is not of that form, or given twice.
    """
    labels: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise CliError(f"--label is KEY=VALUE, as room=214, not {pair!r}")
        if key in labels:
            raise CliError(f"--label: {key} is given twice")
        labels[key] = value
    return labels


def _tokens(api: Api, org: str) -> list[dict[str, Any]]:
    parameters = {"orgId": tenant_id(api, org)}
    return list(api.pages(_PATH, "enrollmentTokens", ALL, **parameters))


def _found(api: Api, token: str, org: str) -> dict[str, Any]:
    """A token by its id, or by its name; of several with a name the one that is not revoked.

    Raises:
        CliError: there is none, or there are several.
    """
    known = _tokens(api, org)
    named = [one for one in known if one["name"] == token and one["status"] != "revoked"]
    is_id = any(one["id"] == token for one in known)
    return one_named(known if is_id or not named else named, token, "enrollment token")


def _aliases(api: Api, tokens: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The aliases of groups by their ids; none for an API token that may not list them."""
    if not any(one["groupIds"] for one in tokens):
        return {}
    with suppress(CliError):
        groups = api.pages("/api/device-groups", "deviceGroups", ALL)
        return {one["id"]: one["alias"] for one in groups}
    return {}


def _code(api: Api, token: dict[str, Any]) -> str:
    return codes_of(api).get(token["orgId"], str(token["orgId"]))


def _row(one: dict[str, Any], codes: dict[str, str], aliases: dict[str, str]) -> Sequence[str]:
    return (
        codes.get(one["orgId"], one["orgId"]),
        one["name"],
        f"{one['uses']}/{one['maxUses']}" if one["maxUses"] else str(one["uses"]),
        moment(one["expiresAt"]),
        one["status"],
        ",".join(aliases.get(group, group) for group in one["groupIds"]) or "-",
        one["id"],
    )
