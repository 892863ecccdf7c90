"""Times from outside, and times in the database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest

from servicekit.times import (
    BEGINNING,
    END,
    RULE,
    format_rfc3339,
    from_microseconds,
    from_text,
    in_utc,
    parse_rfc3339,
    to_microseconds,
)
from tests.support.zones import ZONES, time_zone

_DAY = 86_400_000_000


@pytest.fixture(params=ZONES)
def zone(request: pytest.FixtureRequest) -> Iterator[str]:
    """The time zone of this process."""
    with time_zone(request.param) as name:
        yield name


@pytest.mark.parametrize(
    "text",
    [
        "0001-01-01T00:00:00Z",
        "0001-01-01T00:00:01Z",
        "1969-12-31T23:59:59.999999Z",
        "1970-01-01T00:00:00+00:01",
        "9999-12-31T00:00:00Z",
        "9999-12-31T23:59:59.999999Z",
        "9999-12-31T23:59:60Z",
        "9999-12-31T23:59:59-23:59",
        "0001-01-01T00:00:00+23:59",
    ],
)
@pytest.mark.usefixtures("zone")
def test_times_out_of_range_are_refused_with_the_rule(text: str) -> None:
    """In every time zone; an offset that leads beyond what Python has is no other fault."""
    with pytest.raises(ValueError, match=RULE):
        parse_rfc3339(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-11-24",
        "2026-11-24T06:00:00",
        "2026-02-30T06:00:00Z",
        "2026-11-24T24:01:00Z",
        "2026-11-24T06:00:00+24:00",
        "2026-11-24T06:00:61Z",
        "\u0662026-11-24T06:00:00Z",
        None,
        1e300,
    ],
)
def test_what_is_no_time_is_refused(text: object) -> None:
    """With the form that it must have."""
    with pytest.raises(ValueError, match="RFC 3339"):
        parse_rfc3339(text)


@pytest.mark.usefixtures("zone")
def test_a_leap_second_is_the_second_behind_it() -> None:
    """RFC 3339 has it, `datetime` has not."""
    assert parse_rfc3339("2016-12-31T23:59:60.5Z") == datetime(2017, 1, 1, 0, 0, 0, 500_000, UTC)
    assert parse_rfc3339("1970-01-01T00:00:00Z") == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (datetime.min, "0001-01-01T00:00:00Z"),  # noqa: DTZ901 - what asyncpg makes of -infinity
        (datetime.max, "9999-12-31T23:59:59.999999Z"),  # noqa: DTZ901 - of infinity
        (datetime(2026, 11, 24, 6), "2026-11-24T06:00:00Z"),  # noqa: DTZ001 - without an offset
        (datetime(2026, 11, 24, 6, tzinfo=timezone(timedelta(hours=2))), "2026-11-24T04:00:00Z"),
        (datetime.min.replace(tzinfo=timezone(timedelta(hours=2))), "0001-01-01T00:00:00Z"),
        (datetime.max.replace(tzinfo=timezone(-timedelta(hours=2))), "9999-12-31T23:59:59.999999Z"),
    ],
)
@pytest.mark.usefixtures("zone")
def test_every_time_can_be_written(value: datetime, text: str) -> None:
    """Whatever is in a database; `TZ` changes nothing."""
    assert format_rfc3339(value) == text
    assert in_utc(value).tzinfo is UTC


@pytest.mark.parametrize(
    ("microseconds", "read"),
    [
        (-(1 << 63), BEGINNING),
        ((1 << 63) - 1, END),
        (-900_000 * _DAY, BEGINNING),
        (9_000_000 * _DAY, END - timedelta(microseconds=1)),
        (0, datetime(2000, 1, 1, tzinfo=UTC)),
        (-1, datetime(1999, 12, 31, 23, 59, 59, 999_999, UTC)),
    ],
)
@pytest.mark.usefixtures("zone")
def test_whatever_postgresql_holds_is_read(microseconds: int, read: datetime) -> None:
    """Infinities, and years before 1 and after 9999; and a list goes on behind each of them."""
    assert from_microseconds((microseconds,)) == read
    (written,) = to_microseconds(read)
    assert written == microseconds or abs(written) >= _DAY
    assert from_microseconds((written,)) == read


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("-infinity", BEGINNING),
        ("infinity", END),
        ("0044-03-15 00:00:00+00 BC", BEGINNING),
        ("20000-01-01 00:00:00+00", END - timedelta(microseconds=1)),
        ("2026-11-24 06:00:00.5+00", datetime(2026, 11, 24, 6, 0, 0, 500_000, UTC)),
    ],
)
def test_a_backup_holds_whatever_the_database_held(text: str, read: datetime) -> None:
    """And can be verified all the same."""
    assert from_text(text) == read


def test_a_time_without_an_offset_is_not_written() -> None:
    """It would be taken for the time of this machine's zone."""
    with pytest.raises(ValueError, match="offset"):
        to_microseconds(datetime(2026, 1, 1))  # noqa: DTZ001 - that is the fault
