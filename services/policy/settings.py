"""Policy's settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from servicekit.settings import ServiceSettings


class PolicySettings(ServiceSettings):
    """The settings of the policy service."""

    policy_secrets: Literal["open", "sealed"] = Field(
        default="open",
        description="How policies that hold secrets are stored from now on. sealed is for when"
        " 0.2.0, which cannot read it, runs no more.",
    )
