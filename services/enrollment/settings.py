"""Enrollment's settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from servicekit.settings import ServiceSettings


class EnrollmentSettings(ServiceSettings):
    """The settings of the enrollment service."""

    bootstrap_enrollment_secret_file: Path | None = Field(
        default=None,
        description="File with the secret of an enrollment token for the organisation `default`;"
        " the token is made at the first start, and never again.",
    )
