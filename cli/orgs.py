"""`evergreen orgs`: organisations and resellers, from their first day to their end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.confirm import DryRun, Expect, Yes, confirmed, need_terminal
from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import tenant_id
from cli.session import session
from cli.tables import moment, printable, show_list

if TYPE_CHECKING:
    from cli.client import Api

# Each command imports what it needs itself: `evergreen up`, which is in a hurry, loads this file.

app = typer.Typer(
    name="orgs",
    help="Organisations: list, create, change, archive, restore, delete, export.",
    no_args_is_help=True,
)

Org = Annotated[str, typer.Argument(help="The organisation or reseller, by its code or id.")]
_FAILED = 2
_ALL = sys.maxsize
_LOOK_SECONDS = 1.0
_COLUMNS = ("CODE", "KIND", "STATUS", "ID", "NAME")
_COUNTED = (
    ("tenants", "tenant"),
    ("users", "user"),
    ("devices", "device"),
    ("enrollmentTokens", "enrollment token"),
    ("policies", "policy"),
    ("eventCredentials", "event credential"),
)


@app.command("list")
def list_orgs(
    deleted: Annotated[bool, typer.Option(help="Deleted ones, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show the tenants that you can see, parents first."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        tenants = list(_tenants(api, deleted=deleted))
        members = ("code", "kind", "status", "id", "name")

        def row(tenant: dict[str, Any]) -> Sequence[str]:
            return [tenant[member] for member in members]

        show_list(tenants, _COLUMNS, row, as_json=as_json)


@app.command()
def show(
    org: Org,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show one tenant as JSON, with its old codes and how many enrollment tokens they have."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = api.get(f"/api/tenants/{_found(api, org, deleted=True)['id']}")
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))


@app.command()
def create(
    code: Annotated[
        str,
        typer.Argument(
            help="Its code: small letters, digits and -. Pre-shared keys of its devices begin so."
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="A name for people.")],
    reseller: Annotated[
        bool, typer.Option("--reseller", help="A tenant for organisations below it.")
    ] = False,
    parent: Annotated[
        str,
        typer.Option(
            "--parent",
            help="The tenant above, by its code or id; yours when not given.",
            show_default=False,
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The new tenant as JSON.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Create an organisation, or a reseller that organisations are created below."""
    with told(_FAILED):
        if not code:
            # Without one the server would make it from the name.
            raise CliError("code: is required")
        with session(home, url, ca_file, email, password_file) as api:
            body: dict[str, Any] = {"name": name, "code": code, "reseller": reseller}
            if parent:
                body["parentId"] = tenant_id(api, parent)
            made = api.post("/api/tenants", body)
        if as_json:
            typer.echo(json.dumps(made, ensure_ascii=False, indent=2))
            return
        kind = "a reseller" if reseller else "an organisation"
        typer.echo(
            f"{printable(made['name'])} is {kind} with the code {made['code']} and the id"
            f" {made['id']}."
        )
        following = (
            f"`evergreen orgs create CODE --name NAME --parent {made['code']}` makes an"
            " organisation below it."
            if reseller
            else f"`evergreen enrollment-tokens create --org {made['code']} --name NAME` makes the"
            " key that its devices enroll with."
        )
        typer.echo(following, err=True)


