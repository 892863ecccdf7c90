"""Codes of authenticator apps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from servicekit.security import totp

_KEY = b"12345678901234567890"


@pytest.mark.parametrize(
    ("seconds", "code"),
    [
        (59, "287082"),
        (1111111109, "081804"),
        (1111111111, "050471"),
        (1234567890, "005924"),
        (2000000000, "279037"),
        (20000000000, "353130"),
    ],
)
def test_codes_are_those_of_the_rfc(seconds: int, code: str) -> None:
    """RFC 6238, appendix B, of which apps show the last six digits."""
    at = datetime.fromtimestamp(seconds, UTC)
    assert totp.code_at(_KEY, at) == code
    assert totp.step_of_code(_KEY, code, at) == seconds // 30


@pytest.mark.parametrize(
    ("seconds", "taken"), [(-61, False), (-30, True), (0, True), (30, True), (61, False)]
)
def test_a_clock_may_be_half_a_minute_off(seconds: int, taken: bool) -> None:
    """The code of the step before and of the next one are taken, no others."""
    now = datetime(2026, 1, 1, 12, 0, 15, tzinfo=UTC)
    code = totp.code_at(_KEY, now + timedelta(seconds=seconds))
    assert (totp.step_of_code(_KEY, code, now) is not None) is taken


@pytest.mark.parametrize("code", ["", "28708", "2870822", "28708\uff12", "abcdef", "2870 82"])
def test_what_is_no_code_fits_nothing(code: str) -> None:
    """Nor does it raise."""
    assert totp.step_of_code(_KEY, code, datetime.fromtimestamp(59, UTC)) is None


def test_a_key_is_shown_for_people_and_apps() -> None:
    """In base32, and as an address with the account's name."""
    key = totp.new_totp_key()
    assert len(key) == 20
    assert key != totp.new_totp_key()
    uri = totp.key_uri(key, "ann@school.example", "Evergreen")
    assert uri.startswith("otpauth://totp/Evergreen:ann%40school.example?")
    assert f"secret={totp.key_text(key)}" in uri
    assert "issuer=Evergreen" in uri
