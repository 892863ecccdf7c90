"""Enrollment's rules: keys, serial numbers, and what becomes of an application."""

from __future__ import annotations

import hashlib
import string
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.errors import Code, DomainError
from servicekit.security.tokens import new_secret, secret_hash
from servicekit.serials import as_printed
from services.enrollment.admission.domain import Application, Decision, Outcome, decide
from services.enrollment.registry.domain import (
    Device,
    Hardware,
    Status,
    allow_reenrollment,
    approve,
    decommission,
    prepare,
    reject,
)
from services.enrollment.serials import clean_serial, clean_serials
from services.enrollment.tokens.domain import EnrollmentToken
from services.enrollment.tokens.keys import (
    PreSharedKey,
    parse_pre_shared_key,
)

NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
TOKEN = EnrollmentToken(
    id=UUID(int=1),
    tenant_id=UUID(int=2),
    name="Batch",
    created_at=NOW - HOUR,
    expires_at=NOW + HOUR,
    max_uses=0,
    uses=0,
    serial_count=0,
    require_approval=False,
)
ASKED = Application(PreSharedKey("school", b"h" * 32), "SN-1", Hardware("model", "cpu", 4, 5, True))
NEW_ID = UUID(int=9)


def judge(
    known: Device | None = None,
    token: EnrollmentToken = TOKEN,
    asked: Application = ASKED,
    *,
    listed: bool = True,
    at: datetime = NOW,
) -> Decision:
    return decide(asked, token, known, listed=listed, new_id=NEW_ID, at=at)


def admitted(**more: Any) -> Device:
    """A device that TOKEN let in, changed as given."""
    device = judge().device
    assert device is not None
    return replace(device, **more)


def why(decision: Decision) -> str | None:
    return decision.error.reason if decision.error else None


def refused_with(error: pytest.ExceptionInfo[DomainError], code: Code, reason: str) -> bool:
    return (error.value.code, error.value.reason) == (code, reason)


# Keys


@pytest.mark.parametrize("text", ["school:secret", " school:secret", "school:secret\r\n"])
def test_a_key_is_a_code_and_a_secret(text: str) -> None:
    """Blanks around it come from copying."""
    assert parse_pre_shared_key(text) == PreSharedKey("school", secret_hash("secret"))


def test_a_secret_may_hold_a_colon() -> None:
    """Codes cannot."""
    assert parse_pre_shared_key("school:a:b").secret_hash == secret_hash("a:b")


@pytest.mark.parametrize("text", ["", " ", ":", "school", "school:", ":secret", " : "])
def test_anything_else_is_a_wrong_key(text: str) -> None:
    """It looks like a wrong secret."""
    with pytest.raises(DomainError) as error:
        parse_pre_shared_key(text)
    assert refused_with(error, Code.PERMISSION_DENIED, "ENROLLMENT_REFUSED")


def test_secrets_are_long_random_and_safe_in_a_url() -> None:
    """256 bits, new each time."""
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    alphabet = set(string.ascii_letters + string.digits + "-_")
    assert all(len(secret) == 43 and set(secret) <= alphabet for secret in secrets)


def test_a_hash_is_sha256() -> None:
    """So that it can be looked up."""
    assert secret_hash("a") == hashlib.sha256(b"a").digest()


# Serial numbers


@given(st.text(st.characters(blacklist_categories=("Cc", "Cs")), min_size=1, max_size=128))
def test_a_serial_is_shown_as_it_is_but_for_blanks_around_it(serial: str) -> None:
    """No case is folded, nothing inside is changed; cleaning twice is cleaning once."""
    try:
        cleaned = clean_serial(serial)
    except DomainError as error:
        assert error.code is Code.INVALID_ARGUMENT
        return
    assert cleaned == as_printed(serial)
    assert clean_serial(cleaned) == cleaned


@pytest.mark.parametrize(
    "serial",
    ["", " ", "0", "000000", "To be filled by O.E.M.", " default STRING ", "None", "N/A"],
)
def test_a_placeholder_is_no_serial(serial: str) -> None:
    """Many devices share it: it would make one device of them."""
    with pytest.raises(DomainError) as error:
        clean_serial(serial)
    assert error.value.violations[0].field == "serial"


@pytest.mark.parametrize("serial", ["recovered:1", " Recovered:x", "retired:1"])
def test_a_name_of_the_registry_is_no_serial(serial: str) -> None:
    """It calls devices so whose serial number it does not know."""
    with pytest.raises(DomainError) as error:
        clean_serial(serial)
    assert error.value.violations[0].field == "serial"


@pytest.mark.parametrize("serial", ["1", "00010", "None-1", "5CD1234XYZ", "é", "recovered-1"])
def test_what_looks_alike_is_one(serial: str) -> None:
    """Only what firmware is known to report is refused."""
    assert clean_serial(serial) == serial


def test_a_list_of_serials_holds_each_once() -> None:
    """In the order given."""
    assert clean_serials(["B", " A", "B ", "A"]) == ["B", "A"]


