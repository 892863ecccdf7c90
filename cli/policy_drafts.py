"""`evergreen policies create`, `edit`, `show`, `publish`, `rollback` and `delete`."""

from __future__ import annotations

import json
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cli.confirm import need_terminal
from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import Tenant, org_or_above
from cli.policies import Policy, found_policy, policies_of, published
from cli.policy_changes import frozen_lines, json_of
from cli.session import session

_FAILED: Final = 2

Publish = Annotated[
    bool,
    typer.Option(
        "--publish", help="Publish it, too: by the default plan, or to all devices at once."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def create(
    name: Annotated[str, typer.Argument(help="The new policy's name.")],
    from_file: Annotated[
        Path, typer.Option("--from-file", help="A file with the bundle as JSON: what it sets.")
    ],
    publish: Publish = False,
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Make a policy for all devices of a tenant and those below: a draft, unless published."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        tenant = org_or_above(api, org)
        for known in policies_of(api, tenant):
            if known["name"] == name:
                raise CliError(f"there is a policy called {name}; `policies edit` changes it")
        body = {"name": name, "orgId": tenant, "bundle": json_of(from_file)}
        _tell(api.post("/api/policies", body | _signed(publish)), asked=publish)


def edit(
    policy: Policy,
    from_file: Annotated[
        Path | None,
        typer.Option("--from-file", help="A file with a bundle as JSON, in place of the present."),
    ] = None,
    merging: Annotated[
        Path | None,
        typer.Option("--merging", help="A file with `merging` as JSON, in place of the present."),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Another name.", show_default=False)] = "",
    publish: Publish = False,
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Change a policy; devices keep the published version until the next publish or rollout."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        body: dict[str, Any] = {}
        if from_file is not None:
            body["bundle"] = json_of(from_file)
        if merging is not None:
            body["merging"] = json_of(merging)
        if name:
            body["name"] = name
        if not body:
            as_it_is = "; `policies publish` publishes a policy as it is" if publish else ""
            raise CliError(f"say what to change: --from-file, --merging or --name{as_it_is}")
        found = found_policy(api, org, policy)
        body["etag"] = found["etag"]
        _tell(api.patch(f"/api/policies/{found['id']}", body | _signed(publish)), asked=publish)


def show(
    policy: Policy,
    bundle: Annotated[
        bool, typer.Option("--bundle", help="Only the bundle, as `edit --from-file` takes it.")
    ] = False,
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show a policy as JSON, secrets masked; a masked one that is sent back stays as it is."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = api.get(f"/api/policies/{found_policy(api, org, policy)['id']}")
        wanted = found["bundle"] if bundle else found
        typer.echo(json.dumps(wanted, ensure_ascii=False, indent=2))


def publish(
    policy: Policy,
    urgent: Annotated[bool, typer.Option("--urgent", help="Also in freezes.")] = False,
    now: Annotated[
        bool,
        typer.Option(
            "--now",
            help="To all devices at once, whatever the default plan is; it ends rollouts to them.",
        ),
    ] = False,
    note: Annotated[str, typer.Option(help="A note for people to read.")] = "",
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Give a policy to its devices, by the default plan or at once; `rollouts create` by a plan."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = found_policy(api, org, policy)
        body: dict[str, Any] = {"urgent": urgent, "note": note}
        if now:
            body |= {"plan": {"preset": "now"}, "supersede": True}
        _tell(api.post(f"/api/policies/{found['id']}/publish", body), asked=True)


def rollback(
    policy: Policy,
    version: Annotated[str, typer.Argument(help="The earlier version.")],
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Publish an earlier version anew, to all devices at once; also in freezes."""
    from cli.client import RefusedError  # noqa: PLC0415 - `evergreen up` loads this file

    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = found_policy(api, org, policy)
        body = {"version": version, "etag": found["etag"]}
        try:
            done = api.post(f"/api/policies/{found['id']}/rollback", body)
        except RefusedError as error:
            if error.status != HTTPStatus.NOT_FOUND and not str(error).startswith("version:"):
                raise
            raise CliError(f"{error}; `policies versions` lists those that there are") from error
        _tell(done, asked=True)


def delete(
    policy: Policy,
    yes: Yes = False,
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Delete a policy that is not in force."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = found_policy(api, org, policy)
        if not yes:
            need_terminal("--yes")
            typer.confirm(f"Delete {found['name']}?", abort=True)
        api.delete(f"/api/policies/{found['id']}")
        typer.echo(f"{found['name']} is deleted.")


def add_to(app: typer.Typer) -> None:
    """Adds the commands to `evergreen policies`."""
    for command in (create, edit, show, publish, rollback, delete):
        app.command()(command)


def _signed(publish: bool) -> dict[str, Any]:
    return {"signed": True} if publish else {}


def _tell(policy: Any, *, asked: bool) -> None:
    version = f" v{policy['version']}" if policy["signed"] else ""
    typer.echo(f"{policy['name']}{version} is {published(policy, asked=asked)}.")
    for line in frozen_lines(policy):
        typer.echo(line)
    for warning in policy.get("warnings", []):
        typer.echo(f"warning: {warning['field']} {warning['message']}", err=True)
