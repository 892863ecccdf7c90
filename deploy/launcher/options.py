"""What a person may choose: the environment variables of `make run`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from deploy.launcher.errors import LauncherError


class Options(BaseSettings):
    """The launcher's settings, from variables that start with `EVERGREEN_`."""

    model_config = SettingsConfigDict(env_prefix="EVERGREEN_", frozen=True, extra="ignore")

    home: Path = Field(default=Path(".evergreen"), description="Where the state lives.")
    port: int = Field(default=8443, ge=1, le=65535, description="The gateway's port.")
    admin_email: str = Field(
        default="owner@localhost", description="The first Owner; used on the first start."
    )
    admin_password: str = Field(
        default="", description="The first Owner's password; made when empty.", repr=False
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="How the terminal shows events: for people or as JSON."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least level that is logged."
    )


def read() -> Options:
    """The settings of this start.

    Raises:
        LauncherError: a variable does not hold what it should.
    """
    try:
        return Options()
    except ValidationError as error:
        problems = [
            f"EVERGREEN_{str(problem['loc'][0]).upper()}: {problem['msg']}"
            for problem in error.errors(include_input=False)
        ]
        raise LauncherError("; ".join(problems), advice="Correct the environment.") from None
