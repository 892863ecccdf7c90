"""Enrollment tokens: what administrators do with them, and the one of the first start."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from contract.access import Role
from evergreen.v1 import enrollment_pb2 as pb
from servicekit.times import format_rfc3339
from services.enrollment.first_start import FirstStart
from tests.conftest import tenant
from tests.support import callers
from tests.support.enrollment import ORG, OTHER, RESELLER, ROOT, Enrollment, reason, service
from tests.support.refusals import refusal

__all__ = ["service"]


def _stamp(at: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp


async def test_the_secret_is_answered_once(service: Enrollment) -> None:
    """The answer to the creation holds it; every other answer shows the token without it."""
    token = await service.token(max_uses=5, serials=["B", " A ", "B"], require_approval=True)
    assert token.pre_shared_key == f"school:{token.secret}"
    assert len(token.secret) >= 43
    shown = await service.tokens.GetEnrollmentToken(
        pb.GetEnrollmentTokenRequest(id=token.id), metadata=service.admin
    )
    listed = await service.tokens.ListEnrollmentTokens(
        pb.ListEnrollmentTokensRequest(), metadata=service.admin
    )
    assert list(listed.enrollment_tokens) == [shown]
    assert not shown.HasField("secret")
    assert not shown.HasField("pre_shared_key")
    assert (shown.name, shown.max_uses, shown.uses) == ("Batch", 5, 0)
    assert sorted(shown.serials) == ["A", "B"]
    assert shown.require_approval
    assert shown.status == "active"
    life = shown.expires_at.ToDatetime() - shown.created_at.ToDatetime()
    assert life == timedelta(days=90)
    (event,) = await service.events("token_created")
    assert event["actor"] == "admin@school.example"
    assert event["resource"] == f"enrollment-tokens/{token.id}"
    assert event["after"] == {
        "name": "Batch",
        "orgId": str(ORG.id),
        "expiresAt": format_rfc3339(shown.expires_at.ToDatetime(tzinfo=UTC)),
        "maxUses": 5,
        "uses": 0,
        "serialCount": 2,
        "requireApproval": True,
        "revokedAt": None,
        "labels": {},
        "groupIds": [],
        "onlyExpected": False,
        "policyKeyId": "",
    }


async def test_the_status_says_whether_a_token_admits(service: Enrollment) -> None:
    """Revoked before expired before used up."""

    async def status() -> str:
        found = await service.tokens.GetEnrollmentToken(
            pb.GetEnrollmentTokenRequest(id=token.id), metadata=service.admin
        )
        return str(found.status)

    token = await service.token(max_uses=1)
    assert await status() == "active"
    await service.enrolled(token.pre_shared_key)
    assert await status() == "used_up"
    await service.sql("UPDATE enrollment.token SET expires_at = now()")
    assert await status() == "expired"
    for _ in range(2):  # the second time changes nothing
        found = await service.tokens.RevokeEnrollmentToken(
            pb.RevokeEnrollmentTokenRequest(id=token.id), metadata=service.admin
        )
        assert found.status == "revoked"
    (event,) = await service.events("token_revoked")
    assert event["before"]["revokedAt"] is None
    assert event["after"]["revokedAt"] == found.revoked_at.ToJsonString()


async def test_a_list_goes_on_where_it_stopped(service: Enrollment) -> None:
    """Newest first, in pages, without gaps or repetitions."""
    made = [(await service.token(name=f"n{n}")).id for n in range(5)]
    found: list[str] = []
    page = ""
    while True:
        answer = await service.tokens.ListEnrollmentTokens(
            pb.ListEnrollmentTokensRequest(page_size=2, page_token=page), metadata=service.admin
        )
        found += [token.id for token in answer.enrollment_tokens]
        page = answer.next_page_token
        if not page:
            break
    assert found == made[::-1]


async def test_a_page_with_long_serial_lists_ends_early(service: Enrollment) -> None:
    """Ten thousand serial numbers a token: an answer stays within measure."""
    serials = [f"SN-{n:06}" for n in range(10_000)]
    for _ in range(3):
        await service.token(serials=serials)
    answer = await service.tokens.ListEnrollmentTokens(
        pb.ListEnrollmentTokensRequest(), metadata=service.admin
    )
    assert [len(t.serials) for t in answer.enrollment_tokens] == [10_000, 10_000]
    rest = await service.tokens.ListEnrollmentTokens(
        pb.ListEnrollmentTokensRequest(page_token=answer.next_page_token), metadata=service.admin
    )
    assert [len(t.serials) for t in rest.enrollment_tokens] == [10_000]
    assert rest.next_page_token == ""


async def test_a_long_serial_list_admits_each_of_them(service: Enrollment) -> None:
    """The last of ten thousand as well as the first, and no other."""
    token = await service.token(serials=[f"SN-{n:06}" for n in range(10_000)])
    await service.enrolled(token.pre_shared_key, "SN-009999")
    await service.enrolled(token.pre_shared_key, "SN-000000")
    assert reason(await service.enroll(token.pre_shared_key, "SN-010000")) == "SERIAL_NOT_LISTED"


FAR = datetime.now(UTC) + timedelta(days=4000)


BAD_TOKENS: list[tuple[str, dict[str, Any]]] = [
    ("orgId", {"org_id": ""}),
    ("orgId", {"org_id": "school"}),
    ("orgId", {"org_id": str(RESELLER.id)}),
    ("name", {"name": ""}),
    ("name", {"name": "n" * 201}),
    ("name", {"name": "a\x00b"}),
    ("maxUses", {"max_uses": -1}),
    ("maxUses", {"max_uses": 1_000_001}),
    ("serials", {"serials": [str(n) for n in range(10_001)]}),
    ("serials[1]", {"serials": ["A", "x" * 129]}),
    ("serials[1]", {"serials": ["A", " "]}),
    ("serials[0]", {"serials": ["a\nb"]}),
    ("serials[0]", {"serials": ["Default string"]}),
    ("expiresAt", {"expires_at": _stamp(datetime(2020, 1, 1, tzinfo=UTC))}),
    ("expiresAt", {"expires_at": _stamp(FAR)}),
    ("expiresAt", {"expires_at": Timestamp(seconds=-1)}),
    ("expiresAt", {"expires_at": Timestamp(seconds=1 << 60)}),
]


async def test_bad_input_names_its_field(service: Enrollment) -> None:
    """Every field of a new token is checked."""
    for field, more in BAD_TOKENS:
        request = pb.CreateEnrollmentTokenRequest(
            **{"org_id": str(ORG.id), "name": "Batch", **more}
        )
        found = await refusal(
            service.tokens.CreateEnrollmentToken(request, metadata=callers.user(ROOT.id))
        )
        assert found.code is grpc.StatusCode.INVALID_ARGUMENT, more
        assert field in found.fields
    assert await service.sql("SELECT FROM enrollment.token") == []


BAD_QUESTIONS: list[tuple[str, Any, str]] = [
    ("ListEnrollmentTokens", pb.ListEnrollmentTokensRequest(org_id="x"), "orgId"),
    ("ListEnrollmentTokens", pb.ListEnrollmentTokensRequest(page_size=-1), "pageSize"),
    ("ListEnrollmentTokens", pb.ListEnrollmentTokensRequest(page_size=501), "pageSize"),
    ("ListEnrollmentTokens", pb.ListEnrollmentTokensRequest(page_token="%"), "pageToken"),
    ("ListEnrollmentTokens", pb.ListEnrollmentTokensRequest(page_token="WzFd"), "pageToken"),
    ("GetEnrollmentToken", pb.GetEnrollmentTokenRequest(), "id"),
    ("GetEnrollmentToken", pb.GetEnrollmentTokenRequest(id="1"), "id"),
    ("RevokeEnrollmentToken", pb.RevokeEnrollmentTokenRequest(id="\x00"), "id"),
]


async def test_bad_questions_name_their_field(service: Enrollment) -> None:
    """The other calls check theirs too."""
    for method, request, field in BAD_QUESTIONS:
        found = await refusal(getattr(service.tokens, method)(request, metadata=service.admin))
        assert found.code is grpc.StatusCode.INVALID_ARGUMENT, request
        assert found.fields == [field]


async def test_organisations_do_not_meet(service: Enrollment) -> None:
    """Another organisation's tokens look as if they did not exist, whatever is tried."""
    token = await service.token()
    stranger = callers.user(OTHER.id)
    for call in (
        service.tokens.GetEnrollmentToken(
            pb.GetEnrollmentTokenRequest(id=token.id), metadata=stranger
        ),
        service.tokens.RevokeEnrollmentToken(
            pb.RevokeEnrollmentTokenRequest(id=token.id), metadata=stranger
        ),
        service.tokens.ListEnrollmentTokens(
            pb.ListEnrollmentTokensRequest(org_id=str(ORG.id)), metadata=stranger
        ),
        service.tokens.CreateEnrollmentToken(
            pb.CreateEnrollmentTokenRequest(org_id=str(ORG.id), name="x"), metadata=stranger
        ),
    ):
        assert (await refusal(call)).code is grpc.StatusCode.NOT_FOUND
    for who, sees in ((OTHER, 0), (ORG, 1), (RESELLER, 1), (ROOT, 1)):
        answer = await service.tokens.ListEnrollmentTokens(
            pb.ListEnrollmentTokensRequest(), metadata=callers.user(who.id, Role.AUDITOR)
        )
        assert len(answer.enrollment_tokens) == sees
    assert await service.events("revoked") == []


