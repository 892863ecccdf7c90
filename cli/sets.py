"""`evergreen plan`, `apply` and `export`: a tenant's groups and policies as files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.confirm import Yes, confirmed, need_terminal
from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import ALL, Tenant, org_or_above
from cli.policy_changes import change_lines, head, warning_lines
from cli.session import session
from cli.tables import counted

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
    "OTHER": "not of this set",
}

_KINDS: Final = {"groups": "group", "policies": "policy", "variables": "variable"}
_ENTRY: Final = re.compile(r"(groups|policies|variables)\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Planned:
    """What applying a set would do."""

    org: str
    groups: Any
    """With those that `--prune` deletes."""
    groups_sha256: str
    """Names what is done with groups before policies; empty for nothing."""
    policies: Any

    @property
    def does_something(self) -> bool:
        """Whether anything would be written."""
        return any(
            one["action"] not in {"UNCHANGED", "LEFT", "OTHER"} or one.get("publishes")
            for one in self._steps
        )

    @property
    def _steps(self) -> tuple[Any, ...]:
        policies = self.policies
        return (*self.groups["groups"], *policies["policies"], *policies["variables"])

    @property
    def leaves(self) -> bool:
        """Whether something would be deleted with --prune."""
        return any(one["action"] == "LEFT" for one in self._steps)

    @property
    def devices(self) -> int:
        """How many devices would get something else, or come into groups or leave them."""
        moved: int = sum(one["joins"] + one["leaves"] for one in self.groups["groups"])
        return moved + int((self.policies.get("simulation") or {}).get("devicesAffected", 0))

    def count(self, *actions: str) -> int:
        """Groups, policies and variables of which something becomes."""
        return sum(one["action"] in actions for one in self._steps)


def plan(
    directory: Directory,
    prune: Prune = False,
    adopt: Adopt = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="End with 3 when there is something to do.")
    ] = False,
    org: Tenant = "",
    as_json: Annotated[bool, typer.Option("--json", help="The plan as one JSON object.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Say what `apply` would do with a tenant's groups and policies; nothing is changed."""
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
    expect: Annotated[
        int | None,
        typer.Option(
            "--expect",
            help="How many devices it may change, which is asked for above 100; `plan` counts"
            " them.",
            min=0,
        ),
    ] = None,
    expect_deleted: Annotated[
        int | None,
        typer.Option(
            "--expect-deleted",
            help="How many groups and policies --prune deletes, where that is most of the set.",
            min=0,
        ),
    ] = None,
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Make a tenant's groups and policies what the files of a directory say."""
    from cli.set_files import read_set  # noqa: PLC0415 - `evergreen up` loads this file

    with told(_FAILED):
        wanted = read_set(directory)
        with session(home, url, ca_file, email, password_file) as api:
            found = _planned(api, wanted, org, prune=prune, adopt=adopt)
            _show(api, wanted, found)
            if not found.does_something:
                return
            _confirm_deleted(found, yes=yes, expect=expect_deleted)
            _confirm(found.devices, yes=yes, expect=expect)
            try:
                _apply(api, wanted, found, prune=prune, adopt=adopt)
            except _OutdatedError as error:
                typer.echo(f"evergreen: {error}", err=True)
                raise typer.Exit(_CHANGED) from None
            typer.echo("Applied.")


