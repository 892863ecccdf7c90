"""`evergreen keys …` for the keys of policies: rotation, devices, the log, the offline root."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import uuid4

import typer

from cli.confirm import DryRun, Expect, Yes, confirmed, need_terminal
from cli.errors import CliError, told
from cli.files import written
from cli.key_ids import KeyCommand
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import ALL, AT_ONCE, tenant_id
from cli.session import session
from cli.tables import counted, moment, show_list, table

if TYPE_CHECKING:
    from cli.client import Api
    from servicekit.keys.log import Envelope, Log

Key = Annotated[str, typer.Argument(help="The key, by the beginning of its id.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="The file to write.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Passphrase = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="A file with the passphrase; asked for when not given."),
]

_FAILED: Final = 2
_WRONG: Final = 1
_DEVICE_COLUMNS: Final = ("SERIAL", "STATUS", "REPORTED (UTC)", "ID")
_LOG_COLUMNS: Final = ("KEY", "WHOSE", "STATE", "TRUSTED", "CERTIFIED BY", "ADDED (UTC)")


def managed(api: Api) -> list[dict[str, Any]]:
    """The keys that count for the caller's devices, with the number of those that pin each."""
    return list(api.pages("/api/policy-keys", "policyKeys", ALL))


def rotate_policies(api: Api, tenant: str) -> Any:
    """Makes a key of a tenant that new enrollment tokens carry; of the installation without."""
    body = {"orgId": tenant, "activate": True, "requestId": str(uuid4())}
    return api.post("/api/policy-keys", body)


