"""`evergreen policies`: which there are, what is published of them, and what devices get."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import typer

from cli.confirm import need_terminal
from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import ALL, Below, Org, Tenant, group_of, org_id, org_or_above, tenant_id
from cli.session import session
from cli.tables import counted, moment, show_list, table

if TYPE_CHECKING:
    from cli.client import Api

app = typer.Typer(
    name="policies",
    help="Policies: write, publish, compare versions, explain, simulate, target, withdraw.",
    no_args_is_help=True,
)

Policy = Annotated[str, typer.Argument(help="The policy, by its name or id.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]

_FAILED: Final = 2
_COLUMNS: Final = ("NAME", "VERSION", "STATE", "CHANGED", "FOR", "ID")
_FIELD_COLUMNS: Final = ("FIELD", "HOW", "FROM", "VALUE")
_DEVICE_STATES: Final = {
    "CURRENT": "the device has it",
    "PENDING": "the device gets it by a later poll",
    "ORPHANED": "nothing is in force, and the device keeps what it has",
    "AHEAD": "the device names a version that nobody published",
    "NONE": "nothing is in force for the device, and it has nothing",
}
_ORG_STATES: Final = {
    "PENDING": "a policy above has changed, and devices get it within minutes",
    "NONE": "nothing is in force",
}
_VERSION_COLUMNS: Final = ("VERSION", "PUBLISHED (UTC)", "BY", "NOTE")


@app.command("list")
def list_policies(
    org: Tenant = "",
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show the policies of a tenant, what they are for, and which are in force."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        tenant = org_or_above(api, org)
        found = policies_of(api, tenant)
        aliases = {}
        if not as_json and any(_targets(policy)["groupIds"] for policy in found):
            groups = api.pages("/api/device-groups", "deviceGroups", ALL, orgId=tenant)
            aliases = {group["id"]: group["alias"] for group in groups}
        show_list(found, _COLUMNS, lambda one: _row(one, aliases), as_json=as_json)


@app.command()
def versions(
    policy: Policy,
    org: Tenant = "",
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show what was published of a policy, newest first."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        known = found_policy(api, org, policy)
        found = list(api.pages(f"/api/policies/{known['id']}/versions", "versions", ALL))
        coming = ""
        if known["rolloutId"] and not as_json:
            coming = api.get(f"/api/rollouts/{known['rolloutId']}")["version"]
        show_list(found, _VERSION_COLUMNS, lambda one: _version_row(one, coming), as_json=as_json)


@app.command()
def diff(
    policy: Policy,
    version: Annotated[
        str, typer.Argument(help="The version; the last published one when not given.")
    ] = "",
    base: Annotated[
        str,
        typer.Option(
            help="The version to compare it with; the one before it when not given.",
            show_default=False,
        ),
    ] = "",
    org: Tenant = "",
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Say what a version sets otherwise than another one, field by field."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = found_policy(api, org, policy)
        version = version or found["version"]
        if version == "0":
            raise CliError(f"{found['name']} was never published")
        path = f"/api/policies/{found['id']}/versions/{version}/diff"
        answer = api.get(path, **({"base": base} if base else {}))
        if as_json:
            for change in answer["changes"]:
                typer.echo(json.dumps(change, ensure_ascii=False))
            return
        typer.echo(f"version {answer['version']}, compared with {answer['base'] or 'nothing'}")
        for line in _lines(answer["changes"]):
            typer.echo(line)
        if found["hasUnpublishedChanges"]:
            name = shlex.quote(found["name"])
            typer.echo(f"not in it: unpublished changes (evergreen policies simulate {name})")


@app.command()
def effective(
    device: Annotated[
        str,
        typer.Option(help="Of this device, by its serial number or id; else of the organisation."),
    ] = "",
    group: Annotated[
        str, typer.Option(help="Of devices of the organisation in this group, by its alias.")
    ] = "",
    every: Annotated[bool, typer.Option("--all", help="Also the fields that nobody sets.")] = False,
    org: Org = "",
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show what devices are to have of all policies, and which policy each value is from."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        if device and group:
            raise CliError("give --device or --group, not both")
        if device:
            found = api.get(f"/api/devices/{device_of(api, org, device)}/effective-policy")
        else:
            asked = {"orgId": org_id(api, org)}
            if group:
                asked["groupIds"] = group_of(api, asked["orgId"], group)["id"]
            found = api.get("/api/effective-policy", **asked)
        if as_json:
            typer.echo(json.dumps(found, ensure_ascii=False))
            return
        for line in _explained(found, every=every):
            typer.echo(line)


@app.command()
def explain(
    device: Annotated[str, typer.Argument(help="The device, by its serial number or id.")],
    every: Annotated[bool, typer.Option("--all", help="Also the fields that nobody sets.")] = False,
    org: Below = "",
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show what a device is to have, which policy each value is from, and whether it has it."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = api.get(f"/api/devices/{device_of(api, org, device)}/effective-policy")
        if as_json:
            typer.echo(json.dumps(found, ensure_ascii=False))
            return
        for line in _explained(found, every=every):
            typer.echo(line)


@app.command()
def target(
    policy: Policy,
    groups: Annotated[
        list[str] | None, typer.Option("--group", help="A group, by its alias; repeatable.")
    ] = None,
    devices: Annotated[
        list[str] | None,
        typer.Option("--device", help="A device, by its serial number or id; repeatable."),
    ] = None,
    everywhere: Annotated[
        bool, typer.Option("--all-devices", help="All devices of the organisation.")
    ] = False,
    publish: Annotated[bool, typer.Option("--publish", help="Publish it, too.")] = False,
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Say which groups and devices a policy is for; it counts with the next publish."""
    if everywhere == bool(groups or devices):
        raise typer.BadParameter("give --group or --device, or --all-devices alone")
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = found_policy(api, org, policy)
        targets = {
            "groupIds": [group_of(api, found["orgId"], alias)["id"] for alias in groups or ()],
            "deviceIds": [device_of(api, found["orgId"], device) for device in devices or ()],
        }
        body = {"targets": targets, "etag": found["etag"], **({"signed": True} if publish else {})}
        changed = api.patch(f"/api/policies/{found['id']}", body)
        where = ", ".join([*(groups or ()), *(devices or ())]) or "all devices"
        typer.echo(f"{found['name']} is for {where}; {published(changed, asked=publish)}.")