async def test_auditors_only_read(service: Enrollment) -> None:
    """Writes of an Auditor are refused."""
    token = await service.token()
    auditor = callers.user(ORG.id, Role.AUDITOR)
    for call in (
        service.tokens.RevokeEnrollmentToken(
            pb.RevokeEnrollmentTokenRequest(id=token.id), metadata=auditor
        ),
        service.tokens.CreateEnrollmentToken(
            pb.CreateEnrollmentTokenRequest(org_id=str(ORG.id), name="x"), metadata=auditor
        ),
    ):
        assert (await refusal(call)).code is grpc.StatusCode.PERMISSION_DENIED


async def test_row_security_hides_other_organisations(service: Enrollment) -> None:
    """A statement without its WHERE still sees only the transaction's organisations."""
    token = await service.token(serials=["SN-1"])
    await service.enrolled(token.pre_shared_key)
    tables = ("token", "token_serial", "device")
    for org, sees in ((ORG, 1), (OTHER, 0)):
        scope = service.kit.tenants.scope(org.id)
        async with service.kit.database.transaction(scope) as connection:
            for table in tables:
                count = await connection.fetchval(f"SELECT count(*) FROM enrollment.{table}")
                assert count == sees, table


SECRET = "s" * 43


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    return path


def _first_start(service: Enrollment, secret_file: Path | None) -> FirstStart:
    kit = service.kit
    return FirstStart(secret_file, kit.database, kit.outbox, kit.tenants, kit.clock)


