"""What the device agent starts from: its configuration, and the key that it checks policies with.

The released agent reads its configuration as JSON from `/etc/evergreen/agent/agent.yaml`, and does
not start when a path or an interval is missing. The paths and intervals here are those of the file
that it comes with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cli.errors import CliError

PLACE: Final = "/etc/evergreen/agent"
"""Where the agent has its files on a device."""
CONFIG: Final = "agent.yaml"
KEY: Final = "policy-public.pem"
_SECRET: Final = 0o600
_PUBLIC: Final = 0o644
_LOOPBACK: Final = frozenset({"localhost", "::1"})


@dataclass(frozen=True, slots=True)
class AgentFiles:
    """The files in a directory, empty until they are written."""

    directory: Path

    def write(self, backend_url: str, pre_shared_key: str, policy_key: str) -> None:
        """Writes both.

        Args:
            backend_url: where devices reach the gateway.
            pre_shared_key: what they enroll with.
            policy_key: the public key of policies, in PEM.

        Raises:
            CliError: a file cannot be written.
        """
        text = json.dumps(_config(backend_url, pre_shared_key), indent=2) + "\n"
        for name, content in ((CONFIG, text), (KEY, policy_key)):
            path = self.directory / name
            try:
                path.write_text(content, encoding="utf-8")
            except OSError as error:
                raise CliError(f"{path} cannot be written: {error.strerror}") from error


@contextmanager
def agent_files(directory: Path) -> Iterator[AgentFiles]:
    """Makes the files, empty, and removes them again when the block fails.

    Raises:
        CliError: there is one already, or it cannot be made.
    """
    made: list[Path] = []
    try:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CliError(f"{directory} is no directory: {error.strerror}") from error
        for name, mode in ((CONFIG, _SECRET), (KEY, _PUBLIC)):
            path = directory / name
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
            except FileExistsError:
                raise CliError(
                    f"{path} is there already, and is not overwritten; nothing was created"
                ) from None
            except OSError as error:
                raise CliError(f"{path} cannot be written: {error.strerror}") from error
            made.append(path)
        yield AgentFiles(directory)
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise


def backend(url: str) -> str:
    """The address of the gateway as the agent takes it.

    Raises:
        CliError: the agent could not call it.
    """
    try:
        parts = urlsplit(url)
        right = parts.scheme == "https" and bool(parts.hostname) and not parts.query
        _ = parts.port
    except ValueError:
        right = False
    if not right:
        raise CliError(f"--backend-url must be an address like https://mdm.example, not {url!r}")
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether only this machine reaches an address."""
    host = urlsplit(url).hostname or ""
    return host in _LOOPBACK or host.startswith("127.")


def _config(backend_url: str, pre_shared_key: str) -> dict[str, object]:
    return {
        "backend_url": backend_url,
        "device_token_path": f"{PLACE}/secrets.json",
        "policy_cache_path": "/var/lib/evergreen/policy.json",
        "event_queue_path": "/var/lib/evergreen/events.json",
        "state_queue_path": "/var/lib/evergreen/state.json",
        "policy_public_key": f"{PLACE}/{KEY}",
        "enrollment": {"pre_shared_key": pre_shared_key, "config_path": ""},
        "intervals": {
            "policy_poll": "60s",
            "state_report": "5m",
            "event_flush": "30s",
            "retry_backoff": "15s",
            "retry_max_delay": "5m",
        },
        "logging": {"level": "info"},
    }
