"""`evergreen plan`, `apply` and `export`: an organisation's groups and policies as files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.confirm import Expect, Yes, confirmed, need_terminal
from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import ALL, Org, org_id
from cli.policy_changes import change_lines, head, warning_lines
from cli.session import session

if TYPE_CHECKING:
    from cli.client import Api
    from cli.set_files import Set

Directory = Annotated[Path, typer.Argument(help="The directory with the set's files.")]
Prune = Annotated[
    bool,
    typer.Option("--prune", help="Delete what belongs to the set and is not in it any more."),
]
Adopt = Annotated[
    bool, typer.Option("--adopt", help="Take over what has the same alias or name already.")
]

_FAILED: Final = 2
_DIFFERENT: Final = 3
_CHANGED: Final = 7
_PARTLY: Final = 8
_MANY: Final = 100
"""Above so many devices the number is to be confirmed."""
_SIGNS: Final = {
    "CREATE": "+",
    "UPDATE": "~",
    "RESTORE": "!",
    "ADOPT": "=",
    "DELETE": "-",
    "LEFT": "?",
    "OTHER": "?",
}
_NOTES: Final = {
    "RESTORE": "was changed since; becomes what the set says",
    "ADOPT": "belongs to the set from now on",
    "LEFT": "is not in the set any more; --prune deletes it",
    "OTHER": "not of this set: left alone",
}


@dataclass(frozen=True, slots=True)
class Planned:
    """What applying a set would do."""

    org: str
    groups: Any
    policies: Any

    @property
    def does_something(self) -> bool:
        """Whether anything would be written."""
        return any(
            one["action"] not in {"UNCHANGED", "LEFT", "OTHER"} or one.get("publishes")
            for one in (*self.groups["groups"], *self.policies["policies"])
        )

    @property
    def leaves(self) -> bool:
        """Whether something would be deleted with --prune."""
        return any(
            one["action"] == "LEFT" for one in (*self.groups["groups"], *self.policies["policies"])
        )

    @property
    def devices(self) -> int:
        """How many devices would get something else."""
        return int((self.policies.get("simulation") or {}).get("devicesAffected", 0))


def plan(
    directory: Directory,
    prune: Prune = False,
    adopt: Adopt = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="End with 3 when there is something to do.")
    ] = False,
    org: Org = "",
    as_json: Annotated[bool, typer.Option("--json", help="The plan as one JSON object.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Say what `apply` would do with an organisation's groups and policies; nothing is changed."""
    from cli.set_files import read_set  # noqa: PLC0415 - `evergreen up` loads this file

    with told(_FAILED):
        wanted = read_set(directory)
        with session(home, url, ca_file, email, password_file) as api:
            found = _planned(api, wanted, org, prune=prune, adopt=adopt)
            if as_json:
                said = {"groups": found.groups, "policies": found.policies}
                typer.echo(json.dumps(said, ensure_ascii=False))
            else:
                _show(api, wanted, found)
    if exit_code and (found.does_something or found.leaves):
        raise typer.Exit(_DIFFERENT)


