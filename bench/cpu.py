"""What processes cost: CPU time and memory as the kernel counts them, by part of the product."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PROGRAMS = {
    "postgres": "postgres/main",
    "nats-server": "nats",
    "envoy": "gateway",
    "python": "python",
}
_BACKEND = re.compile(r"postgres: (?:evergreen_)?(\w+)")


@dataclass(frozen=True, slots=True)
class Process:
    """One process at a moment. Times are in seconds."""

    pid: int
    parent: int
    command: str
    own: float
    """CPU time of its threads, in user and kernel mode."""
    ended_children: float
    """CPU time of the children that have ended and were waited for."""


def read_process(pid: int, proc: Path = Path("/proc")) -> Process | None:
    """A process, or `None` when it is gone."""
    try:
        # The command name may hold spaces and parentheses; the fields follow its last one.
        fields = (proc / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
        command = (proc / str(pid) / "cmdline").read_bytes().decode(errors="replace")
    except (OSError, IndexError):
        return None
    utime, stime, cutime, cstime = (int(field) / _TICKS for field in fields[11:15])
    return Process(pid, int(fields[1]), command, utime + stime, cutime + cstime)


def precise(process: Process, proc: Path = Path("/proc")) -> Process:
    """The same with its CPU time in nanoseconds, as the scheduler counts it for each thread.

    `stat` counts in hundredths of a second, which is a per cent of a short round when many
    processes share the work. Threads that have ended are in `stat` alone; the larger one counts.
    """
    own = 0
    for file in proc.glob(f"{process.pid}/task/[0-9]*/schedstat"):
        try:
            own += int(file.read_text().split()[0])
        except (OSError, IndexError):
            continue
    return replace(process, own=max(process.own, own / 1e9))


def processes(proc: Path = Path("/proc")) -> list[Process]:
    """All processes of the machine."""
    found = (read_process(int(entry.name), proc) for entry in proc.glob("[0-9]*"))
    return [process for process in found if process is not None]


def below(root: int, all_processes: Iterable[Process]) -> list[Process]:
    """The descendants of a process, without itself."""
    children: dict[int, list[Process]] = {}
    for process in all_processes:
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    waiting = [root]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            found.append(child)
            waiting.append(child.pid)
    return found


def part_of(command: str) -> str:
    """The part of the product that a command line belongs to: `policy`, `gateway`, …

    A process of PostgreSQL's is named after what it does or for whom: `postgres/telemetry`.
    """
    if backend := _BACKEND.match(command):
        return f"postgres/{backend[1]}"
    words = command.split("\0")
    for word in words:
        if word.startswith("services."):
            return word.removeprefix("services.")
        if word == "servicekit.zygote":
            return "zygote"
    if any(Path(word).name == "evergreen" for word in words[:2]) and "up" in words:
        return "launcher"
    program = Path(words[0]).name
    for start, part in _PROGRAMS.items():
        if program.startswith(start):
            return part
    return program or "?"


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds by part, since each part's start."""

    seconds: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def since(self, earlier: Usage) -> Usage:
        """What was used between two moments.

        A process that ended in between is counted with its parent's ended children, so nothing is
        lost; its part shows what is left over as `…/ended`.
        """
        names = self.seconds.keys() | earlier.seconds.keys()
        spent = {n: self.seconds.get(n, 0.0) - earlier.seconds.get(n, 0.0) for n in names}
        return Usage({name: value for name, value in spent.items() if abs(value) > 1e-9})


def usage(found: Iterable[Process], name: Callable[[str], str] = part_of) -> Usage:
    """Adds up processes by part."""
    seconds: dict[str, float] = {}

    def add(part: str, value: float) -> None:
        if value:
            seconds[part] = seconds.get(part, 0.0) + value

    for process in found:
        part = name(process.command)
        add(part, process.own)
        add(f"{part.split('/', 1)[0]}/ended", process.ended_children)
    return Usage(seconds)


@dataclass(frozen=True, slots=True)
class Machine:
    """CPU seconds of the whole machine, all its processors together."""

    busy: float
    steal: float

    @classmethod
    def now(cls, stat: Path = Path("/proc/stat")) -> Machine:
        """Reads the kernel's counters."""
        fields = [int(f) / _TICKS for f in stat.read_text().splitlines()[0].split()[1:9]]
        user, nice, system, _idle, _iowait, irq, softirq, steal = fields
        return cls(user + nice + system + irq + softirq, steal)


def memory(found: Iterable[Process], proc: Path = Path("/proc")) -> dict[str, dict[str, int]]:
    """Bytes by part: `rss` counts shared pages in every process, `pss` shares them out."""
    sizes: dict[str, dict[str, int]] = {}
    for process in found:
        try:
            text = (proc / str(process.pid) / "smaps_rollup").read_text()
        except OSError:
            continue
        part = sizes.setdefault(part_of(process.command).split("/", 1)[0], {"rss": 0, "pss": 0})
        for line in text.splitlines():
            key = line.split(":", 1)[0].lower()
            if key in part:
                part[key] += int(line.split()[1]) * 1024
    return sizes