@app.command()
def withdraw(
    policy: Policy,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Take a policy out of force and keep it; devices that have it go on with it."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = found_policy(api, org, policy)
        if not yes:
            need_terminal("--yes")
            typer.confirm(f"Withdraw {found['name']}?", abort=True)
        api.post(f"/api/policies/{found['id']}/withdraw", {})
        typer.echo(f"{found['name']} is not in force.")


def published(policy: Any, *, asked: bool) -> str:
    """Whether devices get a policy as it is now.

    Args:
        policy: the API's answer to a change.
        asked: whether the change was to be published, too.
    """
    if policy["signed"]:
        return "in force"
    if asked:
        name = shlex.quote(policy["name"])
        return f"given to devices by a rollout: evergreen rollouts show {name}"
    if policy["inForce"]:
        return "in force as before; what was changed is not published yet"
    return "not published yet"


def policies_of(api: Api, tenant: str) -> list[Any]:
    """The policies of a tenant, without those of tenants below."""
    found = api.pages("/api/policies", "policies", ALL, orgId=tenant)
    return [policy for policy in found if policy["orgId"] == tenant]


def found_policy(api: Api, org: str, name: str) -> Any:
    """A policy by its name or id.

    Raises:
        CliError: there is none, or there are several.
    """
    found = [
        policy
        for policy in policies_of(api, org_or_above(api, org))
        if name in {policy["id"], policy["name"]}
    ]
    if not found:
        raise CliError(f"no policy is called {name}; `policies list` shows them")
    if len(found) > 1:
        raise CliError(f"several policies are called {name}; give the id of one")
    return found[0]


def device_of(api: Api, org: str, named: str) -> str:
    """A device's id, by that or by its serial number.

    Args:
        org: the tenant that has it, or a tenant above; the caller's own when empty.

    Raises:
        CliError: there is no such device, or there are several.
    """
    with suppress(ValueError):
        return str(UUID(named))
    text = named.replace("\\", "\\\\").replace('"', '\\"')
    parameters = {"orgId": tenant_id(api, org), "filter": f'serial = "{text}"'}
    found = list(api.pages("/api/registrations", "registrations", 2, **parameters))
    if not found:
        raise CliError(f"no device has the serial number {named}; `devices list` shows them")
    if len(found) > 1:
        raise CliError(f"several organisations have a device {named}; name one with --org")
    return str(found[0]["id"])


def _targets(policy: Any) -> Any:
    return policy.get("targets") or {"groupIds": [], "deviceIds": []}


def _row(policy: Any, aliases: Mapping[str, str]) -> tuple[str, ...]:
    state = "in force" if policy["inForce"] else "not in force"
    if policy["version"] == "0":
        state = "draft"
    if policy["rolloutId"]:
        state = "in force, in a rollout" if policy["inForce"] else "in a rollout"
    changed = "yes" if policy["hasUnpublishedChanges"] else ""
    targets = _targets(policy)
    parts = [aliases.get(group, "deleted group") for group in targets["groupIds"]]
    if targets["deviceIds"]:
        parts.append(counted(len(targets["deviceIds"]), "device"))
    where = ", ".join(parts) or "all devices"
    version = "-" if policy["version"] == "0" else policy["version"]
    return policy["name"], version, state, changed, where, policy["id"]


def _version_row(version: Any, coming: str) -> tuple[str, ...]:
    """A line of a version.

    Args:
        coming: the version that a rollout brings to devices; empty for none.
    """
    never = "in a rollout" if version["version"] == coming else "never in force"
    return (
        version["version"],
        moment(version["publishedAt"]),
        version["publishedBy"],
        "; ".join(
            [
                *([f"as version {version['rollbackOf']}"] if version["rollbackOf"] else []),
                *([never] if version["neverInForce"] else []),
            ]
        ),
    )


def _explained(found: Any, *, every: bool) -> list[str]:
    states = _DEVICE_STATES if found.get("deviceId") else _ORG_STATES
    means = found["stateReason"] or states.get(found["state"], "")
    lines = [f"{found['state']}: {means}" if means else found["state"]]
    if restricted := found.get("restriction"):
        lines.append(
            f"since {restricted['since']} its boot is {restricted['verdict']}, and"
            f" {restricted['atLeast']} is asked for: it has the gate's other policy"
        )
    lines += [f"  {_source(layer)}" for layer in found["layers"]]
    rows = []
    for field in found["fields"]:
        if field["how"] == "DEFAULT" and not every and not field["overridden"]:
            continue
        place = f"{field['path']}[{field['itemKey']}]" if field["itemKey"] else field["path"]
        value = "-" if field.get("value") is None else shown(field["value"])
        source = _source(field["source"]) if field.get("source") else ""
        rows.append((place, field["how"], source, value))
        rows += [
            ("", lost["reason"], _source(lost["source"]), shown(lost["value"]))
            for lost in field["overridden"]
        ]
    return lines + (table(_FIELD_COLUMNS, rows) if rows else [])


def _source(layer: Any) -> str:
    if layer["level"] == "BASELINE":
        return "the console's baseline"
    if layer["level"] == "GATE":
        whose = f"attestation gate of {layer['groupAlias'] or 'all devices'}"
        return f"{whose}: {layer['policyName'] or layer['policyId']} v{layer['version']}"
    if layer["level"] in {"GROUP", "DEVICE"}:
        whose = f"group {layer['groupAlias']}" if layer["groupId"] else "this device"
        return f"{whose}: {layer['policyName'] or layer['policyId']} v{layer['version']}"
    return f"{layer['tenantName']}: {layer['policyName'] or layer['policyId']} v{layer['version']}"


def shown(value: Any) -> str:
    """A value of a policy as JSON, without what an item leaves empty."""
    if isinstance(value, dict):
        value = {name: part for name, part in value.items() if part not in ("", [], {}, None)}
    return json.dumps(value, ensure_ascii=False)


def _lines(changes: list[Any]) -> list[str]:
    """One or two lines a change, as `diff` writes them."""
    if not changes:
        return ["nothing is different"]
    found: list[str] = []
    for change in changes:
        place = f"{change['path']}[{change['itemKey']}]" if change["itemKey"] else change["path"]
        for sign, side in (("-", "before"), ("+", "after")):
            if side in change and change[side] is not None:
                found.append(f"{sign} {place}: {shown(change[side])}")
        if change["secretChanged"]:
            found.append(f"! {place}: a secret is another one")
    return found
