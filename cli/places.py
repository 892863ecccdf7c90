"""What commands name by codes, aliases and serial numbers, found by the server."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias
from uuid import UUID

import typer

from cli.errors import CliError

if TYPE_CHECKING:
    from cli.client import Api

ALL: Final = sys.maxsize
AT_ONCE: Final = 1_000
"""Rows of one call."""

Org: TypeAlias = Annotated[
    str,
    typer.Option(
        "--org",
        help="The organisation, by its code or id; the only one that you see when not given.",
        show_default=False,
    ),
]

Tenant: TypeAlias = Annotated[
    str,
    typer.Option(
        "--org",
        help="The organisation or reseller, by its code or id; the only organisation that you see"
        " when not given.",
        show_default=False,
    ),
]

Below: TypeAlias = Annotated[
    str,
    typer.Option(
        "--org",
        help="The tenant, by its code or id, with all below it; yours when not given.",
        show_default=False,
    ),
]


def org_id(api: Api, name: str) -> str:
    """The id of an organisation.

    Raises:
        CliError: there is none, or it is not said which.
    """
    tenants = [t for t in api.pages("/api/tenants", "tenants", ALL) if t["kind"] == "org"]
    if name:
        found = [tenant for tenant in tenants if name in {tenant["id"], tenant["code"]}]
        if not found:
            raise CliError(
                f"you see no organisation with the code or id {name}; `orgs list` shows them"
            )
        return str(found[-1]["id"])
    if len(tenants) == 1:
        return str(tenants[0]["id"])
    raise CliError(f"you see {len(tenants)} organisations; name one with --org")


def tenant_id(api: Api, name: str) -> str:
    """The id of a tenant of any kind; empty for the caller's own.

    Args:
        name: its code or id, or nothing. An id is not looked up: an API token may be for less than
            to list tenants.

    Raises:
        CliError: there is none with the code.
    """
    with suppress(ValueError):
        return str(UUID(name)) if name else ""
    for tenant in api.pages("/api/tenants", "tenants", ALL):
        if name in {tenant["id"], tenant["code"]}:
            return str(tenant["id"])
    raise CliError(f"you see no tenant with the code or id {name}; `orgs list` shows them")


def org_or_above(api: Api, name: str) -> str:
    """The id of a tenant of any kind that may have policies of its own.

    Args:
        name: its code or id; empty for the only organisation that the caller sees.

    Raises:
        CliError: there is none, or it is not said which.
    """
    return tenant_id(api, name) if name else org_id(api, name)


def codes_of(api: Api) -> dict[str, str]:
    """The codes of the tenants that the caller sees, by their ids; none for an API token that may
    not list them."""
    try:
        return {one["id"]: one["code"] for one in api.pages("/api/tenants", "tenants", ALL)}
    except CliError:
        return {}


def one_named(found: Iterable[dict[str, Any]], name: str, what: str) -> dict[str, Any]:
    """What has an id or a name.

    Args:
        found: what the caller sees; of several tenants more than one may have the name.
        what: what it is, in words.

    Raises:
        CliError: nothing has it, or several have.
    """
    known = list(found)
    # An id first: somebody below may have given it to another as a name.
    named = [one for one in known if one["id"] == name] or [
        one for one in known if one["name"] == name
    ]
    if not named:
        raise CliError(f"you see no {what} with the name or id {name}")
    if len(named) > 1:
        ids = ", ".join(one["id"] for one in named)
        raise CliError(f"{len(named)} of what you see have the name {name}: {ids}; give the id")
    return named[0]


def serials_of(api: Api, ids: Sequence[str]) -> dict[str, str]:
    """The serial numbers of devices, by their ids; devices that are deleted have none."""
    found: dict[str, str] = {}
    for start in range(0, len(ids), AT_ONCE):
        body = {"ids": list(ids[start : start + AT_ONCE])}
        known = api.post("/api/registrations/batch-get", body)["registrations"]
        found |= {one["id"]: one["serial"] for one in known}
    return found


def serials_in(file: Path | None) -> list[str]:
    """The serial numbers of a file with one a line; none of no file.

    Raises:
        CliError: the file cannot be read.
    """
    from cli.client import read_text  # noqa: PLC0415

    if file is None:
        return []
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]


def group_of(api: Api, org: str, alias: str) -> Any:
    """A group of an organisation, by its alias.

    Raises:
        CliError: there is none.
    """
    parameters = {"orgId": org, "alias": alias}
    for found in api.pages("/api/device-groups", "deviceGroups", 1, **parameters):
        return found
    raise CliError(f"no group has the alias {alias}; `groups list` shows them")