async def test_the_first_start_makes_its_token_when_identity_knows_the_organisation(
    service: Enrollment, secret_file: Path
) -> None:
    """Not before, once, and never again after it was revoked."""
    first = _first_start(service, secret_file)
    assert not await first.attempt()
    default = tenant(9, ROOT, "org", "default")
    service.neighbours.identity.tenants.append(default)
    assert await first.attempt()
    found = await service.enrolled(f"default:{SECRET}")
    assert found["device_token"].split("/")[1] == str(default.id)
    (row,) = await service.sql("SELECT id, expires_at - created_at AS life FROM enrollment.token")
    assert row["life"] == timedelta(days=3653)
    (event,) = await service.events("token_created")
    assert (event["actor"], event["tenantId"]) == ("system", str(default.id))
    await service.tokens.RevokeEnrollmentToken(
        pb.RevokeEnrollmentTokenRequest(id=str(row["id"])), metadata=callers.user(ROOT.id)
    )
    # As after a restart.
    assert await _first_start(service, secret_file).attempt()
    assert len(await service.sql("SELECT FROM enrollment.token")) == 1
    assert reason(await service.enroll(f"default:{SECRET}", "SN-2")) == "TOKEN_REVOKED"


async def test_processes_that_start_together_make_one_token(
    service: Enrollment, secret_file: Path
) -> None:
    """Replicas take turns."""
    service.neighbours.identity.tenants.append(tenant(9, ROOT, "org", "default"))
    done = await asyncio.gather(*(_first_start(service, secret_file).attempt() for _ in range(4)))
    assert all(done)
    assert len(await service.sql("SELECT FROM enrollment.token")) == 1