@app.command()
def edit(
    org: Org,
    name: Annotated[str, typer.Option(help="The new name.")] = "",
    language: Annotated[
        str | None,
        typer.Option(help="The language of mails: en, de, or empty for that of the tenant above."),
    ] = None,
    time_zone: Annotated[
        str | None,
        typer.Option(help="The time zone of mails, as Europe/Berlin; empty likewise."),
    ] = None,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Change a tenant's name, and how mails to its people, and to those below it, are written."""
    wanted = {"name": name or None, "language": language, "timeZone": time_zone}
    body: dict[str, Any] = {key: value for key, value in wanted.items() if value is not None}
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        if not body:
            raise CliError("say what to change: --name, --language or --time-zone")
        found = _found(api, org)
        changed = api.patch(f"/api/tenants/{found['id']}", body | {"etag": found["etag"]})
    typer.echo(
        f"{changed['name']}: language {changed.get('language') or 'of the tenant above'},"
        f" time zone {changed.get('timeZone') or 'of the tenant above'}"
    )


@app.command("sign-in")
def sign_in(
    org: Org,
    mfa: Annotated[
        str,
        typer.Option(help="Whom to ask for a second factor: off, owners, admins or all."),
    ] = "",
    grace_days: Annotated[
        int | None,
        typer.Option(min=0, max=90, help="How many days they get in without; 14 if not given."),
    ] = None,
    local_login: Annotated[
        str,
        typer.Option(
            help="Who has passwords here where a directory or provider is used: all or owners-only."
        ),
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show, or set, how people of a tenant log in, and of all below: with a second factor, and
    with a password of here."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        path = f"/api/tenants/{_found(api, org)['id']}/sign-in-policy"
        body: dict[str, Any] = {"mfa": mfa} if mfa else {}
        if grace_days is not None:
            body["graceDays"] = grace_days
        if local_login:
            body["localLogin"] = local_login
        if local_login == "owners-only" and not yes:
            _ask_to_shut_out(api.get(path))
        policy = api.patch(path, body) if body else api.get(path)
        since = policy.get("mfaRequiredFrom", "")
        needed = f", needed from {moment(since)} UTC on" if since else ""
        typer.echo(f"second factor: {policy['mfa']}{needed}")
        if policy["effectiveMfa"] != policy["mfa"]:
            typer.echo(f"a tenant above asks more: {policy['effectiveMfa']}")
        now = policy["effectiveLocalLogin"]
        holds = "" if now == policy["localLogin"] else f" (now: {now})"
        typer.echo(f"passwords here: {policy['localLogin']}{holds}")
        left = policy.get("localOnlyUsers", 0)
        if left and now == "owners-only":
            typer.echo(f"warning: {_shut_out(left)}", err=True)


@app.command()
def archive(
    org: Org,
    yes: Yes = False,
    expect: Expect = None,
    dry_run: DryRun = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Archive a tenant with all below it: devices, logins and enrollment stop, data stays.

    Until its data is deleted (90 days, if the operator has not set another time) it can be
    restored.
    """
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, org)
        if found["status"] == "archived":
            typer.echo(f"{found['name']} is archived already, and is deleted on {_day(found)}.")
            return
        path = f"/api/tenants/{found['id']}/archive"
        seen = api.post(path, {"validateOnly": True})
        if not _confirmed("archive", seen, yes, expect, dry_run):
            return
        done = api.post(path, {"expectedCount": seen["affected"]["count"]})["tenant"]
        typer.echo(
            f"{done['name']} is archived, and is deleted on {_day(done)};"
            f" until then `evergreen orgs restore {done['code']}` brings it back."
        )


@app.command()
def restore(
    org: Org,
    dry_run: DryRun = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Restore an archived tenant with all that was archived together with it."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, org)
        if found["status"] == "active":
            typer.echo(f"{found['name']} is not archived; there is nothing to restore.")
            return
        seen = api.post(f"/api/tenants/{found['id']}/restore", {"validateOnly": dry_run})
        _tell("would be restored" if dry_run else "is restored", seen)


@app.command()
def delete(
    org: Org,
    yes: Yes = False,
    expect: Expect = None,
    dry_run: DryRun = False,
    wait: Annotated[bool, typer.Option(help="Wait until all of it is gone.")] = True,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Delete an archived tenant with all below it, for good. The audit log stays."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        path = f"/api/tenants/{_found(api, org)['id']}"
        seen = api.delete(path, validateOnly="true")
        if not _confirmed("delete", seen, yes, expect, dry_run):
            return
        api.delete(path, expectedCount=str(seen["affected"]["count"]))
        if wait:
            _follow(lambda: api.get(f"{path}/deletion"))
        else:
            typer.echo("The deletion goes on; `evergreen orgs deletion` shows how far it is.")


@app.command()
def deletion(
    org: Org,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show how far a deletion is, as JSON; also after its end."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, org, deleted=True)
        if found["status"] in {"active", "archived"}:
            raise CliError(f"{found['name']} is {found['status']}; nothing of it is being deleted")
        seen = api.get(f"/api/tenants/{found['id']}/deletion")
        typer.echo(json.dumps(seen, ensure_ascii=False, indent=2))


@app.command("drop-code")
def drop_code(
    org: Org,
    code: Annotated[str, typer.Argument(help="The old code.")],
    yes: Yes = False,
    dry_run: DryRun = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Drop an old code of a tenant: pre-shared keys that begin with it stop working."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = api.get(f"/api/tenants/{_found(api, org)['id']}")
        if code not in {old["code"] for old in found["oldCodes"]}:
            raise CliError(f"{found['name']} has no old code {code}; `orgs show` lists them")
        path = f"/api/tenants/{found['id']}/drop-code"
        seen = api.post(path, {"code": code, "validateOnly": True})
        tokens = next(
            (old.get("activeTokens", 0) for old in seen["oldCodes"] if old["code"] == code), 0
        )
        number = f"{tokens} enrollment token{'' if tokens == 1 else 's'}"
        typer.echo(f"Handed out with {code} and still in use: {number}.")
        if dry_run:
            typer.echo("Nothing was changed.")
            return
        if not yes:
            need_terminal("--yes")
            typer.confirm(f"Drop the code {code} of {seen['name']}?", abort=True)
        api.post(path, {"code": code})
        typer.echo(f"Pre-shared keys that begin with {code} no longer work.")


@app.command()
def export(
    org: Org,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The ZIP file; it appears when it is complete.")
    ],
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Write everything of an organisation into one file: devices, policies, users, events, audit.

    Passwords, tokens and the policies' secrets are not in it. `manifest.json` in it has the
    digest of each file.
    """
    from cli.org_export import write_export  # noqa: PLC0415

    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, org)
        files = write_export(api, found, output, lambda line: typer.echo(line, err=True))
        typer.echo(f"{output} holds {found['name']}: {files} files and the manifest.")


@app.command("verify-export")
def verify_export(
    file: Annotated[Path, typer.Argument(help="A file of `evergreen orgs export`.")],
) -> None:
    """Check an export without any connection: complete, and every file as its digest says."""
    from cli.org_export import check_export  # noqa: PLC0415

    with told(_FAILED):
        manifest = check_export(file)
        typer.echo(
            f"{file} is complete: {len(manifest['files'])} files of"
            f" {manifest['organisation']['name']}, as of {manifest['exportedAt']}."
        )


def _tenants(api: Api, *, deleted: bool = False) -> Iterator[dict[str, Any]]:
    yield from api.pages("/api/tenants", "tenants", _ALL, showDeleted="true" if deleted else "")


def _found(api: Api, org: str, *, deleted: bool = False) -> dict[str, Any]:
    """The tenant with a code or an id; of several with a code that was used again, the newest.

    Raises:
        CliError: there is none.
    """
    found = [
        tenant for tenant in _tenants(api, deleted=True) if org in {tenant["id"], tenant["code"]}
    ]
    living = [tenant for tenant in found if tenant["status"] != "deleted"]
    if not found:
        raise CliError(f"you see no tenant with the code or id {org}; `orgs list` shows them")
    if not living and not deleted:
        raise CliError(f"{found[-1]['name']} is deleted")
    return (living or found)[-1]


def _shut_out(users: int) -> str:
    """Whom the rule that only Owners have passwords here is about."""
    one = users == 1
    return (
        f"{users} {'Admin or Auditor has' if one else 'Admins and Auditors have'} nothing but a"
        f" password or passkey here: owners-only shuts {'that one' if one else 'them'} out"
    )


def _ask_to_shut_out(policy: dict[str, Any]) -> None:
    """Asks before people are shut out who are not yet."""
    left = policy.get("localOnlyUsers", 0)
    if not left or policy["localLogin"] == "owners-only":
        return
    need_terminal("--yes")
    typer.confirm(f"{_shut_out(left)}. Go on?", abort=True, err=True)


def _tell(what: str, seen: dict[str, Any]) -> None:
    affected = seen["affected"]
    counts = ", ".join(
        f"{number} {word if number == 1 else _plural(word)}"
        for name, word in _COUNTED
        if (number := affected.get(name, 0))
    )
    events = affected.get("events", 0)
    more = f"; {'at least ' if events >= 100_000 else ''}{events:,} events" if events else ""
    typer.echo(f"{seen['tenant']['name']} ({seen['tenant']['code']}) {what}: {counts}{more}.")


def _day(tenant: dict[str, Any]) -> str:
    return str(tenant["purgeAt"])[:10]


def _plural(word: str) -> str:
    return f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"


def _confirmed(
    what: str, seen: dict[str, Any], yes: bool, expect: int | None, dry_run: bool
) -> bool:
    """Shows what is touched and asks for its number; answers whether to go on."""
    _tell(f"would be {what}d", seen)
    return confirmed(what, seen["affected"]["count"], yes=yes, expect=expect, dry_run=dry_run)


def _follow(look: Callable[[], dict[str, Any]]) -> None:
    """Waits for the end of a deletion, and says what there is to say."""
    said = ""
    while True:
        found = look()
        rows = sum(c.get("rows", 0) for c in found["contexts"])
        if found["status"] == "deleted":
            typer.echo(f"{found['name']} is deleted: {rows:,} rows in six services.")
            return
        line = f"{rows:,} rows deleted; at work: {_at_work(found) or 'identity'}"
        if line != said:
            typer.echo(line, err=True)
            said = line
        time.sleep(_LOOK_SECONDS)


def _at_work(deletion: dict[str, Any]) -> str:
    """The services that are not done, those that wait for the same thing together."""
    groups: dict[str, list[str]] = {}
    for context in deletion["contexts"]:
        if not context.get("finished"):
            groups.setdefault(context.get("waitingFor", ""), []).append(context["context"])
    return "; ".join(
        ", ".join(names) + (f" (waiting for {reason})" if reason else "")
        for reason, names in groups.items()
    )
