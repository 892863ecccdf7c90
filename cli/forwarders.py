"""`evergreen forwarders`: where the audit log's entries are sent, through the public API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.confirm import need_terminal
from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import one_named
from cli.session import session
from cli.tables import moment, show_list, table
from deploy.private_files import write_private

if TYPE_CHECKING:
    from cli.client import Api

app = typer.Typer(
    name="forwarders",
    help="Send the audit log's entries to webhooks and to syslog.",
    no_args_is_help=True,
)

_FAILED: Final = 2
_NOT_DELIVERED: Final = 1
_PATH: Final = "/api/forwarders"
_ALL: Final = 1_000_000
_COLUMNS: Final = ("NAME", "STATUS", "WAITING", "QUARANTINED", "LAST ERROR", "TARGET", "ID")
_MESSAGE_COLUMNS: Final = (
    "QUARANTINED (UTC)",
    "REASON",
    "ATTEMPTS",
    "SEQUENCE",
    "DELIVERED (UTC)",
    "ID",
)

Forwarder = Annotated[str, typer.Argument(help="The forwarder, by its name or id.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@app.command("list")
def list_forwarders(
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show all forwarders, and how they do."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _all(api)
        show_list(found, _COLUMNS, _row, as_json=as_json)


@app.command()
def show(
    forwarder: Forwarder,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show one forwarder as JSON."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = api.get(f"{_PATH}/{_found(api, forwarder)['id']}")
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="A name for people to read.")],
    webhook: Annotated[str, typer.Option(help="Post to this URL.")] = "",
    syslog: Annotated[str, typer.Option(help="Send to this HOST:PORT.")] = "",
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="cloudevents, ocsf or splunk-hec; of syslog, json or cef.",
        ),
    ] = "",
    batch: Annotated[int, typer.Option(help="The most entries in a webhook's message.")] = 1,
    header: Annotated[
        list[str] | None,
        typer.Option(help="A webhook's header whose value is in a file: NAME=FILE."),
    ] = None,
    transport: Annotated[str, typer.Option(help="Of syslog: tls, tcp or udp.")] = "",
    framing: Annotated[str, typer.Option(help="Of syslog: octet-counting or newline.")] = "",
    action: Annotated[
        list[str] | None, typer.Option(help="Only these actions, for example policy.*.")
    ] = None,
    start_at: Annotated[
        str, typer.Option(help="now, beginning, or a time such as 2026-09-01T00:00:00Z.")
    ] = "now",
    org: Annotated[str, typer.Option(help="Whose entries, by id; yours when not given.")] = "",
    target_ca: Annotated[
        Path | None, typer.Option(help="The CA of the target's certificate, in PEM.")
    ] = None,
    client_certificate: Annotated[
        Path | None, typer.Option(help="The certificate to show to the target, in PEM.")
    ] = None,
    client_key: Annotated[Path | None, typer.Option(help="Its private key, in PEM.")] = None,
    secret_file: Annotated[
        Path | None,
        typer.Option(help="Where to write a webhook's secret; it is printed when not given."),
    ] = None,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Make a forwarder: a webhook, or one of syslog.

    A webhook's messages are signed. Its secret is shown this once.
    """
    with told(_FAILED):
        if bool(webhook) == bool(syslog):
            raise CliError("give either --webhook or --syslog")
        target: dict[str, Any] = {
            "format": form,
            "caPem": _text(target_ca),
            "clientCertificatePem": _text(client_certificate),
            "clientKeyPem": _text(client_key),
        }
        if webhook:
            target |= {"url": webhook, "batch": batch, "headers": _headers(header or [])}
        else:
            host, port = _address(syslog)
            target |= {"host": host, "port": port, "transport": transport, "framing": framing}
        body: dict[str, Any] = {
            "name": name,
            "kind": "webhook" if webhook else "syslog",
            "startAt": start_at,
            "filter": {"actions": action or []},
            "webhook" if webhook else "syslog": target,
        }
        if org:
            body["orgId"] = org
        with session(home, url, ca_file, email, password_file) as api:
            made = api.post(_PATH, body)
        typer.echo(f"The forwarder {made['name']} is made: {made['id']}")
        _tell_warnings(made)
        _tell_secret(made, secret_file)


