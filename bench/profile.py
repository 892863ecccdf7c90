"""Where the time goes: py-spy for the services, perf for the gateway and PostgreSQL.

Both are optional and found on the PATH (`pip install py-spy`; perf comes with the kernel's tools).
What they leave in `bench-results/profile/`: stacks (`*.stacks`, which flame graph tools and
https://www.speedscope.app read) and lists of the functions that were running (`*.txt`).
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from bench.cpu import part_of
from bench.product import Product
from bench.report import RESULTS

DIRECTORY = RESULTS / "profile"
_SERVICES = ("policy", "telemetry", "enrollment", "identity")
_NATIVE = ("gateway", "postgres")
_SAMPLES_PER_SECOND = 250
_SHOWN = 25


def own_time(stacks: Iterable[str]) -> list[tuple[str, float]]:
    """The functions that were running, by their share of the samples, the largest first.

    Args:
        stacks: lines such as `outer;inner 12`, as py-spy writes them with `--format raw`.
    """
    counts: Counter[str] = Counter()
    for line in stacks:
        frames, _, count = line.rstrip().rpartition(" ")
        if frames and count.isdigit():
            counts[frames.rpartition(";")[2]] += int(count)
    total = sum(counts.values())
    return [(name, count / total) for name, count in counts.most_common()]


async def record(product: Product, seconds: float) -> list[Path]:
    """Watches the product's processes for so long; answers the lists that it wrote."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    pids: dict[str, list[int]] = {}
    for process in product.processes():
        part = part_of(process.command).split("/", 1)[0]
        pids.setdefault(part, []).append(process.pid)
    spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    perf = shutil.which("perf")
    work = []
    if spy:
        work += [_spy(spy, name, pids[name][0], seconds) for name in _SERVICES]
    if perf:
        work += [_perf(perf, name, pids[name], seconds) for name in _NATIVE]
    return [path for path in await asyncio.gather(*work) if path is not None]


async def _spy(spy: str, name: str, pid: int, seconds: float) -> Path | None:
    stacks = DIRECTORY / f"{name}.stacks"
    rate, length = str(_SAMPLES_PER_SECOND), str(int(seconds))
    # Only what holds the interpreter: threads that wait would be counted as busy.
    options = ("--pid", str(pid), "--rate", rate, "--duration", length, "--format", "raw", "--gil")
    if not await _run(spy, "record", *options, "--output", str(stacks)):
        return None
    found = own_time(stacks.read_text().splitlines())
    lines = [f"{100 * share:5.1f} %  {function}" for function, share in found[:_SHOWN]]
    return _write(name, "\n".join(lines) + "\n")


async def _perf(perf: str, name: str, pids: list[int], seconds: float) -> Path | None:
    data = DIRECTORY / f"{name}.perf"
    who = ("--pid", ",".join(map(str, pids)))
    options = ("-F", str(_SAMPLES_PER_SECOND), "-g", "--output", str(data))
    if not await _run(perf, "record", *options, *who, "--", "sleep", str(seconds)):
        return None
    # The gateway comes without symbols.
    by = "dso" if name == "gateway" else "dso,symbol"
    shown = ("--stdio", "--no-children", "-g", "none", "--percent-limit", "0.7", "--sort", by)
    report = await asyncio.to_thread(
        subprocess.run,
        [perf, "report", "--input", str(data), *shown],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in report.stdout.splitlines() if line and not line.startswith("#")]
    return _write(name, "\n".join(lines) + "\n")


async def _run(*words: str) -> bool:
    nothing = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*words, stdout=nothing, stderr=nothing)
    return await process.wait() == 0


def _write(name: str, text: str) -> Path:
    path = DIRECTORY / f"{name}.txt"
    path.write_text(text)
    return path
