"""`make chaos`: the long form. It prints what happens, and ends with 1 when a promise is broken.

So it does when all did not work again in time after a fault.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from chaos.faults import kills, others, shuffled
from chaos.run import Result, run

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench-results" / "chaos.json"
_FAULT_SECONDS = 4.0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="how long (default: 10)")
    parser.add_argument("--kills", type=int, default=20, help="kills of each process (default: 20)")
    parser.add_argument("--devices", type=int, default=120, help="devices (default: 120)")
    parser.add_argument(
        "--within",
        type=float,
        default=15,
        help="seconds after a fault within which all has to work again (default: 15)",
    )
    parser.add_argument("--seed", type=int, default=None, help="repeats an earlier run's order")
    return parser.parse_args()


def _report(result: Result, within: float, seed: int) -> bool:
    """Tells what came of it; answers whether everything was as it should be."""
    fault, seconds = result.slowest
    print(f"faults:                 {len(result.recoveries)}")
    print(f"slowest recovery:       {seconds:.1f} s, after {fault}")
    print(f"acknowledged events:    {result.acknowledged_events}")
    print(f"devices with states:    {result.acknowledged_states}")
    print(f"acknowledged actions:   {result.acknowledged_actions}")
    print("answers:                " + ", ".join(f"{k}: {n}" for k, n in result.calls.items()))
    for line in result.broken:
        print(f"BROKEN PROMISE: {line}")
    late = [(fault, seconds) for fault, seconds in result.recoveries if seconds > within]
    for fault, seconds in late:
        print(f"TOO LATE: after {fault} it took {seconds:.1f} s until all worked again")
    if not result.broken:
        print("Every promise was kept.")
    if result.broken or late:
        print(f"The same order of faults comes again with --seed {seed}.")
    return not (result.broken or late)


def main() -> int:
    """Runs it."""
    arguments = _arguments()
    seed = arguments.seed if arguments.seed is not None else int.from_bytes(os.urandom(3), "big")
    randomness = random.Random(seed)
    faults = shuffled([*kills(arguments.kills), *others(_FAULT_SECONDS, randomness)], randomness)
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)

    say(f"{len(faults)} faults in {arguments.minutes:g} minutes, seed {seed}")
    with tempfile.TemporaryDirectory(prefix="chaos") as directory:
        result = asyncio.run(
            run(
                Path(directory) / "home",
                faults,
                devices=arguments.devices,
                pause=0.7,
                every=arguments.minutes * 60 / max(len(faults), 1),
                seed=seed,
                say=say,
            )
        )
    result.write(RESULT)
    good = _report(result, arguments.within, seed)
    print(f"Written to {RESULT.relative_to(ROOT)}.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
