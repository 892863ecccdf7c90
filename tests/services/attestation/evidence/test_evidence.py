"""Evidence is taken, judged once, stored and told of."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from evergreen.v1 import device_pb2
from servicekit.call import Call, Caller, CallerKind
from servicekit.errors import DomainError
from services.attestation.devices import store as device_store
from services.attestation.evidence import service, store
from services.attestation.evidence.api import DeviceApi
from services.attestation.evidence.examiners import BODY_BYTES, LARGE_BODY, Examiners
from services.attestation.evidence.service import Attestations
from services.attestation.evidence.wire import from_json
from tests.support import callers
from tests.support.attestation import CORPUS, ORG, SISTER, World, eventually, evidence_of, world
from tests.support.refusals import refusal

__all__ = ["world"]

GOOD = "agent-m1-grub"
OTHERS = ("agent-m1-loc3", "agent-m1-os2", "agent-m2-grub", "agent-m2-uki-sb")


def message_of(evidence: dict[str, Any]) -> device_pb2.AttestationEvidence:
    return device_pb2.AttestationEvidence(
        nonce=base64.b64decode(evidence["nonce"]),
        ak_public=base64.b64decode(evidence["ak_public"]),
        quotes=[
            device_pb2.AttestationQuote(
                version=quote["version"],
                quote=base64.b64decode(quote["quote"]),
                signature=base64.b64decode(quote["signature"]),
            )
            for quote in evidence["quotes"]
        ],
        pcrs=evidence["pcrs"],
    )


async def test_only_the_device_itself_attests(world: World) -> None:
    """Over JSON and gRPC; for another device, or as a user, it is refused."""
    device = world.add()
    body = {"device_id": str(device), "evidence": evidence_of(GOOD)}
    for headers, sent, status in [
        (callers.anonymous(), body, 401),
        (callers.user(ORG.id), body, 401),
        (None, body | {"device_id": str(uuid4())}, 403),
    ]:
        answer = await world.post(device, sent, headers=headers)
        assert answer.status_code == status, answer.text
        assert answer.json()["message"] == answer.json()["error"]
    vouched = callers.device(device, ORG.id)
    evidence = message_of(evidence_of(GOOD))
    own = device_pb2.AttestBootRequest(device_id=str(device), evidence=evidence)
    other = device_pb2.AttestBootRequest(device_id=str(uuid4()), evidence=evidence)
    for message, caller, status in [
        (own, callers.user(ORG.id), "UNAUTHENTICATED"),
        (other, vouched, "PERMISSION_DENIED"),
        (device_pb2.AttestBootRequest(device_id=own.device_id), vouched, "INVALID_ARGUMENT"),
    ]:
        found = await refusal(world.devices.AttestBoot(message, metadata=caller))
        assert found.body["status"] == status
    assert (await world.sql("SELECT count(*) AS n FROM attestation.boot_verdict"))[0]["n"] == 0
    answered = await world.devices.AttestBoot(own, metadata=vouched)
    assert answered.verdict == "SELF_CONSISTENT"
    assert list(answered.reasons) == ["DEVICE_CHOSE_NONCE", "AK_NOT_BOUND"]
    again = (await world.post(device, body)).json()
    assert again["attested_at"].startswith(answered.attested_at.ToJsonString()[:19])


TAKEN = [
    ({"nonce": ""}, "NONCE_SIZE"),
    ({"nonce": "no base64!"}, "NONCE_SIZE"),
    ({"nonce": "A" * 200_000}, "NONCE_SIZE"),
    ({"nonce": None, "ak_public": None, "quotes": None, "pcrs": None}, "NONCE_SIZE"),
    ({"ak_public": "A" * 200_000}, "AK_MALFORMED"),
    ({"ak_public": "é"}, "AK_MALFORMED"),
    ({"quotes": []}, "QUOTE_COUNT"),
    ({"quotes": [{}] * 40}, "QUOTE_COUNT"),
    ({"quotes": [{"version": "2.0", "quote": None, "signature": ""}]}, "QUOTE_MALFORMED"),
    ({"quotes": [{"version": "2.0", "quote": "/1RDR4AY", "signature": ""}]}, "QUOTE_MALFORMED"),
    ({"pcrs": {"first": "no digits"}}, "PCRS_MALFORMED"),
    ({"pcrs": {str(index): "00" * 32 for index in range(1000)}}, "PCRS_MALFORMED"),
]


async def test_evidence_of_the_right_shape_is_taken_whatever_it_says(world: World) -> None:
    """An error would make the released agent send an error event every five minutes for ever."""
    for changed, reason in TAKEN:
        assert await world.attest(world.add(), evidence_of(GOOD) | changed) == ("FAILED", [reason])


async def test_members_that_are_not_known_change_nothing(world: World) -> None:
    """An agent to come may send more."""
    evidence = evidence_of(GOOD) | {"more": {"x": [1]}}
    assert (await world.attest(world.add(), evidence))[0] == "SELF_CONSISTENT"


SHAPELESS = [
    (None, "evidence"),
    ([], "evidence"),
    ({"nonce": 1}, "evidence.nonce"),
    ({"ak_public": {}}, "evidence.ak_public"),
    ({"quotes": {}}, "evidence.quotes"),
    ({"quotes": [{}] * 1001}, "evidence.quotes"),
    ({"quotes": [None]}, "evidence.quotes[0]"),
    ({"quotes": [{}, {"quote": 2}]}, "evidence.quotes[1].quote"),
    ({"pcrs": []}, "evidence.pcrs"),
    ({"pcrs": {"3": 4}}, "evidence.pcrs.3"),
    ({"pcrs": {"3": "\ud800"}}, "evidence.pcrs.3"),
    ({"pcrs": {"\udfff": "00"}}, "evidence.pcrs"),
    ({"more": ["\ud800"]}, "evidence.more[0]"),
]


async def test_what_has_another_shape_is_refused_by_its_name(world: World) -> None:
    """The answer says which field has a wrong type or holds text that is not Unicode."""
    for evidence, field in SHAPELESS:
        device = world.add()
        answer = await world.post(device, {"device_id": str(device), "evidence": evidence})
        assert answer.status_code == 400
        assert answer.json()["message"].startswith(f"{field}: ")


async def test_the_same_evidence_is_judged_once_within_ten_minutes(world: World) -> None:
    """A repeated call gets the first answer, and its time; later the evidence is a replay."""
    device = world.add()
    body = {"device_id": str(device), "evidence": evidence_of(GOOD)}
    first = (await world.post(device, body)).json()
    others = await asyncio.gather(*(world.post(device, body) for _ in range(8)))
    assert [other.json() for other in others] == [first] * 8
    # The order of the registers is not a part of what was said.
    turned = evidence_of(GOOD)
    turned["pcrs"] = dict(reversed(turned["pcrs"].items()))
    assert (await world.post(device, body | {"evidence": turned})).json() == first
    assert len((await world.history(device)).verdicts) == 1
    world.clock.ahead = timedelta(minutes=9)
    # It has booted something else meanwhile, and hides it behind the old evidence.
    assert (await world.attest(device, evidence_of(OTHERS[0])))[0] == "SELF_CONSISTENT"
    assert (await world.post(device, body)).json() == first
    shown = await world.get(device)
    assert dict(shown.pcrs) == evidence_of(OTHERS[0])["pcrs"]
    world.clock.ahead = timedelta(minutes=11)
    replayed = (await world.post(device, body)).json()
    assert (replayed["verdict"], replayed["reasons"]) == ("FAILED", ["EVIDENCE_REPLAYED"])
    assert replayed["attested_at"] > first["attested_at"]
    shown = await world.get(device)
    assert (shown.verdict, dict(shown.pcrs), shown.bank) == ("FAILED", {}, "")
    # Fresh evidence makes it good again.
    assert (await world.attest(device, evidence_of(OTHERS[1])))[0] == "SELF_CONSISTENT"


async def test_a_nonce_and_a_key_are_of_one_device_in_the_whole_installation(
    world: World,
) -> None:
    """Also across organisations; the answer does not say whose they are."""
    owner, thief = world.add(), world.add(SISTER.id)
    assert (await world.attest(owner, evidence_of("sent-again")))[0] == "SELF_CONSISTENT"
    stolen = await world.attest(thief, evidence_of("replayed-by-another-device"), SISTER.id)
    assert stolen == ("FAILED", ["NONCE_REPLAYED"])
    key = evidence_of("ak-of-another-device")
    case = CORPUS["ak-of-another-device"]
    for body in case["before"]:
        await world.attest(body["device_id"], body["evidence"])
    assert await world.attest(thief, key, SISTER.id) == ("FAILED", ["AK_OF_ANOTHER_DEVICE"])
    rows = await world.sql("SELECT device_id FROM attestation.seen_key WHERE device_id = $1", thief)
    assert rows == []


async def test_failed_evidence_uses_nothing_up(world: World) -> None:
    """Who copies a nonce into evidence that fails does not make its owner's a replay."""
    thief, owner = world.add(), world.add()
    bad = evidence_of(GOOD)
    bad["pcrs"]["0"] = "00" * 32
    assert await world.attest(thief, bad) == ("FAILED", ["PCR_DIGEST_MISMATCH"])
    assert (await world.attest(owner, evidence_of(GOOD)))[0] == "SELF_CONSISTENT"


