"""`evergreen audit witness`: signs that the log of another installation only grows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, TypeAlias

import typer

from cli.errors import CliError, told

_FAILED: Final = 2

Required: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--witnesses",
        help="File with witnesses, and how many of them have to have signed (C2SP tlog-policy).",
    ),
]


def witness(
    name: Annotated[
        str,
        typer.Option(help="What it is called in its signatures, such as witness.district.example."),
    ],
    log: Annotated[
        list[Path],
        typer.Option(
            help="Keys of a log, as `evergreen audit keys --notes` writes them; may be repeated."
        ),
    ],
    key_file: Annotated[
        Path, typer.Option(help="The witness's private key; made when it is not there.")
    ],
    state: Annotated[
        Path, typer.Option(help="Where it remembers what it signed. Never go back to an older one.")
    ],
    listen: Annotated[
        str, typer.Option(help="Where it answers, by HTTP: put a proxy with TLS before it.")
    ] = "127.0.0.1:7380",
) -> None:
    """Sign the checkpoints of other installations, as long as their logs only grow.

    Prints its key first, which goes into the file of EVERGREEN_AUDIT_WITNESSES_FILE there.
    """
    with told(_FAILED):
        from auditlog.notes import NoteError  # noqa: PLC0415
        from auditlog.witnesses import WitnessKey, log_keys  # noqa: PLC0415
        from cli.audit_witness_server import Memory, private_key, serve  # noqa: PLC0415
        from cli.client import read_text  # noqa: PLC0415

        host, _, port = listen.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise CliError("--listen must be HOST:PORT")
        if not name or not name.isprintable() or " " in name or "+" in name:
            raise CliError("--name must be without spaces and +")
        try:
            known = log_keys("\n".join(read_text(path) for path in log))
        except NoteError as broken:
            raise CliError(f"--log: {broken}") from broken
        key = WitnessKey(name, private_key(key_file))
        with Memory.open(state) as memory, serve((host, int(port)), key, known, memory) as server:
            typer.echo(key.public.text)
            typer.echo(f"listening on {host}:{server.server_address[1]}", err=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                return
