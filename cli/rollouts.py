"""`evergreen rollouts`: versions of policies that come to devices in batches."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import ALL, Org, Tenant, group_of, org_id, org_or_above, serials_of
from cli.policies import found_policy
from cli.policy_changes import plan_of
from cli.session import session
from cli.tables import counted, moment, show_list

if TYPE_CHECKING:
    from cli.client import Api

app = typer.Typer(
    name="rollouts",
    help="Rollouts of policies: create, watch, pause, resume, approve, cancel, roll back; freezes.",
    no_args_is_help=True,
)

Rollout = Annotated[
    str, typer.Argument(help="The rollout: its id, or the policy's name for the one that is open.")
]
Reason = Annotated[str, typer.Option(help="Why, for people to read.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]

_FAILED: Final = 2
_CAREFUL: Final = "1,10,50,100"
"""The percents of the API's plan `careful`, for a soak of one's own."""
_COLUMNS: Final = (
    "POLICY",
    "VERSION",
    "STATE",
    "BATCH",
    "GOT IT",
    "APPLIED",
    "ASKED FOR (UTC)",
    "ID",
)
_DEVICE_COLUMNS: Final = ("SERIAL", "STATE", "FAILURES", "GOT IT (UTC)", "SEEN (UTC)", "ID")
_DEVICE_STATES: Final = "WAITING, DELIVERED, APPLIED, FAILED, LOST or RETURNED"
_REASONS: Final = {
    "ADMIN": "by an administrator",
    "BATCH": "the next batch waits for approval",
    "PUBLISHED": "something else was published",
    "WITHDRAWN": "the policy was withdrawn",
    "POLICY_DELETED": "the policy was deleted",
    "TARGETS_DELETED": "all groups and devices that it was for were deleted",
    "RESTORED": "after a restore of a backup",
}
"""What is said in place of a reason that comes without a sentence."""
_NEXT: Final = {
    "AWAITING_APPROVAL": "somebody else approves it: evergreen rollouts approve {name}",
    "SCHEDULED": "it begins within a minute, unless a freeze, a closed window or another rollout"
    " holds it",
    "PAUSED": "to go on: evergreen rollouts resume {name}",
    "STOPPED": "which devices: evergreen rollouts show {name} --devices {devices}; then rollback,"
    " cancel, or resume with --reason",
}
"""What can be done in a state."""


@app.command()
def create(
    policy: Annotated[str, typer.Argument(help="The policy, by its name or id.")],
    percents: Annotated[
        str, typer.Option("--batches", help="Percents of devices, such as 1,10,50.")
    ] = "",
    groups: Annotated[
        list[str] | None, typer.Option("--pilot", help="A group that gets it first; repeatable.")
    ] = None,
    soak: Annotated[
        str,
        typer.Option(
            help="How long each batch is open at least: 30m, 24h, 7d; a day when not given.",
            show_default=False,
        ),
    ] = "",
    roll_back: Annotated[
        bool, typer.Option("--roll-back", help="Take it back when a limit is broken.")
    ] = False,
    windows: Annotated[
        list[str] | None,
        typer.Option("--window", help="When devices get it, as 'Mon-Fri 16:00-07:00'; repeatable."),
    ] = None,
    max_per_minute: Annotated[
        int,
        typer.Option(
            "--max-per-minute", help="So many devices get it within a minute; as they ask when 0."
        ),
    ] = 0,
    urgent: Annotated[
        bool, typer.Option("--urgent", help="Also in freezes, and outside of windows.")
    ] = False,
    supersede: Annotated[
        bool, typer.Option("--supersede", help="End a rollout to the same devices.")
    ] = False,
    note: Annotated[str, typer.Option(help="A note for people to read.")] = "",
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Roll a policy out as it is now: 1, 10, 50 and 100 percent, unless batches are given."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = found_policy(api, org, policy)
        batches: list[dict[str, Any]] = []
        if groups:
            ids = [group_of(api, found["orgId"], alias)["id"] for alias in groups]
            batches.append({"name": "pilots", "groupIds": ids, "soak": soak})
        elif soak:
            percents = percents or _CAREFUL
        for percent in filter(None, percents.split(",")):
            if not percent.strip().isdecimal() or not 1 <= int(percent) <= 100:
                raise CliError(f"{percent}: --batches takes percents from 1 to 100, as 1,10,50")
            name = f"{percent.strip()} %"
            batches.append({"name": name, "percent": int(percent), "soak": soak})
        plan: dict[str, Any] = {"batches": batches} if batches else {"preset": "careful"}
        plan |= {"onFailure": "ROLL_BACK" if roll_back else "PAUSE", "windows": windows or []}
        plan["maxPerMinute"] = max_per_minute
        body = {"plan": plan, "urgent": urgent, "supersede": supersede, "note": note}
        with _may_have_begun():
            answer = api.post(f"/api/policies/{found['id']}/publish", body)
        if found["signed"]:
            same = f"{found['name']} has no unpublished changes: devices that have it get nothing"
            typer.echo(same, err=True)
        _tell(api.get(f"/api/rollouts/{answer['rolloutId']}"))


@contextmanager
def _may_have_begun() -> Iterator[None]:
    """Says where to look when no answer came: once more would be another rollout."""
    from cli.client import AwayError, RefusedError  # noqa: PLC0415 - `evergreen up` loads this file

    try:
        yield
    except (AwayError, RefusedError) as error:
        if isinstance(error, RefusedError) and error.status != HTTPStatus.GATEWAY_TIMEOUT:
            raise
        raise CliError(
            f"{error}; it may have begun: look at `evergreen rollouts list` before you try again"
        ) from error


@app.command("list")
def list_rollouts(
    every: Annotated[bool, typer.Option("--all", help="Also those that are at their end.")] = False,
    org: Org = "",
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show the rollouts of an organisation, the newest first."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        asked = {"orgId": org_id(api, org), **({} if every else {"onlyOpen": "true"})}
        found = list(api.pages("/api/rollouts", "rollouts", ALL, **asked))
        show_list(found, _COLUMNS, _row, as_json=as_json)


@app.command()
def show(
    rollout: Rollout,
    devices: Annotated[
        str, typer.Option(help=f"List devices, too: ALL, or those that are {_DEVICE_STATES}.")
    ] = "",
    org: Org = "",
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show a rollout, and how its devices do; with --json and --devices only the devices."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = api.get(f"/api/rollouts/{_id_of(api, org, rollout)}")
        if not as_json:
            _tell(found)
        elif not devices:
            typer.echo(json.dumps(found, ensure_ascii=False))
        if devices:
            state = devices.upper()
            wanted = {} if state == "ALL" else {"state": state}
            path = f"/api/rollouts/{found['id']}/devices"
            seen = list(api.pages(path, "devices", ALL, **wanted))
            serials = {} if as_json else serials_of(api, [one["deviceId"] for one in seen])
            show_list(seen, _DEVICE_COLUMNS, lambda one: _device_row(one, serials), as_json=as_json)


@app.command()
def approve(
    rollout: Rollout,
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Let a rollout that somebody else asked for begin, or go on."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        _act(api, org, rollout, "approve", None)


@app.command()
def pause(
    rollout: Rollout,
    reason: Reason = "",
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Give it to no more devices for now; those that have it keep it."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        _act(api, org, rollout, "pause", reason)


@app.command()
def resume(
    rollout: Rollout,
    reason: Reason = "",
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Go on; after a stop by itself a reason is needed."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        _act(api, org, rollout, "resume", reason)


@app.command()
def advance(
    rollout: Rollout,
    reason: Reason = "",
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Open the next batch at once; after the last one the version is in force."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        _act(api, org, rollout, "advance", reason)


@app.command()
def cancel(
    rollout: Rollout,
    reason: Reason = "",
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """End it; devices that have it keep it until the next publish."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        _act(api, org, rollout, "cancel", reason)