async def test_a_change_of_the_verdict_is_told_once(world: World) -> None:
    """With what it was before, in the event that is the audit entry too; and boundedly often."""
    device = world.add()
    await world.attest(device, evidence_of(GOOD))
    await world.attest(device, evidence_of(OTHERS[0]))
    bad = evidence_of(OTHERS[1])
    bad["pcrs"]["0"] = "00" * 32
    await world.attest(device, bad)
    first, second = await world.events()
    assert first["subject"] == f"devices/{device}"
    assert first["tenantid"] == str(ORG.id)
    assert first["data"]["actor"] == f"device:{device}"
    assert first["data"]["before"] == {"verdict": "NONE"}
    after = first["data"]["after"]
    assert (after["verdict"], after["reasons"]) == (
        "SELF_CONSISTENT",
        ["DEVICE_CHOSE_NONCE", "AK_NOT_BOUND"],
    )
    assert second["data"]["before"] == {"verdict": "SELF_CONSISTENT"}
    assert second["data"]["after"]["reasons"] == ["PCR_DIGEST_MISMATCH"]
    # Neither keys nor registers leave the service in events.
    assert "pcrs" not in json.dumps(second)
    await world.sql(
        "UPDATE attestation.device SET told_times = $2 WHERE device_id = $1",
        device,
        service.MOST_TOLD,
    )
    assert (await world.attest(device, evidence_of(OTHERS[1])))[0] == "SELF_CONSISTENT"
    assert len(await world.events()) == 2
    world.clock.ahead = timedelta(days=1)
    assert (await world.attest(device, evidence_of(OTHERS[2])))[0] == "SELF_CONSISTENT"
    told = (await world.events())[2]["data"]
    assert (told["before"]["verdict"], told["after"]["verdict"]) == ("FAILED", "SELF_CONSISTENT")


