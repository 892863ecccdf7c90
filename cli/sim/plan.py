"""What a run is to be, put together from the options; whatever does not fit is said here."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cli.client import bootstrap
from cli.errors import CliError
from cli.options import home_of
from cli.sim.calls import Traffic
from cli.sim.device import EVENTS, POLL, STATE, Check, Device
from cli.sim.http import Client
from cli.sim.schedule import MAX_DEVICES, Rhythm
from cli.sim.stats import Stats
from cli.sim.target import Target
from cli.sim.traffic import FLEET_MIX, FleetTraffic, PacedTraffic, SaturatingTraffic

FLEET_FILE: Final = "sim-fleet.jsonl"
_ONLY: Final = {
    "poll": "policy polls only",
    "state": "state reports only",
    "events": "batches of events only",
}


@dataclass(frozen=True, slots=True)
class Place:
    """The installation that the devices belong to."""

    url: str
    target: Target
    fleet: Path
    pre_shared_key: str = field(repr=False)
    policy_keys: Path | None
    serial_prefix: str = "SIM-"

    @classmethod
    def find(
        cls,
        home: Path | None,
        url: str,
        ca_file: Path | None,
        pre_shared_key: str,
        policy_keys: Path | None,
        fleet: Path | None,
    ) -> Place:
        """Puts together what the options and `bootstrap.json` say.

        Raises:
            CliError: something is missing, or cannot be read.
        """
        noted: dict[str, str] = {}
        directory = Path()
        if not url:
            directory = home_of(home)
            noted = bootstrap(directory)
        url = (url or noted["url"]).rstrip("/")
        if ca_file is None and noted.get("ca_file"):
            ca_file = Path(noted["ca_file"])
        if policy_keys is None and noted.get("policy_public_key_file"):
            policy_keys = Path(noted["policy_public_key_file"])
        try:
            target = Target.of(url, ca_file)
        except ValueError as error:
            raise CliError(str(error)) from error
        except OSError as error:
            raise CliError(f"{ca_file} is no file of CA certificates: {error}") from error
        key = pre_shared_key or noted.get("pre_shared_key", "")
        return cls(url, target, fleet or directory / FLEET_FILE, key, policy_keys)

    def check(self) -> Check | None:
        """What looks at the policies' signatures; without a key nothing does."""
        if self.policy_keys is None:
            return None
        # It brings the policies' schema along, which a run without keys does not need.
        from cli.sim.signature import Signatures  # noqa: PLC0415

        return Signatures.pinned(self.policy_keys)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of what."""

    devices: int
    seconds: float | None
    warm_up: float
    connections: int | None
    """`None` for one for each device."""
    rhythm: Rhythm
    ramp: float
    boot: bool
    backlog: float
    rate: float | None
    in_flight: int | None
    only: str
    events_per_batch: int
    stuck: int = 0
    """So many of the devices do not apply the policies that they get."""

    def checked(self) -> Plan:
        """The plan itself, when it can be carried out.

        Raises:
            CliError: it cannot; says which option is wrong.
        """
        own_rhythm = self.rate is None and self.in_flight is None
        if not 1 <= self.devices <= MAX_DEVICES:
            raise CliError(f"--devices is at least 1, and at most {MAX_DEVICES:,}")
        if self.rate is not None and self.in_flight is not None:
            raise CliError("take --rate (so many calls a second) or --in-flight (as fast as it"
                           " goes), not both")  # fmt: skip
        if self.only and (self.only not in _ONLY or own_rhythm):
            raise CliError(
                f"--only is one of {', '.join(_ONLY)}, and goes with --rate or --in-flight"
            )
        if not own_rhythm and (self.boot or self.backlog or self.rhythm.speed != 1.0):
            raise CliError("--boot, --backlog and --speed are about the devices' own clocks, which"
                           " --rate and --in-flight do not ask")  # fmt: skip
        if self.in_flight is not None and not 1 <= self.in_flight <= self.devices:
            raise CliError("--in-flight is at least 1, and at most one call for each of --devices")
        if self.rate is not None and self.rate <= 0:
            raise CliError("--rate is more than 0 calls a second")
        if self.rhythm.speed <= 0:
            raise CliError("--speed is more than 0; 10 makes a device as busy as ten")
        if not 0 <= self.rhythm.jitter < 1:
            raise CliError("--jitter is a share from 0 up to (not including) 1")
        if self.connections is not None and self.connections < 1:
            raise CliError("--connections is at least 1, or `each`")
        if not 0 <= self.stuck <= self.devices:
            raise CliError("--stuck is at most --devices")
        if not 1 <= self.events_per_batch <= 50_000:
            raise CliError("--events-per-batch is 1 to 50000")
        return self

    def title(self) -> str:
        """What it is, in some words."""
        what = _ONLY[self.only] if self.only else "the fleet's mix"
        if self.rate is not None:
            return f"{what}, {self.rate:g} calls/s"
        if self.in_flight is not None:
            return f"{what}, {self.in_flight} always in flight"
        speed = f", {self.rhythm.speed:g} times as fast" if self.rhythm.speed != 1 else ""
        if self.boot or self.backlog:
            away = f" after {self.backlog:g} s away" if self.backlog else ""
            when = f"within {self.ramp:g} s" if self.ramp else "at once"
            return f"all switched on {when}{away}{speed}"
        return f"each by its own clock{speed}"

    def traffic(self, client: Client, devices: list[Device], check: Check | None) -> Traffic:
        """The traffic of this plan."""
        kinds = {"poll": POLL, "state": STATE, "events": EVENTS}
        mix = {kinds[self.only]: 1} if self.only else FLEET_MIX
        seed = int.from_bytes(os.urandom(4))
        if self.rate is not None:
            return PacedTraffic(
                client, devices, self.rate, mix, stats=Stats(), check=check, seed=seed,
                events_per_batch=self.events_per_batch,
            )  # fmt: skip
        if self.in_flight is not None:
            return SaturatingTraffic(
                client, devices, self.in_flight, mix, stats=Stats(), check=check, seed=seed,
                events_per_batch=self.events_per_batch,
            )  # fmt: skip
        return FleetTraffic(
            client, devices, self.rhythm, ramp=self.ramp, steady=not self.boot,
            backlog=self.backlog, stats=Stats(), check=check, seed=seed,
            events_per_batch=self.events_per_batch,
        )  # fmt: skip
