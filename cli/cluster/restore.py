"""Restoring a release of the chart from a pod of its cluster: stop, restore, hand over, start.

Until the transaction that fills the database, everything is as it was, and a failure starts the
services again. After it everything is restored but for what is noted to be done. Whatever cuts it
short, at whatever moment: the same run goes on where it was, and a new one begins anew.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cli.backup.keys import SealedKeys
from cli.backup.places import connected
from cli.backup.procedure import Wanted, into_database, require_unused
from cli.backup.restore import is_finished, is_under_way
from cli.cluster.release import ClusterError, Release, ReleaseSecrets, Tell
from cli.errors import CliError

if TYPE_CHECKING:
    from cli.backup.aftermath import Outcome
    from cli.backup.verify import Verified
    from cli.migrate import Target

_PAUSE_SECONDS: Final = 1.0


class RefusedError(CliError):
    """Nothing was changed, and trying again would not help."""


async def start_again(release: Release, target: Target) -> None:
    """Starts the services that an earlier attempt stopped, unless it filled the database."""
    async with connected(target) as connection:
        if await is_under_way(connection):
            return
    release.start()


@dataclass(frozen=True, slots=True)
class ReleaseRestore:
    """What is restored, and where."""

    wanted: Wanted
    release: Release
    secrets: ReleaseSecrets
    target: Target
    tell: Tell

    async def run(self) -> tuple[Outcome, list[str]] | None:
        """Restores; answers what came of it, `None` where this run had restored it before.

        Raises:
            RefusedError: nothing was changed.
            CliError: the services run as before, or the same run has to go on.
        KubernetesError: likewise.
        """
        done = None
        if await self._is_finished():
            self.tell("The database is restored already; going on from there.")
        else:
            verified = await self._checked()
            self.tell("The archive is whole. Stopping the services ...")
            self.release.stop()
            done = await self._restored(verified)
        self.tell("Starting the services ...")
        self.release.start()
        self.release.restart_gateway(self.wanted.run)
        await self.release.until_ready()
        return done

    async def _is_finished(self) -> bool:
        async with connected(self.target) as connection:
            return await is_finished(connection, self.wanted.run)

    async def _checked(self) -> Verified:
        """Looks at everything that can be wrong, before anything is changed.

        Raises:
            RefusedError: something is, and nothing was changed.
            CliError: likewise, but the database was filled by then.
        KubernetesError: the cluster does not answer, or refuses.
        """
        try:
            verified = self.wanted.check()
            with self.secrets.master_key(b"") as key:
                SealedKeys(key)
            self.release.check()
            self.secrets.check()
        except ClusterError:
            raise
        except CliError as error:
            if await self._is_under_way():
                raise
            # An earlier attempt may have stopped them.
            await start_again(self.release, self.target)
            raise RefusedError(f"{error}. Nothing was changed") from error
        return verified

    async def _restored(self, verified: Verified) -> tuple[Outcome, list[str]]:
        try:
            await self.release.until_stopped()
            await self._until_unused()
            self.tell("Filling the database ...")
            return await into_database(self.wanted, self.secrets, self.target, verified)
        except Exception:
            if not await self._is_under_way():
                self.tell("That failed, and nothing was changed. Starting the services ...")
                self.release.start()
            raise

    async def _is_under_way(self) -> bool:
        async with connected(self.target) as connection:
            return await is_under_way(connection)

    async def _until_unused(self) -> None:
        """Waits for the last sessions of the services, which may outlive their pods."""
        give_up_at = time.monotonic() + self.release.seconds
        async with connected(self.target) as connection:
            while True:
                try:
                    return await require_unused(connection)
                except CliError:
                    if time.monotonic() > give_up_at:
                        raise
                await asyncio.sleep(_PAUSE_SECONDS)
