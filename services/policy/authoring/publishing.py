"""How something is published, and what rollouts have to say about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol
from uuid import UUID

from servicekit.call import Call
from servicekit.data.postgres import Connection
from services.policy.authoring.domain import Policy
from services.policy.versions import Version


@dataclass(frozen=True, slots=True)
class Publishing:
    """How a policy is to be published."""

    plan: object = field(default=None, repr=False)
    """How it comes to devices, as rollouts have it; `None` for as the tenant publishes usually."""
    at_once: bool = False
    """Whether it comes to all at once, whatever plan the tenant publishes by usually."""
    urgent: bool = False
    """Whether freezes and windows do not count."""
    supersede: bool = False
    """Whether a rollout that runs is ended for it."""
    keeps_rollouts: bool = False
    """Whether it is refused, also without a plan, while a rollout for the same devices runs."""
    note: str = ""
    starts_at: datetime | None = None


class Stages(Protocol):
    """Versions that come to devices in batches."""

    async def plan_for(
        self, connection: Connection, policy: Policy, publishing: Publishing
    ) -> object:
        """How a version is to come to devices; `None` for to all at once.

        Raises:
            DomainError: FAILED_PRECONDITION in a freeze; INVALID_ARGUMENT for a plan that cannot
                be.
        """

    async def check_free(self, connection: Connection, policy: Policy) -> None:
        """Checks that no rollout runs for the devices of a policy. The org's counter is locked.

        Raises:
            DomainError: FAILED_PRECONDITION for a rollout, unless it is of the policy and waits for
                its first approval.
        """

    async def begin(
        self,
        connection: Connection,
        call: Call,
        policy: Policy,
        version: Version,
        plan: object,
        publishing: Publishing,
    ) -> UUID:
        """Rolls a stored version out; answers the rollout's id. The org's counter is locked.

        Raises:
            DomainError: FAILED_PRECONDITION when another rollout is in the way.
        """

    async def make_way(
        self, connection: Connection, policy: Policy, *, for_publish: bool = True
    ) -> bool:
        """Ends the rollouts of a policy; for a publish also those for the same devices.

        Answers whether there were any. The org's counter is locked.
        """

    async def is_live(self, connection: Connection, policy: Policy) -> bool:
        """Whether devices have or get a version of the policy from a rollout."""

    async def check_withdrawal(
        self, connection: Connection, policy: Policy, *, urgent: bool
    ) -> None:
        """Refuses to take a policy from devices in a freeze.

        Raises:
            DomainError: FAILED_PRECONDITION.
        """

    async def goes_on(self, connection: Connection, policy: Policy, *, urgent: bool) -> bool:
        """Whether a rollout of the policy waits for its batches or goes through them.

        Args:
            urgent: whether freezes and windows must not count for it.
        """

    async def waits(self, connection: Connection, policy: Policy) -> bool:
        """Whether a version of the policy waits for its first approval."""

    async def brings(self, connection: Connection, policy: Policy) -> int | None:
        """The version of the policy that is on its way to devices; `None` for none."""