def apply(
    directory: Directory,
    prune: Prune = False,
    adopt: Adopt = False,
    yes: Yes = False,
    expect: Expect = None,
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Make an organisation's groups and policies what the files of a directory say."""
    from cli.set_files import read_set  # noqa: PLC0415 - `evergreen up` loads this file

    with told(_FAILED):
        wanted = read_set(directory)
        with session(home, url, ca_file, email, password_file) as api:
            found = _planned(api, wanted, org, prune=prune, adopt=adopt)
            _show(api, wanted, found)
            if not found.does_something:
                return
            _confirm(found.devices, yes=yes, expect=expect)
            _apply(api, wanted, found, prune=prune, adopt=adopt)
            typer.echo("Applied.")


def export(
    directory: Annotated[Path, typer.Argument(help="A directory that is empty or not there.")],
    name: Annotated[str, typer.Option(help="The set's name.")] = "config",
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Write an organisation's groups and policies as the files of a set."""
    from cli.set_files import write_set  # noqa: PLC0415 - `evergreen up` loads this file

    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        tenant = api.get(f"/api/tenants/{org_id(api, org)}")
        groups = list(api.pages("/api/device-groups", "deviceGroups", ALL, orgId=tenant["id"]))
        policies = api.get("/api/policy-sets", orgId=tenant["id"])["policies"]
        paths = write_set(
            directory,
            name,
            tenant["code"],
            [_group_file(group) for group in groups],
            [_policy_file(one) for one in policies],
        )
        typer.echo(f"{len(groups)} groups and {len(policies)} policies in {len(paths)} files.")


def _planned(api: Api, wanted: Set, org: str, *, prune: bool, adopt: bool) -> Planned:
    tenant = org_id(api, org or wanted.org)
    head = {"orgId": tenant, "name": wanted.name, "adopt": adopt, "validateOnly": True}
    groups = api.post(
        "/api/device-group-sets/apply", {**head, "groups": wanted.groups, "prune": False}
    )
    planned = [one["alias"] for one in groups["groups"] if one["action"] in {"CREATE", "UPDATE"}]
    policies = api.post(
        "/api/policy-sets/apply",
        {**head, "policies": wanted.policies, "prune": prune, "plannedGroups": planned},
    )
    return Planned(tenant, groups, policies)


def _show(api: Api, wanted: Set, found: Planned) -> None:
    typer.echo(f"set {wanted.name}")
    for kind, steps in (("group", found.groups["groups"]), ("policy", found.policies["policies"])):
        for step in steps:
            if step["action"] == "UNCHANGED" and not step.get("publishes"):
                continue
            typer.echo(f"  {_line(kind, step)}")
    simulation = found.policies.get("simulation")
    if simulation:
        lines = [*head(simulation), *change_lines(simulation), *warning_lines(api, simulation)]
        for line in lines:
            typer.echo(f"    {line}")
    if not found.does_something:
        typer.echo("Nothing to do.")


def _line(kind: str, step: Any) -> str:
    notes = [", ".join(step["changed"])] if step["changed"] else []
    if step["action"] in _NOTES:
        notes.append(_NOTES[step["action"]])
    if step.get("publishes"):
        notes.append("is published")
    sign = _SIGNS.get(step["action"], "~")
    return f"{sign} {kind:6} {step['alias'] or step['name']:20} {'; '.join(notes)}".rstrip()


def _confirm(devices: int, *, yes: bool, expect: int | None) -> None:
    if devices > _MANY or expect is not None:
        confirmed("apply it", devices, yes=yes, expect=expect, dry_run=False)
    elif not yes:
        need_terminal("--yes")
        typer.confirm("Apply it?", abort=True, err=True)


def _apply(api: Api, wanted: Set, found: Planned, *, prune: bool, adopt: bool) -> None:
    """Groups first, then policies, then what groups are not needed any more."""
    head = {"orgId": found.org, "name": wanted.name, "adopt": adopt}
    groups = {**head, "groups": wanted.groups}
    with _outdated():
        done = api.post(
            "/api/device-group-sets/apply",
            {**groups, "expectedPlanSha256": found.groups["planSha256"]},
        )
    something = any(one["action"] not in {"UNCHANGED", "LEFT", "OTHER"} for one in done["groups"])
    try:
        with _outdated():
            api.post(
                "/api/policy-sets/apply",
                {
                    **head,
                    "policies": wanted.policies,
                    "prune": prune,
                    "expectedPlanSha256": found.policies["planSha256"],
                },
            )
        if prune:
            api.post("/api/device-group-sets/apply", {**groups, "prune": True})
    except CliError as error:
        if not something:
            raise
        typer.echo(f"evergreen: groups are as the set says; then: {error}", err=True)
        raise typer.Exit(_PARTLY) from None


@contextmanager
def _outdated() -> Iterator[None]:
    """Ends with its own exit code where something changed since the plan."""
    from cli.client import RefusedError  # noqa: PLC0415 - `evergreen up` loads this file

    try:
        yield
    except RefusedError as error:
        if error.reason != "PLAN_OUTDATED":
            raise
        typer.echo(f"evergreen: {error}", err=True)
        raise typer.Exit(_CHANGED) from None


def _group_file(group: Any) -> dict[str, Any]:
    found = {name: group[name] for name in ("alias", "name", "description", "priority")}
    if group.get("filter") is None:
        return {**found, "members": "external"}
    return {**found, "filter": group["filter"]}


def _policy_file(entry: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"alias": entry["alias"], "name": entry["name"]}
    if entry["description"]:
        found["description"] = entry["description"]
    found["targets"] = [f"group:{alias}" for alias in entry["groups"]] or ["org"]
    if entry["draft"]:
        found["draft"] = True
    if entry.get("merging"):
        found["merging"] = {
            name: value for name, value in entry["merging"].items() if value not in ([], {}, True)
        }
    return {**found, "bundle": entry["bundle"]}
