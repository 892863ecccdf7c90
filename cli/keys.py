"""`evergreen keys`: the keys that sign, and their rotation; more on policies in `policy_keys`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import uuid4

import typer

from cli import key_ids
from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import codes_of, tenant_id
from cli.policy_keys import add_to, managed, rotate_policies
from cli.tables import moment, table

if TYPE_CHECKING:
    from cli.client import Api

app = typer.Typer(name="keys", help="List and rotate the keys that sign.", no_args_is_help=True)

_FAILED: Final = 2
_ATTEMPTS: Final = 3
_PATHS: Final = {
    "users": "/api/token-keys",
    "devices": "/api/token-keys",
    "tokens": "/api/token-keys",
    "audit": "/api/audit-keys",
}
"""Where the keys of a purpose are."""
_NOT_ROTATED: Final = {
    "events": "the key that vouches for integrators at NATS is a file, and NATS knows one at a"
    " time; replace it as docs/certificates.md says",
}
"""Purposes that have a key and no rotation, and why."""
_POLICIES: Final = "policies"
_COLUMNS: Final = (
    "PURPOSE",
    "STATE",
    "TENANT",
    "ALGORITHM",
    "FROM (UTC)",
    "UNTIL (UTC)",
    "DEVICES",
    "KEY",
)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@app.command("list")
def list_keys(
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show every signing key, by the beginning of its id: what it signs, and what it may do now."""
    from cli.client import find_access, logged_in  # noqa: PLC0415

    with told(_FAILED):
        with logged_in(find_access(home, url, ca_file, email, password_file)) as api:
            keys = [key for path in dict.fromkeys(_PATHS.values()) for key in _listed(api, path)]
            keys += _of_policies(api)
            whose = any(key.get("orgId") for key in keys) and not as_json
            codes = codes_of(api) if whose else {}
        for line in [json.dumps(key) for key in keys] if as_json else _table(keys, codes):
            typer.echo(line)


@app.command()
def rotate(
    purpose: Annotated[str, typer.Argument(help="users, devices, tokens, audit or policies.")],
    org: Annotated[
        str,
        typer.Option("--org", help="policies: the tenant, by its code or id; yours if not given."),
    ] = "",
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Replace the key that signs, without an interruption.

    The new key is published at once and signs a minute later; what the old one signed counts until
    it ends. Only an Owner of the root tenant may do it. While a rotation is in progress, another
    one is refused. The key for policies that follows is for devices that enroll from now on; the
    old one signs for those that pin it, until it is retired.
    """
    from cli.client import find_access, logged_in  # noqa: PLC0415

    with told(_FAILED):
        if purpose in _NOT_ROTATED:
            raise CliError(f"keys of {purpose} are not rotated: {_NOT_ROTATED[purpose]}")
        if purpose == _POLICIES:
            with logged_in(find_access(home, url, ca_file, email, password_file)) as api:
                _tell_policy_key(rotate_policies(api, tenant_id(api, org)), as_json=as_json)
            return
        if org:
            raise CliError("--org is for the keys of policies alone")
        if purpose not in _PATHS:
            raise CliError(f"there are no keys of {purpose}; there are those of {_known()}")
        with logged_in(find_access(home, url, ca_file, email, password_file)) as api:
            key = _rotate(api, purpose)
        if as_json:
            typer.echo(json.dumps(key))
        else:
            begins = moment(key["signsFrom"])
            typer.echo(f"Key {key['keyId']} signs for {purpose} from {begins} UTC on.")


def _rotate(api: Api, purpose: str) -> Any:
    """Asks again with the same id when the connection broke: it may have been done."""
    from cli.client import AwayError  # noqa: PLC0415

    body = {"requestId": str(uuid4())}
    if _PATHS[purpose] == "/api/token-keys":
        body["purpose"] = purpose
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return api.post(f"{_PATHS[purpose]}/rotate", body)
        except AwayError:
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("not reached")


def _listed(api: Api, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.get(path).get("keys", [])
    return found


def _of_policies(api: Api) -> list[dict[str, Any]]:
    """The keys of policies, the active ones first; with how many devices pin each."""
    found = sorted(managed(api), key=lambda key: (key["state"] != "active", key["createdAt"]))
    return [
        {
            "keyId": key["keyId"],
            "purpose": _POLICIES,
            "algorithm": "ed25519",
            "state": "compromised" if key.get("compromisedAt") else key["state"],
            "orgId": key["orgId"],
            "devices": key["devices"],
            "signsFrom": key.get("activatedAt") or key["createdAt"],
            "verifiesUntil": key.get("retiredAt"),
        }
        for key in found
    ]


def _tell_policy_key(key: Any, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(key))
        return
    typer.echo(f"New enrollment tokens carry key {key['keyId']}; agents pin:", err=True)
    typer.echo(key["publicKeyPem"], nl=False)


def _table(keys: list[dict[str, Any]], codes: Mapping[str, str]) -> list[str]:
    """One line a key, those of a purpose together; with whose it is, where not of all."""
    places = {key["purpose"]: place for place, key in reversed([*enumerate(keys)])}
    rows = [
        (
            key["purpose"],
            key["state"],
            codes.get(key.get("orgId", ""), key.get("orgId")) or "-",
            key["algorithm"],
            moment(key.get("signsFrom")),
            moment(key.get("verifiesUntil")),
            str(key.get("devices", "-")),
            key["keyId"][: key_ids.SHORT],
        )
        for key in sorted(keys, key=lambda key: places[key["purpose"]])
    ]
    return table(_COLUMNS, rows)


def _known() -> str:
    return ", ".join([*_PATHS, _POLICIES, *_NOT_ROTATED])


add_to(app)
