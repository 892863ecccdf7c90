"""`evergreen policies simulate`: what a publish or a withdrawal would change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import Tenant, group_of, org_or_above, serials_of
from cli.policies import AsJson, device_of, found_policy, shown
from cli.session import session
from cli.tables import counted, moment

if TYPE_CHECKING:
    from cli.client import Api

_FAILED = 2


def simulate(
    policy: Annotated[
        str,
        typer.Argument(
            help="The policy, by its name or id; a new one of the tenant when not given.",
            show_default=False,
        ),
    ] = "",
    from_file: Annotated[
        Path | None,
        typer.Option(
            "--from-file", help="A file with a bundle as JSON, in place of the policy's own."
        ),
    ] = None,
    merging: Annotated[
        Path | None,
        typer.Option(
            "--merging", help="A file with `merging` as JSON, in place of the policy's own."
        ),
    ] = None,
    groups: Annotated[
        list[str] | None,
        typer.Option("--group", help="As if it was for this group, by its alias; repeatable."),
    ] = None,
    devices: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            help="As if it was for this device, by its serial number or id; repeatable.",
        ),
    ] = None,
    everywhere: Annotated[
        bool, typer.Option("--all-devices", help="As if it was for all devices.")
    ] = False,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="As if it was withdrawn, not published.")
    ] = False,
    plan: Annotated[
        str,
        typer.Option(
            "--plan",
            help="As if it was rolled out by this plan: careful, now, or a file with one as JSON;"
            " the default plan when not given.",
            show_default=False,
        ),
    ] = "",
    urgent: Annotated[
        bool, typer.Option("--urgent", help="As if freezes and windows did not count.")
    ] = False,
    org: Tenant = "",
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Say what devices would get otherwise if a policy was published; nothing is changed."""
    if everywhere and (groups or devices):
        raise typer.BadParameter("give --group or --device, or --all-devices alone")
    if not policy and from_file is None:
        raise typer.BadParameter("name a policy, or give the bundle of a new one with --from-file")
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        body: dict[str, Any] = {"withdraw": True} if withdraw else {}
        if policy:
            found = found_policy(api, org, policy)
            body["policyId"], tenant = found["id"], found["orgId"]
        else:
            body["orgId"] = tenant = org_or_above(api, org)
        if from_file is not None:
            body["bundle"] = json_of(from_file)
        if merging is not None:
            body["merging"] = json_of(merging)
        if groups or devices or everywhere:
            body["targets"] = {
                "groupIds": [group_of(api, tenant, alias)["id"] for alias in groups or ()],
                "deviceIds": [device_of(api, tenant, device) for device in devices or ()],
            }
        if plan:
            body["plan"] = plan_of(plan)
        if urgent:
            body["urgent"] = True
        answer = api.post("/api/policies/simulate", body)
        if as_json:
            typer.echo(json.dumps(answer, ensure_ascii=False))
            return
        lines = [*head(answer), *change_lines(answer), *warning_lines(api, answer)]
        for line in [*lines, *outlook_lines(answer, urgent=urgent)]:
            typer.echo(line)


def head(answer: Any) -> list[str]:
    """How many devices it is about."""
    sets = answer["editions"]
    # Devices have one set more for each combination of groups that has policies.
    several = f", with {sets} sets of policies" if sets > 1 else ""
    lines = [
        f"{answer['devicesAffected']} of {answer['devices']} devices get something else{several}"
    ]
    if not answer["complete"]:
        lines.append("there was no time to look at more devices")
    return lines


def change_lines(answer: Any) -> list[str]:
    """One or two lines a change, as `diff` writes them, with how many devices it is about."""
    lines: list[str] = []
    for one in answer["changes"]:
        place = place_of(one)
        # Also what devices would get of which there is none yet.
        count = (
            f"  ({counted(one['devices'], 'device')})" if one["devices"] else "  (no device now)"
        )
        for sign, side in (("-", "before"), ("+", "after")):
            if one.get(side) is not None:
                lines.append(f"{sign} {place}: {shown(one[side])}{count}")
        if one["secretChanged"]:
            lines.append(f"! {place}: a secret is another one{count}")
    if answer["changesOmitted"]:
        lines.append(f"… and {answer['changesOmitted']} more")
    return lines or ["nothing is different"]


def warning_lines(api: Api, answer: Any) -> list[str]:
    """A line a warning, with the serial numbers of some devices."""
    ids = sorted({one for warning in answer["warnings"] for one in warning["sampleDeviceIds"]})
    serials = serials_of(api, ids)
    lines = []
    for one in answer["warnings"]:
        some = ", ".join(serials.get(each, each) for each in one["sampleDeviceIds"])
        more = ", …" if one["devices"] > len(one["sampleDeviceIds"]) else ""
        count = f" ({counted(one['devices'], 'device')}: {some}{more})" if some else ""
        lines.append(f"{one['code']} {place_of(one)}: {one['message']}{count}".replace(" :", ":"))
    if answer["warningsOmitted"]:
        lines.append(f"… and {answer['warningsOmitted']} more warnings")
    return lines


def outlook_lines(answer: Any, *, urgent: bool) -> list[str]:
    """In which batches devices would get it, and the freeze that it meets."""
    lines = []
    if found := answer.get("rollout"):
        default = "by the default plan " if found["defaultPlanOrgId"] else ""
        lines.append(f"it would come {default}in batches, at the earliest:")
        for one in found["batches"]:
            approval = ", once somebody approves it" if one["approval"] else ""
            at = moment(one["opensAt"]) + " UTC" if "opensAt" in one else "in more than a year"
            lines.append(f"  {one['name']}: {counted(one['devices'], 'device')}, {at}{approval}")
        done = found.get("completesAt")
        lines.append(f"  complete: {moment(done) + ' UTC' if done else 'in more than a year'}")
        if found["outsideWindows"]:
            lines.append("the plan's windows are closed now")
    if answer["freeze"] and not urgent:
        lines.append(
            f"frozen now ({answer['freeze']}): without a plan it is refused, with one it waits;"
            " --urgent passes"
        )
    return lines + frozen_lines(answer)


def frozen_lines(answer: Any) -> list[str]:
    """The organisations below that are in a freeze of their own, which holds nothing of this."""
    if not (number := answer.get("frozenOrgs", 0)):
        return []
    are = "is" if number == 1 else "are"
    return [
        f"{counted(number, 'organisation')} below {are} in a freeze of their own; their devices get"
        " it all the same"
    ]


def plan_of(asked: str) -> Any:
    """A plan by its name, or of a file.

    Raises:
        CliError: it is neither.
    """
    if asked in {"careful", "now"}:
        return {"preset": asked}
    if not Path(asked).exists():
        raise CliError(f"{asked}: a plan is careful, now, or a file with one as JSON")
    return json_of(Path(asked))


def place_of(one: Any) -> str:
    """A field, with its item."""
    return f"{one['path']}[{one['itemKey']}]" if one["itemKey"] else str(one["path"])


def json_of(path: Path) -> Any:
    """What is in a file.

    Raises:
        CliError: it cannot be read, or is not JSON.
    """
    # Commands that need no client load this file, too.
    from cli.client import read_text  # noqa: PLC0415

    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise CliError(f"{path} is not JSON: {error}") from error