@app.command()
def rollback(
    rollout: Rollout,
    reason: Reason = "",
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """End it, and give devices that have it what is in force."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        _act(api, org, rollout, "roll-back", reason)


@app.command()
def settings(
    time_zone: Annotated[
        str | None, typer.Option(help="Of windows and freezes, as Europe/Berlin.")
    ] = None,
    approval: Annotated[
        bool | None,
        typer.Option(
            "--approval/--no-approval", help="Whether a second person approves publishes."
        ),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            help="Days without publishes: 'Exams=2027-06-03..2027-06-14', in place of a freeze of"
            " that name; repeatable."
        ),
    ] = None,
    unfreeze: Annotated[
        list[str] | None, typer.Option(help="A freeze to remove, by its name; repeatable.")
    ] = None,
    default_plan: Annotated[
        str,
        typer.Option(
            "--default-plan",
            help="How publishes without a plan come to devices: careful, now, a file with a plan as"
            " JSON, or none.",
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
    """Show or change how a tenant publishes: approval, freezes, time zone, default plan."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        asked = org_or_above(api, org)
        found = api.get("/api/policy-settings", orgId=asked)
        change: dict[str, Any] = {}
        if time_zone is not None:
            change["timeZone"] = time_zone
        if approval is not None:
            change["requireApproval"] = approval
        if freeze or unfreeze:
            change["freezes"] = {"items": _frozen(found["freezes"], freeze or (), unfreeze or ())}
        if default_plan:
            change["defaultPlan"] = _default_plan(default_plan)
        if change:
            body = {"orgId": asked, "etag": found["etag"], **change}
            found = api.patch("/api/policy-settings", body)
        if as_json:
            typer.echo(json.dumps(found, ensure_ascii=False))
            return
        for line in _settings_lines(found):
            typer.echo(line)
        if freeze:
            typer.echo(
                "a freeze holds what this tenant and those below publish; what tenants above"
            )
            typer.echo("publish reaches the devices all the same, unless they say the freeze, too")


def _settings_lines(found: Any) -> list[str]:
    """What a tenant says, and what counts for it of what tenants above say."""
    effect = found["inEffect"]
    zone = found["timeZone"] or f"{effect['timeZone']}, as above or by default"
    approves = "yes" if found["requireApproval"] else "no"
    if effect["requireApproval"] and not found["requireApproval"]:
        approves = "yes, as a tenant above says"
    lines = [f"time zone: {zone}", f"a second person approves: {approves}"]
    own = [(one["name"], one["firstDay"], one["lastDay"]) for one in found["freezes"]]
    lines += [f"frozen: {name}, {first} to {last}" for name, first, last in own]
    above = [(one["name"], one["firstDay"], one["lastDay"]) for one in effect["freezes"]]
    lines += [
        f"frozen by a tenant above: {name}, {first} to {last}"
        for name, first, last in above
        if (name, first, last) not in own
    ]
    return [*lines, f"publishes without a plan: {_usual(found)}"]


def _usual(found: Any) -> str:
    """How publishes without a plan come to devices."""
    effect = found["inEffect"]
    if not effect.get("defaultPlan"):
        return "to all devices at once"
    whose = "" if effect["defaultPlanOrgId"] == found["orgId"] else ", as a tenant above says"
    return f"{_plan(effect['defaultPlan'])}{whose}"


def _plan(plan: Any) -> str:
    """A plan in a line."""
    batches = ", ".join(f"{one['name']} for {one['soak']}" for one in plan["batches"])
    pace = f"; {plan['maxPerMinute']} devices a minute" if plan["maxPerMinute"] else ""
    windows = f"; {', '.join(plan['windows'])}" if plan["windows"] else ""
    return f"{batches}{windows}{pace}"


def _default_plan(asked: str) -> dict[str, Any]:
    """A default plan by its name, or of a file."""
    return {} if asked == "none" else {"plan": plan_of(asked)}


def _frozen(
    known: Sequence[dict[str, str]], freeze: Sequence[str], unfreeze: Sequence[str]
) -> list[dict[str, str]]:
    """The freezes after a change.

    Raises:
        CliError: one that is removed is not there, or one that is added cannot be read.
    """
    names = [one["name"] for one in known]
    for name in unfreeze:
        if name not in names:
            raise CliError(f"no freeze is called {name}; `rollouts settings` shows them")
    added = [_freeze(text) for text in freeze]
    gone = {*unfreeze, *(one["name"] for one in added)}
    return [one for one in known if one["name"] not in gone] + added


def _freeze(text: str) -> dict[str, str]:
    name, _, days = text.rpartition("=")
    first, _, last = days.partition("..")
    if not name or not last:
        raise CliError(f"{text}: a freeze is such as 'Exams=2027-06-03..2027-06-14'")
    return {"name": name, "firstDay": first, "lastDay": last}


def _act(api: Api, org: str, rollout: str, verb: str, reason: str | None) -> None:
    body = {} if reason is None else {"reason": reason}
    _tell(api.post(f"/api/rollouts/{_id_of(api, org, rollout)}/{verb}", body))


def _id_of(api: Api, org: str, named: str) -> str:
    """A rollout's id, by that or by the name of its policy.

    Raises:
        CliError: there is none.
    """
    found = list(api.pages("/api/rollouts", "rollouts", ALL, orgId=org_id(api, org)))
    for one in found:
        if one["id"] == named:
            return named
    of_policy = [one for one in found if named in {one["policyName"], one["policyId"]}]
    is_open = [one for one in of_policy if not one.get("endedAt")]
    for one in is_open or of_policy:
        return str(one["id"])
    raise CliError(f"no rollout {named}; `rollouts list --all` shows them")


def _tell(found: Any) -> None:
    batches = found["plan"]["batches"]
    typer.echo(f"{found['policyName']} v{found['version']} is {found['state']}{_why(found)}")
    if found["batch"] and not found.get("endedAt"):
        batch = batches[found["batch"] - 1]
        opened = f"opened {moment(found['batchOpenedAt'])} UTC, open for {batch['soak']} at least"
        held = "" if found["serving"] else "; devices get nothing now"
        typer.echo(f"batch {found['batch']} of {len(batches)} ({batch['name']}), {opened}{held}")
    if found["plan"]["maxPerMinute"]:
        waiting = (found.get("counts") or {}).get("waiting", 0)
        pace = counted(found["plan"]["maxPerMinute"], "device")
        typer.echo(f"at most {pace} a minute; {waiting} without it asked within a day")
    if found.get("counts"):
        typer.echo(_counts(found["counts"]))
    if found["state"] in _NEXT:
        lost = found["reason"] == "WENT_SILENT"
        name, devices = shlex.quote(found["policyName"]), "LOST" if lost else "FAILED"
        typer.echo(_NEXT[found["state"]].format(name=name, devices=devices))
    typer.echo(f"id {found['id']}")


def _why(found: Any) -> str:
    reason = _REASONS.get(found["reason"], found["reason"])
    words = ": ".join(filter(None, (reason, found["detail"])))
    return f" ({words})" if words else ""


def _counts(counts: Any) -> str:
    """How the devices do that got the version."""
    if counts["returned"]:
        return f"{counted(counts['returned'], 'device')} took back what is in force"
    if not counts["served"]:
        return "no device got it yet"
    of = f" of {counts['expected']}" if counts.get("expected") is not None else ""
    trouble = counts.get("trouble")
    return (
        f"{counts['served']}{of} {'device' if counts['served'] == 1 else 'devices'} got it:"
        f" {counts['applied']} applied it, {counts['failed']} did not,"
        f" {'nobody knows how many' if trouble is None else trouble} tell of failures,"
        f" {counts['lost']} went silent"
    )


def _row(found: Any) -> tuple[str, ...]:
    counts = found.get("counts") or {}
    return (
        found["policyName"],
        found["version"],
        found["state"],
        f"{found['batch']}/{len(found['plan']['batches'])}",
        str(counts.get("served", 0)),
        str(counts.get("applied", 0)),
        moment(found["createdAt"]),
        found["id"],
    )


def _device_row(found: Any, serials: Mapping[str, str]) -> tuple[str, ...]:
    return (
        serials.get(found["deviceId"], "-"),
        found["state"],
        "yes" if found["trouble"] else "-",
        moment(found.get("deliveredAt")),
        moment(found.get("seenAt")),
        found["deviceId"],
    )