async def test_too_many_at_once_are_refused_with_a_delay(world: World) -> None:
    """429 that differs from caller to caller; a tenant that floods leaves room for others."""
    held = Examiners(6)
    flood, quiet = str(ORG.id), str(SISTER.id)
    with held.place(flood), held.place(flood), held.place(flood), held.place(flood):
        with pytest.raises(DomainError) as full, held.place(flood):
            pass
        assert (full.value.code.name, full.value.reason) == (
            "RESOURCE_EXHAUSTED",
            "TOO_MANY_ATTESTATIONS",
        )
        assert full.value.retry_after
        with held.place(quiet):
            pass
    with held.place(flood):
        pass
    caller = Caller(CallerKind.DEVICE, id=str(uuid4()), tenant_id=flood)
    with (
        held.room_for_body(caller, 20 << 20),
        pytest.raises(DomainError, match="at once"),
        held.room_for_body(caller, 20 << 20),
    ):
        pass
    with held.room_for_body(caller, 20 << 20):
        pass


async def test_a_full_service_answers_429_and_takes_the_evidence_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a refused call is stored, and its device may send the same again."""
    devices = [world.add() for _ in range(6)]
    begun, go_on = asyncio.Event(), asyncio.Event()
    original = Examiners.run

    async def slow(self: Examiners, tenant_id: str, work: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await original(self, tenant_id, work)

    small = Attestations(world.kit.database, world.kit.outbox, Examiners(1), world.clock)
    monkeypatch.setattr(Examiners, "run", slow)

    def call(device: UUID) -> Call:
        caller = Caller(CallerKind.DEVICE, id=str(device), tenant_id=str(ORG.id))
        return Call("/evergreen.v1.DeviceService/AttestBoot", caller, "request")

    first = asyncio.create_task(
        small.attest(call(devices[0]), lambda: from_json(evidence_of(GOOD)))
    )
    await begun.wait()
    with pytest.raises(DomainError, match="too many attestations"):
        await small.attest(call(devices[1]), lambda: from_json(evidence_of(OTHERS[0])))
    go_on.set()
    assert (await first).verdict == "SELF_CONSISTENT"
    later = await small.attest(call(devices[1]), lambda: from_json(evidence_of(OTHERS[0])))
    assert later.verdict == "SELF_CONSISTENT"


async def test_organisations_take_turns_with_the_threads() -> None:
    """However many pieces of one wait; who gives up makes room, and no thread is lost."""
    examiners = Examiners(100)
    go_on = threading.Event()
    order: list[str] = []

    def task(tenant: str, work: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(examiners.run(tenant, work))

    held = [task("flood", go_on.wait) for _ in range(2)]
    await asyncio.sleep(0)
    flood = [task("flood", lambda: order.append("flood")) for _ in range(20)]
    await asyncio.sleep(0)
    flood[0].cancel()
    quiet = task("quiet", lambda: order.append("quiet"))
    await asyncio.sleep(0)
    # Its thread is at work for longer than its call waits.
    held[0].cancel()
    go_on.set()
    await quiet
    await asyncio.gather(*held, *flood, return_exceptions=True)
    assert order.index("quiet") <= 3
    assert order.count("flood") == 19
    with pytest.raises(ZeroDivisionError):
        await examiners.run("quiet", lambda: 1 // 0)
    barrier = threading.Barrier(2, timeout=30)
    await asyncio.gather(*(examiners.run("quiet", barrier.wait) for _ in range(2)))


async def test_large_evidence_over_grpc_needs_room_too(world: World) -> None:
    """As over JSON; small evidence needs none."""
    examiners = Examiners(2)
    api = DeviceApi(Attestations(world.kit.database, world.kit.outbox, examiners, world.clock))
    caller = Caller(CallerKind.DEVICE, id=str(world.add()), tenant_id=str(ORG.id))
    context: Any = SimpleNamespace(call=Call("/evergreen.v1.DeviceService/AttestBoot", caller, "r"))
    evidence = message_of(evidence_of(GOOD))
    small = device_pb2.AttestBootRequest(device_id=caller.id, evidence=evidence)
    evidence.event_log = bytes(LARGE_BODY)
    large = device_pb2.AttestBootRequest(device_id=caller.id, evidence=evidence)
    with examiners.room_for_body(caller, BODY_BYTES):
        with pytest.raises(DomainError, match="too many attestations"):
            await api.attest_boot(large, context)
        assert (await api.attest_boot(small, context)).verdict == "SELF_CONSISTENT"
    assert (await api.attest_boot(large, context)).verdict == "FAILED"


async def test_what_is_kept_of_a_device_is_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest verdicts, nonces and keys stay; what was seen long ago is forgotten."""
    monkeypatch.setattr(store, "MOST_VERDICTS", 3)
    monkeypatch.setattr(store, "MOST_GOOD", 2)
    monkeypatch.setattr(store, "MOST_SEEN", 2)
    device = world.add()
    for minutes, name in enumerate((GOOD, *OTHERS)):
        world.clock.ahead = timedelta(minutes=minutes)
        await world.attest(device, evidence_of(name))
    shown = (await world.history(device)).verdicts
    assert [v.verdict for v in shown] == ["SELF_CONSISTENT"] * 3
    assert dict(shown[0].pcrs) == evidence_of(OTHERS[3])["pcrs"]
    for table in ("seen_nonce", "seen_key"):
        assert len(await world.sql(f"SELECT FROM attestation.{table}")) == 2
    attestations = Attestations(world.kit.database, world.kit.outbox, Examiners(1), world.clock)
    await attestations.forget_once()
    assert len(await world.sql("SELECT FROM attestation.seen_nonce")) == 2
    world.clock.ahead = timedelta(days=401)
    await attestations.forget_once()
    for table in ("seen_nonce", "seen_key"):
        assert await world.sql(f"SELECT FROM attestation.{table}") == []


