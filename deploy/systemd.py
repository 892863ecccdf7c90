"""The unit that starts `evergreen up` at boot, confined to what it needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from servicekit.security import mode

_PLAIN: Final = re.compile(r"[A-Za-z0-9_./:=@,+-]+")
_OPEN_FILES: Final = 1 << 20
_LOWEST_PORT: Final = 1024
"""Below it, only who has the capability may listen."""
_AS_ROOT: Final = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
)
"""What it takes to start PostgreSQL as somebody else, who owns the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What a unit says."""

    command: tuple[str, ...]
    """Starts the launcher."""
    home: Path
    user: str
    group: str
    environment_file: Path
    port: int
    stop_seconds: int
    """What the launcher may take to stop."""
    writable: tuple[Path, ...] = ()
    """Directories beside the home that it writes to."""
    own_tmp: bool = True
    """Whether `/tmp` may be its own: not if other commands look for sockets there."""
    logs: Path | None = None
    """Where log files go; the home's own place when it is not given."""

    def render(self) -> str:
        """The text of the unit."""
        return "\n".join((*self._unit(), "", *self._service(), "", *_INSTALL, ""))

    @staticmethod
    def _unit() -> tuple[str, ...]:
        return (
            "[Unit]",
            "Description=Evergreen Selfhost Backend",
            "After=network-online.target",
            "Wants=network-online.target",
            "# What does not start five times in ten minutes needs a person.",
            "StartLimitIntervalSec=600",
            "StartLimitBurst=5",
        )

    def _service(self) -> tuple[str, ...]:
        environment = [f"EVERGREEN_HOME={self.home}"]
        if self.logs is not None:
            environment.append(f"EVERGREEN_LOG_DIR={self.logs}")
        writable = (self.home, *([self.logs] if self.logs else ()), *self.writable)
        return (
            "[Service]",
            "Type=notify",
            "NotifyAccess=main",
            f"ExecStart={' '.join(_word(word, execute=True) for word in self.command)}",
            f"User={self.user}",
            f"Group={self.group}",
            f"WorkingDirectory={_path(self.home)}",
            *(f"Environment={_word(text)}" for text in environment),
            f"EnvironmentFile=-{_path(self.environment_file)}",
            "# The launcher itself gives up on what does not start; migrations take their time.",
            "TimeoutStartSec=infinity",
            f"TimeoutStopSec={self.stop_seconds}",
            "# The launcher alone is asked to stop; it stops the others in order.",
            "KillMode=mixed",
            "Restart=on-failure",
            "RestartSec=5",
            "# To start it again as it is set up would not help.",
            f"RestartPreventExitStatus={mode.REFUSED}",
            "# The launcher restarts a process that the kernel ended for want of memory.",
            "OOMPolicy=continue",
            f"LimitNOFILE={_OPEN_FILES}",
            "UMask=0077",
            "SyslogIdentifier=evergreen",
            "",
            *self._capabilities(),
            *_CONFINED,
            f"PrivateTmp={'yes' if self.own_tmp else 'no'}",
            f"ReadWritePaths={' '.join(_word(f'-{path}') for path in dict.fromkeys(writable))}"
            + ("" if self.own_tmp else " /tmp /var/tmp"),
        )

    def _capabilities(self) -> tuple[str, ...]:
        found = list(_AS_ROOT) if self.user == "root" else []
        ambient = []
        if self.port < _LOWEST_PORT:
            found.append("CAP_NET_BIND_SERVICE")
            ambient = [] if self.user == "root" else ["CAP_NET_BIND_SERVICE"]
        return (
            f"CapabilityBoundingSet={' '.join(found)}",
            f"AmbientCapabilities={' '.join(ambient)}",
        )


_CONFINED: Final = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "# The program may lie in somebody's home directory.",
    "ProtectHome=read-only",
    "PrivateDevices=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallErrorNumber=EPERM",
    "# Not MemoryDenyWriteExecute: Envoy's scripts are compiled while they run.",
)
_INSTALL: Final = ("[Install]", "WantedBy=multi-user.target")


def _word(text: str, *, execute: bool = False) -> str:
    """A word of a unit: specifiers, variables and quotes stand for themselves."""
    text = text.replace("%", "%%")
    if execute:
        text = text.replace("$", "$$")
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _path(path: Path) -> str:
    """A path that is the whole of a value, where quotes have no meaning."""
    return str(path).replace("%", "%%")
