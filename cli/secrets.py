"""Secrets in files, as every command reads them."""

from __future__ import annotations

from pathlib import Path

from cli.errors import CliError


def read_secret(path: Path) -> str:
    """The text of a secret's file, without the line's end.

    Raises:
        CliError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"the secret in {path} cannot be read: {error}") from error