async def test_bad_evidence_does_not_drive_out_the_good(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much of it a device sends, its newest better verdicts stay."""
    monkeypatch.setattr(store, "MOST_VERDICTS", 3)
    monkeypatch.setattr(store, "MOST_GOOD", 2)
    device = world.add()
    for name in (GOOD, *OTHERS[:2]):
        await world.attest(device, evidence_of(name))
    for number in range(5):
        await world.attest(device, {"nonce": "", "pcrs": {"0": str(number)}})
    shown = (await world.history(device)).verdicts
    assert [v.verdict for v in shown] == ["FAILED"] * 3 + ["SELF_CONSISTENT"] * 2
    assert dict(shown[3].pcrs) == evidence_of(OTHERS[1])["pcrs"]
    assert dict(shown[4].pcrs) == evidence_of(OTHERS[0])["pcrs"]


async def test_of_a_deleted_device_nothing_is_left_and_nothing_comes_back(world: World) -> None:
    """Its nonces and keys go too; a call that was on its way when it was deleted stores nothing."""
    device, stays = world.add(), world.add()
    await world.attest(device, evidence_of(GOOD))
    await world.attest(stays, evidence_of(OTHERS[0]))
    world.change(device, ORG.id, "decommissioned", deleted=True)

    async def gone() -> bool:
        tables = ("device", "boot_verdict", "seen_nonce", "seen_key")
        return [len(await world.sql(f"SELECT FROM attestation.{table}")) for table in tables] == [
            1,
            1,
            1,
            1,
        ]

    await eventually(gone)
    answer = await world.post(device, {"device_id": str(device), "evidence": {}})
    assert answer.status_code == 401
    async with world.kit.database.system_transaction("a call that was on its way") as connection:
        assert await device_store.lock_device(connection, device, ORG.id) is None
    assert await gone()


@pytest.mark.parametrize("table", ["device", "boot_verdict"])
async def test_the_database_refuses_verdicts_that_nothing_binds(world: World, table: str) -> None:
    """Neither KNOWN_TPM nor VERIFIED stands without a TPM that the device is bound to."""
    device = world.add()
    await world.attest(device, evidence_of(GOOD))
    for verdict in ("KNOWN_TPM", "VERIFIED"):
        with pytest.raises(asyncpg.CheckViolationError, match="verdict_bound"):
            await world.sql(f"UPDATE attestation.{table} SET verdict = $1", verdict)