async def test_without_a_secret_there_is_nothing_to_make(service: Enrollment) -> None:
    """An installation that wants no such token sets no file."""
    assert await _first_start(service, None).attempt()
    assert await service.sql("SELECT FROM enrollment.token") == []


async def test_a_weak_secret_is_refused(service: Enrollment, tmp_path: Path) -> None:
    """What is stored as a plain hash must have too much entropy to be guessed."""
    weak = tmp_path / "weak"
    weak.write_text("hunter2")
    with pytest.raises(ValueError, match="at least 32 characters"):
        await _first_start(service, weak).attempt()


async def test_a_token_gives_labels_and_groups(service: Enrollment) -> None:
    """To each device that it admits; labels that a device has already stay."""
    group = await service.group("cart-3")
    filtered = await service.group("all", filter="serial = SN*")
    token = await service.token(labels={"room": " 214 ", "year": "7"}, group_ids=[group.id])
    assert (dict(token.labels), list(token.group_ids)) == ({"room": "214", "year": "7"}, [group.id])
    (event,) = await service.events("token_created")
    assert event["after"]["labels"] == {"room": "214", "year": "7"}
    assert event["after"]["groupIds"] == [group.id]
    device = (await service.enrolled(token.pre_shared_key))["device_id"]
    assert await service.groups_of(device) == {"cart-3", "all"}
    assert dict((await service.registration(device)).labels) == {"room": "214", "year": "7"}
    (members,) = await service.events("group_members_changed")
    assert (members["actor"], members["after"]["addedSerials"]) == ("system", ["SN-1"])
    await service.label(device, room="215")
    await service.act("AllowReenrollment", device)
    await service.enrolled(token.pre_shared_key)
    assert dict((await service.registration(device)).labels) == {"room": "215", "year": "7"}
    # A retry is nothing new.
    assert len(await service.events("group_members_changed")) == 1
    for more, field in (
        ({"group_ids": [filtered.id]}, "groupIds[0]"),
        ({"group_ids": [group.id, str(ORG.id)]}, "groupIds[1]"),
        ({"group_ids": [(await service.group("x", OTHER)).id]}, "groupIds[0]"),
        ({"group_ids": ["cart-3"]}, "groupIds[0]"),
        ({"labels": {"Room": "1"}}, "labels.Room"),
    ):
        assert (await refusal(service.token(**more))).fields == [field]


async def test_a_token_outlives_its_group(service: Enrollment) -> None:
    """What is deleted is not given any more; the token admits as before."""
    group = await service.group("cart-3")
    token = await service.token(group_ids=[group.id])
    await service.groups.DeleteDeviceGroup(
        pb.DeleteDeviceGroupRequest(id=group.id), metadata=service.admin
    )
    device = (await service.enrolled(token.pre_shared_key))["device_id"]
    assert await service.groups_of(device) == set()
    shown = await service.tokens.GetEnrollmentToken(
        pb.GetEnrollmentTokenRequest(id=token.id), metadata=service.admin
    )
    assert list(shown.group_ids) == []
