"""Times that options take."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cli.durations import later
from cli.errors import CliError

_AT = datetime(2026, 8, 31, 7, 0, 0, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("", ""),
        ("90m", "2026-08-31T08:30:00+00:00"),
        ("12h", "2026-08-31T19:00:00+00:00"),
        (" 30d ", "2026-09-30T07:00:00+00:00"),
        ("2w", "2026-09-14T07:00:00+00:00"),
        ("2026-12-31", "2026-12-31T00:00:00+00:00"),
        ("2026-12-31T18:00:00+01:00", "2026-12-31T18:00:00+01:00"),
    ],
)
def test_how_long_from_now_or_when(text: str, at: str) -> None:
    """Nothing stays nothing; a day begins at midnight, and what has no offset is in UTC."""
    assert later(text, "--expires", _AT) == at


@pytest.mark.parametrize("text", ["30", "-3d", "1.5d", "3y", "soon", "2026-02-30", "9" * 9 + "w"])
def test_other_times_are_refused(text: str) -> None:
    """With the option, examples, and what was given."""
    with pytest.raises(CliError) as told:
        later(text, "--expires", _AT)
    assert str(told.value).startswith("--expires is how long from now, like 30d or 12h")
    assert str(told.value).endswith(f"not {text!r}")