def export(
    directory: Annotated[Path, typer.Argument(help="A directory that is empty or not there.")],
    name: Annotated[
        str, typer.Option(help="The set's name; no other repository of the tenant has it.")
    ],
    move_secrets: Annotated[
        bool,
        typer.Option(
            "--move-secrets",
            help="Give names to the secrets that stand in policies first; those in force are"
            " published again.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Write a tenant's groups and policies as the files of a set."""
    from cli.set_files import write_set  # noqa: PLC0415 - `evergreen up` loads this file

    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        tenant = api.get(f"/api/tenants/{org_or_above(api, org)}")
        if move_secrets:
            _move_secrets(api, tenant["id"], yes=yes)
        # Those of the organisations below are in sets of their own.
        groups = [
            one
            for one in api.pages("/api/device-groups", "deviceGroups", ALL, orgId=tenant["id"])
            if one["orgId"] == tenant["id"]
        ]
        found = api.get("/api/policy-sets", orgId=tenant["id"])
        policies, variables = found["policies"], found.get("variables", [])
        paths = write_set(
            directory,
            name,
            tenant["code"],
            [_group_file(group) for group in groups],
            [_policy_file(one) for one in policies],
            [_variable_file(one) for one in variables],
            found.get("secrets", []),
        )
        typer.echo(
            f"{counted(len(groups), 'group')} and"
            f" {len(policies)} {'policy' if len(policies) == 1 else 'policies'}"
            f" in {counted(len(paths), 'file')}."
        )


def _move_secrets(api: Api, tenant: str, *, yes: bool) -> None:
    """Lets an export have names of secrets in place of masks."""
    path = "/api/policy-sets/move-secrets"
    found = api.post(path, {"orgId": tenant, "validateOnly": True})
    if not found.get("policies"):
        return
    for one in found["policies"]:
        published = ", and is published again" if one.get("published") else ""
        typer.echo(f"{one['name']} becomes a template{published}", err=True)
    if not yes:
        need_terminal("--yes")
        typer.confirm(f"Move {counted(len(found['secrets']), 'secret')}?", abort=True, err=True)
    done = api.post(path, {"orgId": tenant})
    typer.echo(f"{counted(len(done['secrets']), 'secret')} moved.", err=True)


def _planned(api: Api, wanted: Set, org: str, *, prune: bool, adopt: bool) -> Planned:
    tenant = org_or_above(api, org or wanted.org)
    head = {"orgId": tenant, "name": wanted.name, "adopt": adopt, "validateOnly": True}
    asked = {**head, "groups": wanted.groups}
    path = "/api/device-group-sets/apply"
    with _named(wanted):
        first = api.post(path, asked)
        groups = api.post(path, {**asked, "prune": True}) if prune else first
        steps = first["groups"]
        policies = api.post(
            "/api/policy-sets/apply",
            {
                **head,
                **_wanted(wanted),
                "prune": prune,
                "plannedGroups": [one["alias"] for one in steps if one["action"] == "CREATE"],
                "renamedGroups": {
                    one["alias"]: one["groupId"] for one in steps if "alias" in one["changed"]
                },
            },
        )
    return Planned(tenant, groups, first["planSha256"], policies)


@contextmanager
def _named(wanted: Set) -> Iterator[None]:
    """Says by its name which entry of the files is refused; the API numbers them."""
    from cli.client import RefusedError  # noqa: PLC0415 - `evergreen up` loads this file

    try:
        yield
    except RefusedError as error:
        found = _ENTRY.match(str(error))
        if found is None:
            raise
        entry = getattr(wanted, found[1])[int(found[2])]
        name = entry.get("alias") or entry["name"]
        field = re.sub(r"^\.", ", ", str(error)[found.end() :])
        raise CliError(f"{_KINDS[found[1]]} {name}{field}") from error


def _wanted(wanted: Set) -> dict[str, Any]:
    return {
        "policies": wanted.policies,
        "variables": wanted.variables,
        "secrets": wanted.secrets,
    }


def _show(api: Api, wanted: Set, found: Planned) -> None:
    typer.echo(f"set {wanted.name}")
    policies = found.policies
    for kind, steps in (
        ("group", found.groups["groups"]),
        ("var", policies["variables"]),
        ("policy", policies["policies"]),
    ):
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
    notes = [", ".join(step["changed"])] if step.get("changed") else []
    if step["action"] in _NOTES:
        notes.append(_NOTES[step["action"]])
    if step.get("publishes"):
        notes.append("is published" + (", once approved" if step.get("awaitsApproval") else ""))
    if step.get("overridable") and step["action"] not in {"DELETE", "OTHER"}:
        notes.append("tenants below may have their own")
    if step.get("joins") or step.get("leaves"):
        notes.append(f"{step['joins']} devices come into it, {step['leaves']} leave it")
    sign = _SIGNS.get(step["action"], "~")
    return f"{sign} {kind:6} {step.get('alias') or step['name']:20} {'; '.join(notes)}".rstrip()


def _confirm(devices: int, *, yes: bool, expect: int | None) -> None:
    if devices > _MANY or expect is not None:
        confirmed("apply it", devices, yes=yes, expect=expect, dry_run=False)
    elif not yes:
        need_terminal("--yes")
        typer.confirm("Apply it?", abort=True, err=True)


def _confirm_deleted(found: Planned, *, yes: bool, expect: int | None) -> None:
    """Asks for the number where a set loses most of what belongs to it."""
    deleted = found.count("DELETE")
    every = deleted + found.count("UNCHANGED", "UPDATE", "RESTORE")
    if expect is not None and expect != deleted:
        raise CliError(
            f"it deletes {deleted} groups and policies, not {expect}; nothing was changed"
        )
    if expect is not None or 2 * deleted <= every:
        return
    if yes:
        raise CliError(
            f"it deletes {deleted} of the set's {every} groups and policies: --yes needs"
            f" --expect-deleted {deleted} here; nothing was changed"
        )
    need_terminal(f"--yes --expect-deleted {deleted}")
    given = typer.prompt(f"Type {deleted} to delete so many of the set's {every}", err=True)
    if given.strip() != str(deleted):
        raise CliError("that is another number; nothing was changed")


def _apply(api: Api, wanted: Set, found: Planned, *, prune: bool, adopt: bool) -> None:
    """Groups first, then policies, then what groups are not needed any more."""
    head = {"orgId": found.org, "name": wanted.name, "adopt": adopt}
    groups = {**head, "groups": wanted.groups}
    with _outdated():
        done = api.post(
            "/api/device-group-sets/apply",
            {**groups, "expectedPlanSha256": found.groups_sha256},
        )
    something = any(one["action"] not in {"UNCHANGED", "LEFT", "OTHER"} for one in done["groups"])
    try:
        with _outdated():
            asked = {**head, **_wanted(wanted), "prune": prune}
            done = api.post(
                "/api/policy-sets/apply",
                {**asked, "expectedPlanSha256": found.policies["planSha256"]},
            )
        something = something or any(
            one["action"] not in {"UNCHANGED", "LEFT", "OTHER"} or one.get("publishes")
            for one in (*done["policies"], *done["variables"])
        )
        if prune:
            _prune(api, groups, found)
    except CliError as error:
        if not something:
            raise
        typer.echo(f"evergreen: the set is applied in part; then: {error}", err=True)
        raise typer.Exit(_PARTLY) from None


def _prune(api: Api, groups: Any, found: Planned) -> None:
    """Deletes groups that were shown, and no others."""
    shown = {one["groupId"] for one in found.groups["groups"] if one["action"] == "DELETE"}
    asked = {**groups, "prune": True}
    plan = api.post("/api/device-group-sets/apply", {**asked, "validateOnly": True})
    going = {one["groupId"] for one in plan["groups"] if one["action"] == "DELETE"}
    if not going <= shown:
        raise _OutdatedError("more groups would be deleted than were shown; plan once more")
    if going:
        with _outdated():
            api.post(
                "/api/device-group-sets/apply", {**asked, "expectedPlanSha256": plan["planSha256"]}
            )


class _OutdatedError(CliError):
    """Something changed since the plan."""


@contextmanager
def _outdated() -> Iterator[None]:
    """Says so where something changed since the plan."""
    from cli.client import RefusedError  # noqa: PLC0415 - `evergreen up` loads this file

    try:
        yield
    except RefusedError as error:
        if error.reason != "PLAN_OUTDATED":
            raise
        raise _OutdatedError(str(error)) from error


def _group_file(group: Any) -> dict[str, Any]:
    found = {name: group[name] for name in ("alias", "name", "description", "priority")}
    if group.get("filter") is None:
        return {**found, "members": "external"}
    return {**found, "filter": group["filter"]}


def _variable_file(entry: Any) -> dict[str, Any]:
    found = {"name": entry["name"], "value": entry["value"]}
    return {**found, "overridable": True} if entry.get("overridable") else found


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