def create(
    org: Annotated[
        str, typer.Option("--org", help="The tenant, by its code or id; yours when not given.")
    ] = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Make the next key for policies, to prepare agents with before it is activated."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        body = {"orgId": tenant_id(api, org), "requestId": str(uuid4())}
        key = api.post("/api/policy-keys", body)
        typer.echo(f"Key {key['keyId']} is {key['state']}; agents pin:", err=True)
        typer.echo(key["publicKeyPem"], nl=False)


def activate(
    key: Key,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Let new enrollment tokens carry a key; the one before signs on for its devices."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = api.post(f"/api/policy-keys/{_found(api, key)['id']}/activate", {})
        typer.echo(f"New enrollment tokens carry key {found['keyId']}.")


def retire(
    key: Key,
    lost: Annotated[
        bool, typer.Option("--give-up-devices", help="Although devices pin it still.")
    ] = False,
    yes: Yes = False,
    expect: Expect = None,
    dry_run: DryRun = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """End a key for policies, for good. Devices that pin it would get no policy any more."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, key)
        count = 0
        if lost:
            count = found["devices"]
            what = "give up the devices that pin the key"
            if not confirmed(what, count, yes=yes, expect=expect, dry_run=dry_run):
                return
        elif dry_run:
            typer.echo(f"Nothing was changed. {found['devices']} devices pin the key.")
            return
        api.post(f"/api/policy-keys/{found['id']}/retire", {"lostDevices": count})
        typer.echo(f"Key {found['keyId']} signs nothing any more.")


def compromised(
    key: Annotated[
        str, typer.Argument(help="The key, by its id or a beginning that no other key has.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Say that a key for policies is in wrong hands; new devices get another one from now on."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, key)
        if not yes and not found.get("compromisedAt"):
            need_terminal("--yes")
            typer.echo(
                f"Key {found['keyId']}, which {counted(found['devices'], 'device')} pin: its public"
                " log says for ever that it is in wrong hands.",
                err=True,
            )
            typer.confirm("Is it in wrong hands?", abort=True, err=True)
        api.post(f"/api/policy-keys/{found['id']}/mark-compromised", {})
        typer.echo(
            f"No new enrollment token carries key {found['keyId']}. It signs on for"
            f" {found['devices']} devices until they are moved: `evergreen keys devices`."
        )


def devices(
    key: Key,
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """List the devices that pin a key for policies."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, key)
        pinning = list(api.pages(f"/api/policy-keys/{found['id']}/devices", "devices", ALL))
        serials: dict[str, str] = {}
        for start in range(0, len(pinning), AT_ONCE):
            ids = [one["deviceId"] for one in pinning[start : start + AT_ONCE]]
            known = api.post("/api/registrations/batch-get", {"ids": ids})
            serials |= {one["id"]: one["serial"] for one in known["registrations"]}
        rows = [one | {"serial": serials.get(one["deviceId"], "")} for one in pinning]
        show_list(rows, _DEVICE_COLUMNS, _device_row, as_json=as_json)


def pem(
    key: Key,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Print a key for policies in PEM, as agents pin it."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        typer.echo(_found(api, key)["publicKeyPem"], nl=False)


def log(
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Print the log of all keys that ever signed policies, a JSON object an entry."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        for entry in api.pages("/api/v1/policy-keys/log", "entries", ALL):
            typer.echo(json.dumps(entry))


def verify(
    log_file: Annotated[Path, typer.Argument(help="The log, as `evergreen keys log` prints it.")],
    policy: Annotated[
        Path | None, typer.Option("--policy", help="A signed policy, or an agent's start file.")
    ] = None,
    trust: Annotated[
        list[Path] | None,
        typer.Option("--trust", help="A key in PEM that you know: the root's, or a pinned one."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the log of keys, and which of them signed a policy. Works without a network.

    The exit code is 1 when something does not verify.
    """
    from cli.client import read_text  # noqa: PLC0415
    from servicekit.keys.log import LogError, read  # noqa: PLC0415
    from servicekit.security.signing import read_pem_bundle  # noqa: PLC0415

    with told(_FAILED):
        try:
            anchors = [key for file in trust or () for key in read_pem_bundle(read_text(file))]
        except ValueError as error:
            raise CliError(f"--trust: {error}") from error
        try:
            found = read(_entries(read_text(log_file)), anchors)
        except LogError as error:
            typer.echo(f"NOT VERIFIED  {error}")
            raise typer.Exit(_WRONG) from error
        _tell_keys(found, as_json=as_json)
        if policy is not None and not _tell_policy(found, policy):
            raise typer.Exit(_WRONG)


def root_init(
    file: Annotated[Path, typer.Argument(help="Where to write it, such as on a stick.")],
    passphrase_file: Passphrase = None,
) -> None:
    """Make an offline root: a private key in a file with a passphrase, and its public half.

    Do it on a machine without a network. The root never comes to the installation.
    """
    from servicekit.security.signing import Signer, new_seed  # noqa: PLC0415

    with told(_FAILED):
        public = file.with_name(f"{file.name}.pem")
        for one in (file, public):
            if one.exists():
                raise CliError(f"{one} exists already")
        seed = new_seed()
        key = Signer(seed).public
        _write_root(file, seed, _passphrase(passphrase_file, new=True))
        with written(public) as out:
            out.write(key.pem().encode())
        typer.echo(f"The root is {key.id}. Keep {file} offline; {public} is public.")


def root_set(
    file: Annotated[Path, typer.Argument(help="The root's public half, in PEM.")],
    replaces: Annotated[str, typer.Option("--replaces", help="The id of the root until now.")] = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Let an offline root certify keys for policies; from then on new ones need it."""
    from cli.client import read_text  # noqa: PLC0415

    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        body = {"publicKeyPem": read_text(file), "replaces": replaces}
        found = api.post("/api/policy-root-key", body)
        typer.echo(f"The root is {found['keyId']}. Keys are activated once it certified them.")


def request(
    key: Key,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write.")
    ] = None,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Write what the offline root signs to certify a key."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = api.get(f"/api/policy-keys/{_found(api, key)['id']}/certificate-request")
        with written(output) as out:
            out.write(json.dumps(found).encode() + b"\n")


def sign(
    file: Annotated[Path, typer.Argument(help="The request.")],
    root: Annotated[Path, typer.Option("--root", help="The root, as `root-init` wrote it.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write.")
    ] = None,
    passphrase_file: Passphrase = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Certify a key with the offline root. Works without a network."""
    from cli.client import read_text  # noqa: PLC0415
    from servicekit.keys.log import Envelope, LogError, read_request  # noqa: PLC0415

    with told(_FAILED):
        try:
            asked = Envelope.from_json(json.loads(read_text(file)))
            scope, key = read_request(asked)
        except (LogError, ValueError) as error:
            raise CliError(f"{file}: {error}") from error
        signer = _read_root(root, _passphrase(passphrase_file, new=False))
        if not yes:
            typer.echo(f"Key {key.id} of {scope}", err=True)
            typer.confirm("Certify it?", abort=True, err=True)
        with written(output) as out:
            signed = Envelope(asked.payload_type, asked.payload).signed_by([signer])
            out.write(json.dumps(signed.to_json()).encode() + b"\n")


def accept(
    file: Annotated[Path, typer.Argument(help="The certificate, as `sign` wrote it.")],
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Take the offline root's certificate of a key."""
    from cli.client import read_text  # noqa: PLC0415
    from servicekit.keys.log import Envelope, LogError, read_request  # noqa: PLC0415

    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        try:
            made = Envelope.from_json(json.loads(read_text(file)))
            _, key = read_request(made)
        except (LogError, ValueError) as error:
            raise CliError(f"{file}: {error}") from error
        if len(made.signatures) != 1:
            raise CliError(
                f"{file}: it has {len(made.signatures)} signatures, and needs the root's"
            )
        certificate = made.to_json()
        body = {
            "payload": certificate["payload"],
            "signature": certificate["signatures"][0]["sig"],
        }
        found = api.post(f"/api/policy-keys/{_found(api, key.id)['id']}/certify", body)
        typer.echo(f"Key {found['keyId']} is certified by {found['certifiedBy']}.")


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    commands: tuple[tuple[str, Callable[..., None]], ...] = (
        ("create", create),
        ("activate", activate),
        ("devices", devices),
        ("retire", retire),
        ("compromised", compromised),
        ("pem", pem),
        ("log", log),
        ("verify", verify),
        ("root-init", root_init),
        ("root-set", root_set),
        ("request", request),
        ("sign", sign),
        ("accept", accept),
    )
    for name, command in commands:
        takes_key = "key" in signature(command).parameters
        app.command(name, cls=KeyCommand if takes_key else None)(command)


def _found(api: Api, key: str) -> dict[str, Any]:
    """A key by its id, or by the beginning of it.

    Raises:
        CliError: there is none, or several begin so.
    """
    found = [one for one in managed(api) if key in {one["id"], one["keyId"]}] or [
        one for one in managed(api) if key and one["keyId"].startswith(key)
    ]
    if len(found) != 1:
        said = "no key for policies begins" if not found else f"{len(found)} keys begin"
        raise CliError(f"{said} with {key}; `evergreen keys list` shows them")
    return found[0]


def _device_row(one: dict[str, Any]) -> tuple[str, ...]:
    reported = one.get("reportedAt")
    return (
        one["serial"],
        one["status"],
        moment(reported) if reported else "never",
        one["deviceId"],
    )


def _entries(text: str) -> Iterator[Envelope]:
    from servicekit.keys.log import Envelope, LogError  # noqa: PLC0415

    for number, line in enumerate(filter(None, text.splitlines()), 1):
        try:
            yield Envelope.from_json(json.loads(line))
        except ValueError as error:
            raise LogError(f"line {number} is no JSON") from error


def _tell_keys(found: Log, *, as_json: bool) -> None:
    rows = [
        {
            "keyId": one.key.id,
            "scope": one.scope,
            "state": one.state,
            "trusted": one.trusted,
            "certifiedBy": one.certified_by,
            "addedAt": one.added_at,
        }
        for one in found.keys.values()
    ]
    for gap in found.gaps:
        known = f", at least up to number {gap.lost.sequence}" if gap.lost.sequence else ""
        typer.echo(
            f"RESTORED  a backup was restored on {moment(gap.at)}. The entries after number"
            f" {gap.behind.sequence} are lost{known}. The next entry is number {gap.sequence}.",
            err=as_json,
        )
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    for line in table(_LOG_COLUMNS, [_log_row(row) for row in rows]):
        typer.echo(line)
    typer.echo(f"VERIFIED  {found.entries} entries; the last one is {found.head.sha256}")


def _log_row(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["keyId"],
        row["scope"][:20],
        row["state"],
        "yes" if row["trusted"] else "no",
        row["certifiedBy"] or "-",
        moment(row["addedAt"]),
    )


def _tell_policy(found: Log, file: Path) -> bool:
    """Says which key signed a policy; answers whether that is good."""
    from cli.client import read_text  # noqa: PLC0415
    from cli.sim.signature import Signatures  # noqa: PLC0415

    try:
        envelope = json.loads(read_text(file))
        envelope = envelope.get("policy") if "device_id" in envelope else envelope
        if not isinstance(envelope, dict):
            raise ValueError("it is no signed policy")
    except (AttributeError, TypeError, ValueError) as error:
        raise CliError(f"{file}: it is no signed policy in JSON") from error
    for one in found.keys.values():
        if Signatures([one.key])(envelope):
            said = f"signed by key {one.key.id}, which is {one.state}"
            good = one.trusted and not one.revoked_at
            typer.echo(f"{'VERIFIED' if good else 'NOT TRUSTED'}  {file}: {said}")
            return good
    typer.echo(f"NOT VERIFIED  {file}: no key of the log has signed it")
    return False


def _passphrase(file: Path | None, *, new: bool) -> str:
    from cli.client import read_text  # noqa: PLC0415

    if file is not None:
        found = read_text(file).strip("\r\n")
    else:
        found = typer.prompt(
            "Passphrase of the root", hide_input=True, confirmation_prompt=new, err=True
        )
    if not found:
        raise CliError("the passphrase is empty")
    return found


def _write_root(file: Path, seed: bytes, passphrase: str) -> None:
    import io  # noqa: PLC0415
    import os  # noqa: PLC0415

    from servicekit.security import approved_stream  # noqa: PLC0415

    with written(file) as out:
        os.fchmod(out.fileno(), 0o600)
        approved_stream.encrypt_io(io.BytesIO(seed), out, passphrase)


def _read_root(file: Path, passphrase: str) -> Any:
    import io  # noqa: PLC0415

    from servicekit.security import approved_stream  # noqa: PLC0415
    from servicekit.security.signing import Signer  # noqa: PLC0415

    plain = io.BytesIO()
    try:
        with file.open("rb") as sealed:
            approved_stream.decrypt_io(sealed, plain, passphrase)
        return Signer(plain.getvalue())
    except OSError as error:
        raise CliError(f"{file} cannot be read: {error.strerror}") from error
    except (approved_stream.OpeningError, ValueError) as error:
        raise CliError(f"{file} does not open with the passphrase, or is no root") from error
