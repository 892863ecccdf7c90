"""`evergreen sso-providers`: whose people sign in with a provider (OpenID Connect)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.directories import confirm, mapped_row, named, read_secret, tenants_by_id
from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import tenant_id
from cli.session import session
from cli.tables import show_list

if TYPE_CHECKING:
    from cli.client import Api

app = typer.Typer(
    name="sso-providers",
    help="Providers of single sign-on (OpenID Connect): add, try, change, delete.",
    no_args_is_help=True,
)

_Provider = Annotated[str, typer.Argument(help="The provider, by its name or id.")]
_Org = Annotated[str, typer.Option("--org", help="An organisation or reseller, by its code or id.")]
_Issuer = Annotated[
    str, typer.Option("--issuer", help="The issuer, exactly as the provider writes it.")
]
_Client = Annotated[
    str, typer.Option("--client-id", help="What the provider calls this installation.")
]
_SecretFile = Annotated[
    Path | None, typer.Option("--client-secret-file", help="File with the secret it has given.")
]
_Ca = Annotated[
    Path | None,
    typer.Option("--provider-ca-file", help="File with the CAs of its certificates."),
]
_Scopes = Annotated[
    list[str] | None,
    typer.Option("--scope", help="What it is asked for beside openid. Repeat it for more."),
]
_Groups = Annotated[str, typer.Option("--groups-claim", help="The claim with a person's groups.")]
_EmailClaim = Annotated[
    str, typer.Option("--email-claim", help="The claim with a person's address.")
]
_Hosted = Annotated[str, typer.Option("--hosted-domain", help="The domain of a Google Workspace.")]
_Jit = Annotated[
    bool | None,
    typer.Option(
        "--just-in-time/--invited-only",
        help="Whether people whom nobody has invited get an account by logging in.",
    ),
]
_Hours = Annotated[int, typer.Option("--session-hours", help="How many hours a login lasts.")]
_Button = Annotated[
    bool | None,
    typer.Option("--button/--no-button", help="Whether everybody sees its button."),
]
_Mfa = Annotated[
    bool | None,
    typer.Option("--trust-mfa/--own-mfa", help="Whether it answers for a second factor."),
]
_Logout = Annotated[
    bool | None,
    typer.Option(
        "--single-logout/--local-logout", help="Whether signing out here leads to it, too."
    ),
]
_Map = Annotated[
    list[str] | None,
    typer.Option("--map", help="GROUP=ROLE or GROUP=ROLE@ORG, in their order. Repeat it."),
]

_FAILED: Final = 2
_ALL: Final = sys.maxsize
_COLUMNS: Final = ("NAME", "ISSUER", "TENANT", "ENABLED", "USERS", "ID")


@app.command("list")
def list_providers(
    org: _Org = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show the providers that you can see."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = list(_providers(api, tenant_id(api, org)))
        _show(api, found, as_json=as_json)


@app.command()
def show(
    provider: _Provider,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show a provider as JSON, without its secret, with the addresses to register there."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        typer.echo(json.dumps(_found(api, provider), ensure_ascii=False, indent=2))


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="A name for people to read; its button has it.")],
    issuer: _Issuer,
    client_id: _Client,
    client_secret_file: _SecretFile,
    provider_ca_file: _Ca = None,
    scope: _Scopes = None,
    groups_claim: _Groups = "",
    email_claim: _EmailClaim = "",
    hosted_domain: _Hosted = "",
    just_in_time: _Jit = None,
    session_hours: _Hours = 0,
    button: _Button = None,
    trust_mfa: _Mfa = None,
    single_logout: _Logout = None,
    mapping: _Map = None,
    org: _Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Add a provider, and show the addresses to register there."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        body = {
            "name": name,
            **_given(
                api, issuer, client_id, client_secret_file, provider_ca_file, scope, groups_claim,
                email_claim, hosted_domain, just_in_time, session_hours, button, trust_mfa,
                single_logout, mapping,
            ),
        }  # fmt: skip
        if org:
            body["orgId"] = tenant_id(api, org)
        made = api.post("/api/sso-providers", body)
        _show(api, [made])
        typer.echo(f"Register there: {made['redirectUri']} (redirect URI)")
        typer.echo(f"                {made['backchannelLogoutUri']} (back-channel logout)")
        if made["singleLogout"]:
            typer.echo(f"                {made['postLogoutRedirectUri']} (after logout)")


@app.command()
def edit(
    provider: _Provider,
    new_name: Annotated[str, typer.Option("--new-name", help="Another name.")] = "",
    enabled: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Whether people log in with it.")
    ] = None,
    issuer: _Issuer = "",
    client_id: _Client = "",
    client_secret_file: _SecretFile = None,
    provider_ca_file: _Ca = None,
    scope: _Scopes = None,
    groups_claim: _Groups = "",
    email_claim: _EmailClaim = "",
    hosted_domain: _Hosted = "",
    just_in_time: _Jit = None,
    session_hours: _Hours = 0,
    button: _Button = None,
    trust_mfa: _Mfa = None,
    single_logout: _Logout = None,
    mapping: _Map = None,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Change a provider. `--map` puts all its rows in the place of those before."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, provider)
        body = _given(
            api, issuer, client_id, client_secret_file, provider_ca_file, scope, groups_claim,
            email_claim, hosted_domain, just_in_time, session_hours, button, trust_mfa,
            single_logout, mapping,
        )  # fmt: skip
        if new_name:
            body["name"] = new_name
        if enabled is not None:
            body["enabled"] = enabled
        if not body:
            raise CliError("say what to change, as --map or --disable")
        changed = api.patch(f"/api/sso-providers/{found['id']}", body | {"etag": found["etag"]})
        _show(api, [changed])


@app.command()
def test(
    provider: _Provider,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Try a provider step by step. Nobody is logged in, and nothing is changed."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, provider)
        answer = api.post(f"/api/sso-providers/{found['id']}/test", {})
        for step in answer["steps"]:
            typer.echo(f"{'ok    ' if step['ok'] else 'FAILED'} {step['step']}: {step['detail']}")
        if not answer["ok"]:
            raise CliError("the provider does not work as it is")


@app.command()
def delete(
    provider: _Provider,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Delete a provider; users who come from it are deactivated."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, provider)
        confirm(f"Delete {found['name']} and deactivate its users?", yes)
        api.delete(f"/api/sso-providers/{found['id']}", etag=found["etag"])
        typer.echo(f"{found['name']} is deleted; users who came from it are deactivated.")


def _given(
    api: Api,
    issuer: str,
    client_id: str,
    client_secret_file: Path | None,
    provider_ca_file: Path | None,
    scopes: list[str] | None,
    groups_claim: str,
    email_claim: str,
    hosted_domain: str,
    just_in_time: bool | None,
    session_hours: int,
    button: bool | None,
    trust_mfa: bool | None,
    single_logout: bool | None,
    mapping: list[str] | None,
) -> dict[str, Any]:
    """What the options say, as the API takes it."""
    from cli.client import read_text  # noqa: PLC0415

    body: dict[str, Any] = {
        "issuer": issuer,
        "clientId": client_id,
        "clientSecret": read_secret(client_secret_file),
        "caPem": read_text(provider_ca_file) if provider_ca_file is not None else "",
        "scopes": scopes or [],
        "groupsClaim": groups_claim,
        "emailClaim": email_claim,
        "hostedDomain": hosted_domain,
        "sessionHours": session_hours,
        "roleMappings": [mapped_row(api, one) for one in mapping or []],
    }
    said = {
        "justInTime": just_in_time,
        "loginButton": button,
        "trustsMfa": trust_mfa,
        "singleLogout": single_logout,
    }
    return {name: value for name, value in body.items() if value} | {
        name: value for name, value in said.items() if value is not None
    }


def _providers(api: Api, org_id: str = "") -> Iterator[dict[str, Any]]:
    yield from api.pages("/api/sso-providers", "providers", _ALL, orgId=org_id)


def _found(api: Api, name: str) -> dict[str, Any]:
    return named(api, "/api/sso-providers", "providers", "provider", name)


def _show(api: Api, found: list[dict[str, Any]], *, as_json: bool = False) -> None:
    codes = {} if as_json else tenants_by_id(api)

    def row(one: dict[str, Any]) -> Sequence[str]:
        return (
            one["name"],
            one["issuer"],
            codes.get(one["tenantId"], one["tenantId"]),
            "yes" if one["enabled"] else "no",
            str(one["users"]),
            one["id"],
        )

    show_list(found, _COLUMNS, row, as_json=as_json)
