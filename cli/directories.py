"""`evergreen directories`: whose people log in with a directory (LDAP, Active Directory)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import one_named, tenant_id
from cli.tables import show_list

if TYPE_CHECKING:
    from cli.client import Api

app = typer.Typer(
    name="directories",
    help="Directories (LDAP, Active Directory): add, try, change, sync, delete.",
    no_args_is_help=True,
)
domains = typer.Typer(
    name="email-domains",
    help="E-mail domains: whose they are, and where people with such addresses log in.",
    no_args_is_help=True,
)

_Directory = Annotated[str, typer.Argument(help="The directory, by its name or id.")]
_Domain = Annotated[str, typer.Argument(help="The domain, as linden.example.")]
_Org = Annotated[str, typer.Option("--org", help="An organisation or reseller, by its code or id.")]
_Urls = Annotated[
    list[str] | None,
    typer.Option("--server", help="A server: ldaps://HOST or ldap://HOST. Repeat it for more."),
]
_CaOfServers = Annotated[
    Path | None,
    typer.Option("--server-ca-file", help="File with the CAs of the servers' certificates."),
]
_BindDn = Annotated[str, typer.Option("--bind-dn", help="The account that searches.")]
_BindFile = Annotated[
    Path | None, typer.Option("--bind-password-file", help="File with its password.")
]
_BaseDn = Annotated[str, typer.Option("--base-dn", help="Where people are searched.")]
_Filter = Annotated[
    str, typer.Option("--user-filter", help="How a person is found; {login} is the address.")
]
_GroupMode = Annotated[
    str, typer.Option("--group-mode", help="in-chain, walk or none; as the kind says if not given.")
]
_GroupBase = Annotated[
    str, typer.Option("--group-base-dn", help="Where groups are searched, if not there, too.")
]
_Attribute = Annotated[
    list[str] | None,
    typer.Option(
        "--attribute",
        help="id=NAME, email=NAME or name=NAME: which attributes have them; as the kind says if"
        " not given. Repeat it.",
    ),
]
_SyncMinutes = Annotated[
    int, typer.Option("--sync-minutes", min=0, help="Minutes between two syncs; 15 at first.")
]
_GraceHours = Annotated[
    int,
    typer.Option(
        "--grace-hours", min=0, help="How long users stay logged in when it is silent; 24 at first."
    ),
]
_Map = Annotated[
    list[str] | None,
    typer.Option("--map", help="GROUP=ROLE or GROUP=ROLE@ORG, in their order. Repeat it."),
]

_FAILED: Final = 2
_ALL: Final = sys.maxsize
_DOMAIN_COLUMNS: Final = ("DOMAIN", "TENANT", "LOGS IN WITH")
_COLUMNS: Final = ("NAME", "KIND", "TENANT", "ENABLED", "USERS", "SYNC", "ID")


@contextmanager
def _api(
    home: Path | None, url: str, ca_file: Path | None, email: str, password_file: Path | None
) -> Iterator[Api]:
    from cli.client import find_access, logged_in  # noqa: PLC0415

    with logged_in(find_access(home, url, ca_file, email, password_file)) as api:
        yield api


@app.command("list")
def list_directories(
    org: _Org = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show the directories that you can see."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        found = list(_directories(api, tenant_id(api, org)))
        _show(api, found, as_json=as_json)


@app.command()
def show(
    directory: _Directory,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show a directory as JSON, without its password."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        typer.echo(json.dumps(_found(api, directory), ensure_ascii=False, indent=2))


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="A name for people to read.")],
    kind: Annotated[str, typer.Option("--kind", help="ad (Active Directory), openldap or custom.")],
    bind_dn: _BindDn,
    bind_password_file: _BindFile,
    base_dn: _BaseDn,
    server: _Urls = None,
    server_ca_file: _CaOfServers = None,
    user_filter: _Filter = "",
    group_mode: _GroupMode = "",
    group_base_dn: _GroupBase = "",
    attribute: _Attribute = None,
    sync_minutes: _SyncMinutes = 0,
    grace_hours: _GraceHours = 0,
    mapping: _Map = None,
    org: _Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Add a directory. Nobody logs in with it before an e-mail domain names it."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        body = {
            "name": name,
            "kind": kind,
            **_given(
                api, server, server_ca_file, bind_dn, bind_password_file, base_dn, user_filter,
                group_mode, mapping,
            ),
            **_more(group_base_dn, attribute, sync_minutes, grace_hours),
        }  # fmt: skip
        if org:
            body["orgId"] = tenant_id(api, org)
        _show(api, [api.post("/api/directories", body)])


@app.command()
def edit(
    directory: _Directory,
    new_name: Annotated[str, typer.Option("--new-name", help="Another name.")] = "",
    enabled: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Whether people log in with it.")
    ] = None,
    server: _Urls = None,
    server_ca_file: _CaOfServers = None,
    bind_dn: _BindDn = "",
    bind_password_file: _BindFile = None,
    base_dn: _BaseDn = "",
    user_filter: _Filter = "",
    group_mode: _GroupMode = "",
    group_base_dn: _GroupBase = "",
    attribute: _Attribute = None,
    sync_minutes: _SyncMinutes = 0,
    grace_hours: _GraceHours = 0,
    mapping: _Map = None,
    no_map: Annotated[
        bool, typer.Option("--no-map", help="Take all rows away: nobody gets a role by it.")
    ] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Change a directory. `--map` puts all its rows in the place of those before."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        found = _found(api, directory)
        body = _given(
            api, server, server_ca_file, bind_dn, bind_password_file, base_dn, user_filter,
            group_mode, mapping,
        ) | _more(group_base_dn, attribute, sync_minutes, grace_hours)  # fmt: skip
        if no_map:
            body["clearRoleMappings"] = True
        if new_name:
            body["name"] = new_name
        if enabled is not None:
            body["enabled"] = enabled
        if not body:
            raise CliError("say what to change, as --map or --disable")
        _show(api, [api.patch(f"/api/directories/{found['id']}", body | {"etag": found["etag"]})])


@app.command()
def test(
    directory: _Directory,
    login: Annotated[
        str, typer.Option("--login", help="What a person would type as the address.")
    ] = "",
    login_password_file: Annotated[
        Path | None,
        typer.Option(
            "--login-password-file", help="File with the person's password, - for the terminal."
        ),
    ] = None,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Try a directory step by step, and a person's login. Nothing is changed."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        found = _found(api, directory)
        body = {"email": login, "password": read_secret(login_password_file)}
        answer = api.post(f"/api/directories/{found['id']}/test", body)
        for step in answer["steps"]:
            typer.echo(f"{'ok    ' if step['ok'] else 'FAILED'} {step['step']}: {step['detail']}")
        if not answer["ok"]:
            raise CliError("the directory does not work as it is")


@app.command()
def sync(
    directory: _Directory,
    confirm: Annotated[
        bool,
        typer.Option("--confirm", help="Take access from as many users as the held sync said."),
    ] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Compare a directory with its users, now."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        found = _found(api, directory)
        done = api.post(f"/api/directories/{found['id']}/sync", {"confirm": confirm})
        if done["syncStatus"] == "failed":
            raise CliError(f"nothing was changed: {done['syncError']}")
        if done["syncStatus"] == "held":
            raise CliError(
                f"nothing was changed: {done['syncHeld']} users would lose access; if that is"
                " right, run it again with --confirm"
            )
        typer.echo(f"{done['name']}: as the directory says; users: {done['users']}")


@app.command()
def delete(
    directory: _Directory,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Delete a directory; its users are deactivated."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        found = _found(api, directory)
        confirm(f"Delete {found['name']} and deactivate its {found['users']} users?", yes)
        api.delete(f"/api/directories/{found['id']}", etag=found["etag"])
        typer.echo(f"{found['name']} is deleted; its users are deactivated.")


@domains.command("list")
def list_domains(
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show the e-mail domains that you can see."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        _show_domains(api, list(_domains(api)))


@domains.command()
def assign(
    domain: _Domain,
    org: _Org,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Assign an e-mail domain to an organisation below yours."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        body = {"domain": domain, "orgId": tenant_id(api, org)}
        _show_domains(api, [api.post("/api/email-domains", body)])


@domains.command()
def use(
    domain: _Domain,
    directory: Annotated[
        str,
        typer.Option("--directory", help="A directory; with neither, people have passwords here."),
    ] = "",
    provider: Annotated[str, typer.Option("--provider", help="A provider of single sign-on.")] = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Say where people with addresses of a domain log in."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        if directory and provider:
            raise CliError("say --directory or --provider, not both")
        source = _found(api, directory)["id"] if directory else ""
        if provider:
            source = named(api, "/api/sso-providers", "providers", "provider", provider)["id"]
        changed = api.patch(f"/api/email-domains/{domain}", {"sourceId": source})
        _show_domains(api, [changed])


@domains.command()
def release(
    domain: _Domain,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Take an e-mail domain back; users who are there stay."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        confirm(f"Take {domain} back?", yes)
        api.delete(f"/api/email-domains/{domain}")
        typer.echo(f"{domain} is assigned to nobody.")


def _given(
    api: Api,
    servers: list[str] | None,
    server_ca_file: Path | None,
    bind_dn: str,
    bind_password_file: Path | None,
    base_dn: str,
    user_filter: str,
    group_mode: str,
    mapping: list[str] | None,
) -> dict[str, Any]:
    """What the options say, as the API takes it."""
    from cli.client import read_text  # noqa: PLC0415

    body: dict[str, Any] = {
        "urls": servers or [],
        "caPem": read_text(server_ca_file) if server_ca_file is not None else "",
        "bindDn": bind_dn,
        "bindPassword": read_secret(bind_password_file),
        "baseDn": base_dn,
        "userFilter": user_filter,
        "groupMode": group_mode,
        "roleMappings": [mapped_row(api, one) for one in mapping or []],
    }
    return {name: value for name, value in body.items() if value}


def _more(
    group_base_dn: str, attributes: list[str] | None, sync_minutes: int, grace_hours: int
) -> dict[str, Any]:
    """The rarer options, likewise.

    Raises:
        CliError: an attribute is none of the three.
    """
    body: dict[str, Any] = {
        "groupBaseDn": group_base_dn,
        "syncMinutes": sync_minutes,
        "graceHours": grace_hours,
    }
    for text in attributes or []:
        what, _, name = text.partition("=")
        if what not in {"id", "email", "name"} or not name:
            raise CliError(f"--attribute {text}: say id=NAME, email=NAME or name=NAME")
        body[f"{what}Attribute"] = name
    return {name: value for name, value in body.items() if value}


def mapped_row(api: Api, text: str) -> dict[str, str]:
    """GROUP=ROLE or GROUP=ROLE@ORG; a group's name has equals signs of its own.

    Raises:
        CliError: it is neither.
    """
    group, equals, rest = text.rpartition("=")
    role, _, org = rest.partition("@")
    if not equals or not group or role not in {"Owner", "Admin", "Auditor"}:
        raise CliError(
            f"--map {text}: say GROUP=ROLE or GROUP=ROLE@ORG, with Owner, Admin or Auditor"
        )
    return {"group": group, "role": role} | ({"orgId": tenant_id(api, org)} if org else {})


def read_secret(path: Path | None) -> str:
    """The secret of a file, or of the terminal (`-`); empty for none."""
    from cli.client import read_text  # noqa: PLC0415

    if path is None:
        return ""
    if str(path) == "-":
        return str(typer.prompt("Password", hide_input=True, err=True))
    return read_text(path).rstrip("\r\n")


def confirm(question: str, yes: bool) -> None:
    """Asks whether to go on.

    Raises:
        CliError: nobody can be asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise CliError("nobody can be asked here; give --yes. Nothing was changed")
    typer.confirm(question, abort=True)