@pytest.mark.parametrize("bad", ["", "a\tb", "a\x7fb", "\t\x00", "unknown"])
def test_a_bad_serial_in_a_list_is_named_by_its_place(bad: str) -> None:
    """The field is the item."""
    with pytest.raises(DomainError) as error:
        clean_serials(["A", bad])
    assert error.value.violations[0].field == "serials[1]"


# Applications


def test_a_new_device_is_active_at_once() -> None:
    """And counts as a use."""
    decision = judge()
    assert (decision.outcome, decision.counts, decision.error) == (Outcome.ADMITTED, True, None)
    device = decision.device
    assert device is not None
    assert (device.id, device.status, device.token_version) == (NEW_ID, Status.ACTIVE, 1)
    assert device.enrolled_at == NOW


def test_a_token_with_approval_holds_a_new_device() -> None:
    """It is registered, counts, and is told to come again."""
    decision = judge(token=replace(TOKEN, require_approval=True))
    assert (decision.outcome, decision.counts) == (Outcome.HELD, True)
    assert why(decision) == "AWAITING_APPROVAL"
    assert decision.error is not None
    assert decision.error.code is Code.PERMISSION_DENIED
    assert decision.error.retry_after is not None
    assert decision.device is not None
    assert (decision.device.status, decision.device.enrolled_at) == (Status.PENDING, None)


@pytest.mark.parametrize(
    ("token", "listed", "reason"),
    [
        (replace(TOKEN, revoked_at=NOW), True, "TOKEN_REVOKED"),
        (replace(TOKEN, expires_at=NOW), True, "TOKEN_EXPIRED"),
        (TOKEN, False, "SERIAL_NOT_LISTED"),
        (replace(TOKEN, max_uses=3, uses=3), True, "TOKEN_USED_UP"),
    ],
)
def test_a_closed_token_admits_nobody(token: EnrollmentToken, listed: bool, reason: str) -> None:
    """Each for its own reason, and nothing is written."""
    decision = judge(token=token, listed=listed)
    assert (decision.outcome, why(decision)) == (Outcome.REFUSED, reason)
    assert decision.device is None
    assert not decision.counts
    # The same for a known device that may enroll again, except that it is not one more use.
    allowed = admitted(reenrollment_allowed_until=NOW + HOUR)
    again = judge(allowed, token, listed=listed)
    assert why(again) == (None if reason == "TOKEN_USED_UP" else reason)


def test_a_retry_is_answered_without_a_use() -> None:
    """Also when the token has expired, is used up, or has a list now that lacks the serial."""
    closed = replace(TOKEN, expires_at=NOW, max_uses=1, uses=1)
    known = admitted()
    decision = judge(known, closed, listed=False)
    assert (decision.outcome, decision.counts) == (Outcome.REPEATED, False)
    assert decision.device is known


def test_a_retry_with_a_revoked_token_is_refused() -> None:
    """Who revokes a token means everybody who holds it."""
    assert why(judge(admitted(), replace(TOKEN, revoked_at=NOW))) == "TOKEN_REVOKED"


@pytest.mark.parametrize("field", [field.name for field in fields(Hardware)])
def test_a_retry_is_the_same_in_every_field(field: str) -> None:
    """Any other value is somebody else."""
    value = getattr(ASKED.hardware, field)
    other = not value if isinstance(value, bool) else value + type(value)(1)
    asked = replace(ASKED, hardware=replace(ASKED.hardware, **{field: other}))
    decision = judge(admitted(), asked=asked)
    assert (decision.outcome, why(decision)) == (Outcome.TAKEN, "DEVICE_ALREADY_ENROLLED")
    assert decision.error is not None
    assert decision.error.code is Code.ALREADY_EXISTS


def test_a_retry_is_with_the_same_token() -> None:
    """Another token of the organisation makes it another enrollment."""
    assert judge(admitted(), replace(TOKEN, id=UUID(int=7))).outcome is Outcome.TAKEN


@given(st.text(), st.text(), st.text(), st.text())
def test_fingerprints_keep_fields_apart(one: str, two: str, three: str, four: str) -> None:
    """Text cannot move from one field to the next unnoticed."""
    first = replace(ASKED, hardware=replace(ASKED.hardware, model=one, cpu_model=two))
    second = replace(ASKED, hardware=replace(ASKED.hardware, model=three, cpu_model=four))
    same = (one, two) == (three, four)
    assert (first.fingerprint(TOKEN.id) == second.fingerprint(TOKEN.id)) == same


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (Status.PENDING, "AWAITING_APPROVAL"),
        (Status.REJECTED, "DEVICE_REJECTED"),
        (Status.DECOMMISSIONED, "DEVICE_DECOMMISSIONED"),
    ],
)
def test_a_device_that_is_not_in_gets_nothing_by_a_retry(status: Status, reason: str) -> None:
    """Not even for the identical request."""
    decision = judge(admitted(status=status))
    assert (decision.outcome, why(decision)) == (Outcome.REFUSED, reason)