@app.command()
def enable(
    forwarder: Forwarder,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Send again, beginning where it stopped; what failed is tried at once."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _set(api, forwarder, enabled=True)
        typer.echo(f"{found['name']} sends.")


@app.command()
def disable(
    forwarder: Forwarder,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Send nothing more; what waits stays."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _set(api, forwarder, enabled=False)
        typer.echo(f"{found['name']} sends nothing until it is enabled.")


@app.command()
def delete(
    forwarder: Forwarder,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Delete a forwarder; what waits is not sent."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, forwarder)
        if not yes:
            need_terminal("--yes")
            waiting = found["state"].get("backlog", 0)
            if not typer.confirm(f"Delete {found['name']}, for which {waiting} entries wait?"):
                raise CliError("nothing was changed")
        api.delete(f"{_PATH}/{found['id']}")
        typer.echo(f"{found['name']} is deleted.")


@app.command()
def test(
    forwarder: Forwarder,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Send one message now, past all that wait; ends with 1 when the target did not take it."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, forwarder)
        answer = api.post(f"{_PATH}/{found['id']}/test", {})
        took = f"in {answer.get('tookMs', 0)} ms"
        if answer.get("delivered"):
            typer.echo(f"{found['name']} took a message {took}.")
            return
        typer.echo(f"{found['name']} did not take a message ({took}): {answer['error']}")
    raise typer.Exit(_NOT_DELIVERED)


@app.command()
def replay(
    forwarder: Forwarder,
    since: Annotated[str, typer.Option("--from", help="A time such as 2026-09-01T00:00:00Z.")],
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Send all entries again that happened since a time, with the same ids."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, forwarder)
        after = api.post(f"{_PATH}/{found['id']}/replay", {"from": since})
        typer.echo(f"{found['name']} sends {after['state'].get('backlog', 0)} entries.")


@app.command("rotate-secret")
def rotate_secret(
    forwarder: Forwarder,
    overlap_hours: Annotated[
        int, typer.Option(help="How long the present secret goes on signing, too.")
    ] = 24,
    secret_file: Annotated[
        Path | None,
        typer.Option(help="Where to write the secret; it is printed when not given."),
    ] = None,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Make a new secret that signs a webhook's messages."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, forwarder)
        body = {"overlapHours": overlap_hours}
        made = api.post(f"{_PATH}/{found['id']}/rotate-secret", body)
        typer.echo(f"Both secrets sign until {made['secondSecretUntil']}.")
        _tell_secret(made, secret_file)


@app.command()
def quarantine(
    forwarder: Forwarder,
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show the messages that the target refused for good, newest first."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        path = f"{_PATH}/{_found(api, forwarder)['id']}/quarantine"
        messages = list(api.pages(path, "messages", _ALL))
        for line in (
            [json.dumps(message) for message in messages]
            if as_json
            else table(_MESSAGE_COLUMNS, [_message_row(message) for message in messages])
        ):
            typer.echo(line)


@app.command()
def retry(
    forwarder: Forwarder,
    messages: Annotated[
        list[str] | None,
        typer.Argument(help="The messages, by id; all that were not delivered when not given."),
    ] = None,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Send quarantined messages once more."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        path = f"{_PATH}/{_found(api, forwarder)['id']}/quarantine/retry"
        answer = api.post(path, {"ids": messages or []})
        typer.echo(f"{answer.get('retried', 0)} messages are sent once more.")


def _all(api: Api) -> list[Any]:
    return list(api.pages(_PATH, "forwarders", _ALL))


def _found(api: Api, named: str) -> Any:
    """The forwarder with an id or a name.

    Raises:
        CliError: there is none, or there are several.
    """
    return one_named(_all(api), named, "forwarder")


def _set(api: Api, named: str, *, enabled: bool) -> Any:
    found = _found(api, named)
    return api.patch(f"{_PATH}/{found['id']}", {"enabled": enabled})


def _target(one: Any) -> str:
    if "webhook" in one:
        url: str = one["webhook"]["url"]
        return url
    syslog = one["syslog"]
    return f"{syslog['transport']}://{syslog['host']}:{syslog['port']}"


def _row(one: Any) -> list[str]:
    state = one["state"]
    return [
        one["name"],
        state["status"] + (f" ({state['reason']})" if state.get("reason") else ""),
        str(state.get("backlog", 0)),
        str(state.get("quarantined", 0)),
        state.get("lastError") or "-",
        _target(one),
        one["id"],
    ]


def _message_row(message: Any) -> list[str]:
    return [
        moment(message["quarantinedAt"]),
        message["reason"],
        str(message.get("attempts", 0)),
        str(message["sequence"]),
        moment(message.get("deliveredAt")),
        message["id"],
    ]


def _text(path: Path | None) -> str:
    if path is None:
        return ""
    from cli.client import read_text  # noqa: PLC0415 - `evergreen up` loads this file

    return read_text(path)


def _headers(given: list[str]) -> list[dict[str, str]]:
    headers = []
    for text in given:
        name, equals, path = text.partition("=")
        if not equals:
            raise CliError(f"--header is NAME=FILE, not {text!r}")
        headers.append({"name": name, "value": _text(Path(path)).strip()})
    return headers


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal():
        raise CliError(f"--syslog is HOST:PORT, not {text!r}")
    return host, int(port)


def _tell_warnings(made: Any) -> None:
    for warning in made.get("warnings", []):
        typer.echo(f"Note: {warning}.", err=True)


def _tell_secret(made: Any, secret_file: Path | None) -> None:
    secret = made.get("secret")
    if not secret:
        return
    if secret_file is None:
        typer.echo(f"Its secret, which is not shown again: {secret}")
        return
    write_private(secret_file, f"{secret}\n")
    typer.echo(f"Its secret is in {secret_file}.")