def _directories(api: Api, org_id: str = "") -> Iterator[dict[str, Any]]:
    yield from api.pages("/api/directories", "directories", _ALL, orgId=org_id)


def _domains(api: Api) -> Iterator[dict[str, Any]]:
    yield from api.pages("/api/email-domains", "domains", _ALL)


def named(api: Api, path: str, members: str, what: str, name: str) -> dict[str, Any]:
    """The directory or provider with a name or an id.

    Raises:
        CliError: there is none, or more than one with the name.
    """
    return one_named(api.pages(path, members, _ALL), name, what)


def _found(api: Api, name: str) -> dict[str, Any]:
    return named(api, "/api/directories", "directories", "directory", name)


def tenants_by_id(api: Api) -> dict[str, str]:
    """The codes of the tenants that one sees, by their ids."""
    tenants = api.pages("/api/tenants", "tenants", _ALL)
    return {tenant["id"]: tenant["code"] for tenant in tenants}


def _show(api: Api, found: list[dict[str, Any]], *, as_json: bool = False) -> None:
    codes = {} if as_json else tenants_by_id(api)

    def row(one: dict[str, Any]) -> Sequence[str]:
        return (
            one["name"],
            one["kind"],
            codes.get(one["tenantId"], one["tenantId"]),
            "yes" if one["enabled"] else "no",
            str(one["users"]),
            one["syncStatus"] or "-",
            one["id"],
        )

    show_list(found, _COLUMNS, row, as_json=as_json)


def _show_domains(api: Api, found: list[dict[str, Any]]) -> None:
    codes = tenants_by_id(api)
    providers = api.pages("/api/sso-providers", "providers", _ALL)
    names = {one["id"]: one["name"] for one in (*_directories(api), *providers)}

    def row(one: dict[str, Any]) -> Sequence[str]:
        return (
            one["domain"],
            codes.get(one["tenantId"], one["tenantId"]),
            names.get(one["sourceId"], one["sourceId"]) or "-",
        )

    show_list(found, _DOMAIN_COLUMNS, row, as_json=False)