def test_refused_attempts_are_told_once_an_hour() -> None:
    """Each is noted, so that an administrator sees the latest."""
    asked = replace(ASKED, hardware=Hardware())
    first = judge(admitted(), asked=asked).device
    assert first is not None
    assert (first.reenrollment_refused_at, first.refusal_told_at) == (NOW, NOW)
    second = judge(first, asked=asked, at=NOW + HOUR / 2).device
    assert second is not None
    assert (second.reenrollment_refused_at, second.refusal_told_at) == (NOW + HOUR / 2, NOW)
    third = judge(second, asked=asked, at=NOW + HOUR).device
    assert third is not None
    assert third.refusal_told_at == NOW + HOUR


@pytest.mark.parametrize("status", sorted(set(Status) - {Status.PENDING, Status.EXPECTED}))
def test_an_allowed_device_gets_in_again_with_newer_tokens(status: Status) -> None:
    """Whatever it was; its permission is used up by it."""
    known = allow_reenrollment(admitted(status=status, decommissioned_at=NOW), NOW)
    asked = replace(ASKED, hardware=Hardware(model="new"))
    decision = judge(known, asked=asked, at=NOW + HOUR / 2)
    assert decision.outcome is Outcome.READMITTED
    device = decision.device
    assert device is not None
    assert (device.id, device.status, device.token_version) == (NEW_ID, Status.ACTIVE, 2)
    assert device.hardware.model == "new"
    assert (device.decommissioned_at, device.reenrollment_allowed_until) == (None, None)
    assert judge(device, asked=asked, at=NOW + HOUR / 2).outcome is Outcome.REPEATED
    assert judge(device, at=NOW + HOUR / 2).outcome is Outcome.TAKEN


def test_enrolling_again_counts_for_another_token_only() -> None:
    """A token's uses are devices, not attempts."""
    known = allow_reenrollment(admitted(), NOW)
    assert not judge(known).counts
    other = replace(TOKEN, id=UUID(int=7), max_uses=1)
    assert judge(known, other).counts
    assert why(judge(known, replace(other, uses=1))) == "TOKEN_USED_UP"


def test_the_permission_lasts_a_day() -> None:
    """Its end is exclusive."""
    known = allow_reenrollment(admitted(), NOW)
    day = timedelta(days=1)
    assert known.may_reenroll(NOW + day - timedelta(microseconds=1))
    assert not known.may_reenroll(NOW + day)


# Administrators


@pytest.mark.parametrize("status", list(Status))
def test_decisions_about_a_device_that_waits(status: Status) -> None:
    """Only from `pending`; a repeated decision changes nothing."""
    device = admitted(status=status)
    for change, goal in (
        (lambda d: approve(d, NOW + HOUR), Status.ACTIVE),
        (reject, Status.REJECTED),
    ):
        if status is goal:
            assert change(device) == device
        elif status is Status.PENDING:
            assert change(device).status is goal
        else:
            with pytest.raises(DomainError) as error:
                change(device)
            assert refused_with(error, Code.FAILED_PRECONDITION, "DEVICE_NOT_PENDING")


@pytest.mark.parametrize("status", sorted(set(Status) - {Status.EXPECTED}))
def test_every_device_can_be_decommissioned(status: Status) -> None:
    """For good; the second time changes nothing, and the time of the first one stays."""
    since = NOW if status is Status.DECOMMISSIONED else None
    once = decommission(admitted(status=status, decommissioned_at=since), NOW)
    assert (once.status, once.decommissioned_at) == (Status.DECOMMISSIONED, NOW)
    assert decommission(once, NOW + HOUR) == once
    allowed = allow_reenrollment(once, NOW)
    withdrawn = decommission(allowed, NOW + HOUR)
    assert withdrawn == once


def test_preparing_a_known_device_needs_a_permission() -> None:
    """Then it keeps its id, and its tokens are newer."""
    fresh = Device(
        UUID(int=8), UUID(int=2), "SN-1", Hardware(), Status.PREPARED, 1, None, None, NOW
    )
    assert prepare(None, fresh, NOW) is fresh
    with pytest.raises(DomainError) as error:
        prepare(admitted(), fresh, NOW)
    assert refused_with(error, Code.ALREADY_EXISTS, "DEVICE_ALREADY_ENROLLED")
    device = prepare(allow_reenrollment(admitted(), NOW), fresh, NOW)
    assert (device.id, device.status, device.token_version) == (NEW_ID, Status.PREPARED, 2)
    assert device.hardware.model == "model"
    # A retry of its former life is not known any more.
    assert judge(device).outcome is Outcome.TAKEN


def test_the_status_of_a_token() -> None:
    """Revoked before expired before used up."""
    token = replace(TOKEN, max_uses=1)
    assert token.status(NOW) == "active"
    token = replace(token, uses=1)
    assert token.status(NOW) == "used_up"
    assert token.status(TOKEN.expires_at) == "expired"
    assert replace(token, revoked_at=NOW).status(TOKEN.expires_at) == "revoked"
